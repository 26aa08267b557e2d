from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from octfast.data.readers.folder import read_scans
from octfast.data.splits.hold_out import assign_validation, hold_out, shared_patients
from octfast.errors import DataError, UsageError
from tests.data.test_scans import touch


def table(rows: list[tuple[str, str]], split: str = "train") -> pd.DataFrame:
    """A Scans table of (label, patient) rows."""
    paths = [f"/d/{label}/{label}-{patient}-{i}.jpeg" for i, (label, patient) in enumerate(rows)]
    scans = pd.DataFrame(rows, columns=["label", "patient"]).assign(path=paths, split=split)
    return scans.sort_values("path", ignore_index=True)


@st.composite
def tables(draw, classes=st.integers(2, 5)):
    """Any number of patients, classes, images a patient; a patient may stand under several labels."""
    labels = [f"C{i}" for i in range(draw(classes))]
    patients = draw(st.lists(st.lists(st.sampled_from(labels), min_size=1, max_size=6), min_size=1, max_size=40))
    rows = [(label, f"{i:03d}") for i, images in enumerate(patients) for label in images]
    assume(len({label for label, _ in rows}) > 1)
    return table(rows)


def only_one_of_a_class(scans: pd.DataFrame) -> bool:
    """Whether each patient is the only one of some class, so that nobody can be held out."""
    patients = scans.groupby("label")["patient"].unique()
    lone = {found[0] for found in patients if len(found) == 1}
    return lone >= set(scans["patient"])


@pytest.mark.filterwarnings("ignore")
@given(tables(), st.floats(0.02, 0.5), st.integers(0, 2**16), st.randoms(use_true_random=False))
@settings(max_examples=80)
# One patient of B and of C: holding out either would leave that class with nothing to train on.
@example(table([("A", str(i)) for i in range(10)] + [("B", "b"), ("C", "c")]), 0.5, 0, None)
@example(table([("A", "1"), ("B", "1"), ("A", "2"), ("B", "3"), ("B", "2")]), 0.5, 0, None)
def test_no_patient_on_two_sides_and_every_class_kept(scans, share, seed, random):
    if only_one_of_a_class(scans):
        with pytest.raises(DataError):
            assign_validation(scans, share, seed)
        return
    given_table = scans.copy()
    out = assign_validation(scans, share, seed)
    pd.testing.assert_frame_equal(scans, given_table)
    pd.testing.assert_frame_equal(out.drop(columns="split"), scans.drop(columns="split"))
    assert set(out["split"]) == {"train", "valid"}
    assert not len(shared_patients(out))
    train = out[out["split"] == "train"]
    assert set(train["label"]) == set(scans["label"])
    pd.testing.assert_frame_equal(assign_validation(scans, share, seed), out)
    if random is not None:
        order = list(range(len(scans)))
        random.shuffle(order)
        mixed = assign_validation(scans.iloc[order], share, seed)
        assert set(mixed.loc[mixed["split"] == "valid", "path"]) == set(out.loc[out["split"] == "valid", "path"])


@given(st.integers(0, 1000))
@settings(max_examples=15)
def test_about_a_tenth_of_the_scans_each_class_in_its_proportion(seed):
    rng = np.random.default_rng(seed)
    sizes = {"CNV": 160, "DME": 60, "DRUSEN": 40, "NORMAL": 120}
    rows = [
        (label, f"{label}{patient}")
        for label, patients in sizes.items()
        for patient in range(patients)
        for _ in range(rng.integers(1, 6))
    ]
    scans = table(rows)
    valid = assign_validation(scans, seed=seed).query("split == 'valid'")
    assert 0.08 < len(valid) / len(scans) < 0.12
    for label, share in scans["label"].value_counts(normalize=True).items():
        assert abs((valid["label"] == label).mean() - share) < 0.05


def test_the_seed_chooses_the_patients():
    scans = table([(label, f"{label}{i}") for label in "AB" for i in range(40)])
    chosen = {tuple(hold_out(scans, 0.1, seed)) for seed in range(5)}
    assert len(chosen) == 5


@pytest.mark.parametrize("share, patients", [(0.1, 4), (0.25, 10), (0.5, 20)])
def test_the_share_is_that_of_the_scans(share, patients):
    scans = table([(label, f"{label}{i}") for label in "AB" for i in range(20)])
    assert hold_out(scans, share).sum() == patients


def oct2017(root):
    names = [
        f"{s}/{c}/{c}-{p}-1.png" for s, ps in (("train", range(100, 120)), ("val", (1, 2))) for c in "AB" for p in ps
    ]
    return read_scans(touch(root, *names, *(f"test/{c}/{c}-{p}-1.png" for c in "AB" for p in (100, 900))))


def test_train_and_val_are_pooled_and_the_test_folder_stays(tmp_path):
    scans = oct2017(tmp_path)
    out = assign_validation(scans, 0.25, 3)
    test = scans["split"] == "test"
    assert (out.loc[test, "split"] == "test").all() and not (out.loc[~test, "split"] == "test").any()
    held = pd.concat(assign_validation(scans, 0.25, seed) for seed in range(12)).query("split == 'valid'")
    assert {Path(p).parts[-3] for p in held["path"]} == {"train", "val"}
    pool = out[~test]
    assert not len(shared_patients(pool))


def test_valid_folder_keeps_what_is_given(tmp_path):
    scans = oct2017(tmp_path)
    pd.testing.assert_frame_equal(assign_validation(scans, "folder", 5), scans)


def test_valid_folder_without_one_is_an_error():
    with pytest.raises(DataError, match="no validation folder") as e:
        assign_validation(table([("A", "1"), ("B", "2")]), "folder")
    assert "--valid" in e.value.hint


def test_valid_folder_with_a_class_that_train_lacks_is_an_error(tmp_path):
    scans = read_scans(touch(tmp_path, "train/A/1.png", "train/B/2.png", "val/A/3.png", "val/C/4.png"))
    with pytest.raises(DataError, match="validation has classes that train lacks: C"):
        assign_validation(scans, "folder")


def test_a_class_without_validation_scans_is_named(said):
    scans = table([("A", str(i)) for i in range(20)] + [("B", "b")])
    assign_validation(scans, 0.1)
    assert "validation has no scan of B: too few patients of that class" in said()


def test_one_patient_cannot_be_split():
    with pytest.raises(DataError, match="all 4 scans are of one patient"):
        assign_validation(table([("A", "1"), ("B", "1")] * 2))


@pytest.mark.parametrize("valid", ["0", "-0.1", "0.6", "1", "nan", "folders", "", "10%"])
def test_a_share_that_cannot_be(valid):
    with pytest.raises(UsageError, match=r"--valid"):
        assign_validation(table([("A", "1"), ("B", "2"), ("A", "3"), ("B", "4")]), valid)


def test_shared_patients_are_named_with_their_splits():
    scans = table([("A", "1"), ("A", "1"), ("B", "2"), ("B", "3"), ("A", "3")])
    scans["split"] = scans["path"].map(lambda p: "test" if p.endswith(("-0.jpeg", "-3.jpeg")) else "train")
    assert shared_patients(scans).to_dict("records") == [
        {"patient": "1", "splits": "test+train"},
        {"patient": "3", "splits": "test+train"},
    ]
