"""Which scans are of one volume, eye or patient, and whose labels a table's are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from octfast.data.units import choose_level, unit_columns, units_of, with_one_label
from octfast.errors import DataError, UsageError


def scans(labels: str, **columns) -> pd.DataFrame:
    n = len(labels)
    known = {"path": [f"{i}.png" for i in range(n)], "label": list(labels), "patient": "p", "split": "train"}
    return pd.DataFrame({**known, **columns})


def test_an_eye_is_a_patients_and_a_volume_an_eyes():
    table = scans("AABBBB", patient=list("ppqqqq"), eye=list("RRRRLL"), volume=list("111122"))
    assert units_of(table, "patient").number.tolist() == [0, 0, 1, 1, 1, 1]
    assert units_of(table, "eye").number.tolist() == [0, 0, 1, 1, 2, 2]
    volumes = units_of(table, "volume", keep=["path"])
    # Volumes are numbered within an eye: that of p and that of q are two.
    assert volumes.number.tolist() == [0, 0, 1, 1, 2, 2] and volumes.first.tolist() == [0, 2, 4]
    assert volumes.table["label"].tolist() == list("ABB") and volumes.table["scans"].tolist() == [2, 2, 2]
    assert volumes.table["path"].tolist() == ["0.png", "2.png", "4.png"]


def test_an_eye_that_is_not_known_is_one_of_its_patient():
    table = scans("AAAA", patient=list("ppqq"), eye=["R", None, None, None])
    assert units_of(table, "eye").number.tolist() == [0, 1, 2, 2]


def test_a_level_without_its_column_is_refused():
    with pytest.raises(UsageError, match="no column volume") as e:
        unit_columns(["patient", "eye"], "volume")
    assert "scan, eye, patient" in e.value.hint


def test_labels_that_never_vary_within_volumes_are_those_of_volumes(said):
    assert choose_level(scans("AAAAABBBBB", volume=[1] * 5 + [2] * 5), None) == "volume"
    assert any("--level volume: no label varies" in line for line in said())


def test_labels_that_are_said_to_be_of_volumes_are_those(said):
    table = scans("AABB", volume=[1, 1, 2, 2], label_level="volume")
    assert choose_level(table, None) == "volume"
    assert choose_level(table.assign(label_level=["volume", "", "volume", "volume"]), None) == "scan"


def test_a_scan_of_no_volume_is_one_of_its_own():
    table = scans("AABBB", volume=["1", "1", "", "", None])
    assert units_of(table, "volume").number.tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    "table, line",
    [
        (scans("AAAABBBBBB", volume=[1] * 5 + [2] * 5), "they vary within 1 of 2 volumes"),
        (scans("AABB", volume=[1, 1, 2, 2]), None),
        (scans("AABB", eye=list("RRLL")), "--level eye learns"),
        (scans("AABB"), None),
    ],
)
def test_other_labels_are_those_of_scans(table, line, said):
    assert choose_level(table, None) == "scan"
    assert not any("taken for those of volumes" in each for each in said())
    assert line is None or any(line in each for each in said())


def test_what_is_asked_for_is_taken():
    assert choose_level(scans("AABB", eye=list("RRLL")), "eye") == "eye"
    assert choose_level(scans("AAAAABBBBB", volume=[1] * 5 + [2] * 5), "scan") == "scan"


def test_units_of_several_labels_are_left_out(said):
    kept, left_out = with_one_label(scans("AABABB", eye=list("RRLLMM")), "eye")
    assert kept["path"].tolist() == ["0.png", "1.png", "4.png", "5.png"]
    assert left_out["path"].tolist() == ["2.png", "3.png"] and "several labels" in left_out["reason"].iloc[0]
    assert any("1 of 3 eyes" in line and "2 scans" in line for line in said())
    with pytest.raises(DataError, match="every patient"):
        with_one_label(scans("AB"), "patient")
    with pytest.raises(DataError, match="several splits"):
        with_one_label(scans("AA", split=["train", "test"]), "patient")


def test_units_do_not_depend_on_the_order_of_scans():
    table = scans("AABBBB", patient=list("ppqqqq"), eye=list("RRRRLL"))
    mixed = table.sample(frac=1, random_state=1).reset_index(drop=True)
    found, again = units_of(table, "eye"), units_of(mixed, "eye")
    names = [units.table["patient"] + units.table["eye"] for units in (found, again)]
    by_path = [
        dict(zip(t["path"], n[u.number], strict=True))
        for t, n, u in zip((table, mixed), names, (found, again), strict=True)
    ]
    assert by_path[0] == by_path[1] and np.bincount(again.number).sum() == 6
