from __future__ import annotations

import os
import re
import shutil
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.data.readers.folder import look_through, read_layout, read_scans
from octfast.data.readers.read import read_data
from octfast.data.scans import IMAGE_SUFFIXES
from octfast.errors import DataError
from tests.data.test_scans import touch


def found(root: Path, **options) -> list[tuple[str, str, str]]:
    """Of each scan its path below the folder, its class and its split."""
    scans = read_scans(root, **options)
    return [(os.path.relpath(r.path, root.resolve()), r.label, r.split) for r in scans.itertuples()]


def classes(root: Path, **options) -> dict[str, list[str]]:
    scans = read_scans(root, **options)
    return {split: sorted(rows["label"].unique()) for split, rows in scans.groupby("split")}


def oct2017(root: Path, inner: str = "", content: str = "") -> None:
    for split, n in (("train", 3), ("val", 1), ("test", 1)):
        for label in ("CNV", "NORMAL"):
            for i in range(n):
                file = root / inner / split / label / f"{label}-{split}{i}-1.jpeg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{content}{split}{label}{i}")


def test_the_second_copy_in_kaggles_archive_is_dropped_and_it_is_said(tmp_path, said):
    oct2017(tmp_path, "OCT2017 ")
    oct2017(tmp_path, "oct2017/OCT2017 ")
    assert classes(tmp_path) == {s: ["CNV", "NORMAL"] for s in ("train", "valid", "test")}
    scans = read_scans(tmp_path)
    assert len(scans) == 10 and all("oct2017" not in Path(p).parts for p in scans["path"])
    assert any("left out: 10 pictures in" in line and "a second copy of" in line for line in said())


def test_a_second_set_that_is_no_copy_is_not_guessed_at(tmp_path):
    oct2017(tmp_path, "OCT2017 ")
    oct2017(tmp_path, "oct2017/OCT2017 ", "other ")
    with pytest.raises(DataError, match="several data sets") as e:
        read_scans(tmp_path)
    assert "OCT2017 " in e.value.message and "oct2017" in e.value.message and "give the one meant" in e.value.hint


def test_two_sets_side_by_side_are_named(tmp_path):
    oct2017(tmp_path, "CellData/OCT")
    touch(
        tmp_path, *(f"CellData/chest_xray/{s}/{c}/{c}-1-1.jpeg" for s in ("train", "test") for c in ("NORMAL", "PNEUM"))
    )
    with pytest.raises(DataError, match=r"several data sets.*CellData/OCT, .*CellData/chest_xray"):
        read_scans(tmp_path)
    assert classes(tmp_path / "CellData" / "OCT")["test"] == ["CNV", "NORMAL"]


def test_a_set_beside_other_pictures_is_read_and_they_are_counted(tmp_path, said):
    oct2017(tmp_path, "OCT2017")
    touch(tmp_path, "figures/fig1.png", "figures/fig2.png")
    assert len(read_scans(tmp_path)) == 10
    lines = said()
    assert any("the data set is read in" in line for line in lines)
    assert any("left out: 2 pictures in folders beside the data set (figures)" in line for line in lines)


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("Training set", "Validation set", "Testing set"),
        ("train_data", "val-data", "test images"),
        ("01_train", "02_valid", "03_test"),
        ("TrainSet", "validate", "tst"),
        ("OCT_train", "OCT_val", "OCT_test"),
        ("RetinalOCT2017-train", "RetinalOCT2017-val", "RetinalOCT2017-test"),
    ],
)
def test_splits_in_the_spellings_people_use(tmp_path, train, valid, test):
    touch(tmp_path, f"{train}/A/a.png", f"{train}/B/b.png", f"{valid}/A/c.png", f"{test}/B/d.png")
    assert classes(tmp_path) == {"train": ["A", "B"], "valid": ["A"], "test": ["B"]}


@pytest.mark.parametrize("names", [("train1", "test1"), ("my train", "their test"), ("training fold 2", "other")])
def test_what_only_looks_like_a_split_is_no_class(tmp_path, names):
    touch(tmp_path, *(f"{name}/{c}.png" for name in names for c in "AB"))
    with pytest.raises(DataError, match="would be a class, and looks like a split"):
        read_scans(tmp_path)
    assert len(read_scans(tmp_path, label_from="folder")) == 4


def test_classes_cut_into_splits(tmp_path):
    touch(tmp_path, *(f"{c}/{s}/{c}{s}.png" for c in ("CNV", "DME") for s in ("train", "val", "test")))
    assert found(tmp_path)[0] == ("CNV/test/CNVtest.png", "CNV", "test")
    assert classes(tmp_path) == {s: ["CNV", "DME"] for s in ("train", "valid", "test")}


def test_folders_in_folders_of_the_same_split(tmp_path):
    touch(tmp_path, *(f"{s}/{s}/{c}/{c}.png" for s in ("train", "test") for c in "AB"))
    assert classes(tmp_path) == {"train": ["A", "B"], "test": ["A", "B"]}


@pytest.mark.parametrize(
    ("names", "column"), [(("OD", "OS"), "eye"), (("Cirrus", "Spectralis"), "device"), (("left", "right"), "eye")]
)
def test_eyes_and_devices_are_no_classes(tmp_path, said, names, column):
    one, other = names
    touch(tmp_path, *(f"{n}/{c}/{c}-{i}{n}-1.png" for n in names for c in ("CNV", "DME") for i in (1, 2)))
    scans = read_scans(tmp_path)
    assert set(scans["label"]) == {"CNV", "DME"} and set(scans[column]) == {one, other} and len(scans) == 8
    assert any(f"{one}, {other}" in line and "no classes" in line for line in said())


@pytest.mark.parametrize("names", [("OD", "OS"), ("Cirrus", "Spectralis")])
def test_eyes_and_devices_without_classes_are_refused(tmp_path, names):
    touch(tmp_path, *(f"{n}/{i}.png" for n in names for i in range(3)))
    with pytest.raises(DataError, match="eyes or devices, not classes"):
        read_scans(tmp_path)


def test_splits_of_devices_are_read_together(tmp_path):
    for device in ("Cirrus", "Topcon"):
        oct2017(tmp_path, device, device)
    scans = read_scans(tmp_path)
    assert (
        len(scans) == 20 and set(scans["device"]) == {"Cirrus", "Topcon"} and set(scans["label"]) == {"CNV", "NORMAL"}
    )


def test_masks_are_left_out_beside_pictures_and_in_classes(tmp_path, said):
    touch(tmp_path / "a", *(f"images/{c}/{c}-1-1.png" for c in "AB"), *(f"masks/{c}/{c}-1-1.png" for c in "AB"))
    assert [row[1] for row in found(tmp_path / "a")] == ["A", "B"]
    touch(tmp_path / "b", *(f"{c}/{kind}/{c}-1-1.png" for c in "AB" for kind in ("images", "masks")))
    assert [row[0] for row in found(tmp_path / "b")] == ["A/images/A-1-1.png", "B/images/B-1-1.png"]
    assert sum("in folders of masks" in line for line in said()) == 2
    touch(tmp_path / "c", "images/1.png", "masks/1.png")
    with pytest.raises(DataError, match=r"in no folder of a class|no images"):
        read_scans(tmp_path / "c")


@pytest.mark.parametrize(
    "names",
    [
        ("siteA/CNV", "siteA/DME", "siteB/CNV", "siteB/DME"),
        ("CNV/x", "DME/x", "more/CNV", "more/DME"),
        ("first/CNV", "first/DRUSEN", "second/DME", "second/NORMAL"),
        ("wet/mild", "wet/severe", "dry/mild", "dry/severe"),
    ],
)
def test_classes_in_classes_are_asked_about_and_can_be_said(tmp_path, names):
    touch(tmp_path, *(f"{name}/{i}{name.replace('/', '')}.png" for name in names for i in (1, 2)))
    with pytest.raises(DataError, match="folders of their own") as e:
        read_scans(tmp_path)
    assert "--label-from folder" in e.value.hint
    assert classes(tmp_path, label_from="folder")["train"] == sorted({Path(n).name for n in names})
    assert classes(tmp_path, label_from="folder:2")["train"] == sorted({Path(n).parts[0] for n in names})


def test_parts_of_a_class_are_its_own_and_it_is_said(tmp_path, said):
    touch(tmp_path, "A/mild/1.png", "A/severe/2.png", "B/3.png")
    assert classes(tmp_path) == {"train": ["A", "B"]}
    assert any("taken for parts of one class, A" in line for line in said())


def test_dukes_patients_are_read_from_their_folders(tmp_path, said):
    names = [f"{c}{i}" for c in ("AMD", "DME", "NORMAL") for i in (1, 2, 3)]
    touch(tmp_path, *(f"{n}/TIFFs/8bitTIFFs/{i:03d}.tif" for n in names for i in (1, 2, 3)))
    scans = read_scans(tmp_path)
    assert set(scans["label"]) == {"AMD", "DME", "NORMAL"} and set(scans["patient"]) == set(names)
    assert any("taken for patients of the classes AMD, DME, NORMAL" in line for line in said())
    other = read_scans(tmp_path, label_from="(AMD|DME|NORMAL)", patient_from="folder:3")
    assert other["label"].tolist() == scans["label"].tolist() and other["patient"].tolist() == scans["patient"].tolist()


def test_a_row_of_stages_is_classes(tmp_path):
    touch(tmp_path, *(f"stage{i}/{i}.png" for i in range(4)), "stage0/x.png")
    assert classes(tmp_path)["train"] == [f"stage{i}" for i in range(4)]
    touch(tmp_path / "grades", *(f"{i}/{i}.png" for i in range(11)))
    assert len(classes(tmp_path / "grades")["train"]) == 11


def test_patients_of_a_single_class_are_no_classes(tmp_path, said):
    touch(tmp_path, *(f"CNV/p{i}/{j}.jpeg" for i in (1, 2, 3) for j in (1, 2)))
    with pytest.raises(DataError, match="only one class"):
        read_scans(tmp_path)
    scans = read_scans(tmp_path, trainable=False)
    assert set(scans["label"]) == {"CNV"} and set(scans["patient"]) == {"p1", "p2", "p3"}
    with pytest.raises(DataError, match="look like patients") as e:
        read_scans(tmp_path / "CNV")
    assert "--label-from" in e.value.hint


@pytest.mark.parametrize("names", ["p1 p2 p3", "Patient_01 Patient_02 Patient_03", "sub-1 sub-2 sub-3", "17 18 19"])
def test_folders_of_patients_in_classes(tmp_path, said, names):
    for c in ("CNV", "DME"):
        touch(tmp_path, *(f"{c}/{n}/{c}{n}{i}.png" for n in names.split() for i in (1, 2)))
    scans = read_scans(tmp_path)
    assert set(scans["label"]) == {"CNV", "DME"} and set(scans["patient"]) == set(names.split())
    assert any("the folder in its class is taken for the patient" in line for line in said())
    assert read_scans(tmp_path, patient_from="name")["patient"].nunique() == 12


def test_folders_with_files_of_the_same_names_are_not_torn_apart(tmp_path):
    touch(
        tmp_path,
        *(
            f"{c}/{n}/{i:03d}.png"
            for c, ns in (("A", ("kim", "lee")), ("B", ("ola", "per")))
            for n in ns
            for i in (1, 2)
        ),
    )
    assert set(read_scans(tmp_path)["patient"]) == {"kim", "lee", "ola", "per"}


def test_a_class_in_several_spellings_is_one(tmp_path, said):
    nfc, nfd = unicodedata.normalize("NFC", "Ödem"), unicodedata.normalize("NFD", "Ödem")
    names = ("train/NORMAL", "val/Normal", "test/normal ", f"train/{nfc}", f"test/{nfd}", "train/CNV", "test/CNV\u200b")
    touch(tmp_path, *(f"{n}/{i}{j}.png" for i, n in enumerate(names) for j in range(3 if "train" in n else 1)))
    assert classes(tmp_path) == {"train": ["CNV", "NORMAL", nfc], "valid": ["NORMAL"], "test": ["CNV", "NORMAL", nfc]}
    assert sum("one class in several spellings is read as" in line for line in said()) == 3


def test_copies_keep_the_patient_of_their_original(tmp_path):
    copies = (
        "CNV-7-1 (2).jpeg",
        "CNV-7-1 - Copy.jpeg",
        "CNV-7-1 - Copy (3).jpeg",
        "Copy of CNV-7-1.jpeg",
        "CNV-7-1 copy.jpeg",
    )
    touch(
        tmp_path,
        "CNV/CNV-7-1.jpeg",
        *(f"CNV/{c}" for c in copies),
        "DME/scan.png",
        "DME/scan (1).png",
        "DME/scan - Kopie.png",
    )
    scans = read_scans(tmp_path)
    assert set(scans.loc[scans["label"] == "CNV", "patient"]) == {"7"}
    assert set(scans.loc[scans["label"] == "DME", "patient"]) == {"DME/scan.png"}


def test_a_set_numbered_like_copies_is_no_single_patient(tmp_path):
    touch(tmp_path, *(f"{c}/{c} ({i}).png" for c in "AB" for i in range(1, 9)))
    assert read_scans(tmp_path)["patient"].nunique() == 16


def test_classes_that_hold_the_splits_are_looked_at_as_others_are(tmp_path):
    """A folder of masks is no class, and a class of loose pictures is not gone without a word."""
    for name in ("CNV", "NORMAL"):
        for split in ("train", "test"):
            file = tmp_path / name / split / f"{name}-{split}-1.jpeg"
            file.parent.mkdir(parents=True)
            file.write_text(name + split)
    assert classes(tmp_path) == {split: ["CNV", "NORMAL"] for split in ("train", "test")}
    loose = tmp_path / "DME-7-1.jpeg"
    loose.write_text("loose")
    with pytest.raises(DataError, match="pictures of DME lie in no folder of a class"):
        read_data(tmp_path, trainable=False)
    for name in ("CNV", "NORMAL"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / "masks" / "train").mkdir(parents=True)
    (tmp_path / "masks" / "train" / "CNV-1-1.jpeg").write_text("mask")
    with pytest.raises(DataError, match=r"masks .* does not look like a class"):
        read_data(tmp_path, trainable=False)


def test_loose_pictures_are_counted_and_a_whole_class_of_them_is_refused(tmp_path, said):
    touch(tmp_path, "train/CNV/CNV-1-1.jpeg", "train/DME/DME-2-1.jpeg", "train/x.jpeg", "train/CNV-3-1.jpeg", "y.jpeg")
    assert len(read_scans(tmp_path)) == 2
    assert any("left out: 3 pictures of no folder of a class" in line for line in said())
    touch(tmp_path, "train/NORMAL-9-1.jpeg")
    with pytest.raises(DataError, match="pictures of NORMAL lie in no folder of a class"):
        read_scans(tmp_path)


def test_every_ending_that_the_decoder_knows_is_read(tmp_path):
    names = [f"A/{i}{s}" for i, s in enumerate(sorted(IMAGE_SUFFIXES))]
    touch(tmp_path, *names, "B/1.png")
    assert len(read_scans(tmp_path)) == len(names) + 1 and {".jfif", ".jp2", ".avif", ".pgm", ".tga"} <= IMAGE_SUFFIXES
    (tmp_path / "B" / "IM0001").write_bytes(b"\x89PNG\r\n\x1a\n....")
    assert len(read_scans(tmp_path)) == len(names) + 2


def test_pattern_and_level_are_checked(tmp_path):
    touch(tmp_path, "A/p1_x.png", "B/q_x.png")
    with pytest.raises(DataError, match=r"--patient-from .* gives no patient for"):
        read_scans(tmp_path, patient_from=r"(p\d+)_")
    with pytest.raises(DataError, match="gives no label for"):
        read_scans(tmp_path, label_from="folder:3")
    scans = read_scans(tmp_path, patient_from=r"(?P<patient>\w)(?P<rest>.*)_x")
    assert scans["patient"].tolist() == ["A", "B"] or scans["patient"].tolist() == ["p", "q"]


def test_a_workbook_and_a_table_of_patients_beside_folders_are_said(tmp_path, said):
    touch(tmp_path, "A/A-1-1.png", "B/B-2-1.png", "labels.xlsx")
    (tmp_path / "patients.csv").write_text("image,patient\nA-1-1,1\n")
    assert len(read_data(tmp_path)) == 2
    lines = said()
    assert any("a workbook here that is not read" in line for line in lines)
    assert any("a table here with patients that is not read" in line for line in lines)


SPLITS = st.sampled_from(["train", "Testing set", "val", "test", "01_train", "extra"])
CLASSES = st.sampled_from(["CNV", "cnv", "DME ", "NORMAL", "Normal", "Ödem", "p1", "images", "masks", "OD"])
INNER = st.lists(st.sampled_from(["p1", "p2", "deeper", "masks", "images", ".hidden", "__MACOSX", "mild"]), max_size=2)
FILES = st.sampled_from(
    [
        "CNV-1-1.jpeg",
        "1.png",
        "2.PNG",
        "1 (2).png",
        "._1.png",
        ".x.jpeg",
        "3.jfif",
        "4.tga",
        "scan.avif",
        "5.TIFF",
        "6.jp2",
    ]
)


@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.just(()),
                st.tuples(CLASSES),
                st.tuples(SPLITS),
                st.tuples(SPLITS, CLASSES),
                st.tuples(CLASSES, SPLITS),
            ),
            INNER,
            FILES,
            st.sampled_from(["file", "file", "file", "link", "folder link", "broken link"]),
        ),
        min_size=1,
        max_size=14,
    )
)
@settings(max_examples=300, deadline=None)
def test_every_picture_is_a_scan_or_counted_or_all_are_refused(made):
    """Every picture that a tree holds is in the table or in what is said to be left out, once."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "data"
        away = Path(folder).resolve() / "away"
        pictures = set()
        for i, (top, inner, name, kind) in enumerate(made):
            at = root.joinpath(*top, *inner)
            at.mkdir(parents=True, exist_ok=True)
            path = at / name
            if path.exists() or path.is_symlink():
                continue
            if kind == "file":
                path.write_text(str(path))
            elif kind == "broken link":
                path.symlink_to("nowhere")
            else:
                target = away / str(i)
                target.mkdir(parents=True)
                (target / name).write_text(str(path))
                if kind == "link":
                    path.symlink_to(target / name)
                else:
                    path = at / f"linked {i}"
                    if path.name.startswith(".") or any(p.startswith((".", "__")) for p in inner):
                        continue
                    path.symlink_to(target)
                    path = path / name
            pictures.add(str(path))
        layout = look_through(root)
        try:
            scans = read_layout(layout, trainable=False)
        except DataError as e:
            assert e.hint and "\n" not in e.message
            return
        left = [p for paths in layout.left_out.paths.values() for p in paths]
        assert len(left) == len(set(left))
        assert not set(scans["path"]) & set(left)
        assert {*scans["path"], *left} == pictures
        assert not scans["label"].map(lambda c: bool(re.search("train|test|masks", c))).any()
