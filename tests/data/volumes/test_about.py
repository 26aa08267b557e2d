"""What a file says of its volume: what it cannot tell stays blank, and nothing is said without being asked for."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from octfast.data.volumes.about import About, BScan
from octfast.data.volumes.kinds import frames_in, kind_of
from octfast.data.volumes.reader import VolumeReader
from octfast.errors import DataError
from tests.conftest import SHARED
from tests.data.volumes import volume_files as files


@pytest.fixture(scope="module")
def reader():
    with VolumeReader() as reader:
        yield reader


def told(reader: VolumeReader, path: Path, kind: str = "") -> tuple[list[About], list[BScan]]:
    found = list(reader.read_all(path, kind or kind_of(path)))
    assert isinstance(found[0], About)
    return [f for f in found if isinstance(f, About)], [f for f in found if isinstance(f, BScan)]


def with_header(path: Path, **fields: tuple[str, int, object]) -> Path:
    raw = bytearray(path.read_bytes())
    for form, at, value in fields.values():
        struct.pack_into(form, raw, at, *(value if isinstance(value, tuple) else (value,)))
    path.write_bytes(raw)
    return path


def test_a_vol_says_patient_eye_spacing_places_and_the_fundus(reader, tmp_path):
    path = files.write_vol(tmp_path / "a.vol", files.frames_of(3))
    with_header(path, scale=("<3d", 24, (0.0115, 0.24, 0.0039)), born=("<d", 164, 12345.0))
    step, first = 512 + 4 * 24 * 32, 2048 + 16 * 16
    for n, y in enumerate((4.0, 3.75, 3.5)):
        with_header(path, place=("<4d", first + n * step + 16, (1.0, y, 7.0, y)))
    (about,), scans = told(reader, path)
    assert (about.patient, about.eye, about.maker, about.device) == ("SECRET-ID", "R", "Heidelberg", "Spectralis")
    assert (about.axial_um, about.lateral_um, about.between_um) == (3.9, 11.5, 240.0)
    assert about.slo is not None and about.slo.shape == (16, 16)
    assert dict(about.left_behind) == {"PatientID": 1, "DOB": 1}
    assert [s.position_mm for s in scans] == [0.0, 0.25, 0.5]


def test_a_star_of_scans_has_no_positions_and_a_file_without_spacing_none_either(reader, tmp_path):
    path = files.write_vol(tmp_path / "a.vol", files.frames_of(3))
    (about,), scans = told(reader, path)
    assert about.axial_um is None and [s.position_mm for s in scans] == [None] * 3
    assert "spacing in depth" in about.notes[-1] and "distance between B-scans" in about.notes[-1]
    with_header(path, scale=("<3d", 24, (0.0115, 0.24, 0.0039)))
    assert [s.position_mm for s in told(reader, path)[1]] == [0.0, 0.24, 0.48]
    with_header(path, pattern=("<i", 96, 5))
    assert [s.position_mm for s in told(reader, path)[1]] == [None] * 3


def test_an_e2e_says_the_patient_and_each_eye(reader, tmp_path):
    frames = files.frames_of(3)
    abouts, scans = told(reader, files.write_e2e(tmp_path / "a.e2e", [frames, frames], eyes="R?"))
    assert [(a.volume, a.eye, a.maker) for a in abouts] == [(0, "R", "Heidelberg"), (1, "", "Heidelberg")]
    assert set(abouts[0].left_behind) >= {"patient first name", "patient surname"}
    assert abouts[0].patient == "" and "patient" in abouts[0].notes[-1]
    assert {s.position_mm for s in scans} == {None} and "degrees" in abouts[0].notes[0]


def test_a_topcon_file_says_the_patient(reader, tmp_path):
    pytest.importorskip("oct_converter")
    (about,), _ = told(reader, files.write_fda(tmp_path / "a.fda", files.frames_of()))
    assert (about.patient, about.eye, about.maker, about.axial_um) == ("SECRET-ID", "R", "Topcon", None)


def dicom_groups() -> dict[str, object]:
    """Functional groups with a spacing, and frames .25 mm apart."""
    from pydicom.dataset import Dataset

    shared, measures = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.0039, 0.0115], 0.25
    shared.PixelMeasuresSequence = [measures]
    own = []
    for n in range(3):
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = [1, 2 + 0.25 * n, 3]
        group.PlanePositionSequence = [place]
        own.append(group)
    return {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": own}


def test_a_dicom_says_patient_eye_spacing_places_and_device(reader, tmp_path):
    pytest.importorskip("pydicom", minversion="3")
    made = {"Manufacturer": "Carl Zeiss Meditec", "ManufacturerModelName": "CIRRUS HD-OCT", "StudyDate": "20200102"}
    path = files.write_dicom(tmp_path / "a.dcm", files.frames_of(), **made, **dicom_groups())
    (about,), scans = told(reader, path)
    assert (about.patient, about.eye, about.device) == ("SECRET-ID", "L", "CIRRUS HD-OCT")
    assert (about.axial_um, about.lateral_um, about.between_um) == (3.9, 11.5, 250.0)
    assert [s.position_mm for s in scans] == [0.0, 0.25, 0.5]
    assert {"PatientName", "PatientID", "PatientBirthDate", "StudyDate", "SOPInstanceUID"} <= set(about.left_behind)


def test_a_device_that_holds_the_patients_name_is_blank(reader, tmp_path):
    pytest.importorskip("pydicom", minversion="3")
    path = files.write_dicom(tmp_path / "a.dcm", files.frames_of(), ManufacturerModelName="OCT of Secret")
    assert told(reader, path)[0][0].device == ""


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_pages_of_a_tiff_pictures_in_a_folder_and_a_dicom_give_the_same_grey(reader, tmp_path, bits):
    """The first frame of 12 bits is so dark that, on its own, it would be spread otherwise."""
    pytest.importorskip("pydicom", minversion="3")
    frames = np.random.default_rng(1).integers(0, 1 << bits, (12, 20, 30)).astype("<u2" if bits > 8 else np.uint8)
    frames[0] //= 16
    more = {"BitsStored": bits, "HighBit": bits - 1}
    expected = [s.pixels for s in reader.read(files.write_dicom(tmp_path / "a.dcm", frames, **more), "dicom")]
    pages = [Image.fromarray(f) for f in frames]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    folder = tmp_path / "frames"
    folder.mkdir()
    for n, page in enumerate(pages):
        page.save(folder / f"b{n}.png")
    assert kind_of(tmp_path / "a.tif") == "tiff"
    for path, kind in ((tmp_path / "a.tif", "tiff"), (folder, "folder")):
        (about,), scans = told(reader, path, kind)
        np.testing.assert_array_equal([s.pixels for s in scans], expected)
        assert (about.patient, about.eye, about.device) == ("", "", "") and about.notes


def test_a_tiff_with_a_preview_is_a_picture_and_a_folder_is_in_the_order_of_its_numbers(tmp_path):
    large, small = Image.new("L", (40, 30)), Image.new("L", (8, 6))
    large.save(tmp_path / "a.tif", save_all=True, append_images=[small])
    assert kind_of(tmp_path / "a.tif") == "picture"
    for n in (10, 2, 1):
        small.save(tmp_path / f"s{n}.png")
    assert [p.name for p in frames_in(tmp_path)] == ["a.tif", "s1.png", "s2.png", "s10.png"]


def test_a_damaged_page_is_a_sentence(reader, tmp_path):
    pages = [Image.effect_noise((64, 64), 50) for _ in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    raw[200:1200] = b"\xff" * 1000
    (tmp_path / "a.tif").write_bytes(raw)
    with pytest.raises(DataError, match="B-scan 0"):
        list(reader.read(tmp_path / "a.tif", "tiff"))


@pytest.mark.realdata
def test_real_spectralis_files(reader):
    folder = SHARED / "data" / "vol-spectralis"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/vol-spectralis")
    (about,), (scan,) = told(reader, folder / "spectralis-1.vol")
    assert (about.eye, about.axial_um, about.lateral_um, about.between_um) == ("R", 3.8717, 11.8206, None)
    assert about.patient == "01234" and about.slo is not None and about.slo.shape == (768, 768)
    assert scan.pixels.shape == (496, 768) and scan.position_mm is None


def scanned(name: bytes, wide: float, high: float, deep: float, mode: int = 2) -> bytes:
    """Topcon's chunk of how was scanned."""
    if name == b"@PARAM_SCAN_04":
        return files.topcon_chunk(name, struct.pack("<3I5d2B", 0, 0, 0, wide, high, deep, 0, 0, 0, 0))
    return files.topcon_chunk(name, struct.pack("<B5I7dB", mode, 0, 0, 0, 0, 0, wide, high, deep, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("chunk", [b"@PARAM_SCAN_04", b"@PARAM_SCAN_02"])
@pytest.mark.parametrize("kind", ["fda", "fds"])
def test_topcons_spacing_is_that_of_oct_converter(reader, tmp_path, kind, chunk):
    pytest.importorskip("oct_converter")
    from oct_converter.readers import FDA, FDS

    from octfast.data.volumes.vendors import _let_it_run

    _let_it_run()
    write = {"fda": files.write_fda, "fds": files.write_fds}[kind]
    path = write(tmp_path / f"a.{kind}", files.frames_of(4), eye=1)
    more = scanned(chunk, 6.0, 1.2, 2.6) + files.topcon_chunk(b"@HW_INFO_03", b"3DOCT-2000".ljust(100, b"\0"))
    path.write_bytes(path.read_bytes()[:-1] + more + b"\0")
    (about,), scans = told(reader, path)
    file = {"fda": FDA, "fds": FDS}[kind](path)
    across, between, deep = file.read_scan_params({"width": 32, "height": 24, "number_slices": 4})
    assert (about.lateral_um, about.between_um, about.axial_um) == pytest.approx(
        (1000 * across, 1000 * between, 1000 * deep)
    )
    assert (about.eye, about.device, about.patient) == ("L", "3DOCT-2000", "SECRET-ID")
    assert [s.position_mm for s in scans] == pytest.approx([0, 0.3, 0.6, 0.9])


def test_a_star_of_topcon_has_no_distance_and_absurd_sizes_are_none(reader, tmp_path):
    pytest.importorskip("oct_converter")
    path = files.write_fds(tmp_path / "a.fds", files.frames_of(3))
    whole = path.read_bytes()[:-1] + scanned(b"@PARAM_SCAN_04", 6.0, 6.0, 2.6) + b"\0"
    at = whole.index(b"@IMG_SCAN_03") + len(b"@IMG_SCAN_03") + 4
    assert whole[at] == 2
    path.write_bytes(whole[:at] + b"\3" + whole[at + 1 :])
    (about,), scans = told(reader, path)
    assert about.between_um is None and about.lateral_um == 187.5 and "star" in about.notes[0]
    assert {s.position_mm for s in scans} == {None}
    path.write_bytes(path.read_bytes()[:-1] + scanned(b"@PARAM_SCAN_04", float("nan"), 1e300, -1.0) + b"\0")
    (about,), scans = told(reader, path)
    assert (about.axial_um, about.lateral_um, about.between_um) == (None, None, None)


ZEISS = "PSECRET77_Macular Cube 512x128_10-6-2018_10-53-39_OS_sn31091_cube_z.img"


@pytest.mark.parametrize(
    ("name", "eye", "patient", "spacing"),
    [
        (ZEISS, "L", "PSECRET77", (1.9531, 11.7188, 46.875)),
        (ZEISS.replace("Macular Cube 512x128", "MacularCube512x128").replace("OS", "OD"), "R", "PSECRET77", "same"),
        # An export without the patient's number.
        ("Macular Cube 512x128_1-2-2001_1-2-3_OS_sn41329_cube_z.img", "L", "", "same"),
        # No protocol of Zeiss, or another size than the file has.
        (ZEISS.replace("Macular Cube", "Anterior Segment Cube"), "L", "PSECRET77", (None, None, None)),
        ("OSWALD_512x128_cube.img", "", "", (None, None, None)),
        ("OD_or_OS_512x128.img", "", "", (None, None, None)),
        (
            ZEISS.replace("Macular Cube 512x128", "Angio (3mmx3mm) 128x1024x512"),
            "L",
            "PSECRET77",
            (None, 5.8594, 23.4375),
        ),
    ],
)
def test_zeiss_says_in_the_name_of_an_export_what_it_says(reader, tmp_path, name, eye, patient, spacing):
    pytest.importorskip("oct_converter")
    path = tmp_path / name
    with path.open("wb") as f:
        f.truncate(128 * 1024 * 512)
    found = reader.read_all(path, "img")
    about, *scans = (next(found) for _ in range(3))
    found.close()
    assert (about.eye, about.patient, about.maker) == (eye, patient, "Zeiss")
    same = (1.9531, 11.7188, 46.875)
    assert (about.axial_um, about.lateral_um, about.between_um) == (same if spacing == "same" else spacing)
    assert scans[1].position_mm == (
        None if about.between_um is None else pytest.approx(about.between_um / 1000, abs=1e-4)
    )
    assert any("defines" in n or "sides" in n for n in about.notes) == (about.lateral_um is not None)


def test_an_e2e_says_its_device_and_an_eye_where_all_chunks_agree(reader, tmp_path):
    """Beside the chunk that says the eye first there is another, as eyepy reads it."""
    frames = files.frames_of(2)

    def eye(letter: str) -> bytes:
        return bytes(14) + letter.encode() + bytes(12)

    def texts(*said: str) -> bytes:
        return struct.pack("<2I", len(said), 256) + b"".join(t.encode("utf-16-le").ljust(256, b"\0") for t in said)

    more = [(0, 11, eye("R")), (1, 11, eye("R")), (2, 11, eye("L")), (0, 9001, texts("Heidelberg Retina Angiograph"))]
    path = files.write_e2e(tmp_path / "a.e2e", [frames] * 3, eyes="RL?", more=more)
    abouts, _ = told(reader, path)
    assert [a.eye for a in abouts] == ["R", "", "L"]
    assert [a.device for a in abouts] == ["Retina Angiograph", "", ""]
    more = [(0, 13, "\0HRA + Spectralis\0Retina\0".encode("utf-16-le")), (1, 9001, texts("OCT of Secret"))]
    abouts, _ = told(reader, files.write_e2e(tmp_path / "b.e2e", [frames] * 2, more=more))
    assert [a.device for a in abouts] == ["Spectralis", "Spectralis"]
    abouts, _ = told(reader, files.write_e2e(tmp_path / "c.e2e", [frames] * 2, more=more[1:]))
    assert [a.device for a in abouts] == ["", ""]
