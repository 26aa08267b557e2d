from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octfast.data.readers.folder import read_scans
from octfast.data.scans import class_names, describe_scans, load_scans, save_scans
from octfast.errors import DataError


def touch(root: Path, *names: str) -> Path:
    """Empty files: reading a folder decodes nothing."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_classes_of_training_and_validation_in_the_order_of_their_index(tmp_path):
    touch(tmp_path, "train/b/1.png", "train/A/2.png", "val/c/3.png", "test/b/4.png")
    scans = read_scans(tmp_path)
    assert class_names(scans) == ["A", "b", "c"]
    assert describe_scans(scans).to_dict("index") == {
        "train": {"A": 1, "b": 1, "c": 0, "scans": 2, "patients": 2},
        "valid": {"A": 0, "b": 0, "c": 1, "scans": 1, "patients": 1},
        "test": {"A": 0, "b": 1, "c": 0, "scans": 1, "patients": 1},
    }


# What a file system takes for a name; a null and a slash it does not.
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12)


@given(st.lists(st.tuples(NAMES, NAMES, NAMES), min_size=1, max_size=6), st.data())
def test_a_saved_table_comes_back_as_it_was_wherever_the_data_went(found, data):
    before, after = Path("/data/before"), Path("/media/after")
    scans = pd.DataFrame(
        {
            "path": [str(before / label / f"{name}.png") for name, label, _ in found],
            "label": [label for _, label, _ in found],
            "patient": [patient for _, _, patient in found],
            "split": data.draw(st.lists(st.sampled_from(["train", "valid"]), min_size=len(found), max_size=len(found))),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        save_scans(scans, Path(folder) / "scans.csv", before)
        loaded = load_scans(Path(folder) / "scans.csv", after)
        assert [p.name for p in Path(folder).iterdir()] == ["scans.csv"]
    moved = scans.assign(path=[p.replace(str(before), str(after), 1) for p in scans["path"]])
    assert loaded.to_dict("list") == moved.to_dict("list")


@pytest.mark.parametrize("content", ["", "path,label\nx,y\n", '"', "path,label,patient,split\n1,2,3,4,5,6\n7\n"])
def test_a_damaged_table_is_an_error_that_names_it(tmp_path, content):
    file = tmp_path / "scans.csv"
    file.write_text(content)
    with pytest.raises(DataError, match=r"scans\.csv"):
        load_scans(file, tmp_path)
