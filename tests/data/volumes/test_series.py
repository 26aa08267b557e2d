"""DICOM series with a file a B-scan are one volume, in the order that their headers tell, wherever scans are read."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import octfast
from octfast.data.extract import extract
from octfast.data.volumes.reader import VolumeReader
from octfast.data.volumes.series import Header, find_series, in_order
from octfast.errors import DataError
from tests.data.volumes import volume_files as files

pytest.importorskip("pydicom", minversion="3")


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("OCTFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OCTFAST_KEY", str(tmp_path / "key"))


def head(n: int, **said) -> Header:
    return Header("1.2", "1.2.3", f"1.2.3.{n}", 1, 8, 8, **said)


def test_the_order_is_that_of_places_then_numbers_then_names():
    far = [head(n, number=n, place=(0.0, y, 3.0)) for n, y in enumerate((0.5, 0.25, 0.75, 0.0))]
    order, by = in_order(far)
    assert order in ([3, 1, 0, 2], [2, 0, 1, 3]) and "place" in by
    upwards = [head(n, number=9 - n, place=(0.0, y, 3.0)) for n, y in enumerate((0.0, 0.25, 0.5))]
    assert in_order(upwards)[0] == [2, 1, 0]
    # Two at one place: repeated, and their numbers tell.
    assert in_order([head(0, number=3, place=(0.0, 1.0, 0.0)), head(1, number=2, place=(0.0, 1.0, 0.0))])[0] == [1, 0]
    assert in_order([head(0, number=1), head(1, number=1)]) == ([0, 1], in_order([head(0), head(1)])[1])


def test_a_series_is_one_volume_as_a_multi_frame_file_is(tmp_path):
    bits = {"BitsStored": 12, "HighBit": 11}
    frames = np.random.default_rng(1).integers(0, 4096, (5, 20, 30)).astype("<u2")
    frames[0] //= 16
    places = [0.5, 0.25, 0.75, 0.0, 1.0]
    written = files.write_series(tmp_path / "s", frames, places, **bits)
    other = files.write_series(tmp_path / "s", frames[:2], series="1.2.4", ImageLaterality="R", **bits)
    shutil.copy(written[1], tmp_path / "s" / "copy.dcm")
    whole = files.write_dicom(tmp_path / "whole.dcm", frames[[3, 1, 0, 2, 4]], **bits)
    with VolumeReader() as reader:
        found, copies = find_series([*(tmp_path / "s").iterdir(), whole], reader)
        assert len(copies) == 1 and sorted(map(len, found.values())) == [2, 5]
        (first,) = [f for f in found if len(found[f]) == 5]
        about, *scans = reader.read_all(first, "series", found[first])
        expected = [scan.pixels for scan in reader.read(whole, "dicom")]
    assert [s.frame for s in scans] == [0, 1, 2, 3, 4] and {s.eye for s in scans} == {"L"}
    assert [s.position_mm for s in scans] == [0.0, 0.25, 0.5, 0.75, 1.0] and about.between_um == 250.0
    turned = expected if found[first][0] == written[3] else expected[::-1]
    assert all(np.array_equal(s.pixels, e) for s, e in zip(scans, turned, strict=True))
    assert set(next(files for f, files in found.items() if f != first)) == set(other)


def test_series_and_multi_frame_files_in_one_folder_are_data_and_extracted(tmp_path, caplog):
    caplog.set_level("INFO", "octfast")
    clinic = tmp_path / "clinic"
    for n, label in enumerate(("CNV", "NORMAL")):
        for m in range(2):
            more = {"PatientID": f"P{n}{m}", "ImageLaterality": ""}
            files.write_series(clinic / label, files.frames_of(3, seed=4 * n + m), series=f"1.2.9{n}{m}", **more)
        files.write_dicom(clinic / label / "whole.dcm", files.frames_of(4, seed=90 + n), PatientID=f"Q{n}")
    scans = octfast.read_data(clinic)
    assert scans.groupby("volume").size().tolist() and sorted(scans.groupby("volume").size()) == [3, 3, 3, 3, 4, 4]
    assert scans["patient"].nunique() == 6 and set(scans["label_level"]) == {"volume"}
    assert set(scans.groupby("volume")["eye"].first()) == {"", "L"}
    assert "InstanceNumber" in caplog.text
    blank = scans[(scans["label"] == "CNV") & (scans["eye"] == "")]
    first = blank[blank["volume"] == blank["volume"].iloc[0]]
    seen = [np.asarray(Image.open(p)) for p in first.sort_values("frame")["path"]]
    assert any(all(np.array_equal(a, b) for a, b in zip(seen, files.frames_of(3, seed=s), strict=True)) for s in (0, 1))
    done = extract([clinic], tmp_path / "out")
    assert done.volumes == 6 and len(done.scans) == 20


def test_a_series_under_two_labels_is_refused(tmp_path):
    written = files.write_series(tmp_path / "CNV", files.frames_of(4))
    (tmp_path / "NORMAL").mkdir()
    written[2].rename(tmp_path / "NORMAL" / written[2].name)
    with pytest.raises(DataError, match="one DICOM series has two labels"):
        octfast.read_data(tmp_path)
    table = tmp_path / "t.csv"
    paths = [*tmp_path.rglob("*.dcm")]
    paths.append(files.write_dicom(tmp_path / "other.dcm", files.frames_of(2)))
    labels, patients = [*["CNV"] * 4, "NORMAL"], [f"p{n}" for n in range(5)]
    pd.DataFrame({"path": paths, "label": labels, "patient": patients}).to_csv(table, index=False)
    with pytest.raises(DataError, match="two patients"):
        octfast.read_data(table)
