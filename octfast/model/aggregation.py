"""How the probabilities of a unit's scans become those of the unit, for a model that learned from single scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from octfast.data.units import LEVELS
from octfast.model.decide import urgent_classes

MEAN, MEAN_LOG, TOP, URGENT, NOISY_OR = (
    "mean_probability",
    "mean_log_probability",
    "top_k",
    "most_urgent",
    "noisy_or",
)
RULES = (MEAN, MEAN_LOG, TOP, URGENT, NOISY_OR)
# Classes that only a unit has all scans of which are so, whatever the case of their name.
HEALTHY = ("normal", "no", "healthy")
# A probability below it counts as this one, so that no single scan rules a class out.
LEAST = 1e-6


@dataclass(frozen=True)
class Aggregation:
    """A rule by which the scans of a volume, an eye or a patient have one answer.

    Attributes
    ----------
    level : of the units, one of `octfast.data.units.LEVELS` but "scan".
    rule : "mean_probability"; "mean_log_probability"; "top_k", of each class the mean of its `k` highest
        log-probabilities; "most_urgent", what the scan says whose urgent classes have the highest sum; "noisy_or", ill
        where any scan is: 1 - prod(1 - p) of a class, and of a healthy one prod(p).
    k : of "top_k"; None else.
    temperature : divides what the rule gives, as logits, before the softmax.
    urgent : classes by which "most_urgent" goes; without any it is the surest scan.
    about : what the bundle keeps of it: `operating`, `conformal`, on how many `units` and `patients` it was fitted,
        the `log_loss` of each rule out of fold.
    fitted : whether it is not the default.
    """

    level: str
    rule: str
    k: int | None = None
    temperature: float = 1.0
    urgent: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    fitted: bool = False

    @property
    def calibration(self) -> dict[str, Any]:
        """The operating point and the threshold of prediction sets, as `octfast.model.decide.rule_of` takes them."""
        return {key: self.about[key] for key in ("operating", "conformal") if self.about.get(key)}

    @property
    def words(self) -> str:
        return rule_words(self.rule, self.k)

    def probabilities(self, p: np.ndarray, number: np.ndarray, units: int, classes: Sequence[str]) -> np.ndarray:
        """Of units, of shape (units, classes).

        Parameters
        ----------
        p : of scans, calibrated as the model gives them, of shape (n, classes).
        number : which unit each scan is of, of shape (n,), from 0; each unit has one or more.
        """
        z = scores(self.rule, self.k, p, number, units, classes, self.urgent) / self.temperature
        z = np.exp(z - z.max(1, keepdims=True))
        return z / z.sum(1, keepdims=True)

    def weights(self, p: np.ndarray, number: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """How much each scan counts for the class that its unit is given, of shape (n,); the sum over a unit is 1.

        With a mean all count alike; of the others those count from which the class has its score.

        Parameters
        ----------
        predicted : index of the class of each unit.
        """
        own = np.clip(p[np.arange(len(p)), predicted[number]], LEAST, 1 - LEAST)
        if self.rule == URGENT:
            weight = np.zeros(len(p))
            weight[_most(_urgency(p, classes, self.urgent), number, len(predicted))] = 1.0
        elif self.rule == TOP:
            weight = (_ranks(own, number) < (self.k or 1)).astype(float)
        elif self.rule == NOISY_OR:
            healthy = _healthy(classes)
            weight = np.where(np.isin(predicted[number], healthy), 1.0, -np.log1p(-own))
        else:
            weight = np.ones(len(p))
        return weight / np.bincount(number, weight, len(predicted))[number]


def aggregation_of(calibration: Mapping[str, Any], level: str, classes: Sequence[str]) -> Aggregation:
    """The aggregation that a bundle keeps for a level, or the default where it keeps none.

    That is the most urgent scan, with the threshold of referral that scans have; the mean of the probabilities where
    no class is urgent.
    """
    kept = (calibration.get("units") or {}).get(level)
    if kept:
        temperature, urgent = float(kept["temperature"]), tuple(kept["urgent"])
        return Aggregation(level, kept["rule"], kept["k"], temperature, urgent, kept, fitted=True)
    operating = calibration.get("operating")
    urgent = tuple(operating["urgent"] if operating else urgent_classes(classes))
    if not urgent:
        return Aggregation(level, MEAN)
    return Aggregation(level, URGENT, urgent=urgent, about={"operating": operating})


def fitted_levels(calibration: Mapping[str, Any]) -> list[str]:
    """The levels for which a bundle keeps an aggregation, from volumes to patients."""
    kept = calibration.get("units") or {}
    return [level for level in LEVELS if level in kept]


def rule_words(rule: str, k: int | None = None) -> str:
    """A rule in words, as the end of "a unit's answer is"."""
    if rule == TOP:
        return (
            "each class's highest log-probability"
            if k == 1
            else f"the mean of each class's {k} highest log-probabilities"
        )
    return {
        MEAN: "the mean of its scans' probabilities",
        MEAN_LOG: "the mean of its scans' log-probabilities",
        URGENT: "that of its most urgent scan",
        NOISY_OR: "ill where any of its scans is (noisy or)",
    }[rule]


def candidates(urgent: Sequence[str], most: int) -> list[tuple[str, int | None]]:
    """The rules to choose among, and their k; `most` : scans of the largest unit."""
    tops = [(TOP, k) for k in (1, 2, 3, 5, 10) if k < most]
    return [(MEAN, None), (MEAN_LOG, None), *tops, *([(URGENT, None)] if urgent else []), (NOISY_OR, None)]


def scores(
    rule: str,
    k: int | None,
    p: np.ndarray,
    number: np.ndarray,
    units: int,
    classes: Sequence[str],
    urgent: Sequence[str] = (),
) -> np.ndarray:
    """What a rule gives of units, as logits of shape (units, classes); see `Aggregation`."""
    p = np.clip(np.asarray(p, dtype=float), LEAST, 1 - LEAST)
    if rule == URGENT:
        return np.log(p[_most(_urgency(p, classes, urgent), number, units)])
    if rule == NOISY_OR:
        healthy = _healthy(classes)
        none = _sums(np.log1p(-p), number, units)
        z = np.log(np.maximum(-np.expm1(none), LEAST))
        z[:, healthy] = _sums(np.log(p), number, units)[:, healthy]
        return z
    if rule == MEAN:
        return np.log(_sums(p, number, units) / np.bincount(number, minlength=units)[:, None])
    logp, weight = np.log(p), np.ones_like(p)
    if rule == TOP:
        weight = np.stack([_ranks(column, number) < (k or 1) for column in logp.T], 1).astype(float)
    return _sums(weight * logp, number, units) / _sums(weight, number, units)


def _healthy(classes: Sequence[str]) -> list[int]:
    return [i for i, c in enumerate(classes) if str(c).casefold() in HEALTHY]


def _urgency(p: np.ndarray, classes: Sequence[str], urgent: Sequence[str]) -> np.ndarray:
    which = np.isin(list(classes), list(urgent))
    return p[:, which].sum(1) if which.any() else p.max(1)


def _most(value: np.ndarray, number: np.ndarray, units: int) -> np.ndarray:
    """Of each unit the place of the scan with the highest value; of equal ones the first."""
    order = np.lexsort((-np.arange(len(value)), value, number))
    last = np.flatnonzero(np.append(number[order][1:] != number[order][:-1], True))
    out = np.zeros(units, dtype=int)
    out[number[order][last]] = order[last]
    return out


def _ranks(value: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Of each scan how many of its unit have a higher value, or the same and stand before it."""
    order = np.lexsort((np.arange(len(value)), -value, number))
    ordered = number[order]
    start = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    size = np.diff(np.append(start, len(value)))
    out = np.empty(len(value), dtype=int)
    out[order] = np.arange(len(value)) - np.repeat(start, size)
    return out


def _sums(values: np.ndarray, number: np.ndarray, units: int) -> np.ndarray:
    return np.stack([np.bincount(number, column, units) for column in values.T], 1)
