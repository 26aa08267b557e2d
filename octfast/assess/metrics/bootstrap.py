"""Figures of merit for many weightings of the same scans at once, which is what a bootstrap needs."""

from __future__ import annotations

import numpy as np

# Sums of whole numbers are exact in float32 below this, and take half the memory and time of float64.
_EXACT = 1 << 22


def confusion_figures(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of confusion matrices, by scikit-learn's definitions, NaN where a figure is undefined.

    Parameters
    ----------
    counts : actual by predicted by weighting, of shape (classes, classes, b).

    Returns
    -------
    Of shape (b,) each: `accuracy`; `balanced_accuracy`, the mean recall of the classes that occur; `macro_f1`, the
    mean F1 of the classes that occur or were predicted; `cohen_kappa` (Cohen 1960); `matthews`, the correlation of
    actual and predicted class (Gorodkin 2004).
    """
    counts = np.asarray(counts, dtype=float)
    actual, predicted = counts.sum(1), counts.sum(0)
    right = np.einsum("iib->ib", counts)
    n = actual.sum(0)
    hits = right.sum(0)
    chance = (actual * predicted).sum(0)
    spread = (n**2 - (actual**2).sum(0)) * (n**2 - (predicted**2).sum(0))
    return {
        "accuracy": ratio(hits, n),
        "balanced_accuracy": _mean_of_defined(ratio(right, actual)),
        "macro_f1": _mean_of_defined(ratio(2 * right, actual + predicted)),
        "cohen_kappa": ratio(n * hits - chance, n**2 - chance),
        "matthews": ratio(n * hits - chance, np.sqrt(np.maximum(spread, 0))),
    }


def one_versus_rest(counts: np.ndarray) -> dict[str, np.ndarray]:
    """`two_by_two` of each class against the others, of shape (classes, b) each; counts as in `confusion_figures`."""
    counts = np.asarray(counts, dtype=float)
    tp = np.einsum("iib->ib", counts)
    fn, fp = counts.sum(1) - tp, counts.sum(0) - tp
    return two_by_two(tp, fn, fp, counts.sum((0, 1)) - tp - fn - fp)


def two_by_two(tp: np.ndarray, fn: np.ndarray, fp: np.ndarray, tn: np.ndarray) -> dict[str, np.ndarray]:
    """Sensitivity, specificity, PPV, NPV, F1 and likelihood ratios; NaN where a figure is undefined.

    A likelihood ratio is infinite where its denominator alone is 0: LR+ = sensitivity / (1 - specificity),
    LR- = (1 - sensitivity) / specificity.
    """
    sensitivity, specificity = ratio(tp, tp + fn), ratio(tn, tn + fp)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": ratio(tp, tp + fp),
        "npv": ratio(tn, tn + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "lr_positive": ratio(sensitivity, ratio(fp, tn + fp), unbounded=True),
        "lr_negative": ratio(ratio(fn, tp + fn), specificity, unbounded=True),
    }


def ratio(over: np.ndarray, under: np.ndarray, *, unbounded: bool = False) -> np.ndarray:
    """over / under; NaN where `under` is 0, or infinity there if `unbounded` and `over` is more than 0."""
    over, under = np.broadcast_arrays(np.asarray(over, dtype=float), np.asarray(under, dtype=float))
    out = np.full(over.shape, np.nan)
    np.divide(over, under, out=out, where=under > 0)
    if unbounded:
        out[(under == 0) & (over > 0)] = np.inf
    return out


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
        # Only ties with a positive in them move either figure.
        places = np.flatnonzero(positive[order])
        tie = (np.cumsum(new) - 1)[places]
        last = np.ones(len(places), dtype=bool)
        last[:-1] = tie[1:] != tie[:-1]
        self._positives = self._owner[places]
        self._last = None if last.all() else np.flatnonzero(last)
        self._ends, self._starts = ends[tie[last]], starts[tie[last]]
        self._whole = np.float32 if n < _EXACT else np.float64

    def figures(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ROC AUC and average precision as scikit-learn defines them with `sample_weight`.

        Parameters
        ----------
        weights : whole numbers, of shape (owners, b).

        Returns
        -------
        Two arrays of shape (b,), NaN where positives or negatives are missing.
        """
        weights = np.asarray(weights, dtype=self._whole)
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


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis, without NaN; NaN where there is nothing else."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0).sum(0), defined.sum(0))
