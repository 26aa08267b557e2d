"""What is called moved, on numbers whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from octfast.assess.drift.compare import compare_classes, compare_values, differences, judged, share_interval, sums_of

CLASSES = ("a", "b", "c")


def scans(seed: int, patients: int = 60, shift: float = 0.0, each: int = 3, p=(0.5, 0.3, 0.2)) -> pd.DataFrame:
    """Scans of patients who differ more than their scans do."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), each)
    value = rng.normal(size=patients)[patient] + 0.1 * rng.normal(size=len(patient)) + shift
    predicted = rng.choice(CLASSES, patients, p=p)[patient]
    return pd.DataFrame({"patient": patient, "value": value, "predicted": predicted, "yes": (value > 1).astype(float)})


def test_a_shift_of_a_deviation_is_found_and_measured():
    table = judged([compare_values("v", scans(0), scans(1, shift=1.0), "value", share=False)], 500, 0)
    assert bool(table["moved"][0]) and table["low"][0] < table["difference"][0] < table["high"][0]
    assert 0.5 < table["difference"][0] < 1.5


def test_by_chance_little_is_called_moved():
    """Scans of a patient are alike: tested scan by scan, ten scans a patient would make chance look like a shift."""
    found, naive = [], []
    for n in range(60):
        a, b = scans(2 * n, 30, each=10), scans(2 * n + 1, 30, each=10)
        found.append(compare_values("v", a, b, "value", share=False)["p"] < 0.05)
        naive.append(stats.ks_2samp(a["value"], b["value"]).pvalue < 0.05)
    assert np.mean(found) <= 0.12 < np.mean(naive)


def test_class_shares_count_a_patient_once():
    a = scans(0, 200)
    moved = judged(compare_classes(a, scans(1, 200, p=(0.2, 0.3, 0.5)), CLASSES), 200, 0)
    assert bool(moved["moved"][0]) and list(moved["of"]) == ["all", *CLASSES]
    assert moved.loc[moved["of"] == "c", "low"].iloc[0] > 0
    once = a.groupby("patient").head(1)
    assert judged(compare_classes(a, once, CLASSES), 200, 0)["p"][0] == pytest.approx(1)


def test_of_few_patients_nothing_is_tested():
    row = compare_values("v", scans(0), scans(1, 9, shift=5), "value", share=False)
    table = judged([row], 100, 0)
    assert np.isnan(table["p"][0]) and table["moved"][0] is None and table["low"][0] > 2


def test_nothing_at_all_on_both_sides_is_no_difference():
    a, b = scans(0).assign(yes=0.0), scans(1).assign(yes=0.0)
    assert compare_values("u", a, b, "yes", share=True)["p"] == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 5))
def test_intervals_hold_the_value(seed, patients, each):
    a = scans(seed, patients, each=each)
    value, low, high = share_interval(a["yes"], a["patient"], 100, 0)
    assert 0 <= low <= value <= high <= 1
    side = sums_of(a["value"], a["patient"])
    ((low, high),) = differences([(side, side)], 200, 0)
    assert low <= 1e-9 and high >= -1e-9


def test_an_interval_is_the_same_beside_other_figures():
    """Figures of as many patients share what is drawn, and a figure that some scans lack has its own patients."""
    a, b = scans(0), scans(1, 80)
    a["few"] = a["value"].where(a["patient"] < 20)
    b["few"] = b["value"].where(b["patient"] < 30)
    rows = [compare_values(c, a, b, c, share=False) for c in ("value", "few", "yes")]
    together = judged([*rows, *compare_classes(a, b, CLASSES)], 100, 0)
    for n, row in enumerate(rows):
        alone = judged([row], 100, 0)
        assert together.loc[n, ["low", "high"]].tolist() == pytest.approx(alone.loc[0, ["low", "high"]].tolist())
    assert together["patients_training"][1] == 20
    assert together["low"].isna().tolist() == (together["of"] == "all").tolist()
