from __future__ import annotations

import pandas as pd
import pytest
from PIL import Image

from octfast.data.prepare import check_file, leave_out_unreadable
from octfast.data.preprocess import decode_grey
from octfast.data.readers.folder import read_scans
from octfast.errors import DataError
from tests.pictures import scan, write_broken, write_kinds


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("empty.jpeg", "empty file"),
        ("truncated.jpeg", "truncated"),
        ("head-only.jpeg", ""),
        ("text.jpeg", "not a picture"),
        ("web.png", "not a picture"),
        ("floats.tif", "32-bit"),
        ("integers.tif", "32-bit"),
    ],
)
def test_what_is_wrong_is_said_in_a_few_words(tmp_path, kind, reason):
    file = write_broken(tmp_path)[kind]
    found, unusual = check_file(file)
    assert found and reason in found and str(file) not in found and "\n" not in found
    assert unusual == ""


def test_a_missing_file(tmp_path):
    assert check_file(tmp_path / "gone.jpeg")[0]


def test_what_passes_can_be_decoded_and_what_does_not_cannot(tmp_path):
    for file in {**write_kinds(tmp_path / "a"), **write_broken(tmp_path / "b")}.values():
        reason, _ = check_file(file)
        if reason:
            with pytest.raises(DataError):
                decode_grey(file)
        else:
            decode_grey(file)


@pytest.mark.parametrize("name", ["scan.jpeg", "scan.png"])
def test_no_enormous_picture_passes(tmp_path, monkeypatch, name):
    Image.fromarray(scan()).save(tmp_path / name)
    monkeypatch.setattr("octfast.data.preprocess.MAX_PIXELS", 100)
    assert "pixels" in check_file(tmp_path / name)[0]


def folder(tmp_path):
    for label in "AB":
        write_kinds(tmp_path / label)
    write_broken(tmp_path / "A")
    return tmp_path


def test_the_unreadable_are_left_out_listed_and_never_deleted(tmp_path, said):
    scans = read_scans(folder(tmp_path))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    good, bad = leave_out_unreadable(scans)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    broken = set(write_broken(tmp_path.parent / "names"))
    assert {p.rsplit("/")[-1] for p in bad["path"]} == broken and (bad["reason"] != "").all()
    both = pd.concat([good, bad.drop(columns="reason")]).sort_values("path", ignore_index=True)
    pd.testing.assert_frame_equal(both, scans)
    lines = [line for line in said() if line.startswith("left out, unreadable")]
    assert len(lines) == 6 and lines[-1].endswith("2 more")


def test_what_is_read_with_a_change_is_said_once_a_kind(tmp_path, said):
    leave_out_unreadable(read_scans(folder(tmp_path)))
    text = "\n".join(said())
    for kind in ("16-bit grey", "CMYK", "RGBA", "palette", "animated", "grey with transparency"):
        assert text.count(f"scans are {kind}") == 1, kind
    assert "colour pictures, read as grey" in text


def test_progress_counts_every_file(phantoms):
    scans, calls = read_scans(phantoms), []
    leave_out_unreadable(scans, lambda done, total: calls.append((done, total)))
    assert calls == [(n, len(scans)) for n in range(1, len(scans) + 1)]


def test_nothing_is_left_out_of_sound_scans(phantoms, said):
    scans = read_scans(phantoms)
    good, bad = leave_out_unreadable(scans)
    pd.testing.assert_frame_equal(good, scans)
    assert bad.empty and not said()


def test_fewer_than_two_classes_left_is_an_error(tmp_path):
    write_kinds(tmp_path / "A")
    write_broken(tmp_path / "B")
    with pytest.raises(DataError, match="7 of 22 files cannot be read, and the rest has 1 class"):
        leave_out_unreadable(read_scans(tmp_path))
