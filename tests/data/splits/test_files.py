from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from octfast.data.readers.read import read_data
from octfast.data.splits.files import apply_splits, save_splits
from octfast.data.splits.folds import make_splits
from octfast.data.splits.hold_out import assign_validation
from octfast.errors import DataError, UsageError
from tests.data.splits.test_folds import assert_apart, put


@pytest.fixture
def drawn(tmp_path):
    """Scans, and the file of their splits in another folder."""
    scans = put(tmp_path / "Daten ü", [("AB"[p % 2], p, f"{p}-{i}", "train") for p in range(24) for i in range(2)])
    splits = make_splits(scans)
    save_splits(splits, tmp_path / "made" / "splits.csv")
    return scans, splits, tmp_path / "made" / "splits.csv"


def test_splits_are_read_back_as_they_were_drawn(drawn):
    scans, splits, file = drawn
    assert pd.read_csv(file)["path"].iloc[0] == "../Daten ü/000.png"
    columns = ["path", "label", "patient", "split"]
    for found in (apply_splits(None, file), apply_splits(scans.assign(site="x"), file), read_data(file)):
        pd.testing.assert_frame_equal(found[columns], splits[columns], check_dtype=False)
    assert set(apply_splits(scans.assign(site="x"), file)["site"]) == {"x"}


@pytest.mark.parametrize("fold", range(5))
def test_training_with_a_fold_validates_on_it(drawn, fold):
    _, splits, file = drawn
    found = apply_splits(None, file, fold).set_index("path")["split"]
    wanted = splits.set_index("path")
    assert (found == "test").equals(wanted["split"] == "test")
    assert set(found.index[found == "valid"]) == set(wanted.index[(wanted["fold"] == fold).fillna(False)])
    assert_apart(found.reset_index().merge(splits[["path", "patient"]]), "split")


def test_splits_move_with_their_data(drawn, tmp_path):
    _, splits, _ = drawn
    (tmp_path / "made").rename(tmp_path / "new-made")
    assert len(apply_splits(None, tmp_path / "new-made" / "splits.csv")) == len(splits)
    (tmp_path / "Daten ü").rename(tmp_path / "gone")
    with pytest.raises(DataError, match=r"48 of 48 files named by splits\.csv do not exist"):
        apply_splits(None, tmp_path / "new-made" / "splits.csv")


def test_splits_are_never_overwritten(drawn):
    _, splits, file = drawn
    before = file.read_bytes()
    with pytest.raises(DataError, match="not overwritten"):
        save_splits(splits, file)
    assert file.read_bytes() == before


def change(file: Path, **columns) -> Path:
    table = pd.read_csv(file, dtype=str)
    table.assign(**{name: make(table) for name, make in columns.items()}).to_csv(file, index=False)
    return file


def test_a_patient_on_two_sides_of_the_file_is_refused(drawn):
    _, _, file = drawn
    change(file, split=lambda t: ["test" if i == 0 else "train" if i == 1 else s for i, s in enumerate(t["split"])])
    with pytest.raises(DataError, match=r"splits\.csv puts 1 patients into more than one split"):
        apply_splits(None, file)


def test_a_patient_in_two_folds_of_the_file_is_refused(drawn):
    _, _, file = drawn
    change(
        file,
        split=lambda t: ["train"] * len(t),
        fold=lambda t: ["0", "1", *(f if f == f else "3" for f in t["fold"][2:])],
    )
    apply_splits(None, file)
    with pytest.raises(DataError, match="more than one split"):
        apply_splits(None, file, 0)


def test_other_files_than_splits_are_refused(drawn, tmp_path):
    scans, _, file = drawn
    with pytest.raises(UsageError, match="--fold 5") as e:
        apply_splits(None, file, 5)
    assert "0, 1, 2, 3, 4" in e.value.hint
    with pytest.raises(DataError, match="labels 24 scans otherwise"):
        apply_splits(scans.assign(label="A"), file)
    with pytest.raises(DataError, match="names none of the 48 scans"):
        apply_splits(scans.assign(path=scans["path"] + "x"), file)
    with pytest.raises(DataError, match="no such table"):
        apply_splits(None, tmp_path / "none.csv")
    with pytest.raises(DataError, match="unknown splits: dev"):
        apply_splits(None, change(file, split=lambda t: t["split"].replace("valid", "dev")))
    table = pd.read_csv(file)
    table.drop(columns=["split", "fold"]).to_csv(file, index=False)
    with pytest.raises(DataError, match="lacks the columns split, fold"):
        apply_splits(None, file, 1)


def test_scans_that_the_file_does_not_name_are_left_out_and_said(drawn, said):
    scans, _, file = drawn
    pd.read_csv(file).iloc[2:].to_csv(file, index=False)
    assert len(apply_splits(scans, file)) == 46
    assert any("2 scans are not named by splits.csv" in line for line in said())


# What a table could take for something else, among anything that a file system or a class can be called.
ODD = st.one_of(
    st.sampled_from(["NA", "nan", "null", "NULL", "#N", " a", "a ", "7.0", "007", "-1", "True", "None"]),
    st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="/\0"), min_size=1, max_size=8
    ),
)
NAMES = ODD.filter(lambda name: name not in (".", "..") and len(name.encode()) < 100)


@given(st.lists(st.tuples(ODD, ODD, NAMES), min_size=2, max_size=8, unique_by=lambda row: row[2].casefold()))
@example([("NA", "null", "NA"), ("CNV ", "nan", " x "), ("NA", "7", "a\\b"), ("CNV ", "007", "c")])
@settings(max_examples=80, deadline=None)
def test_any_class_patient_and_path_comes_back_from_the_file_of_splits(tmp_path_factory, made):
    folder = tmp_path_factory.mktemp("any")
    table = []
    for label, patient, name in made:
        (folder / name).touch()
        table.append((str(folder / name), label, patient, "train"))
    scans = pd.DataFrame(table, columns=["path", "label", "patient", "split"]).sort_values("path", ignore_index=True)
    assume(scans["label"].nunique() > 1)
    save_splits(scans.assign(fold=0), folder.parent / f"{folder.name}.csv")
    back = apply_splits(scans, folder.parent / f"{folder.name}.csv")
    pd.testing.assert_frame_equal(back[scans.columns], scans, check_dtype=False)
    # The file is a table of scans, too.
    again = read_data(folder.parent / f"{folder.name}.csv")
    pd.testing.assert_frame_equal(again[scans.columns], scans, check_dtype=False)


@pytest.mark.parametrize("name", ["x" * 201, "x" * 199 + "\n"])
def test_a_class_that_no_model_can_be_saved_with_is_refused_before_training(tmp_path, name):
    scans = put(tmp_path / "data", [(("A", name)[p % 2], p, p, "train") for p in range(8)])
    with pytest.raises(DataError, match="has a name that no model can be saved with"):
        assign_validation(scans, 0.25)
    save_splits(make_splits(scans, test=0, folds=0), tmp_path / "s.csv")
    with pytest.raises(DataError, match="has a name that no model can be saved with"):
        apply_splits(None, tmp_path / "s.csv")
    with pytest.raises(DataError, match="has a name that no model can be saved with"):
        read_data(tmp_path / "s.csv")
