"""A Predictions table as numbers that add up over patients, from which every figure and resample is computed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from octfast.assess.metrics.bootstrap import Ranked, confusion_figures, one_versus_rest, ratio, two_by_two
from octfast.assess.metrics.costs import class_shares
from octfast.assess.metrics.intervals import Proportion, resampled_weights
from octfast.assess.metrics.referral import urgent_score

# (section, of what, metric): ("overall", "", "accuracy"), ("class", "CNV", "ppv"), ("referral", "argmax", "ppv").
Key = tuple[str, str, str]
SECTIONS = ("overall", "class", "referral")
_ORDER = (
    *("accuracy", "balanced_accuracy", "macro_f1", "cohen_kappa", "matthews", "macro_roc_auc"),
    *("nll", "brier", "weighted_error", "sensitivity", "specificity", "ppv", "npv", "ppv_at_prevalence"),
    *("npv_at_prevalence", "f1", "roc_auc", "average_precision", "lr_positive", "lr_negative"),
)
_BY_CLASS = ("sensitivity", "specificity", "ppv", "npv", "f1")
_OF_REFERRAL = ("sensitivity", "specificity", "ppv", "npv", "lr_positive", "lr_negative")


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


class Tallies:
    """The figures of a Predictions table, and the same of any weighting of its patients.

    Parameters
    ----------
    table : the Predictions table, of n scans.
    owner : the number of each scan's patient, int of shape (n,); None numbers them here.
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
        self.urgent = np.isin(self.actual, [index[c] for c in question.urgent])
        self.referrals: dict[str, np.ndarray] = {}
        n, k = len(table), len(classes)
        rows = [self.actual * k + self.predicted]
        values = [np.ones(n)]
        if question.urgent:
            self.referrals["argmax"] = np.isin(self.predicted, [index[c] for c in question.urgent])
        if question.ranked:
            self.p = table[[f"p_{c}" for c in classes]].to_numpy(dtype=float)
            self.loss = table["loss"].to_numpy(dtype=float)
            self.brier = (self.p**2).sum(1) - 2 * self.p[np.arange(n), self.actual] + 1
            # The same order as that of argmax, which takes the first of equals.
            best = np.argsort(-self.p, axis=1, kind="stable")[:, : question.top_k]
            self.in_top = (best == self.actual[:, None]).any(1)
            self.score = urgent_score(table, question.urgent) if question.urgent else None
            if self.score is not None and question.threshold is not None:
                self.referrals["operating"] = self.score >= question.threshold
            rows += [np.full(n, k * k), np.full(n, k * k + 1), k * k + 2 + self.actual]
            values += [self.loss, self.brier, self.in_top.astype(float)]
        # Referred scans of each actual class, so that a prevalence can weigh the classes anew.
        self._referred_at = {point: k * k + 2 + k * (i + 1) for i, point in enumerate(self.referrals)}
        for point, referred in self.referrals.items():
            rows.append(self._referred_at[point] + self.actual)
            values.append(referred.astype(float))
        shape = (k * k + 2 + k * (1 + len(self.referrals)), self.patients)
        places = (np.concatenate(rows), np.tile(self.owner, len(rows)))
        self._sums = csr_array((np.concatenate(values), places), shape=shape)

    @cached_property
    def _rankings(self) -> dict[tuple[str, str], Ranked]:
        if not self.question.ranked:
            return {}
        out = {
            ("class", c): Ranked(self.p[:, i], self.actual == i, self.owner)
            for i, c in enumerate(self.question.classes)
        }
        if self.score is not None:
            out["referral", "score"] = Ranked(self.score, self.urgent, self.owner)
        return out

    def figures(self, weights: np.ndarray) -> dict[Key, np.ndarray]:
        """Every figure, of shape (b,), for weights of the patients of shape (patients, b)."""
        q, k = self.question, len(self.question.classes)
        sums = self._sums @ weights
        counts = sums[: k * k].reshape(k, k, -1)
        actual = counts.sum(1)
        n = actual.sum(0)
        out: dict[Key, np.ndarray] = {("overall", "", m): v for m, v in confusion_figures(counts).items()}
        by_class = one_versus_rest(counts)
        out |= {("class", c, m): by_class[m][i] for i, c in enumerate(q.classes) for m in _BY_CLASS}
        if q.prevalence:
            out |= self._classes_at_prevalence(counts, actual)
        areas = {of: ranking.figures(weights) for of, ranking in self._rankings.items()}
        for (section, of), (auc, precision) in areas.items():
            out[section, of, "roc_auc"], out[section, of, "average_precision"] = auc, precision
        if q.ranked:
            aucs = np.stack([areas["class", c][0] for c in q.classes])
            defined = ~np.isnan(aucs)
            out["overall", "", "macro_roc_auc"] = ratio(np.where(defined, aucs, 0).sum(0), defined.sum(0))
            top = sums[k * k + 2 : k * k + 2 + k]
            out["overall", "", f"top{q.top_k}_accuracy"] = ratio(top.sum(0), n)
            out |= {("class", c, f"top{q.top_k}_accuracy"): ratio(top[i], actual[i]) for i, c in enumerate(q.classes)}
            out["overall", "", "nll"], out["overall", "", "brier"] = ratio(sums[k * k], n), ratio(sums[k * k + 1], n)
        if q.costs is not None:
            out["overall", "", "weighted_error"] = ratio(np.einsum("ijb,ij->b", counts, q.costs), n)
        is_urgent = np.isin(list(q.classes), list(q.urgent))
        for point, first in self._referred_at.items():
            referred = sums[first : first + k]
            tp, fp = referred[is_urgent].sum(0), referred[~is_urgent].sum(0)
            fn, tn = actual[is_urgent].sum(0) - tp, actual[~is_urgent].sum(0) - fp
            found = two_by_two(tp, fn, fp, tn)
            out |= {("referral", point, m): found[m] for m in _OF_REFERRAL}
            if q.prevalence:
                share = class_shares(q.prevalence, actual, q.classes)
                rate = share * _rate(referred, actual, share)
                here = two_by_two(
                    rate[is_urgent].sum(0),
                    (share - rate)[is_urgent].sum(0),
                    rate[~is_urgent].sum(0),
                    (share - rate)[~is_urgent].sum(0),
                )
                out |= {("referral", point, f"{m}_at_prevalence"): here[m] for m in ("ppv", "npv")}
        return out

    def _classes_at_prevalence(self, counts: np.ndarray, actual: np.ndarray) -> dict[Key, np.ndarray]:
        """PPV and NPV by Bayes: each actual class weighs its prevalence, whatever its scans."""
        share = class_shares(self.question.prevalence, actual, self.question.classes)
        rates = share[:, None] * _rate(counts, actual[:, None], share[:, None])
        found = one_versus_rest(rates)
        return {
            ("class", c, f"{m}_at_prevalence"): found[m][i]
            for i, c in enumerate(self.question.classes)
            for m in ("ppv", "npv")
        }

    def values(self) -> dict[Key, float]:
        """Every figure of the table as it is: scikit-learn's where scikit-learn has it and it is defined."""
        own = {key: float(v[0]) for key, v in self.figures(np.ones((self.patients, 1))).items()}
        return own | {key: v for key, v in self._scikit_learns(own).items() if np.isfinite(own[key])}

    def resampled(
        self, resamples: int, seed: int, progress: Callable[[int, int], None] | None = None
    ) -> dict[Key, np.ndarray]:
        """Every figure in bootstrap resamples of the patients, of shape (resamples,)."""
        blocks: dict[Key, list[np.ndarray]] = {}
        done = 0
        for weights in resampled_weights(self.patients, resamples, seed, len(self.actual)):
            for key, v in self.figures(weights).items():
                blocks.setdefault(key, []).append(v)
            done += weights.shape[1]
            if progress:
                progress(done, resamples)
        return {key: np.concatenate(parts) for key, parts in blocks.items()}

    def in_order(self, keys: Iterable[Key]) -> list[Key]:
        """Keys of figures as they are usually read: by section, then class or point, then metric."""
        points = ["argmax", "operating", "score"]

        def place(key: Key) -> tuple[int, int, int]:
            section, of, metric = key
            at = {"overall": [""], "class": list(self.question.classes), "referral": points}[section].index(of)
            return SECTIONS.index(section), at, len(_ORDER) if metric.startswith("top") else _ORDER.index(metric)

        return sorted(keys, key=place)

    def proportion(self, key: Key) -> Proportion | None:
        """What a figure counts, where it is a proportion of scans."""
        section, of, metric = key
        right = self.actual == self.predicted
        every = np.ones(len(right), dtype=bool)
        if section == "overall":
            hits = {"accuracy": right, f"top{self.question.top_k}_accuracy": getattr(self, "in_top", right)}
            return self._counted(hits[metric], every) if metric in hits else None
        if section == "class":
            i = self.question.classes.index(of)
            positive, called = self.actual == i, self.predicted == i
            if metric == f"top{self.question.top_k}_accuracy":
                return self._counted(self.in_top, positive)
        elif of in self.referrals:
            positive, called = self.urgent, self.referrals[of]
        else:
            return None
        parts = {
            "sensitivity": (called, positive),
            "specificity": (~called, ~positive),
            "ppv": (positive, called),
            "npv": (~positive, ~called),
        }
        return self._counted(*parts[metric]) if metric in parts else None

    def _counted(self, hit: np.ndarray, among: np.ndarray) -> Proportion:
        patients = np.count_nonzero(np.bincount(self.owner[among], minlength=1))
        return Proportion(int((hit & among).sum()), int(among.sum()), int(patients))

    def _scikit_learns(self, own: dict[Key, float]) -> dict[Key, float]:
        from sklearn import metrics

        q, labels = self.question, list(range(len(self.question.classes)))
        out: dict[Key, float] = {}
        with warnings.catch_warnings():
            # It warns of classes that are missing; those figures are not taken from it.
            warnings.simplefilter("ignore")
            scores: Sequence[tuple[str, Callable]] = (
                ("accuracy", metrics.accuracy_score),
                ("balanced_accuracy", metrics.balanced_accuracy_score),
                ("cohen_kappa", metrics.cohen_kappa_score),
                ("matthews", metrics.matthews_corrcoef),
            )
            for name, score in scores:
                out["overall", "", name] = float(score(self.actual, self.predicted))
            out["overall", "", "macro_f1"] = float(metrics.f1_score(self.actual, self.predicted, average="macro"))
            ppv, recall, f1, _ = metrics.precision_recall_fscore_support(
                self.actual, self.predicted, labels=labels, zero_division=0
            )
            for i, c in enumerate(q.classes):
                for name, value in (("ppv", ppv[i]), ("sensitivity", recall[i]), ("f1", f1[i])):
                    out["class", c, name] = float(value)
            ranked: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
            if q.ranked:
                ranked = {("class", c): (self.actual == i, self.p[:, i]) for i, c in enumerate(q.classes)}
                if self.score is not None:
                    ranked["referral", "score"] = (self.urgent, self.score)
            for (section, of), (positive, p) in ranked.items():
                if np.isfinite(own[section, of, "roc_auc"]):
                    out[section, of, "roc_auc"] = float(metrics.roc_auc_score(positive, p))
                    out[section, of, "average_precision"] = float(metrics.average_precision_score(positive, p))
        return out


def _rate(counts: np.ndarray, of: np.ndarray, share: np.ndarray) -> np.ndarray:
    """counts / of; 0 for a class that has neither scans nor a share, NaN for one that has a share alone."""
    rate = ratio(counts, of)
    return np.where((np.broadcast_to(of, rate.shape) == 0) & (share == 0), 0.0, rate)
