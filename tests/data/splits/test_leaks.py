from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from octfast.data.splits.leaks import drop_leaks, refuse_leaks
from octfast.errors import DataError
from tests.data.splits.test_folds import any_rows, assert_apart, put


@given(any_rows)
@settings(max_examples=80)
def test_dropping_leaks_parts_the_splits_and_keeps_the_test_whole(tmp_path_factory, rows):
    scans = put(tmp_path_factory.mktemp("any"), rows)
    try:
        kept, dropped = drop_leaks(scans)
    except DataError as e:
        assert "left to train on" in e.message
        return
    assert_apart(kept, "split")
    refuse_leaks(kept)
    assert sorted([*kept["path"], *dropped["path"]]) == sorted(scans["path"])
    assert "test" not in set(dropped["split"])
    # Nothing is left out without a cause: its patient or its content stands in a split that goes before.
    before = {"train": ("test", "valid"), "valid": ("test",)}
    for row in dropped.itertuples():
        others = scans[scans["split"].isin(before[row.split])]
        same = [Path(p).read_bytes() == Path(row.path).read_bytes() for p in others["path"]]
        assert (others["patient"] == row.patient).any() or any(same)


def test_shared_patients_are_refused_with_the_ways_on(tmp_path, said):
    rows = [
        ("AB"[p % 2], p, f"{p}-{i}", ("train", "test")[i] if p < 3 else "train") for p in range(9) for i in range(2)
    ]
    scans = put(tmp_path, rows)
    with pytest.raises(DataError, match=r"3 patients stand in more than one split, .* \(test\+train: 3\)") as e:
        refuse_leaks(scans)
    assert all(way in e.value.hint for way in ("--drop-leaks", "--allow-leaks", "octfast data split"))
    refuse_leaks(scans, allow=True)
    assert any("3 patients stand in more than one split" in line and "too good" in line for line in said())
    refuse_leaks(drop_leaks(scans)[0])
    assert any("left out of train: 3 of 15 scans" in line for line in said())


def test_dropping_everything_is_an_error(tmp_path):
    scans = put(tmp_path, [("AB"[p % 2], p, f"{p}-{i}", ("train", "test")[i]) for p in range(4) for i in range(2)])
    with pytest.raises(DataError, match="4 leaked scans left out, 0 classes"):
        drop_leaks(scans)
