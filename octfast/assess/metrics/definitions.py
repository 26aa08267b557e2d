"""METRICS, the one table of metrics: name, order, scale, meaning and function of each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


def ratio(over: np.ndarray, under: np.ndarray, *, unbounded: bool = False) -> np.ndarray:
    """over / under; NaN where `under` is 0, or infinity there if `unbounded` and `over` is more than 0."""
    over, under = np.broadcast_arrays(np.asarray(over, dtype=float), np.asarray(under, dtype=float))
    out = np.full(over.shape, np.nan)
    np.divide(over, under, out=out, where=under > 0)
    if unbounded:
        out[(under == 0) & (over > 0)] = np.inf
    return out


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis, without NaN; NaN where there is nothing else."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0).sum(0), defined.sum(0))


class Sums:
    """What the metrics over all classes are computed from, for b weightings of the same scans at once.

    Parameters
    ----------
    counts : scans, actual by predicted by weighting, of shape (classes, classes, b).
    loss, brier : sums over the scans, of shape (b,); None where not known.
    costs : of a mistake, actual by predicted, of shape (classes, classes); None where not known.
    areas : ROC AUC of each class, of shape (classes, b); None where not known.
    """

    def __init__(
        self,
        counts: np.ndarray,
        loss: np.ndarray | None = None,
        brier: np.ndarray | None = None,
        costs: np.ndarray | None = None,
        areas: np.ndarray | None = None,
    ):
        self.counts = np.asarray(counts, dtype=float)
        self.loss, self.brier, self.costs, self.areas = loss, brier, costs, areas
        self.actual, self.predicted = self.counts.sum(1), self.counts.sum(0)
        self.right = np.einsum("iib->ib", self.counts)
        self.n, self.hits = self.actual.sum(0), self.right.sum(0)
        self.chance = (self.actual * self.predicted).sum(0)


class TwoByTwo(NamedTuple):
    """Scans that are of a kind and called so, not called so, called so by mistake, and neither; of any one shape."""

    tp: np.ndarray
    fn: np.ndarray
    fp: np.ndarray
    tn: np.ndarray

    @classmethod
    def of(cls, actual: np.ndarray, called: np.ndarray) -> TwoByTwo:
        """Which scans are in each of the four, from which are of the kind and which called so; bool of shape (n,)."""
        return cls(actual & called, actual & ~called, ~actual & called, ~actual & ~called)

    def total(self) -> TwoByTwo:
        """The number of scans in each of the four."""
        return TwoByTwo(*(np.count_nonzero(part) for part in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Metric:
    """A metric: what it is called, how it is shown, what it says, and how it is computed.

    Attributes
    ----------
    key : its name in files.
    name : its name in words.
    meaning : what it says, for a reader.
    percent : whether it is shown as a percentage.
    unit : whether it lies between 0 and 1, or around 0 at worst, so that it can be drawn on that scale.
    higher_is_better : its direction.
    overall : computes it over all classes, of shape (b,).
    needs : what `Sums` must know for that beside the counts.
    share : gives the scans that it counts and those among which it counts them, where it is a proportion of a
        `TwoByTwo`.
    binary : computes it from a `TwoByTwo` where it is no proportion.
    sections : in which of "class" and "referral" it is reported, for one kind of scan against the others.
    """

    key: str
    name: str
    meaning: str
    percent: bool = False
    unit: bool = True
    higher_is_better: bool = True
    overall: Callable[[Sums], np.ndarray] | None = None
    needs: str = ""
    share: Callable[[TwoByTwo], tuple[np.ndarray, np.ndarray]] | None = None
    binary: Callable[[TwoByTwo], np.ndarray] | None = None
    sections: tuple[str, ...] = ()


def _matthews(s: Sums) -> np.ndarray:
    """Gorodkin 2004, for any number of classes."""
    spread = (s.n**2 - (s.actual**2).sum(0)) * (s.n**2 - (s.predicted**2).sum(0))
    return ratio(s.n * s.hits - s.chance, np.sqrt(np.maximum(spread, 0)))


def _sensitivity(t: TwoByTwo) -> tuple[np.ndarray, np.ndarray]:
    return t.tp, t.tp + t.fn


def _specificity(t: TwoByTwo) -> tuple[np.ndarray, np.ndarray]:
    return t.tn, t.tn + t.fp


_BOTH = ("class", "referral")
# In the order in which they are reported. Where scikit-learn has a metric, this is scikit-learn's definition.
_ROWS = (
    Metric("accuracy", "accuracy", "scans whose class was right", True, overall=lambda s: ratio(s.hits, s.n)),
    Metric(
        "balanced_accuracy",
        "balanced accuracy",
        "mean of the sensitivities of the classes",
        True,
        overall=lambda s: mean_of_defined(ratio(s.right, s.actual)),
    ),
    Metric(
        "macro_f1",
        "macro F1",
        "mean of the F1 of the classes",
        overall=lambda s: mean_of_defined(ratio(2 * s.right, s.actual + s.predicted)),
    ),
    Metric(
        "cohen_kappa",
        "Cohen's kappa",
        "agreement beyond chance; 1 is perfect, 0 is chance",
        overall=lambda s: ratio(s.n * s.hits - s.chance, s.n**2 - s.chance),
    ),
    Metric(
        "matthews",
        "Matthews correlation",
        "correlation of true and predicted class; 0 is chance",
        overall=_matthews,
    ),
    Metric(
        "macro_roc_auc",
        "macro ROC AUC",
        "mean of the ROC AUC of the classes",
        overall=lambda s: mean_of_defined(s.areas),  # type: ignore[arg-type]
        needs="areas",
    ),
    Metric(
        "nll",
        "log-loss",
        "mean cross entropy in nats; lower is better",
        unit=False,
        higher_is_better=False,
        overall=lambda s: ratio(s.loss, s.n),  # type: ignore[arg-type]
        needs="loss",
    ),
    Metric(
        "brier",
        "Brier score",
        "mean squared error of the probabilities, summed over classes; lower is better",
        unit=False,
        higher_is_better=False,
        overall=lambda s: ratio(s.brier, s.n),  # type: ignore[arg-type]
        needs="brier",
    ),
    Metric(
        "weighted_error",
        "weighted error",
        "mean cost of a scan; lower is better",
        unit=False,
        higher_is_better=False,
        overall=lambda s: ratio(np.einsum("ijb,ij->b", s.counts, s.costs), s.n),  # type: ignore[arg-type]
        needs="costs",
    ),
    Metric(
        "sensitivity",
        "sensitivity",
        "of urgent scans, how many are referred",
        True,
        share=_sensitivity,
        sections=_BOTH,
    ),
    Metric(
        "specificity",
        "specificity",
        "of the others, how many are not referred",
        True,
        share=_specificity,
        sections=_BOTH,
    ),
    Metric(
        "ppv",
        "PPV",
        "of those referred, how many are urgent",
        True,
        share=lambda t: (t.tp, t.tp + t.fp),
        sections=_BOTH,
    ),
    Metric(
        "npv",
        "NPV",
        "of those not referred, how many are not urgent",
        True,
        share=lambda t: (t.tn, t.tn + t.fn),
        sections=_BOTH,
    ),
    Metric(
        "f1",
        "F1",
        "harmonic mean of sensitivity and PPV",
        binary=lambda t: ratio(2 * t.tp, 2 * t.tp + t.fp + t.fn),
        sections=("class",),
    ),
    # These two are computed by `Ranked`, from the order of the scores.
    Metric("roc_auc", "ROC AUC", "chance that an urgent scan scores above another"),
    Metric("average_precision", "average precision", "area under precision and recall"),
    # Infinite where the denominator alone is 0.
    Metric(
        "lr_positive",
        "positive likelihood ratio",
        "how far a referral raises the odds",
        unit=False,
        binary=lambda t: ratio(ratio(*_sensitivity(t)), ratio(t.fp, t.tn + t.fp), unbounded=True),
        sections=("referral",),
    ),
    Metric(
        "lr_negative",
        "negative likelihood ratio",
        "how far no referral lowers the odds",
        unit=False,
        higher_is_better=False,
        binary=lambda t: ratio(ratio(t.fn, t.tp + t.fn), ratio(*_specificity(t)), unbounded=True),
        sections=("referral",),
    ),
)
METRICS = {m.key: m for m in _ROWS}
_ORDER = list(METRICS)


def metric(key: str) -> Metric:
    """A metric by its name in files, also one derived from another: top-k, at a prevalence, of urgent referral."""
    if key in METRICS:
        return METRICS[key]
    if key.endswith("_at_prevalence"):
        base = metric(key.removesuffix("_at_prevalence"))
        return replace(base, key=key, name=f"{base.name} at that prevalence")
    if key.startswith("urgent_"):
        base = metric(key.removeprefix("urgent_"))
        return replace(base, key=key, name=f"{base.name}, urgent")
    if top := re.fullmatch(r"top(\d+)_accuracy", key):
        meaning = f"the true class is among the {top[1]} most probable"
        return Metric(key, f"top-{top[1]} accuracy", meaning, True)
    return Metric(key, key.replace("_", " "), "", unit=False)


def order(key: str) -> float:
    """Where a metric stands among others: PPV and NPV at a prevalence after both without one, top-k at the end."""
    if key.endswith("_at_prevalence"):
        return _ORDER.index("npv") + (0.5 if key.startswith("npv") else 0.25)
    return _ORDER.index(key) if key in METRICS else len(_ORDER)


def overall_metrics(sums: Sums) -> dict[str, np.ndarray]:
    """Every metric over all classes for which `sums` knows enough, of shape (b,); NaN where it is undefined."""
    return {m.key: m.overall(sums) for m in _ROWS if m.overall and (not m.needs or getattr(sums, m.needs) is not None)}


def binary_metrics(table: TwoByTwo, section: str = "") -> dict[str, np.ndarray]:
    """Every metric of one kind of scan against the others, NaN where it is undefined.

    Parameters
    ----------
    section : "class" or "referral", for those that are reported there; "" for all.
    """
    out = {}
    for m in _ROWS:
        if m.sections and (not section or section in m.sections):
            out[m.key] = ratio(*m.share(table)) if m.share else m.binary(table)  # type: ignore[misc]
    return out


def one_versus_rest(counts: np.ndarray) -> TwoByTwo:
    """Each class against the others, of shape (classes, b); counts as in `Sums`."""
    counts = np.asarray(counts, dtype=float)
    tp = np.einsum("iib->ib", counts)
    fn, fp = counts.sum(1) - tp, counts.sum(0) - tp
    return TwoByTwo(tp, fn, fp, counts.sum((0, 1)) - tp - fn - fp)
