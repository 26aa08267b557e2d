from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octfast.data.readers.names import (
    class_key,
    clean,
    is_patient_name,
    names_a_split,
    numbered_stems,
    original_stem,
    patient_key,
    role_of,
    split_of,
    splits_of,
)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("train", "train"), ("Training set", "train"), ("TESTING_SET", "test"), ("01-val", "valid")),
        *(("test images", "test"), ("dataset-train", "train"), ("Validation", "valid"), ("ｔｅｓｔ", "test")),
        *(("contest", ""), ("strain", ""), ("CNV", ""), ("data", ""), ("train2", ""), ("", ""), ("latest", "")),
    ],
)
def test_splits_by_their_names(name, split):
    assert split_of(name) == split


def test_splits_with_the_same_words_around():
    assert splits_of(["Kermany train", "Kermany test"]) == {"Kermany train": "train", "Kermany test": "test"}
    assert splits_of(["my train", "their test"]) == {} == splits_of(["x train", "x train2"])
    assert names_a_split("my train") and names_a_split("train2") and not names_a_split("strain")


def test_patients_eyes_and_stems():
    assert all(map(is_patient_name, ["p1", "Patient 12", "sub-03", "001", "12345", "P12OD", "case_7"]))
    assert not any(map(is_patient_name, ["CNV", "1", "12", "stage1", "patient", "path", "DME2"]))
    assert [role_of(n) for n in ("OD", "Masks", "8bitTIFFs", "Cirrus", "CNV")] == [
        "eye",
        "masks",
        "pictures",
        "device",
        "",
    ]
    assert numbered_stems(["AMD1", "AMD 2", "NORMAL1"]) == {"AMD1": "AMD", "AMD 2": "AMD", "NORMAL1": "NORMAL"}
    assert (
        numbered_stems(["stage1", "stage2"])
        == {}
        == numbered_stems(["AMD1", "DME1"])
        == numbered_stems(["A1", "A2", "B"])
    )


@pytest.mark.parametrize(
    "copy",
    [
        *("scan (2)", "scan(12)", "scan - Copy", "scan - Copy (2)", "scan - Kopie", "Copy of scan", "Copy (2) of scan"),
        *("scan copy", "scan copy 3", "scan (copy)", "scan (another copy)", "scan (3rd copy)", "scan_copy"),
    ],
)
def test_the_marks_of_copies(copy):
    assert original_stem(copy) == "scan" and original_stem("scan") == "scan" and original_stem("(2)") == "(2)"


@given(st.text(max_size=20))
def test_cleaning_is_done_once_and_keys_agree(name):
    assert clean(clean(name)) == clean(name) and class_key(clean(name)) == class_key(name)
    assert class_key(f" {clean(name)}\u200b ") == class_key(name) or not name.strip()
    assert bool(clean(name)) == bool(name)


def test_zeros_before_a_number_change_no_patient():
    assert [patient_key(p) for p in ("7", "007", "0", "000", "A07", "")] == ["7", "7", "0", "0", "A07", ""]


def test_the_most_frequent_spelling_is_kept(said):
    from octfast.data.readers.names import merge_spellings

    merged = merge_spellings(pd.Series(["cnv", "CNV", "CNV ", "CNV", "dme"]), "x.csv")
    assert merged.tolist() == ["CNV"] * 4 + ["dme"]
    (line,) = said()
    assert "one class in several spellings is read as CNV" in line and "'CNV '" in line
