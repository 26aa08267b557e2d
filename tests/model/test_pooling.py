"""Scans pooled: the logits of a unit are made of its scans' logits, and it can be told which of them counted."""

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
from octfast.model.pooling import POOLINGS, BagHead, bag_head, deciding_scans, pool, pool_one, pooling_of, scan_head
from octfast.model.units import unit_tables, weighted_medians


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 1000))
def test_a_unit_has_the_weighed_mean_of_its_scans(sizes, seed):
    rng = np.random.default_rng(seed)
    unit = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    outputs = rng.normal(0, 30, (len(unit), 4))
    logits, attention = pool(torch.tensor(outputs), torch.tensor(unit), len(sizes), pooling_of())
    for u in range(len(sizes)):
        own = unit == u
        weights = np.exp(outputs[own, 3] - outputs[own, 3].max())
        weights /= weights.sum()
        np.testing.assert_allclose(attention[own], weights, atol=1e-12)
        np.testing.assert_allclose(logits[u], weights @ outputs[own, :3], atol=1e-9)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6), st.sampled_from(["mean", "max", "topk"]), st.integers(0, 1000)
)
def test_a_unit_has_the_mean_or_the_highest_of_its_scans(sizes, kind, seed):
    rng = np.random.default_rng(seed)
    unit = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    # Of few values, so that several are the highest.
    outputs = rng.integers(-3, 4, (len(unit), 4)).astype(float)
    logits, counts = pool(torch.tensor(outputs), torch.tensor(unit), len(sizes), pooling_of(kind))
    k = {"mean": 9, "max": 1, "topk": 3}[kind]
    for u in range(len(sizes)):
        own = outputs[unit == u, :3]
        wanted = np.sort(own, 0)[::-1][:k].mean(0)
        np.testing.assert_allclose(logits[u], wanted, atol=1e-12)
        # What counts is told of the class that is given.
        weight = counts.numpy()[unit == u]
        given = own[:, int(logits[u].argmax())]
        least = np.sort(given)[::-1][:k][-1]
        assert (weight[given < least] == 0).all() and weight.sum() == pytest.approx(1)
        np.testing.assert_allclose(weight[given > least], 1 / min(k, len(own)))
        # Of equal ones none is before another.
        assert np.ptp(weight[given == least]) < 1e-12
        assert weight @ own[:, logits[u].argmax()] == pytest.approx(float(logits[u].max()))


@pytest.mark.parametrize("kind", POOLINGS)
def test_what_is_pooled_is_learned_from(kind):
    outputs = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    unit = torch.tensor([0, 1, 0, 1, 1, 0])
    assert torch.autograd.gradcheck(
        lambda x: pool(x, unit, 2, pooling_of(kind, 2 if kind == "topk" else None))[0], outputs
    )


@given(st.integers(1, 7), st.sampled_from(POOLINGS), st.integers(0, 1000))
def test_a_single_unit_is_pooled_alike_by_what_is_exported(scans, kind, seed):
    outputs = torch.tensor(np.random.default_rng(seed).integers(-3, 4, (scans, 4)).astype(float))
    expected = pool(outputs, torch.zeros(scans, dtype=torch.long), 1, pooling_of(kind))
    logits, counts = pool_one(outputs, pooling_of(kind))
    torch.testing.assert_close(logits, expected[0])
    highest, second = logits[0].sort(descending=True).values[:2]
    # Of two classes that are equal but for rounding either may be given.
    if kind in ("attention", "mean") or highest - second > 1e-9:
        torch.testing.assert_close(counts, expected[1])


def test_a_unit_without_scans_has_no_answer():
    for kind in POOLINGS:
        logits, _ = pool(torch.randn(2, 4), torch.tensor([0, 2]), 3, pooling_of(kind))
        assert logits[1].tolist() == [0, 0, 0] and bool(logits[[0, 2]].abs().sum(1).all())


def test_what_is_no_pooling_is_refused():
    for kind, k in (("median", None), ("mean", 3), ("topk", 0)):
        with pytest.raises(UsageError, match="pooling"):
            pooling_of(kind, k)


@pytest.mark.parametrize("kind", POOLINGS)
def test_before_the_first_step_all_scans_count_alike(kind):
    head = BagHead(pooled_head("linear", 6, 3), pooling_of(kind)).eval()
    _, attention = pool(head(torch.randn(5, 6)), torch.zeros(5, dtype=torch.long), 1, pooling_of(kind))
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
    table, each = unit_tables(
        scans, units_of(scans, "patient"), outputs, ["X", "Y"], pooling_of(), 2.0, np.array([9.0, 0.5, 2, 0.4])
    )
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


@pytest.mark.parametrize(
    ("attention", "read", "decided"),
    [
        ([0.1, 0.5, 0.0, 0.4], 3, [1]),
        # Of the highest alone, and of the two highest, the others count nothing though they were read.
        ([0.0, 0.0, 1.0], 3, [2]),
        ([0.5, 0.0, 0.5, 0.0], 4, [0]),
        ([0.3, 0.0, 0.3, 0.3, 0.05, 0.05], 6, [0, 2]),
        # All count about alike, or there is one.
        ([0.34, 0.33, 0.33], 3, []),
        ([1.0], 1, []),
        ([0.0, 0.0], 0, []),
    ],
)
def test_the_scans_that_decided_count_for_half_and_more_than_their_share(attention, read, decided):
    assert deciding_scans(np.array(attention), read) == decided
