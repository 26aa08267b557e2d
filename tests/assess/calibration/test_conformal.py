from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from octfast.assess.calibration.conformal import (
    conformal_threshold,
    coverage_intervals,
    coverage_of_sets,
    prediction_sets,
    rounded_down,
)
from octfast.data.scans import load_scans, save_scans
from octfast.errors import DataError, UsageError
from tests.assess.simulated import CLASSES, simulated
from tests.assess.tables import clustered


@given(st.integers(20, 200), st.floats(0.5, 0.95), st.integers(0, 2**16))
@settings(max_examples=60)
def test_with_one_scan_a_patient_it_is_split_conformal_prediction(n, coverage, seed):
    table = simulated(n, a_patient=1, seed=seed)
    rank = math.ceil((n + 1) * coverage - 1e-9)
    wanted = np.sort(table["loss"])[rank - 1]
    assert conformal_threshold(table, coverage) == pytest.approx(math.exp(-wanted), rel=1e-7)


@given(st.integers(20, 200), st.integers(1, 6), st.floats(0.5, 0.9), st.integers(0, 2**16))
@settings(max_examples=60)
def test_the_threshold_holds_the_coverage_among_its_own_patients(n, a_patient, coverage, seed):
    table = simulated(n, a_patient=a_patient, seed=seed)
    patients = table["patient"].nunique()
    if patients < coverage / (1 - coverage):
        with pytest.raises(DataError, match=f"{patients} validation patients are too few"):
            conformal_threshold(table, coverage)
        return
    sets = prediction_sets(table, CLASSES, conformal_threshold(table, coverage), allow_empty=True)
    # The patient who is still to come is counted as missed.
    assert coverage_of_sets(table, sets)["coverage_by_patient"] >= coverage * (patients + 1) / patients - 1e-9


def measured(coverage: float, a_patient: int, alike: float, trials: int, patients: int = 60) -> tuple[float, float]:
    """Mean coverage on new patients, over draws: with patients heeded, and with scans taken for independent."""
    found = []
    for seed in range(trials):
        both = simulated(2 * patients * a_patient, a_patient=a_patient, alike=alike, spread=0.7, seed=seed)
        known, new = both.iloc[: patients * a_patient], both.iloc[patients * a_patient :]
        thresholds = (
            conformal_threshold(known, coverage),
            conformal_threshold(known.assign(patient=known.index), coverage),
        )
        found.append(
            [coverage_of_sets(new, prediction_sets(new, CLASSES, t, allow_empty=True))["coverage"] for t in thresholds]
        )
    by_patient, by_scan = np.mean(found, axis=0)
    return float(by_patient), float(by_scan)


def test_the_coverage_lies_between_its_bounds():
    # 60 exchangeable scans: at least .9 and at most .9 + 1/61, with three standard errors of 200 trials of 60 scans.
    got, _ = measured(0.9, 1, 0.0, 200)
    assert 0.9 - 0.012 <= got <= 0.9 + 1 / 61 + 0.012


def test_the_coverage_holds_where_scans_of_a_patient_are_alike():
    heeded, scans = measured(0.95, 10, 1.0, 120, patients=25)
    assert heeded >= 0.95 - 0.015
    # Taken for independent, the ten same scans of each patient promise too much.
    assert scans < heeded - 0.01


def test_sets_are_never_empty_unless_wanted():
    table = simulated(300)
    allowed, filled = (prediction_sets(table, CLASSES, 0.99, allow_empty=e) for e in (True, False))
    assert (allowed.sum(axis=1) == 0).any() and (filled.sum(axis=1) >= 1).all()
    assert (filled | allowed).equals(filled)
    empty = allowed.sum(axis=1) == 0
    assert (filled[empty].idxmax(axis=1) == table.loc[empty, "predicted"]).all()
    assert filled[~empty].equals(allowed[~empty])


def test_measured_sets_agree_with_a_count_by_hand():
    table = simulated(3).assign(label=["CNV", "CNV", "DME"], patient=["1", "1", "2"])
    sets = pd.DataFrame([[1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]], columns=list(CLASSES)).astype(bool)
    assert coverage_of_sets(table, sets) == {
        "scans": 3,
        "coverage": pytest.approx(2 / 3),
        "coverage_by_patient": 0.75,
        "mean_size": pytest.approx(7 / 3),
        "single": pytest.approx(1 / 3),
        "sizes": {1: 1, 2: 1, 4: 1},
        "by_class": {"CNV": 0.5, "DME": 1.0, "DRUSEN": None, "NORMAL": None},
    }


def test_the_table_may_have_any_index():
    table = simulated(50).set_index(pd.Index(range(100, 150)))
    sets = prediction_sets(table, CLASSES, 0.2)
    assert list(sets.index) == list(table.index) and 0 < coverage_of_sets(table, sets)["coverage"] <= 1
    assert conformal_threshold(table, 0.8) == conformal_threshold(table.sample(frac=1, random_state=0), 0.8)


def test_the_scan_at_the_threshold_stays_there_when_read_from_a_file(tmp_path):
    for seed in range(20):
        table = simulated(60, a_patient=1, seed=seed)
        save_scans(table, tmp_path / "t.csv", "/scans")
        read = load_scans(tmp_path / "t.csv", "/scans")
        threshold = conformal_threshold(table, 0.9)
        for t in (table, read):
            held = prediction_sets(t, CLASSES, threshold, allow_empty=True)
            assert coverage_of_sets(t, held)["coverage"] == math.ceil(61 * 0.9) / 60


@given(st.floats(0, 1))
def test_rounded_down_a_little(value):
    found = rounded_down(value)
    assert value * (1 - 2e-8) - 1e-300 <= found <= value * (1 - 1e-9)
    assert found == float(f"{found:.9g}")


@pytest.mark.parametrize("coverage", [0, 1, -1, 1.5, float("nan")])
def test_a_coverage_that_cannot_be(coverage):
    with pytest.raises(UsageError, match="--coverage"):
        conformal_threshold(simulated(50), coverage)


def test_too_few_patients_for_so_high_a_coverage():
    with pytest.raises(DataError, match="50 validation patients are too few") as e:
        conformal_threshold(simulated(200, a_patient=4), 0.99)
    assert "99 patients" in e.value.hint
    conformal_threshold(simulated(99, a_patient=1), 0.99)


def test_the_intervals_of_what_sets_cover_are_over_patients():
    table = clustered(150, seed=3)
    sets = prediction_sets(table, CLASSES, 0.3)
    found, ends = coverage_of_sets(table, sets), coverage_intervals(table, sets)
    assert set(ends) == {"coverage", "coverage_by_patient", "mean_size"}
    assert all(low < found[name] < high for name, (low, high) in ends.items())
    # The shares of patients are independent, so the interval of their mean is nearly the normal one.
    held = sets.to_numpy()[np.arange(len(sets)), [CLASSES.index(c) for c in table["label"]]]
    share = pd.Series(held).groupby(table["patient"].to_numpy()).mean()
    half = 1.96 * share.std() / np.sqrt(len(share))
    expected = [share.mean() - half, share.mean() + half]
    assert ends["coverage_by_patient"] == pytest.approx(expected, abs=0.25 * half)
    # A scan a patient: Wilson's.
    single = table.assign(patient=table["path"])
    wilson = binomtest(int(held.sum()), len(held)).proportion_ci(method="wilson")
    assert coverage_intervals(single, sets)["coverage"] == pytest.approx([wilson.low, wilson.high])
    everything = prediction_sets(table, CLASSES, 0)
    assert coverage_intervals(table, everything)["mean_size"] == [None, None]
