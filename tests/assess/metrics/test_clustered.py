"""Intervals of shares of scans of which patients have several."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from octfast.assess.metrics.clustered import wilson_of_firsts, wilson_of_groups
from octfast.assess.metrics.intervals import wilson


@st.composite
def scans(draw) -> tuple[np.ndarray, np.ndarray]:
    """Whether each scan is a hit, and its patient."""
    n = draw(st.integers(1, 40))
    numbers = st.lists(st.integers(0, draw(st.integers(0, n))), min_size=n, max_size=n)
    return np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))), np.array(draw(numbers))


def of_whole(hits: np.ndarray, patient: np.ndarray) -> tuple[float, float]:
    low, high = wilson_of_groups(hits, patient, np.zeros(len(hits), dtype=int), 1)
    return float(low[0]), float(high[0])


@given(scans())
@settings(max_examples=60)
def test_it_is_wilsons_on_a_number_between_scans_that_count_once_a_patient_and_all(given_scans):
    hits, patient = given_scans
    ends = of_whole(hits, patient)
    sizes = np.bincount(patient)
    least, n = len(hits) ** 2 / (sizes**2).sum(), len(hits)
    share = hits.mean()
    widest, narrowest = wilson(share * least, least), wilson(share * n, n)
    assert widest[0] - 1e-9 <= ends[0] <= narrowest[0] + 1e-9 and narrowest[1] - 1e-9 <= ends[1] <= widest[1] + 1e-9
    wanted = binomtest(int(hits.sum()), n).proportion_ci(method="wilson")
    assert of_whole(hits, np.arange(n)) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


@given(scans())
@settings(max_examples=40)
def test_the_first_scans_have_the_interval_that_they_have_alone(given_scans):
    hits, patient = given_scans
    low, high = wilson_of_firsts(hits, patient)
    for i in range(len(hits)):
        assert (low[i], high[i]) == pytest.approx(of_whole(hits[: i + 1], patient[: i + 1]), abs=1e-9)


def test_groups_are_apart_and_an_empty_one_has_none():
    hits, patient = np.array([1, 0, 1, 1, 0, 1], dtype=bool), np.array([0, 0, 1, 2, 2, 3])
    group = np.array([0, 0, 0, 2, 2, 2])
    low, high = wilson_of_groups(hits, patient, group, 3)
    assert np.isnan(low[1]) and np.isnan(high[1])
    for g in (0, 2):
        assert (low[g], high[g]) == pytest.approx(of_whole(hits[group == g], patient[group == g]))


def test_scans_that_are_the_same_five_times_tell_no_more_than_once():
    rng = np.random.default_rng(0)
    once = rng.random(80) < 0.3
    assert of_whole(np.repeat(once, 5), np.repeat(np.arange(80), 5)) == pytest.approx(
        of_whole(once, np.arange(80)), abs=2e-3
    )
    assert of_whole(np.ones(50, dtype=bool), np.repeat(np.arange(10), 5)) == pytest.approx(wilson(10, 10))


def test_it_is_near_a_bootstrap_over_patients():
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 12, 300)
    patient = np.repeat(np.arange(300), sizes)
    hits = rng.random(len(patient)) < rng.beta(2, 3, 300)[patient]
    n, k = sizes.astype(float), np.bincount(patient, hits)
    drawn = rng.integers(0, 300, (4000, 300))
    shares = k[drawn].sum(1) / n[drawn].sum(1)
    assert of_whole(hits, patient) == pytest.approx(tuple(np.quantile(shares, (0.025, 0.975))), abs=0.006)
    plain = wilson(int(hits.sum()), len(hits))
    low, high = of_whole(hits, patient)
    assert high - low > 1.3 * (plain[1] - plain[0])
