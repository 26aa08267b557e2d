"""Prediction sets with a stated coverage: split conformal prediction over patients, fitted on validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from octfast.assess.metrics.intervals import Proportion, choose_interval, resampled_weights
from octfast.errors import DataError, UsageError
from octfast.model.decide import Rule, decide


def conformal_threshold(table: pd.DataFrame, coverage: float = 0.9) -> float:
    """The least probability at which a class belongs to the set of a scan, for sets that hold the truth as often.

    Least ambiguous sets (Sadinle, Lei and Wasserman, Least Ambiguous Set-Valued Classifiers With Bounded Error
    Levels): the nonconformity of a scan is one minus the probability of its class. Scans of a patient are not
    exchangeable with those of another, patients are: so each of the K patients has the weight 1 / (K + 1), shared by
    its scans, and the rest is the new patient's, who may be stranger than all (Lee, Barber and Willett,
    Distribution-free inference with hierarchical data). With one scan a patient this is split conformal prediction
    with its correction for finite samples, the ceil((n + 1) coverage)-th of n.

    The guarantee is for a scan drawn from a new patient, patients weighing the same, who comes as the validation
    patients came: from the same devices and with the same mix of classes. It is a rough one, since the validation
    scans also chose the epoch and the temperature.

    Parameters
    ----------
    table : the Predictions table of validation; its losses and patients are used.
    coverage : wanted, above 0 and below 1.

    Returns
    -------
    The threshold, for `prediction_sets`.

    Raises
    ------
    UsageError : the coverage cannot be.
    DataError : too few patients for so high a coverage.
    """
    check_coverage(coverage)
    patients = table.groupby("patient")["path"].transform("size").to_numpy()
    count = table["patient"].nunique()
    order = np.argsort(table["loss"].to_numpy(), kind="stable")
    reached = np.cumsum(1 / ((count + 1) * patients[order]))
    enough = np.flatnonzero(reached >= coverage - 1e-9)
    if not len(enough):
        raise DataError(
            f"{count} validation patients are too few for sets with a coverage of {coverage:g}",
            f"it takes {math.ceil(coverage / (1 - coverage) - 1e-9)} patients; ask for a lower --coverage",
        )
    return rounded_down(math.exp(-table["loss"].to_numpy()[order][enough[0]]))


def prediction_sets(
    table: pd.DataFrame, classes: Sequence[str], threshold: float, *, allow_empty: bool = False
) -> pd.DataFrame:
    """The set of classes of each scan: those with at least the threshold's probability.

    Parameters
    ----------
    threshold : from `conformal_threshold`; the table must be at the temperature that it was fitted at.
    allow_empty : a scan with no such class has an empty set; else that of its likeliest class, which can only raise
        the coverage.

    Returns
    -------
    Booleans, a row a scan with the index of the table, a column a class.
    """
    p = table[[f"p_{c}" for c in classes]].to_numpy(dtype=float)
    held = p >= threshold if allow_empty else decide(p, Rule(tuple(classes), set_threshold=threshold)).possible
    return pd.DataFrame(held, index=table.index, columns=list(classes))


def coverage_of_sets(table: pd.DataFrame, sets: pd.DataFrame) -> dict[str, Any]:
    """How often prediction sets held the truth, and how large they were.

    Returns
    -------
    `scans`; `coverage`, the share of scans whose set holds the label; `coverage_by_patient`, the mean over patients of
    that share, which is what the threshold is fitted for; `mean_size`; `single`, the share of sets of one class;
    `sizes`, how many sets there are of each size; `by_class`, the coverage of each class, None where it has no scan.
    """
    held = sets.to_numpy()[np.arange(len(sets)), sets.columns.get_indexer(table["label"].astype(object))]
    size = sets.to_numpy().sum(1)
    right = pd.Series(held, index=table.index)
    by_class = right.groupby(table["label"]).mean()
    numbers, counts = np.unique(size, return_counts=True)
    return {
        "scans": len(table),
        "coverage": float(held.mean()),
        "coverage_by_patient": float(right.groupby(table["patient"]).mean().mean()),
        "mean_size": float(size.mean()),
        "single": float((size == 1).mean()),
        "sizes": {int(k): int(n) for k, n in zip(numbers, counts, strict=True)},
        "by_class": {c: float(by_class[c]) if c in by_class else None for c in sets.columns},
    }


def coverage_intervals(
    table: pd.DataFrame, sets: pd.DataFrame, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> dict[str, list[float | None]]:
    """The intervals of `coverage`, `coverage_by_patient` and `mean_size` of `coverage_of_sets`, by a bootstrap.

    Over patients; a coverage of scans that are a patient each has Wilson's.

    Returns
    -------
    [low, high] each, [None, None] where there is none.
    """
    held = sets.to_numpy()[np.arange(len(sets)), sets.columns.get_indexer(table["label"].astype(object))]
    owner = pd.factorize(table["patient"])[0]
    scans = np.bincount(owner).astype(float)
    n = len(scans)
    right, size = np.bincount(owner, held), np.bincount(owner, sets.to_numpy().sum(1))
    sums = np.stack([right, right / scans, size, scans, np.ones(n)])
    drawn = np.concatenate([sums @ w for w in resampled_weights(n, resamples, seed, len(owner))], axis=1)
    single = n == len(owner)
    counted = Proportion(int(held.sum()), len(held), n)
    by_patient = float((right / scans).mean())
    found = {
        "coverage": choose_interval(held.mean(), drawn[0] / drawn[3], level=level, single=single, proportion=counted),
        "coverage_by_patient": choose_interval(
            by_patient, drawn[1] / drawn[4], level=level, single=single, proportion=counted
        ),
        "mean_size": choose_interval(float(size.sum() / len(held)), drawn[2] / drawn[3], level=level, single=single),
    }
    return {name: [None if math.isnan(v) else float(v) for v in ends[:2]] for name, ends in found.items()}


def check_coverage(coverage: float) -> float:
    """The same number, if it is one that can be asked for.

    Raises
    ------
    UsageError : not between 0 and 1.
    """
    if not 0 < coverage < 1:
        raise UsageError(f"--coverage {coverage:g} is not between 0 and 1", "for example 0.9")
    return coverage


def rounded_down(value: float) -> float:
    """A hundred-millionth less, to nine digits: a scan at the threshold stays there in spite of rounding elsewhere."""
    return float(f"{value * (1 - 1e-8):.9g}")
