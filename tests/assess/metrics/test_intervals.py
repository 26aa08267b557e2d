from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from octfast.assess.metrics.intervals import (
    ALL_EQUAL,
    OVER_PATIENTS,
    OVER_SCANS,
    UNDEFINED,
    WILSON,
    WILSON_PATIENTS,
    Proportion,
    choose_interval,
    percentiles,
    resampled_weights,
    wilson,
)


@pytest.mark.parametrize(
    "right, of, low, high",
    # Kermany et al. 2018 give 96.6% of 1,000; the ends are of Wilson's own formula.
    [(966, 1000, 95.3, 97.6), (250, 250, 98.5, 100.0), (0, 10, 0.0, 27.8)],
)
def test_goldens_of_wilsons_interval(right, of, low, high):
    assert [round(100 * end, 1) for end in wilson(right, of)] == [low, high]


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 1)), min_size=1, max_size=5), st.sampled_from([0.8, 0.95]))
def test_wilsons_interval_is_scipys_one_by_one_and_all_at_once(drawn, level):
    of = np.array([n for n, _ in drawn])
    right = np.round(of * [share for _, share in drawn]).astype(int)
    low, high = wilson(right, of, level)
    for k, n, *ends in zip(right, of, low, high, strict=True):
        if n == 0:
            assert np.isnan(ends).all() and np.isnan(wilson(0, 0, level)).all()
            continue
        theirs = binomtest(int(k), int(n)).proportion_ci(level, method="wilson")
        assert ends == pytest.approx([theirs.low, theirs.high], abs=1e-12) and wilson(int(k), int(n), level) == (*ends,)


@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilsons_interval_is_statsmodels(of, share, level):
    right = round(share * of)
    statsmodels = pytest.importorskip("statsmodels.stats.proportion")
    theirs = statsmodels.proportion_confint(right, of, alpha=1 - level, method="wilson")
    assert wilson(right, of, level) == pytest.approx(theirs, abs=1e-12)


def test_the_weights_of_a_resample_are_of_as_many_patients_as_there_are():
    drawn = np.concatenate(list(resampled_weights(37, 300, 0, 100)), axis=1)
    assert drawn.shape == (37, 300) and (drawn.sum(0) == 37).all()
    # Each patient is drawn once on average, with a variance of 1 - 1/37: a multinomial draw.
    assert drawn.mean() == 1 and drawn.var() == pytest.approx(1 - 1 / 37, rel=0.05)


def test_weights_hang_on_the_seed_alone_and_not_on_the_blocks():
    few = np.concatenate(list(resampled_weights(50, 300, 7, 10)), axis=1)
    many = list(resampled_weights(50, 300, 7, 1_000_000))
    assert len(many) > 10
    np.testing.assert_array_equal(few, np.concatenate(many, axis=1))
    assert (few != np.concatenate(list(resampled_weights(50, 300, 8, 10)), axis=1)).any()


def test_which_method_stands_behind_an_interval():
    rng = np.random.default_rng(0)
    spread = rng.normal(0.8, 0.05, 2000)
    ninety = Proportion(90, 100, 100)
    assert choose_interval(0.9, spread, single=True, proportion=ninety) == (*wilson(90, 100), WILSON)
    assert choose_interval(0.8, spread, single=True).method == OVER_SCANS
    found = choose_interval(0.8, spread, proportion=ninety)
    assert found.method == OVER_PATIENTS and (found.low, found.high) == percentiles(spread)
    assert found.low == pytest.approx(0.8 - 1.96 * 0.05, abs=0.01)
    assert choose_interval(float("nan"), spread).method == UNDEFINED
    mostly_undefined = np.where(np.arange(2000) < 1100, np.nan, spread)
    assert choose_interval(0.8, mostly_undefined).method == UNDEFINED


@pytest.mark.parametrize("value", [0, 1])
def test_a_perfect_proportion_gets_wilsons_interval_on_its_patients(value):
    found = choose_interval(float(value), np.full(2000, float(value)), proportion=Proportion(250 * value, 250, 40))
    assert found == (*wilson(40 * value, 40), WILSON_PATIENTS)
    assert found.high - found.low > 0.08


def test_other_perfect_figures_get_none_rather_than_one_of_no_width():
    found = choose_interval(1.0, np.ones(2000))
    assert np.isnan(found.low) and np.isnan(found.high) and found.method == ALL_EQUAL
    assert choose_interval(0.5, np.full(2000, 0.5), proportion=Proportion(1, 2, 1)).method == ALL_EQUAL


def test_infinite_ratios_do_not_break_the_ends():
    values = np.r_[np.linspace(1, 10, 1900), np.full(100, np.inf)]
    low, high = percentiles(values)
    assert 1 < low < 2 and high == np.inf
