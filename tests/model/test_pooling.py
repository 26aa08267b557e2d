"""Scans pooled by attention: the logits of a unit are the mean of its scans', weighed by what each counts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octfast.data.units import units_of
from octfast.errors import UsageError
from octfast.model.heads import POOLED, pooled_head
from octfast.model.pooling import BagHead, bag_head, pool, scan_head
from octfast.model.units import unit_tables, weighted_medians


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 1000))
def test_a_unit_has_the_weighed_mean_of_its_scans(sizes, seed):
    rng = np.random.default_rng(seed)
    unit = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    outputs = rng.normal(0, 30, (len(unit), 4))
    logits, attention = pool(torch.tensor(outputs), torch.tensor(unit), len(sizes))
    for u in range(len(sizes)):
        own = unit == u
        weights = np.exp(outputs[own, 3] - outputs[own, 3].max())
        weights /= weights.sum()
        np.testing.assert_allclose(attention[own], weights, atol=1e-12)
        np.testing.assert_allclose(logits[u], weights @ outputs[own, :3], atol=1e-9)


def test_before_the_first_step_all_scans_count_alike():
    head = BagHead(pooled_head("linear", 6, 3)).eval()
    _, attention = pool(head(torch.randn(5, 6)), torch.zeros(5, dtype=torch.long), 1)
    torch.testing.assert_close(attention, torch.full((5,), 0.2))


@pytest.mark.parametrize("name", POOLED)
def test_the_logits_of_a_scan_are_those_of_the_head(name):
    torch.manual_seed(0)
    scan = pooled_head(name, 6, 3)
    head, x = bag_head(scan, name).eval(), torch.randn(5, 6)
    torch.testing.assert_close(head(x)[:, :3], scan(x))
    assert scan_head(head) is scan and scan_head(scan) is scan


def test_a_head_of_maps_is_refused():
    with pytest.raises(UsageError, match="answers for single scans"):
        bag_head(torch.nn.Sequential(torch.nn.Linear(2, 2)), "fastai")


def test_the_tables_of_units_and_of_their_scans():
    scans = pd.DataFrame({"path": list("abcd"), "label": list("XXYY"), "patient": list("ppqq"), "split": "test"})
    # In p the second scan counts e times as much as the first, in q both alike.
    outputs = np.array([[0.0, 0, 0], [4, 0, 1], [0, 2, 5], [0, 1, 5]])
    table, each = unit_tables(scans, units_of(scans, "patient"), outputs, ["X", "Y"], 2.0, np.array([9.0, 0.5, 2, 0.4]))
    share = np.e / (1 + np.e)
    np.testing.assert_allclose(each["attention"], [1 - share, share, 0.5, 0.5])
    np.testing.assert_allclose(table["p_X"], 1 / (1 + np.exp([-4 * share / 2, 1.5 / 2])))
    np.testing.assert_allclose(each["alone_X"], 1 / (1 + np.exp([0, -2, 1, 0.5])))
    assert table["path"].iloc[0] == "b" and table["scans"].tolist() == [2, 2]
    assert table["predicted"].tolist() == ["X", "Y"] and table["temperature"].tolist() == [2, 2]
    # Far is a unit of which what counts is far: most of p's attention lies on a scan that is not.
    assert table["distance"].tolist() == [0.5, 0.4]


def test_a_weighted_median():
    values, number = np.array([3.0, 1, 2, 7]), np.array([0, 0, 0, 1])
    assert weighted_medians(values, np.array([0.2, 0.2, 0.6, 1]), number, 2).tolist() == [2, 7]
    assert weighted_medians(values, np.array([0.6, 0.2, 0.2, 1]), number, 2).tolist() == [3, 7]
