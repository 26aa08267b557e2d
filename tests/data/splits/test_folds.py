from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.data.splits.folds import describe_splits, make_splits
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
