from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.data.readers.folder import read_scans
from octfast.errors import DataError
from tests.data.test_scans import touch


def rows(scans: pd.DataFrame, root: Path) -> list[tuple[str, ...]]:
    return [(Path(p).relative_to(root.resolve()).as_posix(), *r) for p, *r in scans.itertuples(index=False)]


def test_layout_of_oct2017(tmp_path):
    touch(
        tmp_path,
        *("train/DME/DME-7-1.jpeg", "train/CNV/CNV-12-2.jpeg", "train/CNV/CNV-12-1.jpeg"),
        *("val/CNV/CNV-9-1.jpeg", "test/DME/DME-5-3.jpeg"),
    )
    scans = read_scans(tmp_path)
    assert list(scans.columns) == ["path", "label", "patient", "split"]
    assert rows(scans, tmp_path) == [
        ("test/DME/DME-5-3.jpeg", "DME", "5", "test"),
        ("train/CNV/CNV-12-1.jpeg", "CNV", "12", "train"),
        ("train/CNV/CNV-12-2.jpeg", "CNV", "12", "train"),
        ("train/DME/DME-7-1.jpeg", "DME", "7", "train"),
        ("val/CNV/CNV-9-1.jpeg", "CNV", "9", "valid"),
    ]


def test_a_folder_a_class(tmp_path):
    touch(tmp_path, "CNV/CNV-1-1.jpeg", "NORMAL/deeper/NORMAL-2-1.png")
    assert rows(read_scans(tmp_path), tmp_path) == [
        ("CNV/CNV-1-1.jpeg", "CNV", "1", "train"),
        ("NORMAL/deeper/NORMAL-2-1.png", "NORMAL", "2", "train"),
    ]


@pytest.mark.parametrize("train, valid, test", [("Training", "Validation", "Testing"), ("TRAIN", "valid", "test")])
def test_other_names_of_the_split_folders(tmp_path, train, valid, test):
    touch(tmp_path, f"{train}/A/a.png", f"{train}/B/b.png", f"{valid}/A/c.png", f"{test}/B/d.png")
    assert sorted(read_scans(tmp_path)["split"]) == ["test", "train", "train", "valid"]


def test_the_patient_is_the_number_alone(tmp_path):
    touch(tmp_path, "DME/DME-7749420-1.jpeg", "DRUSEN/DRUSEN-7749420-2.jpeg", "DRUSEN/DRUSEN-8-1.jpeg")
    assert list(read_scans(tmp_path)["patient"]) == ["7749420", "7749420", "8"]


def test_leading_zeros_and_class_names_with_hyphens(tmp_path):
    touch(tmp_path, "wet-AMD/wet-AMD-007-1.jpeg", "dry/DRY-08-12.jpeg")
    assert list(read_scans(tmp_path)["patient"]) == ["08", "007"]
    touch(tmp_path, "dry/DRY-7-3.jpeg", "dry/DRY-7-4.jpeg")
    assert list(read_scans(tmp_path)["patient"]) == ["08", "7", "7", "7"]


def test_names_that_do_not_follow_are_patients_of_their_own_and_it_is_said(tmp_path, said):
    touch(tmp_path, "A/A-1-1.png", "A/scan 12.png", "A/B-1-1.png", "A/A-1-x.png", "B/B-1.png", "B/sub/B-1.png")
    scans = read_scans(tmp_path)
    # B-1-1 lies in A: which of the two it is nobody knows, but its patient is 1 all the same.
    assert list(scans["patient"]) == ["1", "A/A-1-x.png", "1", "A/scan 12.png", "B/B-1.png", "B/sub/B-1.png"]
    (line,) = [line for line in said() if line.startswith("patients:")]
    assert "4 of 6 file names are not CLASS-PATIENT-IMAGE" in line


def test_nothing_is_said_of_names_that_follow(tmp_path, said):
    read_scans(touch(tmp_path, "A/A-1-1.png", "B/B-2-1.png"))
    assert not [line for line in said() if "patients" in line]


def test_upper_case_suffixes_count_and_hidden_files_do_not(tmp_path, said):
    touch(
        tmp_path,
        *("A/A-1-1.JPEG", "A/A-1-2.Jpg", "B/B-2-1.PNG", "B/B-2-2.TIFF"),
        *("A/._A-1-1.jpeg", "A/.DS_Store", "A/.hidden/A-9-9.jpeg", ".git/x.png", "__MACOSX/A/A-5-5.jpeg"),
        *("A/notes.txt", "B/Thumbs.db"),
    )
    assert [Path(p).name for p in read_scans(tmp_path)["path"]] == [
        "A-1-1.JPEG",
        "A-1-2.Jpg",
        "B-2-1.PNG",
        "B-2-2.TIFF",
    ]
    assert "2 files that are no images were left alone" in said()


def test_the_lone_folder_of_kaggles_archive(tmp_path):
    inner = touch(tmp_path / "OCT2017 " / "OCT2017", "train/A/A-1-1.jpeg", "train/B/B-2-1.jpeg", "test/A/A-3-1.jpeg")
    touch(tmp_path, "__MACOSX/OCT2017 /._x.jpeg", "OCT2017 /.DS_Store")
    outside, inside = read_scans(tmp_path), read_scans(inner)
    pd.testing.assert_frame_equal(outside, inside)
    assert len(inside) == 3


def test_folders_beside_the_splits_are_named(tmp_path, said):
    read_scans(touch(tmp_path, "train/A/A-1-1.png", "train/B/B-2-1.png", "extra/A/A-3-1.png"))
    assert any("extra" in line and "left out" in line for line in said())


def test_the_order_is_that_of_the_paths(tmp_path, monkeypatch):
    touch(tmp_path, *(f"{c}/{c}-{p}-{i}.png" for c in "BA" for p in (10, 9, 2) for i in (1, 3, 2)))
    there = read_scans(tmp_path)
    assert list(there["path"]) == sorted(there["path"])
    walk = os.walk

    def backwards(*args, **kwargs):
        for at, folders, files in walk(*args, **kwargs):
            yield at, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    pd.testing.assert_frame_equal(read_scans(tmp_path), there)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: d / "nowhere", "no such folder"),
        (lambda d: touch(d, "file.png") / "file.png", "not a folder"),
        (lambda d: d, "no images in"),
        (lambda d: touch(d, "A/readme.txt", "B/x.doc"), "no images in"),
        (lambda d: touch(d, "A/A-1-1.png"), "only one class in"),
        (lambda d: touch(d, "train/A/A-1-1.png", "train/A/A-2-1.png"), "only one class in"),
        (lambda d: touch(d, "test/A/A-1-1.png", "test/B/B-2-1.png"), "only a test folder"),
        (lambda d: touch(d, "train/A/1.png", "train/B/2.png", "test/C/3.png", "test/D/4.png"), "train lacks: C, D"),
        (lambda d: touch(d, "one.png", "two.png"), "in no folder of a class"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_what_to_do(tmp_path, make, message):
    data = make(tmp_path)
    with pytest.raises(DataError) as e:
        read_scans(data)
    assert message in e.value.message and str(data) in e.value.message
    assert "\n" not in e.value.message and e.value.hint


@given(st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 30), st.integers(1, 5)), min_size=1, max_size=12))
@settings(max_examples=25)
def test_every_file_is_a_row_with_the_number_in_its_name(found):
    with tempfile.TemporaryDirectory() as folder:
        root = touch(Path(folder), *(f"{c}/{c}-{p}-{i}.jpeg" for c, p, i in found), "A/A-99-1.png", "B/B-98-1.png")
        scans = read_scans(root)
        assert {tuple(Path(p).stem.split("-")) for p in scans["path"]} == {
            *((c, str(p), str(i)) for c, p, i in found),
            ("A", "99", "1"),
            ("B", "98", "1"),
        }
        assert all(Path(r.path).stem.split("-")[:2] == [r.label, r.patient] for r in scans.itertuples())


def test_a_name_that_is_no_text_is_left_out_and_said(tmp_path, said):
    touch(tmp_path, "A/A-1-1.png", "B/B-2-1.png")
    try:
        (tmp_path / "B" / os.fsdecode(b"B-3-\xff1.png")).touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    assert len(read_scans(tmp_path)) == 2
    (line,) = [line for line in said() if "UTF-8" in line]
    assert line.isascii() and "B-3-" in line


@pytest.mark.realdata
def test_the_real_sample(tmp_path):
    from tests.conftest import SHARED

    sample = SHARED / "data" / "oct2017-sample"
    if not sample.is_dir():
        pytest.skip(f"no {sample}")
    shutil.copytree(sample, tmp_path / "sample")
    scans = read_scans(tmp_path / "sample")
    assert scans["label"].value_counts().to_dict() == {"CNV": 8, "DME": 8, "DRUSEN": 8, "NORMAL": 8}
    assert scans["patient"].nunique() == 25
