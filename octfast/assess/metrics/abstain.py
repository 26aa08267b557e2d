"""What a model gains by keeping silent where it is unsure: risk against coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from octfast.assess.metrics.clustered import wilson_of_firsts
from octfast.assess.metrics.definitions import ratio
from octfast.assess.metrics.intervals import Proportion, choose_interval, resampled_weights
from octfast.model.decide import Rule, decide


def coverage_risk(table: pd.DataFrame) -> pd.DataFrame:
    """The share of wrong answers among those the model gives, for every threshold of its probability.

    El-Yaniv and Wiener, On the Foundations of Noise-free Selective Classification. Scans of equal probability are kept
    or left together, so the order of the table means nothing.

    Returns
    -------
    A row a distinct probability, from the surest: `threshold` (scans with at least this probability are answered),
    `scans` (answered), `coverage` (their share), `wrong`, `risk` (the share of wrong ones among the answered) with its
    95% interval `risk_low`, `risk_high` (see `octfast.assess.metrics.clustered`).
    """
    table = table.sort_values("probability", ascending=False, kind="stable")
    wrong = (table["label"] != table["predicted"]).to_numpy()
    low, high = wilson_of_firsts(wrong, pd.factorize(table["patient"])[0])
    threshold = table["probability"].to_numpy(dtype=float)
    last = np.flatnonzero(np.diff(threshold, append=np.nan) != 0)
    out = pd.DataFrame({"threshold": threshold, "scans": np.arange(1, len(table) + 1), "wrong": np.cumsum(wrong)})
    out["coverage"], out["risk"] = out["scans"] / max(1, len(table)), out["wrong"] / out["scans"]
    out = out.assign(risk_low=low, risk_high=high).iloc[last].reset_index(drop=True)
    return out[["threshold", "scans", "coverage", "wrong", "risk", "risk_low", "risk_high"]]


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
    return table[_is_answered(table, below)]


def abstain_metrics(
    table: pd.DataFrame, below: float, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> pd.DataFrame:
    """How often a model answers that abstains below a probability, and how often it is then right, with intervals.

    Returns
    -------
    Two rows, `coverage` (answered of all) and `accuracy` (right of the answered), with `metric`, `value`, `low`,
    `high`, `method`, by the same resamples of patients as the metrics of `evaluate_table`.

    Raises
    ------
    UsageError : no probability.
    """
    kept = _is_answered(table, below)
    right = kept & (table["label"] == table["predicted"]).to_numpy()
    owner = pd.factorize(table["patient"])[0]
    patients = int(owner.max()) + 1
    sums = np.stack([np.bincount(owner, counted, patients) for counted in (np.ones(len(owner)), kept, right)])
    drawn = np.concatenate([sums @ w for w in resampled_weights(patients, resamples, seed, len(owner))], axis=1)
    single = patients == len(owner)
    rows: list[list[Any]] = []
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


def _is_answered(table: pd.DataFrame, below: float) -> np.ndarray:
    """Which scans are answered, as `decide` has it, which looks at no other probability than the highest."""
    return ~decide(table["probability"].to_numpy(), Rule(("predicted",), abstain_below=below)).abstained  # type: ignore[operator]


def _share(part: float, whole: int) -> float | None:
    return float(part / whole) if whole else None
