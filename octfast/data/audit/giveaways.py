"""Tells how well cheap properties of a file, such as its size, give its class away with no look at the eye."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from octfast.data.audit.checks import WARNING, Finding
from octfast.data.audit.image_stats import ImageStats
from octfast.data.scans import in_order

COLUMNS = ("property", "right", "low", "high", "chance", "label", "told", "told_low", "told_high")
# Columns of a table that say where a scan comes from.
_SOURCES = (
    *(
        "device",
        "scanner",
        "machine",
        "camera",
        "manufacturer",
        "vendor",
        "model",
        "site",
        "hospital",
        "center",
        "centre",
    ),
    *("clinic", "source", "dataset"),
)
_FOLDS, _FEWEST, _RESAMPLES = 5, 10, 400
# How far from chance to certainty all classes are told apart, and how surely one is told from the others.
_HALFWAY, _SURE = 0.5, 0.9


def giveaways(scans: pd.DataFrame, stats: Sequence[ImageStats], seed: int = 0) -> pd.DataFrame:
    """How well each cheap property alone predicts the class of scans of patients that were not learned from.

    A small decision tree learns from the property and is asked about other patients, in five folds. All classes count
    alike, however many scans they have. Classes of fewer than ten patients are left aside. Intervals are 95%, from a
    bootstrap over patients.

    Parameters
    ----------
    scans : a Scans table; columns such as `device` or `site` count as properties.
    stats : of the same scans.

    Returns
    -------
    A row a property, the most telling first: `property`, `right` (the mean share of right answers over classes) with
    `low` and `high`, `chance` (what guessing gives), `label` (the class that is told best from the others), `told` (the
    mean of its sensitivity and specificity) with `told_low` and `told_high`. Empty where there are too few patients.
    """
    readable = np.array([not s.trouble for s in stats])
    patients_of = scans[readable].groupby("label")["patient"].nunique()
    labels = in_order(patients_of.index[patients_of >= _FEWEST])
    used = readable & scans["label"].isin(labels).to_numpy()
    if len(labels) < 2:
        return pd.DataFrame(columns=list(COLUMNS))
    of = scans[used].reset_index(drop=True)
    label = of["label"].map({name: i for i, name in enumerate(labels)}).to_numpy()
    patient = pd.factorize(of["patient"])[0]
    rows = []
    for name, values in _properties(of, [s for s, u in zip(stats, used, strict=True) if u]):
        if (values == values[0]).all():
            continue
        predicted = _predicted(values, label, patient, seed)
        rows.append((name, *_judged(label, predicted, patient, labels, seed)))
    found = pd.DataFrame(rows, columns=list(COLUMNS))
    return found.sort_values("low", ascending=False, ignore_index=True, kind="stable")


def giveaway_findings(found: pd.DataFrame) -> Iterator[Finding]:
    """A warning for each property of `giveaways` that gives the classes, or one of them, away."""
    for row in found.itertuples():
        said = f"the {row.property} alone gives the class in {row.right:.0%} of scans ({row.low:.0%} to {row.high:.0%})"
        said += f", where guessing gives {row.chance:.0%}"
        if row.told_low >= _SURE:
            told = f"{row.told:.0%} ({row.told_low:.0%} to {row.told_high:.0%})"
            said += f"; it tells {row.label} from the others in {told}"
        if row.low >= row.chance + _HALFWAY * (1 - row.chance) or row.told_low >= _SURE:
            yield Finding(WARNING, "gives-class-away", "", said)


def _properties(of: pd.DataFrame, stats: Sequence[ImageStats]) -> Iterator[tuple[str, np.ndarray]]:
    """Each property as numbers of shape (scans, n)."""
    sizes = np.array([(s.width, s.height, s.width / max(1, s.height)) for s in stats], dtype=float)
    bits = [0 if s.texture is None else np.bitwise_count(s.texture).sum() for s in stats]
    weight = [_bytes(path) / max(1.0, s.width * s.height) for path, s in zip(of["path"], stats, strict=True)]
    yield "white border", np.array([[s.border] for s in stats])
    yield "brightness", np.nan_to_num(np.array([[s.brightness] for s in stats]))
    yield "size", sizes
    yield "sharpness", np.array(bits, dtype=float)[:, None]
    yield "compression", np.array(weight)[:, None]
    yield "format", _dummies(pd.Series([f"{s.format} {s.mode}" for s in stats]))
    for column in of.columns:
        if column.casefold() in _SOURCES and 1 < of[column].nunique() <= 50:
            yield f"column {column}", _dummies(of[column].fillna(""))


def _dummies(values: pd.Series) -> np.ndarray:
    return pd.get_dummies(values.astype(str)).to_numpy(dtype=float)


def _bytes(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0


def _predicted(values: np.ndarray, label: np.ndarray, patient: np.ndarray, seed: int) -> np.ndarray:
    """What a small tree says of each scan that learned from other patients."""
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.tree import DecisionTreeClassifier

    out = np.zeros(len(label), dtype=int)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed).split(label, label, patient)
        for learned, asked in folds:
            tree = DecisionTreeClassifier(max_depth=4, min_samples_leaf=5, class_weight="balanced", random_state=seed)
            out[asked] = tree.fit(values[learned], label[learned]).predict(values[asked])
    return out


def _judged(
    label: np.ndarray, predicted: np.ndarray, patient: np.ndarray, labels: list[str], seed: int
) -> tuple[float | str, ...]:
    """The numbers of a row of `giveaways`, with intervals by a bootstrap over patients."""
    k, n = len(labels), int(patient.max()) + 1
    confusion = np.zeros((n, k, k))
    np.add.at(confusion, (patient, label, predicted), 1)
    flat = confusion.reshape(n, -1)
    rng = np.random.default_rng(seed)
    drawn = [rng.multinomial(n, np.full(n, 1 / n)) @ flat for _ in range(_RESAMPLES)]
    all_counts = np.stack([flat.sum(0), *drawn]).reshape(-1, k, k)
    right, told = _shares(all_counts)
    best = int(told[0].argmax())
    low, high = np.nanpercentile(right[1:], [2.5, 97.5])
    told_low, told_high = np.nanpercentile(told[1:, best], [2.5, 97.5])
    numbers = (float(right[0]), float(low), float(high), 1 / k)
    return (*numbers, labels[best], float(told[0, best]), float(told_low), float(told_high))


def _shares(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of confusion counts of shape (m, k, k): the mean sensitivity (m,), and that and specificity a class (m, k)."""
    actual = counts.sum(2)
    hits = np.diagonal(counts, axis1=1, axis2=2)
    others = counts.sum((1, 2))[:, None] - actual
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity = hits / actual
        specificity = 1 - (counts.sum(1) - hits) / others
    return np.nanmean(sensitivity, axis=1), (sensitivity + specificity) / 2
