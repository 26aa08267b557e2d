from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import log_loss

from octfast.assess.metrics.reliability import (
    calibration_scores,
    ece,
    ece_by_chance,
    reliability,
)
from tests.assess.simulated import CLASSES, P, simulated, simulated_tables


def naive_ece(table: pd.DataFrame, bins: int) -> float:
    total = 0.0
    for b in range(bins):
        low, high = np.linspace(0, 1, bins + 1)[[b, b + 1]]
        rows = [
            (max(row[p] for p in P), row["label"] == row["predicted"])
            for row in table.to_dict("records")
            if low < max(row[p] for p in P) <= high or (b == 0 and max(row[p] for p in P) == 0)
        ]
        if rows:
            gap = sum(right for _, right in rows) / len(rows) - sum(c for c, _ in rows) / len(rows)
            total += abs(gap) * len(rows) / len(table)
    return total


@given(simulated_tables(), st.sampled_from([1, 2, 10, 15]))
@settings(max_examples=40)
def test_ece_is_that_of_a_plain_loop(table, bins):
    assert ece(table, CLASSES, bins) == pytest.approx(naive_ece(table, bins), abs=1e-12)


def test_ece_by_hand():
    table = simulated(4).assign(label="CNV", predicted=["CNV", "CNV", "DME", "CNV"])
    table[P] = [[0.9, 0.1, 0, 0], [0.92, 0.08, 0, 0], [0.3, 0.4, 0.3, 0], [1.0, 0, 0, 0]]
    # Bins of a fifteenth: (.867, .933] holds .9 and .92, (.4 - .067, .4] holds .4, the last one 1.
    assert ece(table, CLASSES) == pytest.approx((2 * (1 - 0.91) + 0.4 + 0) / 4)


@given(simulated_tables())
@settings(max_examples=40)
def test_the_reliability_table_adds_up_to_the_ece(table):
    rows = reliability(table, CLASSES)
    assert len(rows) == 15 and rows["count"].sum() == len(table)
    full = rows[rows["count"] > 0]
    assert rows.drop(full.index)[["confidence", "accuracy", "accuracy_low"]].isna().all(axis=None)
    gap = (full["count"] / len(table) * (full["accuracy"] - full["confidence"]).abs()).sum()
    assert gap == pytest.approx(ece(table, CLASSES), abs=1e-12)
    assert (full["confidence"] <= full["high"] + 1e-12).all() and (full["confidence"] >= full["low"] - 1e-12).all()
    alone = reliability(table.assign(patient=range(len(table))), CLASSES)
    for row in alone[alone["count"] > 0].rename(columns={"count": "n"}).itertuples():
        wanted = binomtest(round(row.n * row.accuracy), row.n).proportion_ci(method="wilson")
        np.testing.assert_allclose([row.accuracy_low, row.accuracy_high], wanted, atol=1e-9)


def test_honest_probabilities_have_the_ece_of_chance():
    honest, sure = simulated(600, 1.0, seed=1), simulated(600, 3.0, seed=1)
    for table, near in ((honest, True), (sure, False)):
        assert (ece(table, CLASSES) < 1.5 * ece_by_chance(table, CLASSES)) == near
    assert ece_by_chance(honest, CLASSES) == ece_by_chance(honest, CLASSES) > 0.005
    # It falls with the root of the number of scans.
    assert ece_by_chance(simulated(9600), CLASSES) == pytest.approx(ece_by_chance(honest, CLASSES) / 4, rel=0.15)


@given(st.integers(5, 60), st.floats(0.3, 5), st.integers(0, 2**16))
@settings(max_examples=20)
def test_nll_is_scikit_learns_and_brier_that_of_a_plain_loop(n, temperature, seed):
    table = simulated(n, temperature, seed=seed)
    found = calibration_scores(table, CLASSES)
    assert found["nll"] == pytest.approx(log_loss(table["label"], table[P], labels=list(CLASSES)))
    squares = [(row[f"p_{c}"] - (row["label"] == c)) ** 2 for row in table.to_dict("records") for c in CLASSES]
    assert found["brier"] == pytest.approx(sum(squares) / n)
