"""HEYEX's exports as XML: what is read of good ones, and that hostile ones reach nothing but their own folder."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.data.extract import extract
from octfast.data.phantom.volumes import write_volumes
from octfast.data.readers.read import read_data
from octfast.data.volumes.about import About, BScan
from octfast.data.volumes.kinds import is_volume, kind_of
from octfast.data.volumes.reader import VolumeReader
from octfast.deploy.predict.inputs import find_inputs, with_series
from octfast.errors import DataError
from tests.data.volumes import volume_files as files


@pytest.fixture(scope="module")
def reader():
    with VolumeReader(seconds=20) as reader:
        yield reader


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("OCTFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OCTFAST_KEY", str(tmp_path / "keys" / "key"))


FRAMES = files.frames_of(4)


def export(folder: Path, frames: np.ndarray = FRAMES, **given: str) -> Path:
    return files.write_heyex(folder, frames, **given)


def read(reader: VolumeReader, path: Path) -> tuple[list[About], list[BScan]]:
    found = list(reader.read_all(path, kind_of(path)))
    return [one for one in found if isinstance(one, About)], [one for one in found if isinstance(one, BScan)]


def refusal(reader: VolumeReader, path: Path) -> str:
    with pytest.raises(DataError) as refused:
        list(reader.read_all(path, kind_of(path)))
    said = str(refused.value)
    assert "Traceback" not in said and "SECRET" not in said and "crashed" not in said
    return refused.value.message


def change(path: Path, old: str, new: str) -> Path:
    said = path.read_text(encoding="utf-8")
    assert old in said
    path.write_text(said.replace(old, new), encoding="utf-8")
    return path


def test_what_the_file_says_and_its_pixels(reader, tmp_path):
    (about,), scans = read(reader, export(tmp_path / "E"))
    np.testing.assert_array_equal(np.stack([s.pixels for s in scans]), FRAMES)
    assert [(s.volume, s.frame, s.eye) for s in scans] == [(0, n, "L") for n in range(4)]
    assert [s.position_mm for s in scans] == pytest.approx([0, 0.24, 0.48, 0.72])
    assert scans[0].line == pytest.approx((0.1, 0.9, 0.9, 0.9), abs=1e-3)
    assert (about.patient, about.eye, about.maker, about.device) == ("SECRET-ID", "L", "Heidelberg", "Spectralis")
    assert (about.axial_um, about.lateral_um, about.between_um) == (3.9, 11.5, 240)
    assert about.slo.shape == (40, 40) and about.slo[0, 0] == 77
    behind = {"Patient LastName", "Patient FirstNames", "Patient Birthdate", "Study StudyUID", "Image ImageData"}
    assert behind <= set(about.left_behind)
    assert not any("SECRET" in str(key) for key in about.left_behind) and about.notes == ()


def test_it_is_read_as_eyepy_reads_it(reader, tmp_path):
    eyepy = pytest.importorskip("eyepy")
    path = export(tmp_path / "E")
    golden = eyepy.import_heyex_xml(path.parent)
    (about,), scans = read(reader, path)
    np.testing.assert_array_equal(np.stack([s.pixels for s in scans]), golden.data)
    np.testing.assert_array_equal(about.slo, golden.localizer.data)
    spacing = (about.axial_um, about.lateral_um, about.between_um)
    assert spacing == pytest.approx([1000 * golden.meta[side] for side in ("scale_y", "scale_x", "scale_z")])
    assert {"L": "OS", "R": "OD"}[about.eye] == golden.meta["laterality"]
    starts = np.array([scan["start_pos"] for scan in golden.meta["bscan_meta"]])
    away = np.linalg.norm(starts - starts[0], axis=1)
    assert [s.position_mm for s in scans] == pytest.approx(away.tolist(), abs=1e-4)


def test_an_export_gives_the_scans_that_the_vol_file_gives(tmp_path):
    given = {"frames": 3, "diseased": (1, 1), "size": 48, "classes": ("CNV", "NORMAL"), "seed": 3}
    tables = {k: read_data(write_volumes(tmp_path / k, 3, kind=k, **given) / "volumes.csv") for k in ("vol", "heyex")}
    rows = {k: t.sort_values(["volume", "frame"], ignore_index=True) for k, t in tables.items()}
    pd.testing.assert_frame_equal(*(t.drop(columns="path") for t in rows.values()))
    for a, b in zip(*(t["path"] for t in rows.values()), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(a)), np.asarray(Image.open(b)))


def test_what_is_absent_stays_blank_with_a_note(reader, tmp_path):
    path = export(tmp_path / "E")
    change(path, "<Laterality>L</Laterality>", "")
    change(path, "<PatientID>SECRET-ID</PatientID>", "")
    change(path, "<ScaleX>0.0115</ScaleX>", "")
    change(path, "<ManufacturerModelName>Spectralis</ManufacturerModelName>", "")
    (about,), scans = read(reader, path)
    assert (about.eye, about.device, about.lateral_um, about.patient) == ("", "", None, "HEYEX 148")
    assert about.axial_um == 3.9 and len(scans) == 4
    said = " ".join(about.notes)
    assert all(word in said for word in ("eye", "device", "spacing across", "number but that of HEYEX"))


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        ("<Type>Volume</Type>", "<Type>Circle</Type>", "in no row"),
        ("<Y>2.26</Y>", "<Y>2.16</Y>", "not lie evenly"),
        ("<Width>32</Width>", "<Width>768</Width>", "not of the size"),
        ("<End>", "<Center>", "in no row"),
    ],
)
def test_what_cannot_be_relied_on_is_left_blank(reader, tmp_path, old, new, note):
    path = change(export(tmp_path / "E"), old, new)
    if new == "<Center>":
        change(path, "</End>", "</Center>")
    (about,), scans = read(reader, path)
    assert any(note in said for said in about.notes) and len(scans) == 4
    assert (about.axial_um is None) == ("size" in note)
    assert (about.between_um is None) == ("size" not in note)


def test_bscans_come_by_their_numbers_and_each_series_is_a_volume(reader, tmp_path):
    path = export(tmp_path / "E")
    # The first and the last change places in the file, not by their numbers.
    said = path.read_text()
    head, series = said.split("<Series>")
    blocks = series.split("<Image>")
    blocks[2], blocks[4] = blocks[4], blocks[2]
    body = "<Image>".join(blocks)
    other = body.split("</Series>")[0].replace("<Laterality>L", "<Laterality>R")
    path.write_text(head + "<Series>" + body.replace("</Series>", f"</Series><Series>{other}</Series>", 1))
    abouts, scans = read(reader, path)
    assert [a.eye for a in abouts] == ["L", "R"]
    for volume in (0, 1):
        own = [s.pixels for s in scans if s.volume == volume]
        np.testing.assert_array_equal(np.stack(own), FRAMES)


@pytest.mark.parametrize("encoding", ["utf-16", "iso-8859-1", "utf-8"])
def test_other_encodings_and_letters_that_are_none(reader, tmp_path, encoding):
    path = export(tmp_path / "E")
    said = path.read_text(encoding="utf-8").replace("SECRET-NAME", "SECRET-Müller").split("?>", 1)[1]
    declared = f'<?xml version="1.0" encoding="{encoding}"?>\n<!-- a remark -->'
    # As happens, the last says one encoding and is of another.
    path.write_bytes((declared + said).encode("latin-1" if encoding == "utf-8" else encoding))
    assert is_volume(path)
    (about,), scans = read(reader, path)
    assert len(scans) == 4 and about.patient == "SECRET-ID"


LAUGHS = '<!DOCTYPE HEDX [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)
)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<HEDX>", f"{LAUGHS}]><HEDX>&j;", "document type"),
        ("<HEDX>", '<!DOCTYPE HEDX [<!ENTITY x SYSTEM "file:///etc/passwd">]><HEDX>', "document type"),
        ("<HEDX>", '<!DOCTYPE HEDX SYSTEM "http://example.org/x.dtd"><HEDX>', "document type"),
        ("<BODY>", "<a>" * 40 + "<BODY>", "nested too deeply"),
        ("</BODY>", "", "cut short or damaged"),
        ("E_2.png", "..\\..\\outside.png", "outside.png, which is not beside it"),
        ("E_2.png", "/etc/passwd", "passwd, which is not beside it"),
        ("E_2.png", "..", "a picture without a name"),
        ("E_2.png", "&#10;\u202e.png", "not beside it"),
        ("E_2.png", "text.png", "not a picture"),
        ("<Type>OCT</Type>", "<Type>FA</Type>", "names no B-scans"),
    ],
)
def test_hostile_and_damaged_exports_are_refused(reader, tmp_path, old, new, said):
    Image.fromarray(FRAMES[0]).save(tmp_path / "outside.png")
    path = change(export(tmp_path / "E"), old, new)
    (path.parent / "text.png").write_text("no picture")
    begun = time.monotonic()
    assert said in refusal(reader, path)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("number", ["1e400", "-5", "nan", "9" * 5000, "0x10", ""])
def test_absurd_numbers_are_no_spacing_and_no_place(reader, tmp_path, number):
    path = export(tmp_path / "E")
    for old in ("<ScaleX>0.0115<", "<ScaleY>0.0039<", "<Y>2.26<", "<ImageNumber>2<", "<Width>40<"):
        change(path, old, f"{old.split('>')[0]}>{number}<")
    (about,), scans = read(reader, path)
    assert about.lateral_um is None and about.axial_um is None and len(scans) == 4
    assert all(s.line is None for s in scans)
    assert about.between_um is None


def test_too_many_bscans_and_too_large_pictures(reader, tmp_path):
    path = export(tmp_path / "E")
    said = path.read_text()
    block = "<Image>" + said.split("<Image>")[2]
    path.write_text(said.replace("</Series>", block * 5000 + "</Series>"))
    assert "5,004 B-scans" in refusal(reader, path)
    Image.new("L", (4097, 4097)).save(tmp_path / "F.png")
    other = export(tmp_path / "F")
    (other.parent / "F_2.png").write_bytes((tmp_path / "F.png").read_bytes())
    assert "too large" in refusal(reader, other) or "pixels" in refusal(reader, other)


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_link_out_of_the_folder_is_refused_and_a_missing_picture_too(reader, tmp_path):
    path = export(tmp_path / "E")
    inside = path.parent / "E_2.png"
    inside.rename(tmp_path / "outside.png")
    assert "which is not beside it" in refusal(reader, path)
    inside.symlink_to(tmp_path / "outside.png")
    assert "a link out of its folder" in refusal(reader, path)


def test_its_pictures_are_no_loose_pictures_in_any_command(tmp_path, caplog):
    """A class folder with an export and one picture more, beside another class: 4 B-scans and the picture."""
    caplog.set_level(logging.INFO, "octfast")
    folder = tmp_path / "set" / "CNV"
    path = export(folder)
    Image.fromarray(FRAMES[0][:, :20]).save(folder / "other.png")
    (tmp_path / "set" / "NORMAL").mkdir()
    Image.fromarray(FRAMES[1][:, :20]).save(tmp_path / "set" / "NORMAL" / "b.png")
    (tmp_path / "set" / "NORMAL" / "b.xml").write_text("<annotation><folder>x</folder></annotation>")
    scans = read_data(tmp_path / "set")
    assert len(scans) == 6 and (scans["volume"] != "").sum() == 4
    assert any("5 pictures are those of exports by HEYEX" in r.getMessage() for r in caplog.records)
    assert set(scans.loc[scans["volume"] == "", "path"].map(lambda p: Path(p).name)) == {"other.png", "b.png"}
    listed = list(find_inputs([tmp_path / "set"]))
    assert sorted(Path(i.path).name for i in listed) == ["CNV.xml", "b.png", "other.png"]
    with VolumeReader() as reader:
        named = with_series(list(find_inputs([str(p) for p in sorted(folder.iterdir())])), reader)
    assert sorted(Path(i.path).name for i in named) == ["CNV.xml", "other.png"]
    assert kind_of(tmp_path / "set" / "NORMAL" / "b.xml") == ""
    # Of a file that is cut short nobody knows which pictures are its own, so none is taken for a scan.
    path.write_bytes(path.read_bytes()[:-200])
    assert sorted(Path(i.path).name for i in find_inputs([folder])) == ["CNV.xml"]


def test_extract_writes_no_name_of_a_patient(tmp_path):
    path = export(tmp_path / "clinic" / "DOE_JANE")
    (tmp_path / "table.csv").write_text("path,label\nclinic/DOE_JANE,CNV\n")
    done = extract([tmp_path / "clinic"], tmp_path / "out")
    assert done.volumes == 1 and len(done.scans) == 4 and set(done.scans["eye"]) == {"L"}
    assert done.scans["between_um"].tolist() == [240.0] * 4
    held = b"".join(str(p).encode() + (p.read_bytes() if p.is_file() else b"") for p in (tmp_path / "out").rglob("*"))
    assert not any(word in held for word in (b"SECRET", b"DOE", b"1901", path.name.encode()))
    assert done.removed["Patient LastName"] == 1
    by_table = extract([tmp_path / "table.csv"], tmp_path / "again")
    assert by_table.scans["label"].tolist() == ["CNV"] * 4
    assert by_table.scans["volume"].tolist() == done.scans["volume"].tolist()
    # Another picture under the same XML is another volume.
    Image.fromarray(255 - FRAMES[0]).save(path.parent / "DOE_JANE_1.png")
    assert set(extract([tmp_path / "clinic"], tmp_path / "third").scans["volume"]) != set(done.scans["volume"])


def test_a_table_may_name_the_folder_and_its_patient_is_taken(tmp_path, caplog):
    for n in (1, 2):
        export(tmp_path / f"E{n}", FRAMES + np.uint8(n))
    table = tmp_path / "t.csv"
    table.write_text("path,label,patient\nE1,CNV,1\nE2,NORMAL,2\n")
    scans = read_data(table)
    assert scans.groupby("label")["patient"].agg(set).to_dict() == {"CNV": {"1"}, "NORMAL": {"2"}}
    table.write_text("path,label\nE1,CNV\nE2,NORMAL\n")
    # Without a column it is that of the files, which is one.
    assert read_data(table)["patient"].nunique() == 1 and len(read_data(table)) == 8
    assert not any("no such path" in r.getMessage() for r in caplog.records)
    # A bare name is found below, as those of other scans are.
    table.write_text("path,label\nE1.xml,CNV\nE2.xml,NORMAL\n")
    assert len(read_data(table)) == 8
    (tmp_path / "E1" / "again.xml").write_bytes((tmp_path / "E1" / "E1.xml").read_bytes())
    table.write_text("path,label\nE1,CNV\nE2,NORMAL\n")
    with pytest.raises(DataError, match="2 exports of HEYEX"):
        read_data(table)


def test_a_spoilt_export_is_read_or_refused_with_a_sentence(reader, tmp_path):
    """Bytes are spoilt, or elements are removed, doubled, renamed or filled with what they must not hold."""
    good = export(tmp_path / "E")
    content, draw = good.read_bytes(), Random("heyex")
    words = ["", "nan", "-1e308", "9" * 400, "OCT", "../../etc/passwd", "E_1.png", "E.xml", "R"]
    for n in range(40):
        if n % 4 == 0:
            good.write_bytes(files.spoil(content, draw))
        else:
            root = ElementTree.fromstring(content)
            for _ in range(draw.choice((1, 2, 5))):
                parent = draw.choice([e for e in root.iter() if len(e)])
                child = draw.choice(list(parent))
                how = draw.randrange(4)
                if how == 0 and len(parent) > 1:
                    parent.remove(child)
                elif how == 1:
                    parent.append(child)
                elif how == 2:
                    child.tag = draw.choice(["Image", "Series", "Patient", "Coord", "Laterality"])
                else:
                    draw.choice([e for e in root.iter() if not len(e)]).text = draw.choice(words)
            good.write_bytes(ElementTree.tostring(root, encoding="utf-8"))
        try:
            for found in reader.read_all(good, "heyex"):
                assert isinstance(found, About) or found.pixels.size
        except DataError as e:
            assert e.message and "\n" not in e.message and "crashed" not in e.message, (n, e)
    good.write_bytes(content)
    assert len(read(reader, good)[1]) == 4
