from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.data.readers.read import read_data
from octfast.data.splits.files import apply_splits, save_splits
from octfast.data.splits.folds import describe_splits, make_splits
from octfast.data.splits.leaks import drop_leaks, identical_files, linked_groups, refuse_leaks
from octfast.errors import DataError, UsageError


def put(folder: Path, rows: list[tuple]) -> pd.DataFrame:
    """A Scans table of (label, patient, content, split), each a file of that content."""
    folder.mkdir(parents=True, exist_ok=True)
    table = []
    for i, (label, patient, content, split) in enumerate(rows):
        file = folder / f"{i:03d}.png"
        file.write_text(str(content))
        table.append((str(file), str(label), str(patient), split))
    return pd.DataFrame(table, columns=["path", "label", "patient", "split"])


def assert_apart(scans: pd.DataFrame, by: str) -> None:
    """No patient and no content on two sides, checked without the code under test."""
    scans = scans.dropna(subset=by)
    content = [Path(p).read_bytes() for p in scans["path"]]
    for key in (scans["patient"].tolist(), content):
        sides: dict = {}
        for k, side in zip(key, scans[by], strict=True):
            if k != b"":
                sides.setdefault(k, set()).add(side)
        assert all(len(s) == 1 for s in sides.values())


# Patients share labels, and contents (of which "" is an empty file) are shared by patients.
any_rows = st.lists(
    st.tuples(
        st.sampled_from("ABC"),
        st.integers(0, 14),
        st.sampled_from([*range(40), "", "same"]),
        st.sampled_from(["train", "train", "valid", "test"]),
    ),
    min_size=2,
    max_size=45,
)


@given(any_rows, st.sampled_from([None, 0.0, 0.15, 0.4]), st.sampled_from([0.0, 0.1, 0.3]), st.integers(0, 5))
@settings(max_examples=60)
def test_no_patient_and_no_duplicate_is_ever_on_two_sides(tmp_path_factory, rows, test, valid, folds):
    folds = 0 if folds == 1 else folds
    scans = put(tmp_path_factory.mktemp("any"), rows)
    try:
        out = make_splits(scans, valid, test, folds, seed=len(rows))
    except (DataError, UsageError) as e:
        assert "\n" not in e.message and e.hint
        return
    assert_apart(out, "split")
    assert_apart(out[out["split"] != "test"], "fold")
    assert set(out["path"]) <= set(scans["path"])
    trained = out[out["split"] == "train"]
    assert set(trained["label"]) == set(out.loc[out["split"] != "test", "label"])
    inner = out["split"] != "test"
    assert out.loc[~inner, "fold"].isna().all()
    if folds:
        assert set(out.loc[inner, "fold"]) == set(range(folds))
    given_test = set(scans.loc[scans["split"] == "test", "path"])
    if test is None and given_test:
        assert set(out.loc[~inner, "path"]) == given_test
    else:
        assert len(out) == len(scans)
        wanted = {"train", *(["valid"] if valid else []), *([] if test == 0 else ["test"])}
        assert set(out["split"]) == wanted


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


@given(
    st.lists(st.integers(1, 6), min_size=12, max_size=60),
    st.sampled_from([(0.1, 0.15), (0.2, 0.2), (0.3, 0.0), (0.25, 0.5)]),
    st.integers(0, 3),
)
@settings(max_examples=40)
def test_each_class_gets_its_share_to_the_scans_of_one_patient(tmp_path_factory, images, shares, seed):
    """The tolerance: no count of a split and class is off by more than the most scans of one patient of the class."""
    rows = [("ABC"[p % 3], p, f"{p}-{i}", "train") for p, n in enumerate(images) for i in range(n)]
    scans = put(tmp_path_factory.mktemp("any"), rows)
    valid, test = shares
    out = make_splits(scans, valid, test, 4, seed)
    largest = scans.groupby(["label", "patient"]).size().groupby("label").max()
    totals = scans["label"].value_counts()
    parts = {"train": 1 - valid - test, "valid": valid, "test": test}
    for label, total in totals.items():
        mine = out[out["label"] == label]
        for split, part in parts.items():
            assert abs((mine["split"] == split).sum() - part * total) <= largest[label] + 1e-9
        inner = mine[mine["split"] != "test"]
        for fold in range(4):
            assert abs((inner["fold"] == fold).sum() - len(inner) / 4) <= largest[label] + 1e-9


def test_a_large_set_has_its_shares_to_a_two_hundredth(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    patient = rng.integers(0, 900, 8000)
    label = np.array(list("ABCD"))[np.searchsorted([0.44, 0.57, 0.68], rng.random(900))[patient]]
    monkeypatch.setattr("octfast.data.splits.folds.identical_files", lambda paths: np.arange(len(paths)))
    scans = pd.DataFrame(
        {"path": [f"/{i:05d}" for i in range(8000)], "label": label, "patient": patient.astype(str), "split": "train"}
    )
    out = make_splits(scans, 0.1, 0.15, 5)
    table = pd.crosstab(out["label"], out["split"], normalize="index")
    assert (table[["train", "valid", "test"]] - [0.75, 0.1, 0.15]).abs().max(axis=None) < 0.005
    assert (describe_splits(out, "fold")["share"] - 0.2).abs().max() < 0.002


def test_splits_do_not_depend_on_the_order_of_the_rows_but_on_the_seed(tmp_path):
    scans = put(tmp_path, [("AB"[p % 2], p, f"{p}-{i}", "train") for p in range(30) for i in range(2)])
    before = scans.copy(deep=True)
    first = make_splits(scans, seed=3)
    pd.testing.assert_frame_equal(scans, before)
    pd.testing.assert_frame_equal(make_splits(scans.sample(frac=1, random_state=1), seed=3), first)
    assert not make_splits(scans, seed=4)["split"].equals(first["split"])


def test_a_given_test_is_kept_and_what_leaks_into_it_is_left_out(tmp_path, said):
    rows = [("AB"[p % 2], p, f"{p}-{i}", "test" if p < 4 else "train") for p in range(20) for i in range(2)]
    rows += [("A", 0, "leak", "train"), ("B", 77, "1-0", "valid")]
    scans = put(tmp_path, rows)
    out = make_splits(scans)
    assert set(out.loc[out["split"] == "test", "path"]) == set(scans.loc[scans["split"] == "test", "path"])
    assert len(out) == len(scans) - 2
    lines = said()
    assert any("the 8 test scans are kept" in line for line in lines)
    assert any("as the patient is in test" in line for line in lines)
    assert any("as an identical file is in test" in line for line in lines)
    anew = make_splits(scans, test=0.2)
    assert len(anew) == len(scans)
    assert any("are shared out anew" in line for line in said())


def test_too_few_patients_are_said_plainly(tmp_path, said):
    few = put(tmp_path / "few", [("AB"[p], p, f"{p}-{i}", "train") for p in range(2) for i in range(9)])
    with pytest.raises(DataError, match="cannot be drawn from 2 groups of patients"):
        make_splits(few)
    with pytest.raises(DataError, match=r"too few patients for a .* split"):
        make_splits(few, test=0.0)
    rows = [("A", p, f"{p}-{i}", "train") for p in range(12) for i in range(3)] + [("B", 50, "b", "train")]
    rows += [("B", 51, "b2", "train")]
    out = make_splits(put(tmp_path / "rare", rows), folds=3)
    assert "B" in set(out.loc[out["split"] == "train", "label"])
    lines = said()
    assert any("has no scan of B (patients in all: 2)" in line for line in lines)
    assert any("too few patients: B is in" in line for line in lines)
    with pytest.raises(DataError, match=r"40 folds cannot be made of \d+ groups") as e:
        make_splits(put(tmp_path / "rare", rows), folds=40)
    assert "--folds" in e.value.hint


def test_uneven_patients_are_said_to_miss_the_share(tmp_path, said):
    rows = [("AB"[p % 2], p, f"{p}-{i}", "train") for p in range(6) for i in range(60 if p < 2 else 4)]
    make_splits(put(tmp_path, rows), valid=0.4, test=0.0, folds=0)
    assert any("too uneven patients" in line and "not 40%" in line for line in said())


@pytest.mark.parametrize(
    "wrong",
    [
        {"valid": 0.6},
        {"valid": -0.1},
        {"test": 0.7},
        {"folds": 1},
        {"folds": -2},
        {"seed": -1},
        {"valid": 0.5, "test": 0.5},
    ],
)
def test_numbers_out_of_range(tmp_path, wrong):
    scans = put(tmp_path, [("AB"[p % 2], p, p, "train") for p in range(20)])
    with pytest.raises(UsageError):
        make_splits(scans, **wrong)


def test_identical_files_and_the_chains_they_make(tmp_path):
    scans = put(
        tmp_path, [("A", 1, "x", ""), ("A", 2, "x", ""), ("A", 2, "y", ""), ("A", 3, "y", ""), ("A", 4, "z", "")]
    )
    same = identical_files([*scans["path"], str(tmp_path / "none.png")])
    assert same[0] == same[1] and same[2] == same[3] and len(set(same)) == 4
    assert linked_groups(scans, same[:5]).tolist() == [0, 0, 0, 0, 1]
    (tmp_path / "000.png").write_text("")
    (tmp_path / "001.png").write_text("")
    assert len(set(identical_files(scans["path"].tolist()))) == 4


def test_shared_patients_are_refused_with_the_ways_on(tmp_path, said):
    rows = [
        ("AB"[p % 2], p, f"{p}-{i}", ("train", "test")[i] if p < 3 else "train") for p in range(9) for i in range(2)
    ]
    scans = put(tmp_path, rows)
    with pytest.raises(DataError, match=r"3 patients stand in more than one split, .* \(test\+train: 3\)") as e:
        refuse_leaks(scans)
    assert all(way in e.value.hint for way in ("--drop-leaks", "--allow-leaks", "octfast data split"))
    refuse_leaks(scans, allow=True)
    assert any("3 patients stand in more than one split" in line and "flatter" in line for line in said())
    refuse_leaks(drop_leaks(scans)[0])
    assert any("left out of train: 3 of 15 scans" in line for line in said())


def test_dropping_everything_is_an_error(tmp_path):
    scans = put(tmp_path, [("AB"[p % 2], p, f"{p}-{i}", ("train", "test")[i]) for p in range(4) for i in range(2)])
    with pytest.raises(DataError, match="4 leaked scans left out, 0 classes"):
        drop_leaks(scans)


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
