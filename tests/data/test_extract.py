"""B-scans of volumes as pictures: the pixels of the reader, a table of them, and nothing that names a patient."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.data.extract import extract
from octfast.data.volumes.pseudonym import load_key, pseudonym
from octfast.errors import DataError, UsageError
from tests.conftest import SHARED
from tests.data.volumes import volume_files as files


@pytest.fixture(autouse=True)
def own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("OCTFAST_KEY", str(tmp_path / "keys" / "key"))


def written(out: Path) -> bytes:
    """The bytes and the names of everything in a folder, with what is compressed in pictures left alone."""
    held = b""
    for path in sorted(out.rglob("*")):
        held += str(path.relative_to(out)).encode()
        held += path.read_bytes() if path.is_file() else b""
    return held


def chunks_of(png: Path) -> set[bytes]:
    data, at, found = png.read_bytes(), 8, set()
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        found.add(data[at + 4 : at + 8])
        at += 12 + size
    return found


def table_of(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "scans.csv", dtype={"patient": str})


def test_pictures_hold_the_pixels_and_the_table_what_the_file_says(tmp_path):
    frames = files.frames_of(3)
    clinic = tmp_path / "clinic"
    clinic.mkdir()
    files.write_vol(clinic / "DOE_JANE_OD.vol", frames)
    files.write_e2e(clinic / "both.e2e", [frames, frames[:2]], eyes="RL")
    done = extract([clinic], tmp_path / "out")
    table = table_of(tmp_path / "out")
    assert list(table) == [
        *("path", "patient", "volume", "eye", "frame", "position_mm", "device"),
        *("axial_um", "lateral_um", "between_um"),
    ]
    assert done.volumes == 3 and len(table) == 8 and table.groupby("volume")["frame"].apply(list).map(len).max() == 3
    vol = table[table["device"] == "Heidelberg Spectralis"]
    assert set(vol["eye"]) == {"R"} and set(vol["patient"]) == {pseudonym(load_key(), "patient", "SECRET-ID")}
    for row in vol.itertuples():
        with Image.open(tmp_path / "out" / row.path) as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.asarray(picture), frames[row.frame])
    assert len(list((tmp_path / "out").rglob("*slo.png"))) == 1
    said = json.loads((tmp_path / "out" / "extracted.json").read_text())
    assert said["removed"]["PatientID"] == 1 and said["removed"]["patient surname"] == 2


def marked_dicom(path: Path) -> set[str]:
    """A DICOM file in which every element of the standard's dictionary that may hold text, a date or a UID is filled.

    These are more than the elements of table E.1-1 of PS3.15. Gives their keywords.
    """
    from pydicom.datadict import DicomDictionary
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

    marks = dict.fromkeys(("AE", "CS", "SH"), "ZQXSECRET") | dict.fromkeys(("LO", "LT", "ST", "UC", "UT"), "ZQX secret")
    marks |= {"PN": "ZQX^Secret", "DA": "19710203", "TM": "112233.44", "DT": "19710203112233", "AS": "071Y"}
    marks |= {"UI": "1.2.777.888", "UR": "http://zqx.secret"} | dict.fromkeys(("OB", "UN"), b"ZQX-SECRET!")
    kept = {"Manufacturer", "ManufacturerModelName", "Modality", "ImageLaterality", "Laterality", "FrameLaterality"}
    kept |= {"SOPClassUID", "SpecificCharacterSet"}
    comments = {0x00281199, 0x00284000, 0x00280301}
    files.write_dicom(path, files.frames_of(2))
    from pydicom import dcmread

    ds = dcmread(path)
    filled = set()
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        group = tag >> 16
        if not 0x0008 <= group < 0x7FE0 or (group == 0x0028 and tag not in comments) or keyword in kept:
            continue
        if vr == "SQ":
            item = Dataset()
            item.PatientName, item.PersonAddress = "ZQX^Nested", "ZQX street"
            ds.add(DataElement(tag, "SQ", [item]))
        elif vr in marks:
            ds.add(DataElement(tag, vr, marks[vr]))
            filled.add(keyword)
    block = ds.private_block(0x0099, "ZQX CREATOR", create=True)
    block.add_new(1, "LO", "ZQX private")
    for tag, vr, value in ((0x60004000, "LT", "ZQX overlay"), (0x50002500, "LO", "ZQX curve")):
        ds.add(DataElement(tag, vr, value))
    ds.preamble = b"ZQX-SECRET".ljust(128, b"\0")
    ds.save_as(path, enforce_file_format=True)
    return filled


def test_nothing_of_a_dicom_file_in_which_everything_is_filled_is_written(tmp_path):
    pytest.importorskip("pydicom", minversion="3")
    clinic = tmp_path / "ZQX Secret 19710203"
    clinic.mkdir()
    filled = marked_dicom(clinic / "ZQX_19710203.dcm")
    assert len(filled) > 1000 and {"PatientName", "InstitutionName", "StudyInstanceUID", "DeviceSerialNumber"} <= filled
    out = tmp_path / "out"
    done = extract([clinic], out)
    held = written(out).lower()
    for mark in (b"zqx", b"secret", b"19710203", b"1.2.777", b"112233", b"071y", str(tmp_path).lower().encode()):
        assert mark not in held, mark
    assert all(chunks_of(p) == {b"IHDR", b"IDAT", b"IEND"} for p in out.rglob("*.png"))
    assert {"PatientName", "StudyInstanceUID", "preamble"} <= set(done.removed)
    assert any(name.startswith("private (") for name in done.removed)
    assert table_of(out)["patient"].nunique() == 1


def test_nothing_of_heidelbergs_headers_is_written(tmp_path):
    frames = files.frames_of(2)
    path = files.write_vol(tmp_path / "ZQX_Jane_19710203.vol", frames)
    raw = bytearray(path.read_bytes())
    for at, size in ((104, 16), (120, 16), (140, 21), (176, 24), (224, 34), (258, 1700)):
        raw[at : at + size] = b"ZQX-SECRET".ljust(size, b"\0")
    struct.pack_into("<d", raw, 164, 1971.0203)
    path.write_bytes(raw)
    other = files.write_e2e(tmp_path / "ZQX.e2e", [frames])
    other.write_bytes(other.read_bytes().replace(b"SECRET", b"ZQXSEC").replace(b"NAME", b"ZQX!"))
    out = tmp_path / "out"
    done = extract([path, other], out)
    assert b"zqx" not in written(out).lower() and done.volumes == 2
    assert {"PatientID", "DOB", "VisitID", "patient first name"} <= set(done.removed)


def test_a_table_gives_labels_and_patients_who_are_pseudonyms_too(tmp_path):
    for n in range(2):
        files.write_vol(tmp_path / f"{n}.vol", files.frames_of(2, seed=n))
    rows = [("0.vol", "CNV", "SECRET-ID", "L"), ("1.vol", "NORMAL", "", "")]
    pd.DataFrame(rows, columns=["path", "label", "patient", "eye"]).to_csv(tmp_path / "v.csv", index=False)
    extract([tmp_path / "v.csv"], tmp_path / "out")
    table = table_of(tmp_path / "out")
    assert sorted(table["label"]) == ["CNV"] * 2 + ["NORMAL"] * 2 and set(table["label_level"]) == {"volume"}
    assert (table.groupby("volume")["label"].nunique() == 1).all()
    # The one that the table names and the one that the file names are the same patient.
    assert table["patient"].nunique() == 1 and table["patient"][0].startswith("p")
    assert set(table["eye"]) == {"R"}


def test_names_follow_from_the_key_and_the_key_is_its_owners_alone(tmp_path):
    path = files.write_vol(tmp_path / "a.vol", files.frames_of(2))
    tables = []
    for n, key in enumerate(("one", "one", "two")):
        extract([path], tmp_path / f"out{n}", key=tmp_path / key)
        tables.append(table_of(tmp_path / f"out{n}"))
    assert tables[0].equals(tables[1]) and not set(tables[0]["patient"]) & set(tables[2]["patient"])
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="among the pictures"):
        extract([path], tmp_path / "out3", key=tmp_path / "out3" / "key")
    with pytest.raises(UsageError, match="another key"):
        extract([path], tmp_path / "out0", key=tmp_path / "two")
    (tmp_path / "bad").write_text("nothing\n")
    with pytest.raises(DataError, match="holds no key"):
        extract([path], tmp_path / "out4", key=tmp_path / "bad")


def test_names_are_kept_where_that_is_asked_for(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files.write_vol(tmp_path / folder / "eye.vol", files.frames_of(2, seed=ord(folder)))
    done = extract([tmp_path / "a", tmp_path / "b"], tmp_path / "out", keep_names=True)
    assert set(done.scans["patient"]) == {"SECRET-ID"} and done.key is None
    assert done.volumes == 2 and "eye" in set(done.scans["volume"])


def test_it_goes_on_where_it_stopped_and_the_unreadable_is_said_but_not_written(tmp_path):
    clinic = tmp_path / "clinic"
    clinic.mkdir()
    for n in range(2):
        files.write_vol(clinic / f"{n}.vol", files.frames_of(2, seed=n))
    whole = files.write_vol(tmp_path / "ZQX.vol", files.frames_of(3, seed=9)).read_bytes()
    (clinic / "ZQX.vol").write_bytes(whole[:-100])
    out = tmp_path / "out"
    done = extract([clinic], out)
    ((path, why),) = done.unreadable
    assert path.name == "ZQX.vol" and "2 of the 3" in why and done.volumes == 2
    assert b"ZQX" not in written(out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    gone = min(before)
    gone.unlink()
    # As a killed process leaves it.
    (out / ".v123-1a2b.draft").mkdir()
    (clinic / "ZQX.vol").write_bytes(whole)
    assert extract([clinic], out).volumes == 3
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    assert gone in after
    same = [p for p in before if p.parent != gone.parent]
    assert same and all(before[p] == after[p] for p in same)
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


@pytest.mark.realdata
def test_real_spectralis_files_without_their_patients(tmp_path):
    folder = SHARED / "data" / "vol-spectralis"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/vol-spectralis")
    done = extract([folder], tmp_path / "out")
    assert (done.volumes, len(done.scans), done.scans["patient"].nunique(), done.unreadable) == (5, 14, 3, [])
    positions = done.scans.groupby("volume")["position_mm"].apply(list).map(len)
    assert positions.max() == 10 and done.scans["position_mm"].max() == pytest.approx(0.283)
    held = written(tmp_path / "out").lower()
    assert b"01234" not in held and b"study-01" not in held and b"spectralis-1" not in held


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    path = files.write_vol(tmp_path / "a.vol", files.frames_of(2))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        extract([path], tmp_path / "out")
    with pytest.raises(DataError, match="no volumes"):
        extract([tmp_path / "out"], tmp_path / "new")


def test_folders_of_numbered_pictures_are_volumes_and_others_are_not(tmp_path):
    for name, numbers in (("V1", range(25)), ("V2", range(3, 28)), ("few", range(5)), ("holes", range(0, 60, 2))):
        (tmp_path / "set" / name).mkdir(parents=True)
        for n in numbers:
            Image.new("L", (12, 10), n + len(name)).save(tmp_path / "set" / name / f"b{n}.png")
    done = extract([tmp_path / "set"], tmp_path / "out", patient_from="folder")
    assert done.scans["patient"].nunique() == 2
    assert done.volumes == 2 and len(done.scans) == 50
    frame = done.scans[done.scans["frame"] == 10].iloc[0]
    with Image.open(tmp_path / "out" / frame["path"]) as picture:
        assert np.unique(np.asarray(picture)).size == 1
