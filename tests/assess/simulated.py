"""Predictions tables with known truths, and runs of them: labels drawn from what the model then overstates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from torch import nn

from octfast.data.scans import save_scans
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import save_bundle
from octfast.model.forward import predictions_table
from octfast.run.folder import Run

CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")


def simulated(
    n: int = 1000,
    temperature: float = 1.0,
    *,
    classes: Sequence[str] = CLASSES,
    a_patient: int = 4,
    alike: float = 0.0,
    spread: float = 3.0,
    split: str = "valid",
    seed: int = 0,
) -> pd.DataFrame:
    """A table at temperature 1 of a model whose best temperature is the given one.

    Parameters
    ----------
    a_patient : scans of each patient.
    alike : share of the variance of the logits that a patient's scans have in common; at 1 they are the same.
    spread : standard deviation of the logits.
    """
    rng = np.random.default_rng(seed)
    patients = np.arange(n) // a_patient
    k = len(classes)
    common, own = rng.normal(size=(patients.max() + 1, k))[patients], rng.normal(size=(n, k))
    logits = spread * (np.sqrt(alike) * common + np.sqrt(1 - alike) * own)
    cumulated = np.cumsum(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), axis=1)
    # Patients whose scans are the same have the same label, too.
    u = np.where(rng.random(n) < alike, rng.random(patients.max() + 1)[patients], rng.random(n))
    labels = np.minimum((u[:, None] > cumulated).sum(1), k - 1)
    scans = pd.DataFrame(
        {
            "path": [f"/scans/{split}-{i:06d}.jpeg" for i in range(n)],
            "label": np.asarray(classes, dtype=object)[labels],
            "patient": [f"{split}{p}" for p in patients],
            "split": split,
        }
    )
    return predictions_table(scans, logits * temperature, classes)


def simulated_run(folder: Path, temperature: float = 2.5, n: int = 1200, n_test: int = 800, **fields) -> Run:
    """A run folder whose predictions are simulated: everything but the tensors of its model.

    Parameters
    ----------
    n, n_test : scans of validation and test; none for 0.
    """
    classes = fields.get("classes", CLASSES)
    (folder / "figures").mkdir(parents=True)
    run = Run(folder)
    run.write_json("config.json", {"data": {"root": "/scans", "synthetic": True}})
    info = BundleInfo("resnet18", "octfast", tuple(classes), 64, (0.5,) * 3, (0.2,) * 3, synthetic=True)
    save_bundle(folder / "model", nn.Linear(1, 1), info)
    tables = []
    for seed, (split, size) in enumerate({"valid": n, "test": n_test}.items()):
        if size:
            tables.append(simulated(size, temperature, split=split, seed=seed, **fields))
            run.save_predictions(tables[-1], split)
    save_scans(pd.concat(tables)[["path", "label", "patient", "split"]], folder / "scans.csv", "/scans")
    return run


P = [f"p_{c}" for c in CLASSES]


@st.composite
def simulated_tables(draw, most: int = 60):
    """Tables of any size with ties: probabilities are rounded to eighths, fifteenths, or not at all."""
    table = simulated(draw(st.integers(1, most)), draw(st.floats(0.3, 5)), seed=draw(st.integers(0, 2**16)))
    steps = draw(st.sampled_from([8, 15, 0]))
    if steps:
        table[P] = np.round(table[P] * steps) / steps
        table["probability"] = table[P].max(axis=1)
        table["predicted"] = np.asarray(CLASSES, dtype=object)[table[P].to_numpy().argmax(1)]
    return table
