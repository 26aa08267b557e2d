"""Scans' probabilities become a unit's: each rule, the choice among them on held-out scans, and what a bundle keeps."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octfast.errors import BundleError
from octfast.model.aggregation import MEAN, MEAN_LOG, NOISY_OR, TOP, URGENT, Aggregation, aggregation_of
from octfast.model.bundle.info import INFO_FILE, parse_info
from octfast.model.fit_aggregation import fit_aggregations
from octfast.model.units import aggregated_tables

CLASSES = ("CNV", "DME", "NORMAL")
URGENTLY = ("CNV", "DME")
RULES = [(MEAN, None), (MEAN_LOG, None), (TOP, 1), (TOP, 2), (URGENT, None), (NOISY_OR, None)]


def answer(rule: str, k: int | None, rows, number=None, temperature: float = 1.0) -> np.ndarray:
    p = np.array(rows, dtype=float)
    number = np.zeros(len(p), dtype=int) if number is None else number
    how = Aggregation("eye", rule, k, temperature, URGENTLY)
    return how.probabilities(p, number, int(number.max()) + 1, CLASSES)


@pytest.mark.parametrize(
    "rule, k, expected",
    [
        (MEAN, None, [0.4, 0.15, 0.45]),
        (MEAN_LOG, None, np.sqrt([0.7 * 0.1, 0.2 * 0.1, 0.1 * 0.8])),
        (TOP, 1, [0.7, 0.2, 0.8]),
        (TOP, 2, np.sqrt([0.7 * 0.1, 0.2 * 0.1, 0.1 * 0.8])),
        (URGENT, None, [0.7, 0.2, 0.1]),
        (NOISY_OR, None, [1 - 0.3 * 0.9, 1 - 0.8 * 0.9, 0.1 * 0.8]),
    ],
)
def test_each_rule_is_what_it_says(rule, k, expected):
    found = answer(rule, k, [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])[0]
    np.testing.assert_allclose(found, np.array(expected) / np.sum(expected), rtol=1e-9)


@given(st.integers(0, 2**32 - 1), st.sampled_from(RULES))
def test_a_unit_is_a_set_and_one_scan_speaks_for_itself(seed, of):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(3, 0.5), 9).clip(1e-5, 1)
    p /= p.sum(1, keepdims=True)
    number = rng.permutation([0, 0, 0, 0, 1, 2, 2, 3, 3])
    found = answer(*of, p, number)
    np.testing.assert_allclose(found.sum(1), 1)
    np.testing.assert_allclose(found[1], p[number == 1][0], rtol=1e-9)
    order = rng.permutation(9)
    np.testing.assert_allclose(answer(*of, p[order], number[order]), found, rtol=1e-9)
    how = Aggregation("eye", *of, urgent=URGENTLY)
    weight = how.weights(p, number, found.argmax(1), CLASSES)
    np.testing.assert_allclose(np.bincount(number, weight), 1)


def table_of(patients: int, frames: int, shown: int, seed: int = 0) -> pd.DataFrame:
    """Out-of-fold answers for scans of two eyes a patient: so many scans of an ill one show what it has."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        for eye in "RL":
            label = CLASSES[rng.integers(3)]
            for frame in range(frames):
                seen = label if frame < shown or label == "NORMAL" else "NORMAL"
                z = rng.normal(size=3) + 2.5 * (np.array(CLASSES) == seen)
                rows.append(
                    (f"{patient}{eye}{frame}", label, f"p{patient}", "valid", eye, *np.exp(z) / np.exp(z).sum())
                )
    return pd.DataFrame(rows, columns=["path", "label", "patient", "split", "eye", *(f"p_{c}" for c in CLASSES)])


def with_answers(table: pd.DataFrame) -> pd.DataFrame:
    p = table[[f"p_{c}" for c in CLASSES]].to_numpy()
    loss = -np.log(p[np.arange(len(p)), [CLASSES.index(c) for c in table["label"]]])
    return table.assign(predicted=np.array(CLASSES)[p.argmax(1)], probability=p.max(1), loss=loss)


def test_what_fits_the_scans_is_chosen_and_better_on_others():
    everywhere, in_one = table_of(60, 5, 5), table_of(60, 5, 1)
    for table, other, not_chosen in (
        (everywhere, table_of(200, 5, 5, 1), (URGENT, NOISY_OR)),
        (in_one, table_of(200, 5, 1, 1), (MEAN, MEAN_LOG)),
    ):
        found, notes = fit_aggregations(table, CLASSES)
        kept = found["eye"]
        assert kept["rule"] not in not_chosen and kept["units"] == 120 and kept["patients"] == 60
        assert list(found) == ["eye"] and "have scans of several labels" in notes[0]
        losses = {}
        for name, how in (
            ("fitted", aggregation_of({"units": found}, "eye", CLASSES)),
            *((rule, Aggregation("eye", rule, urgent=URGENTLY)) for rule in (MEAN, URGENT)),
        ):
            losses[name] = aggregated_tables(with_answers(other), how, CLASSES)[0]["loss"].mean()
        assert losses["fitted"] < min(losses[MEAN], losses[URGENT])
        # What was promised out of fold holds for others.
        assert losses["fitted"] == pytest.approx(min(kept["log_loss"].values()), abs=0.1)


def test_too_few_units_are_said_and_the_default_stands():
    found, notes = fit_aggregations(table_of(20, 3, 3), CLASSES)
    assert not found and "eyes: 40 held out, fewer than 60" in notes[0] and "most urgent scan" in notes[0]
    how = aggregation_of({"operating": {"urgent": ["DME"], "threshold": 0.2}}, "eye", CLASSES)
    assert how.rule == URGENT and how.urgent == ("DME",) and how.calibration["operating"]["threshold"] == 0.2
    assert aggregation_of({}, "eye", ("A", "B")).rule == MEAN
    # With one scan a unit there is nothing to put together.
    assert fit_aggregations(table_of(40, 1, 1).assign(patient=range(80)), CLASSES) == ({}, [])


KEPT = {"rule": TOP, "k": 2, "temperature": 1.5, "urgent": ["CNV"]}


@pytest.mark.parametrize(
    "units",
    [
        [],
        {"scan": KEPT},
        {"eye": None},
        {"eye": {**KEPT, "rule": "vote"}},
        {"eye": {**KEPT, "k": None}},
        {"eye": {**KEPT, "rule": MEAN}},
        {"eye": {**KEPT, "temperature": 0}},
        {"eye": {**KEPT, "urgent": ["AMD"]}},
        {"eye": {**KEPT, "urgent": list(CLASSES)}},
        {"eye": {**KEPT, "operating": {"urgent": ["CNV"], "threshold": 7}}},
        {"eye": {k: v for k, v in KEPT.items() if k != "urgent"}},
    ],
    ids=str,
)
def test_a_bundle_with_another_aggregation_is_refused(units):
    about = {"format": "octfast-bundle", "version": 2, "arch": "resnet18", "head": "linear", "classes": CLASSES}
    about |= {"size": 64, "mean": [0.5] * 3, "std": [0.2] * 3}
    parse_info(json.dumps({**about, "calibration": {"units": {"eye": KEPT}}}).encode(), INFO_FILE)
    with pytest.raises(BundleError, match="units"):
        parse_info(json.dumps({**about, "calibration": {"units": units}}).encode(), INFO_FILE)
