"""Compares two sets of scans patient by patient: what differs, by how much, and whether that may be chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy import stats

from octfast.assess.metrics.intervals import choose_interval, percentiles, resampled_weights, wilson

# Of fewer patients on a side nothing is tested.
LEAST = 10
# Beyond chance, after the correction for how many figures are looked at (Benjamini and Hochberg, 1995).
LEVEL = 0.05
COLUMNS = ["figure", "of", "training", "new", "difference", "low", "high", "test", "statistic", "p", "p_adjusted"]
COLUMNS += ["moved", "patients_training", "patients_new"]
# Of each patient: the sum of a figure over his scans, and how many have it.
Sums: TypeAlias = tuple[np.ndarray, np.ndarray]


def compare_values(
    figure: str, training: pd.DataFrame, new: pd.DataFrame, column: str, *, share: bool
) -> dict[str, Any]:
    """A number of each scan on both sides: their means, the difference, and a test by patient.

    Of numbers the test is that of Kolmogorov and Smirnov for the means of patients, of yes or no (`share`) that of
    Mann and Whitney for the shares of patients: scans of one patient are alike, and only patients count.
    """
    a, b = (t[["patient", column]].dropna() for t in (training, new))
    if a.empty or b.empty:
        return {}
    sides = sums_of(a[column], a["patient"]), sums_of(b[column], b["patient"])
    means = [t.groupby("patient")[column].mean().to_numpy() for t in (a, b)]
    row = _row(figure, "", float(a[column].mean()), float(b[column].mean()), len(means[0]), len(means[1]), sides)
    if min(map(len, means)) < LEAST:
        return row
    if share:
        if np.ptp(np.concatenate(means)) == 0:
            return row | {"test": "Mann-Whitney by patient", "p": 1.0}
        found = stats.mannwhitneyu(*means, method="asymptotic")
        return row | {"test": "Mann-Whitney by patient", "statistic": float(found.statistic), "p": float(found.pvalue)}
    found = stats.ks_2samp(*means)
    return row | {
        "test": "Kolmogorov-Smirnov by patient",
        "statistic": float(found.statistic),
        "p": float(found.pvalue),
    }


def compare_classes(training: pd.DataFrame, new: pd.DataFrame, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The shares of the predicted classes, and one chi-square test of them in which a patient counts once.

    That once is by the class that most of his scans are given, of equally many the first in the order of classes.
    """
    a, b = (t[t["predicted"].isin(list(classes))] for t in (training, new))
    if a.empty or b.empty:
        return []
    counts = np.stack([_by_patient(t, classes) for t in (a, b)])
    nothing = float("nan")
    patients = counts.sum(1).tolist()
    row = _row("class shares", "all", nothing, nothing, patients[0], patients[1])
    met = counts.sum(0) > 0
    if counts.sum(1).min() >= LEAST and met.sum() > 1:
        found = stats.chi2_contingency(counts[:, met])
        row |= {"test": "chi-square of patients", "statistic": float(found.statistic), "p": float(found.pvalue)}
    rows = [row]
    for name in classes:
        sides = [(t["predicted"] == name).astype(float) for t in (a, b)]
        before, now = (float(s.mean()) for s in sides)
        sums = sums_of(sides[0], a["patient"]), sums_of(sides[1], b["patient"])
        rows.append(_row("class share", name, before, now, patients[0], patients[1], sums))
    return rows


def judged(rows: Sequence[dict[str, Any]], resamples: int, seed: int) -> pd.DataFrame:
    """The rows as a table, with the interval of each difference, p corrected for how many tests there are, and what
    `moved`; None where untested.
    """
    rows = [dict(r) for r in rows if r]
    measured = [r for r in rows if r["sides"]]
    for row, (low, high) in zip(measured, differences([r["sides"] for r in measured], resamples, seed), strict=True):
        row |= {"low": low, "high": high}
    table = pd.DataFrame(rows, columns=COLUMNS)
    tested = table["p"].notna()
    table["moved"] = pd.Series([None] * len(table), dtype=object)
    if tested.any():
        table.loc[tested, "p_adjusted"] = stats.false_discovery_control(table.loc[tested, "p"].astype(float))
        table.loc[tested, "moved"] = (table.loc[tested, "p_adjusted"] < LEVEL).astype(object)
    return table


def share_interval(values: pd.Series, patients: pd.Series, resamples: int, seed: int) -> tuple[float, float, float]:
    """(a share of scans, its 95% interval's low and high), by a bootstrap over patients."""
    sums, counts = sums_of(values, patients)
    drawn = np.concatenate(
        [(sums @ w) / (counts @ w) for w in resampled_weights(len(counts), resamples, seed, len(counts))]
    )
    value = float(values.mean())
    if value in (0.0, 1.0):
        low, high = wilson(round(value) * len(counts), len(counts))
        return value, float(low), float(high)
    interval = choose_interval(value, drawn)
    return value, interval.low, interval.high


def differences(pairs: Sequence[tuple[Sums, Sums]], resamples: int, seed: int) -> np.ndarray:
    """The 95% intervals of the mean of new scans less that of training scans, the patients of each drawn on their own.

    Parameters
    ----------
    pairs : a figure each, see `sums_of`: (of the training scans, of the new ones).

    Returns
    -------
    float of shape (figures, 2), low and high.
    """
    means = np.empty((2, len(pairs), resamples))
    for side in (0, 1):
        patients = np.array([len(pair[side][1]) for pair in pairs])
        # Drawing is most of the work: figures of as many patients share it.
        for number in np.unique(patients):
            alike = np.flatnonzero(patients == number)
            both = np.concatenate([pairs[int(i)][side] for i in alike])
            weights = resampled_weights(int(number), resamples, seed + side, int(number))
            drawn = np.concatenate([both @ w for w in weights], axis=1)
            means[side, alike] = drawn[::2] / drawn[1::2]
    return np.array([percentiles(row) for row in means[1] - means[0]]).reshape(-1, 2)


def sums_of(values: pd.Series, patients: pd.Series) -> Sums:
    """(the sum of each patient's values, how many there are)."""
    codes = pd.factorize(patients.to_numpy())[0]
    return np.bincount(codes, weights=values.to_numpy(dtype=float)), np.bincount(codes).astype(float)


def _by_patient(table: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """How many patients each class has, by the class that most of a patient's scans are given."""
    counts = pd.crosstab(table["patient"], table["predicted"]).reindex(columns=list(classes), fill_value=0)
    return np.bincount(counts.to_numpy().argmax(1), minlength=len(classes))


def _row(
    figure: str,
    of: str,
    training: float,
    new: float,
    patients: int,
    patients_new: int,
    sides: tuple[Sums, Sums] | None = None,
) -> dict[str, Any]:
    return {
        "figure": figure,
        "of": of,
        "training": training,
        "new": new,
        "difference": new - training,
        "sides": sides,
        "low": float("nan"),
        "high": float("nan"),
        "test": "",
        "statistic": float("nan"),
        "p": float("nan"),
        "p_adjusted": float("nan"),
        "patients_training": patients,
        "patients_new": patients_new,
    }
