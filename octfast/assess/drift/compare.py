"""Compares two sets of scans patient by patient: what differs, by how much, and whether that may be chance."""

from __future__ import annotations

from collections.abc import Sequence

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


def compare_values(
    figure: str, training: pd.DataFrame, new: pd.DataFrame, column: str, resamples: int, seed: int, *, share: bool
) -> dict[str, object]:
    """A number of each scan on both sides: their means, the difference with its interval, and a test by patient.

    Of numbers the test is that of Kolmogorov and Smirnov for the means of patients, of yes or no (`share`) that of
    Mann and Whitney for the shares of patients: scans of one patient are alike, and only patients count.
    """
    a, b = (t[["patient", column]].dropna() for t in (training, new))
    if a.empty or b.empty:
        return {}
    low, high = difference(a[column], a["patient"], b[column], b["patient"], resamples, seed)
    means = [t.groupby("patient")[column].mean().to_numpy() for t in (a, b)]
    row = _row(figure, "", float(a[column].mean()), float(b[column].mean()), low, high, len(means[0]), len(means[1]))
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


def compare_classes(
    training: pd.DataFrame, new: pd.DataFrame, classes: Sequence[str], resamples: int, seed: int
) -> list[dict[str, object]]:
    """The shares of the predicted classes, and one chi-square test of them in which a patient counts once.

    That once is by the class that most of his scans are given, of equally many the first in the order of classes.
    """
    a, b = (t[t["predicted"].isin(list(classes))] for t in (training, new))
    if a.empty or b.empty:
        return []
    counts = np.stack([_by_patient(t, classes) for t in (a, b)])
    nothing = float("nan")
    patients = counts.sum(1).tolist()
    row = _row("class shares", "all", nothing, nothing, nothing, nothing, patients[0], patients[1])
    met = counts.sum(0) > 0
    if counts.sum(1).min() >= LEAST and met.sum() > 1:
        found = stats.chi2_contingency(counts[:, met])
        row |= {"test": "chi-square of patients", "statistic": float(found.statistic), "p": float(found.pvalue)}
    rows = [row]
    for name in classes:
        sides = [(t["predicted"] == name).astype(float) for t in (a, b)]
        low, high = difference(sides[0], a["patient"], sides[1], b["patient"], resamples, seed)
        before, now = (float(s.mean()) for s in sides)
        rows.append(_row("class share", name, before, now, low, high, patients[0], patients[1]))
    return rows


def judged(rows: Sequence[dict[str, object]]) -> pd.DataFrame:
    """The rows as a table, with p corrected for how many tests there are, and what `moved`; None where untested."""
    table = pd.DataFrame([r for r in rows if r], columns=COLUMNS)
    tested = table["p"].notna()
    table["moved"] = pd.Series([None] * len(table), dtype=object)
    if tested.any():
        table.loc[tested, "p_adjusted"] = stats.false_discovery_control(table.loc[tested, "p"].astype(float))
        table.loc[tested, "moved"] = (table.loc[tested, "p_adjusted"] < LEVEL).astype(object)
    return table


def share_interval(values: pd.Series, patients: pd.Series, resamples: int, seed: int) -> tuple[float, float, float]:
    """(a share of scans, its 95% interval's low and high), by a bootstrap over patients."""
    sums, counts = _sums(values, patients)
    drawn = np.concatenate(
        [(sums @ w) / (counts @ w) for w in resampled_weights(len(counts), resamples, seed, len(counts))]
    )
    value = float(values.mean())
    if value in (0.0, 1.0):
        low, high = wilson(round(value) * len(counts), len(counts))
        return value, float(low), float(high)
    interval = choose_interval(value, drawn)
    return value, interval.low, interval.high


def difference(
    a: pd.Series, patients_a: pd.Series, b: pd.Series, patients_b: pd.Series, resamples: int, seed: int
) -> tuple[float, float]:
    """The 95% interval of the mean of b's scans less that of a's, the patients of each drawn on their own."""
    drawn = []
    for n, (values, patients) in enumerate(((a, patients_a), (b, patients_b))):
        sums, counts = _sums(values, patients)
        weights = resampled_weights(len(counts), resamples, seed + n, len(counts))
        drawn.append(np.concatenate([(sums @ w) / (counts @ w) for w in weights]))
    return percentiles(drawn[1] - drawn[0])


def _sums(values: pd.Series, patients: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    codes = pd.factorize(patients.to_numpy())[0]
    return np.bincount(codes, weights=values.to_numpy(dtype=float)), np.bincount(codes).astype(float)


def _by_patient(table: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """How many patients each class has, by the class that most of a patient's scans are given."""
    counts = pd.crosstab(table["patient"], table["predicted"]).reindex(columns=list(classes), fill_value=0)
    return np.bincount(counts.to_numpy().argmax(1), minlength=len(classes))


def _row(
    figure: str, of: str, training: float, new: float, low: float, high: float, patients: int, patients_new: int
) -> dict[str, object]:
    return {
        "figure": figure,
        "of": of,
        "training": training,
        "new": new,
        "difference": new - training,
        "low": low,
        "high": high,
        "test": "",
        "statistic": float("nan"),
        "p": float("nan"),
        "p_adjusted": float("nan"),
        "patients_training": patients,
        "patients_new": patients_new,
    }
