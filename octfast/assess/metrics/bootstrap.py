"""ROC AUC and average precision for many weightings of the same scans at once, which is what a bootstrap needs."""

from __future__ import annotations

import numpy as np

from octfast.assess.metrics.definitions import ratio

# Sums of whole numbers are exact in float32 below this, and take half the memory and time of float64.
_EXACT = 1 << 22


class Ranked:
    """Scans in the order of one score, so that any weighting gives ROC AUC and average precision without sorting.

    Parameters
    ----------
    scores : of shape (n,).
    positive : which scans are of the class, bool of shape (n,).
    owner : the row of the weights that each scan takes, int of shape (n,): its patient.
    """

    def __init__(self, scores: np.ndarray, positive: np.ndarray, owner: np.ndarray):
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        self._owner = owner[order]
        n = len(order)
        new = np.ones(n, dtype=bool)
        new[1:] = ranked[1:] != ranked[:-1]
        starts = np.flatnonzero(new)
        ends = np.append(starts[1:], n) - 1
        # Only ties with a positive in them change either metric.
        hits = np.flatnonzero(positive[order])
        tie = (np.cumsum(new) - 1)[hits]
        last = np.ones(len(hits), dtype=bool)
        last[:-1] = tie[1:] != tie[:-1]
        self._positives = self._owner[hits]
        self._last = None if last.all() else np.flatnonzero(last)
        self._ends, self._starts = ends[tie[last]], starts[tie[last]]
        self._exact = n < _EXACT

    def areas(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ROC AUC and average precision as scikit-learn defines them with `sample_weight`.

        Parameters
        ----------
        weights : whole numbers, of shape (owners, b); float32 is computed in single precision, anything else in double.

        Returns
        -------
        Two arrays of shape (b,), NaN where positives or negatives are missing.
        """
        single = self._exact and np.asarray(weights).dtype == np.float32
        weights = np.asarray(weights, dtype=np.float32 if single else np.float64)
        b = weights.shape[1]
        if not len(self._positives):
            return np.full(b, np.nan), np.full(b, np.nan)
        below = np.take(weights, self._owner, axis=0)
        np.cumsum(below, axis=0, out=below)
        gained = np.take(weights, self._positives, axis=0)
        hits = np.cumsum(gained, axis=0)
        if self._last is not None:
            hits = np.take(hits, self._last, axis=0)
            gained = hits.copy()
            gained[1:] -= hits[:-1]
        positives, negatives = hits[-1].astype(float), (below[-1] - hits[-1]).astype(float)
        marked = np.take(below, self._ends, axis=0)
        before = np.take(below, self._starts - 1, axis=0)
        before[self._starts == 0] = 0
        del below
        # Average precision: the sum over ties of the gain in recall times the precision there.
        precision = np.divide(hits, marked, out=np.zeros_like(hits), where=marked > 0)
        precision *= gained
        area = precision.sum(0, dtype=float)
        # ROC AUC: each positive beats the negatives below its tie, and half of those in it. `before` and `marked`
        # become the negatives above the tie and down to its end.
        marked -= hits
        before -= hits
        before += gained
        marked += before
        marked *= gained
        beaten = positives * negatives - 0.5 * marked.sum(0, dtype=float)
        auc = ratio(beaten, positives * negatives)
        return auc, np.where(negatives > 0, ratio(area, positives), np.nan)
