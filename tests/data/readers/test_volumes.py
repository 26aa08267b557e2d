"""Volumes as data: a row a B-scan, on pictures that are made once; patients and eyes as the files and tables say."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.data.audit.audit import audit
from octfast.data.prepare import prepare
from octfast.data.readers.read import data_folder, read_data
from octfast.data.splits.folds import make_splits
from octfast.data.volumes.pseudonym import load_key, pseudonym
from octfast.errors import DataError, UsageError
from tests.data.volumes import volume_files as files


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OCTFAST_CACHE", str(tmp_path / "cache"))


def vol(path: Path, patient: str, eye: bytes = b"OD", seed: int = 0, count: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_vol(path, files.frames_of(count, seed=seed), eye=eye)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<21s", raw, 140, patient.encode())
    path.write_bytes(raw)
    return path


def named(patient: str) -> str:
    return pseudonym(load_key(), "patient", patient)


@pytest.fixture
def clinic(tmp_path) -> Path:
    """Class folders of volumes: patient 1 has both eyes, each of two classes; the last file names no patient."""
    vol(tmp_path / "clinic" / "CNV" / "DOE_right.vol", "1", b"OD", 1)
    vol(tmp_path / "clinic" / "NORMAL" / "DOE_left.vol", "1", b"OS", 2)
    vol(tmp_path / "clinic" / "CNV" / "b.vol", "2", b"OD", 3)
    vol(tmp_path / "clinic" / "NORMAL" / "c.vol", "", b"\0\0", 4)
    return tmp_path / "clinic"


def test_class_folders_of_volumes(clinic, said):
    scans = read_data(clinic)
    assert list(scans)[:9] == [
        *("path", "label", "patient", "split", "volume", "eye", "frame", "position_mm", "label_level"),
    ]
    assert len(scans) == 12 and scans["volume"].nunique() == 4 and set(scans["label_level"]) == {"volume"}
    assert scans.groupby("volume")["frame"].apply(sorted).tolist() == [[0, 1, 2]] * 4
    by_patient = scans.groupby("patient")["eye"].agg(set)
    assert by_patient[named("1")] == {"R", "L"} and by_patient[named("2")] == {"R"} and len(by_patient) == 3
    (unnamed,) = set(by_patient.index) - {named("1"), named("2")}
    assert unnamed in set(scans["volume"]) and by_patient[unnamed] == {""}
    assert not any("DOE" in str(value) for value in scans.to_numpy().ravel())
    assert any("1 volumes say no patient" in line for line in said())
    # Made once.
    before = {p: Path(p).stat().st_mtime_ns for p in scans["path"]}
    pd.testing.assert_frame_equal(read_data(clinic), scans)
    assert before == {p: Path(p).stat().st_mtime_ns for p in scans["path"]}
    assert data_folder(clinic, scans).name == "v1"


def test_device_and_spacing_are_those_of_the_file_and_blank_where_it_says_none(clinic):
    """No zero stands for what is not known."""
    one = clinic / "CNV" / "b.vol"
    raw = bytearray(one.read_bytes())
    struct.pack_into("<3d", raw, 24, 0.0115, 0.24, 0.0039)
    one.write_bytes(raw)
    first, *others = (Image.fromarray(frame) for frame in files.frames_of(4, seed=9))
    first.save(clinic / "NORMAL" / "stack.tif", save_all=True, append_images=others)
    scans = read_data(clinic)
    said = scans.groupby("volume")[["device", "axial_um", "lateral_um", "between_um"]].agg(
        lambda s: s.drop_duplicates().tolist()
    )
    rows = [[value for (value,) in row] for row in said.values.tolist()]
    device = "Heidelberg Spectralis"
    assert sum(row == [device, 3.9, 11.5, 240.0] for row in rows) == 1
    assert sum(row[0] == device and all(np.isnan(row[1:])) for row in rows) == 3
    assert sum(pd.isna(row).all() for row in rows) == 1 and len(rows) == 5


def test_both_eyes_of_a_patient_stay_on_one_side_of_every_split(tmp_path):
    for n in range(12):
        for eye in (b"OD", b"OS"):
            label = ("CNV", "NORMAL")[n % 2]
            vol(tmp_path / "set" / label / f"{n}{eye.decode()}.vol", str(n), eye, 2 * n + (eye == b"OS"), count=1)
    scans = make_splits(read_data(tmp_path / "set"), folds=3)
    assert (scans.groupby("patient")["split"].nunique() == 1).all() and scans["patient"].nunique() == 12
    ready = prepare(tmp_path / "set", valid=0.3).scans
    assert (ready.groupby("patient")["split"].nunique() == 1).all() and set(ready["split"]) == {"train", "valid"}


@pytest.mark.parametrize(
    ("rule", "patients"),
    [("tag", {"1", "2"}), (None, {"A", "B"}), ("mrn", {"7", "8"}), (r"(\w)\.vol", {"x", "y"}), ("folder", {"in"})],
)
def test_patients_come_from_where_they_are_said_to(tmp_path, rule, patients):
    vol(tmp_path / "in" / "x.vol", "1", seed=1)
    vol(tmp_path / "in" / "y.vol", "2", seed=2)
    rows = [("in/x.vol", "CNV", "A", "7"), ("in/y.vol", "NORMAL", "B", "8")]
    pd.DataFrame(rows, columns=["path", "label", "patient", "mrn"]).to_csv(tmp_path / "t.csv", index=False)
    scans = read_data(tmp_path / "t.csv", patient_from=rule)
    assert set(scans["patient"]) == ({named(p) for p in patients} if rule == "tag" else patients)


def test_a_table_names_volumes_eyes_and_folders_and_the_files_eye_goes_first(tmp_path, said):
    vol(tmp_path / "x.vol", "1", b"OS")
    folder = tmp_path / "B1"
    folder.mkdir()
    for n in range(4):
        Image.fromarray(files.frames_of(1, seed=n)[0]).save(folder / f"{n}.png")
    rows = [("x.vol", "CNV", "right", "first"), ("B1", "NORMAL", "OS", "second")]
    pd.DataFrame(rows, columns=["path", "label", "eye", "volume"]).to_csv(tmp_path / "t.csv", index=False)
    scans = read_data(tmp_path / "t.csv").set_index("volume")
    assert set(scans.loc["first", "eye"]) == {"L"} and set(scans.loc["second", "eye"]) == {"L"}
    assert any("another eye" in line for line in said())
    # Pictures of 8 bits are read where they lie.
    assert scans.loc["second", "path"].tolist() == [str(folder / f"{n}.png") for n in range(4)]


def test_files_of_one_b_scan_each_are_a_volume_where_a_table_says_so(tmp_path):
    for n in range(3):
        vol(tmp_path / f"s{n}.vol", "1", seed=n, count=1)
    vol(tmp_path / "z.vol", "2", seed=9)
    rows = [(f"s{n}.vol", "CNV", "series") for n in range(3)] + [("z.vol", "NORMAL", "other")]
    pd.DataFrame(rows, columns=["path", "label", "volume"]).to_csv(tmp_path / "t.csv", index=False)
    scans = read_data(tmp_path / "t.csv")
    assert sorted(scans.loc[scans["volume"] == "series", "frame"]) == [0, 1, 2]
    assert scans["volume"].nunique() == 2 and set(scans["label_level"]) == {"volume"}


def test_a_patient_of_a_table_and_of_a_file_are_one_and_contradictions_are_said(tmp_path, said):
    for n in range(4):
        vol(tmp_path / f"{n}.vol", "7" if n < 3 else "8", seed=n)
    rows = [("0.vol", "CNV", "7"), ("1.vol", "NORMAL", ""), ("2.vol", "CNV", "7"), ("3.vol", "NORMAL", "8")]
    pd.DataFrame(rows, columns=["path", "label", "patient"]).to_csv(tmp_path / "t.csv", index=False)
    scans = read_data(tmp_path / "t.csv")
    assert set(scans["patient"]) == {"7", "8"} and len(scans[scans["patient"] == "7"]) == 9
    assert not any("several by the table" in line for line in said())
    rows[2] = ("2.vol", "CNV", "9")
    pd.DataFrame(rows, columns=["path", "label", "patient"]).to_csv(tmp_path / "t.csv", index=False)
    read_data(tmp_path / "t.csv")
    assert any("1 patients are one by their files and several by the table" in line for line in said())


def test_a_list_of_paths_takes_the_folders_as_classes(clinic, tmp_path):
    paths = [str(p.relative_to(tmp_path)) for p in sorted(clinic.rglob("*.vol"))]
    (tmp_path / "list.txt").write_text("\n".join([*paths, ""]))
    pd.testing.assert_frame_equal(read_data(tmp_path / "list.txt"), read_data(clinic))


@pytest.mark.parametrize("bits", [8, 12])
def test_folders_of_numbered_pictures_are_volumes(tmp_path, said, bits):
    for label, seed in (("CNV", 1), ("NORMAL", 2)):
        for number in (1, 2):
            folder = tmp_path / "set" / label / f"{label[0]}{number}"
            folder.mkdir(parents=True)
            frames = np.random.default_rng(10 * seed + number).integers(0, 1 << bits, (25, 10, 12))
            frames[0] //= 16
            for n, frame in enumerate(frames.astype(np.uint16 if bits > 8 else np.uint8)):
                Image.fromarray(frame).save(folder / f"slice{n + 1}.png")
    scans = read_data(tmp_path / "set")
    assert len(scans) == 100 and scans["volume"].nunique() == 4 and scans["patient"].nunique() == 4
    assert any("4 folders of 25 to 200 numbered pictures are taken for volumes" in line for line in said())
    first = scans[(scans["frame"] == 0)].iloc[0]
    with Image.open(first["path"]) as picture:
        grey = np.asarray(picture)
    # A dark frame stays dark beside the others, whatever its own samples would be spread to.
    assert grey.dtype == np.uint8 and grey.max() <= 16
    assert str(tmp_path / "set") in first["path"] or bits == 12


def test_a_folder_of_pictures_without_volumes_is_read_as_before(tmp_path):
    folder = tmp_path / "set"
    for label in ("CNV", "NORMAL"):
        (folder / label).mkdir(parents=True)
        for n in range(30):
            Image.new("L", (9, 8), n).save(folder / label / f"{n}.png")
    assert list(read_data(folder)) == ["path", "label", "patient", "split"]
    # Nor is a folder that holds all pictures of a class.
    for label in ("CNV", "NORMAL"):
        (folder / label).rename(tmp_path / "images")
        (folder / label).mkdir()
        (tmp_path / "images").rename(folder / label / "images")
    assert list(read_data(folder)) == ["path", "label", "patient", "split"]
    with pytest.raises(UsageError, match="no volumes"):
        read_data(folder, patient_from="tag")


def test_what_cannot_be_read_is_left_out_with_its_reason(clinic, tmp_path, said):
    whole = (clinic / "CNV" / "b.vol").read_bytes()
    (clinic / "CNV" / "b.vol").write_bytes(whole[:-100])
    ready = prepare(clinic, valid=0.5)
    (left,) = ready.left_out.itertuples()
    assert left.path.endswith("b.vol") and "2 of the 3 B-scans" in left.reason
    (row,) = audit(clinic).findings.query("check == 'unreadable'").itertuples()
    assert row.path.endswith("b.vol") and "2 of the 3 B-scans" in row.detail
    assert ready.scans["volume"].nunique() == 3 and ready.scans["frame"].dtype.kind in "if"


def test_a_copy_counts_once_and_under_another_label_is_refused(clinic, said):
    copy = clinic / "CNV" / "again.vol"
    copy.write_bytes((clinic / "CNV" / "b.vol").read_bytes())
    scans = read_data(clinic)
    assert len(scans) == 12 and scans["path"].is_unique
    assert any("1 volumes have the content of another" in line for line in said())
    copy.rename(clinic / "NORMAL" / "again.vol")
    with pytest.raises(DataError, match="one volume has two labels"):
        read_data(clinic)


def test_one_volume_is_no_data_set(tmp_path):
    with pytest.raises(DataError, match="one volume, not a data set"):
        read_data(vol(tmp_path / "x.vol", "1"))
