from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.assess.interpret.rows import easiest_right, hardest_wrong, missed_urgent, montage_rows
from tests.assess.interpret.test_interpretation import CLASSES, predictions, tables


@given(tables(), st.integers(1, 12))
@settings(max_examples=40)
def test_easiest_and_hardest(found, k):
    right = found["label"] == found["predicted"]
    easiest, hardest = easiest_right(found, k), hardest_wrong(found, k)
    assert list(easiest["loss"]) == sorted(found.loc[right, "loss"])[:k]
    assert list(hardest["loss"]) == sorted(found.loc[~right, "loss"], reverse=True)[:k]
    assert (easiest["label"] == easiest["predicted"]).all() and (hardest["label"] != hardest["predicted"]).all()


@given(tables(), st.lists(st.sampled_from(CLASSES), min_size=1, max_size=3, unique=True))
@settings(max_examples=40)
def test_missed_urgent_scans(found, urgent):
    missed = missed_urgent(found, urgent)
    assert {r.path for r in missed.itertuples()} == {
        r.path for r in found.itertuples() if r.label in urgent and r.predicted not in urgent
    }
    for row in missed.to_dict("records"):
        assert row["p_urgent"] == pytest.approx(sum(row[f"p_{c}"] for c in urgent))
    assert list(missed["p_urgent"]) == sorted(missed["p_urgent"])


@given(tables(), st.integers(1, 8))
@settings(max_examples=20)
def test_the_montage_is_a_cross_section_of_each_class(found, per_class):
    rows = montage_rows(found, CLASSES, per_class)
    assert rows["path"].is_unique
    for name in CLASSES:
        part, all_of_it = rows[rows["label"] == name], found[found["label"] == name]
        assert len(part) == min(per_class, len(all_of_it))
        assert list(part["loss"]) == sorted(part["loss"])
        if all_of_it["patient"].nunique() >= per_class:
            assert part["patient"].is_unique
        elif per_class > 1 and len(part):
            assert {part["loss"].min(), part["loss"].max()} == {all_of_it["loss"].min(), all_of_it["loss"].max()}


def test_the_montage_takes_a_patients_middle_scan():
    # Patients of two scans each: the sorted losses are 0, 1 of patient 0, then 2, 3 of patient 1, and so on.
    logits = np.array([[-float(i), 0, 0, 0] for i in range(8)])
    found = predictions(["CNV"] * 8, logits)
    assert list(montage_rows(found, CLASSES, 4)["path"]) == list(found.sort_values("loss")["path"])[1::2]
