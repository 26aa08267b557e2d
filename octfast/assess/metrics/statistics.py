"""Statistics of a Predictions table: sums over its patients, from which every metric and every resample is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from octfast.assess.metrics.bootstrap import Ranked
from octfast.assess.metrics.costs import class_shares
from octfast.assess.metrics.definitions import (
    Sums,
    TwoByTwo,
    binary_metrics,
    metric,
    one_versus_rest,
    order,
    overall_metrics,
    ratio,
)
from octfast.assess.metrics.intervals import Proportion, resampled_weights
from octfast.assess.metrics.referral import is_referred, urgent_score

# (section, of what, metric): ("overall", "", "accuracy"), ("class", "CNV", "ppv"), ("referral", "argmax", "ppv").
Key = tuple[str, str, str]
SECTIONS = ("overall", "class", "referral")
_POINTS = ("argmax", "operating", "score")
_AT_PREVALENCE = ("ppv", "npv")


@dataclass(frozen=True)
class Question:
    """What is asked of a table.

    Attributes
    ----------
    classes : in the order of their index.
    urgent : may be empty.
    threshold : of the urgent score; None for no operating point.
    costs : actual by predicted, of shape (classes, classes); None for no weighted error.
    prevalence : shares of classes, at which PPV and NPV are given again.
    top_k : a scan is right among the top k where its class is one of the k most probable.
    ranked : whether ROC AUC, average precision, NLL and Brier score are asked for, which need probabilities.
    """

    classes: tuple[str, ...]
    urgent: tuple[str, ...] = ()
    threshold: float | None = None
    costs: np.ndarray | None = None
    prevalence: dict[str, float] = field(default_factory=dict)
    top_k: int = 2
    ranked: bool = True


class Statistics:
    """The metrics of a Predictions table, and the same of any weighting of its patients.

    Parameters
    ----------
    table : the Predictions table, of n scans.
    owner : the number of each scan's patient, int of shape (n,); None numbers them here.

    Attributes
    ----------
    actual, predicted : index of the class of each scan, of shape (n,).
    patients : how many there are.
    single : whether each scan is a patient of its own.
    referrals : each point of urgent referral ("argmax", "operating"), with its `TwoByTwo` of the scans.
    """

    def __init__(self, table: pd.DataFrame, question: Question, owner: np.ndarray | None = None):
        self.question = question
        classes = list(question.classes)
        index = {c: i for i, c in enumerate(classes)}
        self.actual = table["label"].map(index).to_numpy(dtype=int)
        self.predicted = table["predicted"].map(index).to_numpy(dtype=int)
        self.owner = pd.factorize(table["patient"])[0] if owner is None else owner
        self.patients = int(self.owner.max()) + 1
        self.single = self.patients == len(table)
        self._top = f"top{question.top_k}_accuracy"
        urgent = np.isin(self.actual, [index[c] for c in question.urgent])
        self.referrals: dict[str, TwoByTwo] = {}
        n, k = len(table), len(classes)
        rows = [self.actual * k + self.predicted]
        values = [np.ones(n)]
        if question.urgent:
            self.referrals["argmax"] = TwoByTwo.of(urgent, is_referred(table, question.urgent))
        if question.ranked:
            p = table[[f"p_{c}" for c in classes]].to_numpy(dtype=float)
            brier = (p**2).sum(1) - 2 * p[np.arange(n), self.actual] + 1
            # The same order as that of argmax, which takes the first of equals.
            best = np.argsort(-p, axis=1, kind="stable")[:, : question.top_k]
            self._in_top = (best == self.actual[:, None]).any(1)
            if question.urgent and question.threshold is not None:
                referred = is_referred(table, question.urgent, question.threshold)
                self.referrals["operating"] = TwoByTwo.of(urgent, referred)
            rows += [np.full(n, k * k), np.full(n, k * k + 1), k * k + 2 + self.actual]
            values += [table["loss"].to_numpy(dtype=float), brier, self._in_top.astype(float)]
            self._scores = {("class", c): (p[:, i], self.actual == i) for i, c in enumerate(classes)}
            if question.urgent:
                self._scores["referral", "score"] = (urgent_score(table, question.urgent), urgent)
        # Referred scans of each actual class, so that a prevalence can weigh the classes anew.
        self._referred_at = {point: k * k + 2 + k * (i + 1) for i, point in enumerate(self.referrals)}
        for point, counted in self.referrals.items():
            rows.append(self._referred_at[point] + self.actual)
            values.append((counted.tp | counted.fp).astype(float))
        shape = (k * k + 2 + k * (1 + len(self.referrals)), self.patients)
        cells = (np.concatenate(rows), np.tile(self.owner, len(rows)))
        self._sums = csr_array((np.concatenate(values), cells), shape=shape)

    @cached_property
    def _rankings(self) -> dict[tuple[str, str], Ranked]:
        scores = self._scores if self.question.ranked else {}
        return {of: Ranked(score, positive, self.owner) for of, (score, positive) in scores.items()}

    def metrics(self, weights: np.ndarray) -> dict[Key, np.ndarray]:
        """Every metric, of shape (b,), for weights of the patients of shape (patients, b)."""
        q, k = self.question, len(self.question.classes)
        sums = self._sums @ weights
        counts = sums[: k * k].reshape(k, k, -1)
        areas = {of: ranking.areas(weights) for of, ranking in self._rankings.items()}
        known = Sums(counts, costs=q.costs)
        if q.ranked:
            auc = np.stack([areas["class", c][0] for c in q.classes])
            known = Sums(counts, sums[k * k], sums[k * k + 1], q.costs, auc)
        out: dict[Key, np.ndarray] = {("overall", "", m): v for m, v in overall_metrics(known).items()}
        by_class = binary_metrics(one_versus_rest(counts), "class")
        out |= {("class", c, m): v[i] for i, c in enumerate(q.classes) for m, v in by_class.items()}
        for (section, of), both in areas.items():
            out[section, of, "roc_auc"], out[section, of, "average_precision"] = both
        if q.ranked:
            top = sums[k * k + 2 : k * k + 2 + k]
            out["overall", "", self._top] = ratio(top.sum(0), known.n)
            out |= {("class", c, self._top): ratio(top[i], known.actual[i]) for i, c in enumerate(q.classes)}
        referred = {point: sums[first : first + k] for point, first in self._referred_at.items()}
        for point, n in referred.items():
            out |= {("referral", point, m): v for m, v in self._referral(n, known.actual, "referral").items()}
        return out | (self._at_prevalence(counts, referred) if q.prevalence else {})

    def _referral(self, referred: np.ndarray, actual: np.ndarray, section: str = "") -> dict[str, np.ndarray]:
        """The metrics of urgent referral, from referred and all scans of each class, of shape (classes, b)."""
        urgent = np.isin(self.question.classes, self.question.urgent)
        spared = actual - referred
        parts = (referred[urgent], spared[urgent], referred[~urgent], spared[~urgent])
        return binary_metrics(TwoByTwo(*(part.sum(0) for part in parts)), section)

    def _at_prevalence(self, counts: np.ndarray, referred: dict[str, np.ndarray]) -> dict[Key, np.ndarray]:
        """PPV and NPV by Bayes: each actual class weighs its prevalence, whatever its scans."""
        q, actual = self.question, counts.sum(1)
        share = class_shares(q.prevalence, actual, q.classes)
        by_class = binary_metrics(one_versus_rest(share[:, None] * _rate(counts, actual[:, None], share[:, None])))
        out: dict[Key, np.ndarray] = {
            ("class", c, f"{m}_at_prevalence"): by_class[m][i] for i, c in enumerate(q.classes) for m in _AT_PREVALENCE
        }
        for point, n in referred.items():
            found = self._referral(share * _rate(n, actual, share), share)
            out |= {("referral", point, f"{m}_at_prevalence"): found[m] for m in _AT_PREVALENCE}
        return out

    def values(self) -> dict[Key, float]:
        """Every metric of the table as it is, in the order in which they are read."""
        found = self.metrics(np.ones((self.patients, 1)))
        return {key: float(found[key][0]) for key in self._in_order(found)}

    def resampled(
        self, resamples: int, seed: int, progress: Callable[[int, int], None] | None = None
    ) -> dict[Key, np.ndarray]:
        """Every metric in bootstrap resamples of the patients, of shape (resamples,)."""
        blocks: dict[Key, list[np.ndarray]] = {}
        done = 0
        for weights in resampled_weights(self.patients, resamples, seed, len(self.actual)):
            for key, v in self.metrics(weights).items():
                blocks.setdefault(key, []).append(v)
            done += weights.shape[1]
            if progress:
                progress(done, resamples)
        return {key: np.concatenate(parts) for key, parts in blocks.items()}

    def _in_order(self, keys: Iterable[Key]) -> list[Key]:
        """Keys by section, then class or point, then metric."""
        of = {"overall": ("",), "class": self.question.classes, "referral": _POINTS}
        return sorted(keys, key=lambda k: (SECTIONS.index(k[0]), of[k[0]].index(k[1]), order(k[2])))

    def proportion(self, key: Key) -> Proportion | None:
        """What a metric counts, where it is a proportion of scans."""
        section, of, name = key
        right, every = self.actual == self.predicted, np.ones(len(self.actual), dtype=bool)
        if name == self._top:
            every = every if section == "overall" else self.actual == self.question.classes.index(of)
            return self._counted(self._in_top & every, every)
        if section == "overall":
            return self._counted(right, every) if name == "accuracy" else None
        share = metric(name).share
        if share is None or name.endswith("_at_prevalence") or of == "score":
            return None
        if section == "referral":
            return self._counted(*share(self.referrals[of]))
        i = self.question.classes.index(of)
        return self._counted(*share(TwoByTwo.of(self.actual == i, self.predicted == i)))

    def _counted(self, part: np.ndarray, whole: np.ndarray) -> Proportion:
        """The scans that are counted of those among which they are counted, bools of shape (n,)."""
        return Proportion(int(part.sum()), int(whole.sum()), len(np.unique(self.owner[whole])))


def _rate(counts: np.ndarray, of: np.ndarray, share: np.ndarray) -> np.ndarray:
    """counts / of; 0 for a class that has neither scans nor a share, NaN for one that has a share alone."""
    rate = ratio(counts, of)
    return np.where((np.broadcast_to(of, rate.shape) == 0) & (share == 0), 0.0, rate)
