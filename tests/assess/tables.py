"""Random Predictions tables: ties, classes without scans, patients of one scan and of many."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import strategies as st

CLASSES = ["CNV", "DME", "DRUSEN", "NORMAL"]


def table_of(labels, p, patients=None, classes=CLASSES, predicted=None, split: str = "test") -> pd.DataFrame:
    """A Predictions table of these labels and probabilities, of shape (n, classes)."""
    p = np.asarray(p, dtype=float)
    n = len(labels)
    index = {c: i for i, c in enumerate(classes)}
    actual = np.array([index[label] for label in labels], dtype=int)
    best = np.asarray(classes, dtype=object)[p.argmax(1)] if predicted is None else predicted
    out = pd.DataFrame(
        {
            "path": [f"/scans/{i:05d}.jpeg" for i in range(n)],
            "label": list(labels),
            "patient": [str(i) for i in range(n)] if patients is None else [str(who) for who in patients],
            "split": split,
            "predicted": best,
            "probability": p.max(1),
            "loss": -np.log(np.maximum(p[np.arange(n), actual], 1e-15)),
        }
    )
    for i, c in enumerate(classes):
        out[f"p_{c}"] = p[:, i]
    return out


@st.composite
def tables(draw, least: int = 1, most: int = 40):
    """Tables in which classes may be missing and probabilities are tied, as they are rounded."""
    n = draw(st.integers(least, most))
    used = draw(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=4, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.choice(used, n)
    z = rng.normal(0, 2, (n, 4))
    z[np.arange(n), [CLASSES.index(c) for c in labels]] += draw(st.sampled_from([0.0, 1.5, 20.0]))
    if draw(st.booleans()):
        z = z.round()
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    patients = np.arange(n) if draw(st.booleans()) else rng.integers(0, max(1, n // 3), n)
    return table_of(labels, p, patients)


def clustered(patients: int = 80, most: int = 8, seed: int = 0, split: str = "test") -> pd.DataFrame:
    """A table of so many patients of one class each, 1 to `most` scans a patient, alike in a patient."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))
    own = rng.integers(0, 4, patients)
    z = rng.normal(0, 1, (patients, 4))[owner] + rng.normal(0, 0.7, (len(owner), 4))
    z[np.arange(len(owner)), own[owner]] += 2
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return table_of(np.asarray(CLASSES)[own[owner]], p, owner, split=split)


def predicted_as(table: pd.DataFrame, predicted: list[str], sure: float = 0.97) -> pd.DataFrame:
    """The table of a model that gives each scan this class, with this probability."""
    names = [c.removeprefix("p_") for c in table.columns if c.startswith("p_")]
    p = np.full((len(table), len(names)), (1 - sure) / (len(names) - 1))
    p[np.arange(len(table)), [names.index(c) for c in predicted]] = sure
    actual = p[np.arange(len(table)), [names.index(c) for c in table["label"]]]
    scans = table.drop(columns=[f"p_{c}" for c in names]).assign(predicted=predicted, probability=sure)
    return scans.assign(loss=-np.log(actual), **{f"p_{c}": p[:, i] for i, c in enumerate(names)})
