"""What a model gains by keeping silent where it is unsure: risk against coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from octfast.assess.metrics.bootstrap import ratio
from octfast.assess.metrics.intervals import Proportion, choose_interval, resampled_weights
from octfast.errors import UsageError


def coverage_risk(table: pd.DataFrame) -> pd.DataFrame:
    """The share of wrong answers among those the model gives, for every threshold of its probability.

    El-Yaniv and Wiener, On the Foundations of Noise-free Selective Classification. Scans of equal probability are kept
    or left together, so the order of the table means nothing.

    Returns
    -------
    A row a distinct probability, from the surest: `threshold` (scans with at least this probability are answered),
    `scans` (answered), `coverage` (their share), `wrong`, `risk` (the share of wrong ones among the answered) with its
    95% Wilson interval `risk_low`, `risk_high`, for which scans are taken for independent.
    """
    wrong = (table["label"] != table["predicted"]).groupby(table["probability"]).agg(["size", "sum"])[::-1].cumsum()
    out = pd.DataFrame({"threshold": wrong.index.to_numpy(dtype=float), "scans": wrong["size"].to_numpy()})
    out["coverage"] = out["scans"] / max(1, len(table))
    out["wrong"] = wrong["sum"].to_numpy()
    out["risk"] = out["wrong"] / out["scans"]
    # Wilson's score interval (Wilson 1927) for all rows at once: scipy takes one at a time, and there may be 100,000.
    z, n = 1.959963984540054, out["scans"]
    half = z * np.sqrt(out["wrong"] * (1 - out["risk"]) + z**2 / 4)
    for name, side in (("risk_low", -1), ("risk_high", 1)):
        out[name] = np.clip((out["wrong"] + z**2 / 2 + side * half) / (n + z**2), 0, 1)
    return out


def risk_area(curve: pd.DataFrame) -> float:
    """The area under a coverage-risk curve (AURC): the mean risk over all coverages, lower is better.

    Geifman, Uziel and El-Yaniv, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers. A model whose
    probabilities say nothing of its mistakes has its error rate.

    Parameters
    ----------
    curve : from `coverage_risk`.
    """
    if curve.empty:
        return float("nan")
    return float((np.diff(curve["coverage"], prepend=0) * curve["risk"]).sum())


def answered(table: pd.DataFrame, below: float) -> pd.DataFrame:
    """The rows of a Predictions table that a model answers which abstains below a probability.

    Raises
    ------
    UsageError : no probability.
    """
    return table[table["probability"] >= check_abstain(below)]


def check_abstain(below: float) -> float:
    """The same number, if it is one that can be asked for.

    Raises
    ------
    UsageError : no probability.
    """
    if not 0 <= below <= 1:
        raise UsageError(f"--abstain-below {below:g}: not a probability", "between 0 and 1, such as 0.8")
    return below


def abstain_figures(
    table: pd.DataFrame, below: float, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> pd.DataFrame:
    """How often a model answers that abstains below a probability, and how often it is then right, with intervals.

    Returns
    -------
    Two rows, `coverage` (answered of all) and `accuracy` (right of the answered), with `metric`, `value`, `low`,
    `high`, `method`, by the same resamples of patients as the figures of `evaluate_table`.

    Raises
    ------
    UsageError : no probability.
    """
    kept = (table["probability"] >= check_abstain(below)).to_numpy()
    right = kept & (table["label"] == table["predicted"]).to_numpy()
    owner = pd.factorize(table["patient"])[0]
    patients = int(owner.max()) + 1
    sums = np.stack([np.bincount(owner, marks, patients) for marks in (np.ones(len(owner)), kept, right)])
    drawn = np.concatenate([sums @ w for w in resampled_weights(patients, resamples, seed, len(owner))], axis=1)
    single = patients == len(owner)
    rows = []
    for metric, part, whole in (("coverage", kept, np.ones(len(owner), dtype=bool)), ("accuracy", right, kept)):
        of, among = (1, 0) if metric == "coverage" else (2, 1)
        counted = Proportion(int(part.sum()), int(whole.sum()), len(np.unique(owner[whole])))
        value = counted.successes / counted.trials if counted.trials else float("nan")
        found = choose_interval(value, ratio(drawn[of], drawn[among]), level=level, single=single, proportion=counted)
        rows.append([metric, value, *found])
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "method"])


def abstain_summary(table: pd.DataFrame, below: float) -> dict[str, Any]:
    """What comes of abstaining where the probability of the predicted class is below a threshold.

    Returns
    -------
    `below`; `scans`, `answered`, `abstained` and `coverage` (answered of all); `right` and `accuracy` of the answered,
    `accuracy_all` with none left out; `wrong_avoided`, the wrong answers among the abstained, and `right_lost`;
    `patients`, `patients_answered` (with a scan that is answered), `patients_right` (more than half of their answered
    scans are right) and `patients_accuracy`. A share of nothing is None.

    Raises
    ------
    UsageError : no probability.
    """
    kept = answered(table, below)
    right = table["label"] == table["predicted"]
    right_kept = kept["label"] == kept["predicted"]
    by_patient = right_kept.groupby(kept["patient"]).mean()
    patients_right = int((by_patient > 0.5).sum())
    return {
        "below": float(below),
        "scans": len(table),
        "answered": len(kept),
        "abstained": len(table) - len(kept),
        "coverage": _share(len(kept), len(table)),
        "right": int(right_kept.sum()),
        "accuracy": _share(right_kept.sum(), len(kept)),
        "accuracy_all": _share(right.sum(), len(table)),
        "wrong_avoided": int((~right).sum() - (~right_kept).sum()),
        "right_lost": int(right.sum() - right_kept.sum()),
        "patients": int(table["patient"].nunique()),
        "patients_answered": len(by_patient),
        "patients_right": patients_right,
        "patients_accuracy": _share(patients_right, len(by_patient)),
    }


def _share(part: float, whole: int) -> float | None:
    return float(part / whole) if whole else None
