"""How honest a table's probabilities are: calibration error, reliability by bins, log-loss and Brier score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from octfast.assess.metrics.clustered import wilson_of_groups
from octfast.assess.metrics.definitions import ratio
from octfast.model.temperature import bin_of, calibration_error


def ece(table: pd.DataFrame, classes: Sequence[str], bins: int = 15) -> float:
    """Expected calibration error of the predicted class: see `octfast.model.temperature.calibration_error`."""
    return calibration_error(_confidence(table, classes), _right(table), bins)


def ece_by_chance(
    table: pd.DataFrame, classes: Sequence[str], bins: int = 15, draws: int = 200, seed: int = 0
) -> float:
    """The ECE that honest probabilities would show on as many scans: the mean over draws of who is right from them.

    The ECE of a finite table is never 0 (Broecker and Smith, Increasing the Reliability of Reliability Diagrams, draw
    such tables); an ECE near this one gives no reason to doubt the probabilities.
    """
    confidence = _confidence(table, classes)
    rng = np.random.default_rng(seed)
    drawn = [calibration_error(confidence, rng.random(len(confidence)) < confidence, bins) for _ in range(draws)]
    return float(np.mean(drawn))


def reliability(table: pd.DataFrame, classes: Sequence[str], bins: int = 15) -> pd.DataFrame:
    """How often the predicted class is right, by its probability.

    Returns
    -------
    A row a bin of equal width: `low`, `high` (the bin holds its upper edge), `count`, mean `confidence`, `accuracy`
    with its 95% interval `accuracy_low`, `accuracy_high` (see `octfast.assess.metrics.clustered`). What an empty bin
    has not is NaN.
    """
    confidence, right = _confidence(table, classes), _right(table)
    at = bin_of(confidence, bins)
    count = np.bincount(at, minlength=bins)
    hits = np.bincount(at, right, bins).astype(int)
    edges = np.linspace(0, 1, bins + 1)
    low, high = wilson_of_groups(right, pd.factorize(table["patient"])[0], at, bins)
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "count": count,
            "confidence": ratio(np.bincount(at, confidence, bins), count),
            "accuracy": ratio(hits, count),
            "accuracy_low": low,
            "accuracy_high": high,
        }
    )


def calibration_scores(table: pd.DataFrame, classes: Sequence[str]) -> dict[str, float]:
    """`nll` (nats), `brier` (the squared errors summed over the classes, 0 to 2), `ece` and `ece_by_chance`."""
    p = table[[f"p_{c}" for c in classes]].to_numpy(dtype=float)
    actual = table["label"].to_numpy(dtype=object)[:, None] == np.asarray(list(classes), dtype=object)
    return {
        "nll": float(table["loss"].mean()),
        "brier": float(((p - actual) ** 2).sum(1).mean()),
        "ece": ece(table, classes),
        "ece_by_chance": ece_by_chance(table, classes),
    }


def _confidence(table: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    return table[[f"p_{c}" for c in classes]].to_numpy(dtype=float).max(1, initial=0)


def _right(table: pd.DataFrame) -> np.ndarray:
    return (table["label"] == table["predicted"]).to_numpy()
