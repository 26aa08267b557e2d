"""What corrected labels change: heads trained with and without them, judged on the scans that nobody relabelled."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from octfast.assess.metrics.intervals import percentiles, resampled_weights
from octfast.errors import DataError
from octfast.train.again.again import Stored
from octfast.train.again.again_units import StoredUnits


@dataclass(frozen=True)
class Effect:
    """Before and after, on scans whose labels stayed as they were.

    Attributes
    ----------
    scans, patients : what it is judged on.
    relabelled, left_out : how many scans the corrections changed.
    figures : of `log_loss` and `accuracy` each `before`, `after`, `difference` (after minus before), and the 95%
        interval of the difference, `low` and `high`, by a bootstrap over patients.
    seconds : that it took.
    """

    scans: int
    patients: int
    relabelled: int
    left_out: int
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def effect_of(
    stored: Stored | StoredUnits,
    changes: pd.DataFrame,
    before: np.ndarray | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Effect:
    """Train the heads of the folds on corrected labels, and compare their answers with those from the labels before.

    Both are out-of-fold answers to the same scans by the same folds, seeds and schedule: only the labels differ.

    Parameters
    ----------
    stored : the run's features, see `octfast.train.again.again.stored_features` and
        `octfast.train.again.again_units.stored_units`.
    changes : `path` (absolute) and `new`, the corrected label, or "" for a scan that is left out.
    before : out-of-fold logits on the labels as they were, where they are known already.
    resamples : of the patients.

    Raises
    ------
    DataError : every scan was changed, so that none is left to judge by.
    UsageError : see `Stored.out_of_fold`.
    """
    start = time.monotonic()
    old = stored.scans["label"].to_numpy()
    wanted = stored.scans["path"].map(dict(zip(changes["path"], changes["new"], strict=True)))
    drop = (wanted == "").to_numpy()
    new = np.where(wanted.isna() | drop, old, wanted)
    same = (new == old) & ~drop
    if not same.any():
        raise DataError("every scan was changed, so that none is left to judge by", "look at fewer scans first")
    if before is None:
        before = stored.out_of_fold(old)
    after = stored.out_of_fold(new, ~drop)
    y = np.array([stored.classes.index(label) for label in old[same]])
    scores = {}
    for name, logits in (("before", before[same]), ("after", after[same])):
        loss = -log_softmax(logits.astype(float), axis=1)[np.arange(len(y)), y]
        scores[name] = np.stack([loss, logits.argmax(1) == y])
    patients, owner = np.unique(stored.scans.loc[same, "patient"], return_inverse=True)
    # A mean over scans is a ratio of sums over patients, so that only these are drawn.
    count = np.bincount(owner).astype(float)
    change = scores["after"] - scores["before"]
    sums = np.stack([np.bincount(owner, weights=c) for c in change])
    drawn = [sums @ w / (count @ w) for w in resampled_weights(len(patients), resamples, seed, len(patients))]
    differences = np.concatenate(drawn, axis=1)
    figures = {}
    for i, metric in enumerate(("log_loss", "accuracy")):
        low, high = percentiles(differences[i])
        figures[metric] = {
            "before": float(scores["before"][i].mean()),
            "after": float(scores["after"][i].mean()),
            "difference": float(change[i].mean()),
            "low": low,
            "high": high,
        }
    relabelled = int((new != old).sum())
    return Effect(len(y), len(patients), relabelled, int(drop.sum()), figures, round(time.monotonic() - start, 2))
