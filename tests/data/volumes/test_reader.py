from __future__ import annotations

import os
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from octfast.data.volumes.about import MAX_FRAME_PIXELS, BScan
from octfast.data.volumes.kinds import kind_of
from octfast.data.volumes.reader import VolumeReader
from octfast.errors import DataError
from tests.data.volumes import volume_files as files

pydicom = pytest.importorskip("pydicom", minversion="3")


@pytest.fixture(scope="module")
def reader():
    with VolumeReader() as reader:
        yield reader


def read(reader: VolumeReader, path: Path) -> list[BScan]:
    return list(reader.read(path, kind_of(path)))


def refusal(reader: VolumeReader, path: Path) -> str:
    with pytest.raises(DataError) as refused:
        read(reader, path)
    assert "\n" not in refused.value.message and "Traceback" not in str(refused.value)
    return refused.value.message


def stacked(scans: list[BScan]) -> np.ndarray:
    assert [s.frame for s in scans] == list(range(len(scans)))
    return np.stack([s.pixels for s in scans])


def test_a_dicom_volume_gives_its_frames_in_order(reader, tmp_path):
    frames = files.frames_of(5)
    scans = read(reader, files.write_dicom(tmp_path / "a.dcm", frames))
    assert (stacked(scans) == frames).all()
    assert {(s.volume, s.eye) for s in scans} == {(0, "L")}


def test_a_single_frame_without_a_number_of_frames(reader, tmp_path):
    frames = files.frames_of(1)
    path = files.write_dicom(tmp_path / "a.dcm", frames)
    ds = pydicom.dcmread(path)
    del ds.NumberOfFrames
    ds.save_as(path)
    assert (stacked(read(reader, path)) == frames).all()


def test_monochrome1_is_turned_around(reader, tmp_path):
    frames = files.frames_of()
    path = files.write_dicom(tmp_path / "a.dcm", 255 - frames, PhotometricInterpretation="MONOCHROME1")
    assert (stacked(read(reader, path)) == frames).all()


@pytest.mark.parametrize(("stored", "white"), [(16, 65535), (12, 4095), (16, 1000)])
def test_sixteen_bits_go_from_the_darkest_to_the_brightest_sample(reader, tmp_path, stored, white):
    frames = files.frames_of()
    deep = np.round(frames / 255 * white).astype("<u2") + (65535 - white if stored == 16 else 0)
    deep = deep.astype("<u2")
    path = files.write_dicom(tmp_path / "a.dcm", deep, BitsStored=stored, HighBit=stored - 1)
    assert (stacked(read(reader, path)) == frames).all()


def test_signed_samples(reader, tmp_path):
    frames = files.frames_of()
    path = files.write_dicom(tmp_path / "a.dcm", (frames.astype(np.int32) * 257 - 32768).astype("<i2"))
    assert (stacked(read(reader, path)) == frames).all()


def test_a_window_makes_its_middle_grey_and_its_ends_black_and_white(reader, tmp_path):
    samples = np.array([[[0, 1000, 1500, 2000, 65535]]], dtype="<u2")
    path = files.write_dicom(tmp_path / "a.dcm", samples, WindowCenter=1500, WindowWidth=1000)
    assert stacked(read(reader, path))[0, 0].tolist() == pytest.approx([0, 0, 128, 255, 255], abs=1)


def test_the_rescale_comes_before_the_window(reader, tmp_path):
    samples = np.array([[[0, 100, 200]]], dtype="<u2")
    shown = {"RescaleSlope": 10, "RescaleIntercept": -1000, "WindowCenter": 0, "WindowWidth": 2000}
    path = files.write_dicom(tmp_path / "a.dcm", samples, **shown)
    assert stacked(read(reader, path))[0, 0].tolist() == pytest.approx([0, 127, 255], abs=1)


def test_each_frame_of_a_multi_frame_file_may_have_its_own_window_and_the_eye(reader, tmp_path):
    from pydicom.dataset import Dataset

    def frame_of(center: float) -> Dataset:
        ds, window = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 100
        ds.FrameVOILUTSequence = [window]
        return ds

    shared, anatomy = Dataset(), Dataset()
    anatomy.FrameLaterality = "R"
    shared.FrameAnatomySequence = [anatomy]
    groups = {
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": [frame_of(100), frame_of(900)],
    }
    samples = np.full((2, 2, 2), 500, dtype="<u2")
    scans = read(reader, files.write_dicom(tmp_path / "a.dcm", samples, **groups))
    assert [int(s.pixels[0, 0]) for s in scans] == [255, 0]
    assert {s.eye for s in scans} == {"R"}


def test_colour_becomes_luma_as_in_pictures(reader, tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    expected = np.stack([np.asarray(Image.fromarray(c).convert("L")) for c in colour])
    assert (stacked(read(reader, files.write_dicom(tmp_path / "a.dcm", colour))) == expected).all()


@pytest.mark.parametrize(
    ("name", "frames", "size"),
    [
        ("JPEG2000.dcm", 1, (1024, 256)),
        ("MR_small_RLE.dcm", 1, (64, 64)),
        ("SC_rgb_rle_2frame.dcm", 2, (100, 100)),
        ("SC_rgb_jpeg_dcmtk.dcm", 1, (100, 100)),
        ("examples_palette.dcm", 1, (350, 800)),
        ("CT_small.dcm", 1, (128, 128)),
        ("examples_ybr_color.dcm", 30, (240, 320)),
        ("ExplVR_BigEnd.dcm", 1, (60, 80)),
        ("rtdose.dcm", 0, (0, 0)),
    ],
)
def test_files_of_real_devices_that_pydicom_ships(name, frames, size):
    """Not of OCTs: pydicom has none. They show that compressions, colours and byte orders of real files are read."""
    path = Path(pydicom.data.get_testdata_file(name, download=False) or "")
    if not path.is_file():
        pytest.skip(f"pydicom does not ship {name} here")
    with VolumeReader(any_modality=True) as reader:
        if not frames:
            assert "32 bits" in refusal(reader, path)
            return
        scans = stacked(read(reader, path))
    assert scans.shape == (frames, *size)
    assert scans.std() > 5


def test_every_dicom_file_that_pydicom_ships_is_read_or_refused():
    read_, refused = 0, []
    with VolumeReader(any_modality=True) as reader:
        for path in sorted((Path(pydicom.__file__).parent / "data/test_files").glob("*.dcm")):
            try:
                read_ += bool(list(reader.read(path, "dicom")))
            except DataError as e:
                refused.append(e.message)
    if not read_ + len(refused):
        pytest.skip("pydicom ships no files here")
    assert read_ >= 35 and not any("crashed" in said or "\n" in said for said in refused)


def test_a_compression_that_nothing_here_decodes_is_named(reader, tmp_path):
    path = files.write_dicom(tmp_path / "a.dcm", files.frames_of(1))
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4 video
    ds.PixelData = pydicom.encaps.encapsulate([b"\0" * 100])
    ds.save_as(path, enforce_file_format=True)
    assert "compressed as MPEG-4" in refusal(reader, path)


def test_a_volume_that_oct_converter_wrote_as_dicom(reader, tmp_path):
    """An OPT file as a library makes it, from a cube of Zeiss's."""
    pytest.importorskip("oct_converter")
    from oct_converter.dicom import create_dicom_from_oct

    frames = np.repeat(files.frames_of(3, 32, 512), 32, axis=1)
    cube = files.write_img(tmp_path / "P1_cube_z_OD.img", frames)
    written = create_dicom_from_oct(str(cube), output_dir=str(tmp_path))
    path = Path(written[0] if isinstance(written, list) else written)
    scans = read(reader, path)
    assert kind_of(path) == "dicom" and {s.eye for s in scans} == {"R"}
    assert np.corrcoef(stacked(scans).ravel(), frames.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"Modality": "OP"}, "photograph of the eye"),
        ({"Modality": "OPTENF"}, "en-face"),
        ({"NumberOfFrames": 100_000}, "100,000 frames"),
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535"),
        ({"Rows": 0}, "no pictures"),
        ({"BitsStored": 0}, "0 bits"),
        ({"NumberOfFrames": 4000}, "cannot read"),
    ],
)
def test_a_dicom_that_lies_or_is_no_oct_is_refused(reader, tmp_path, elements, words):
    assert words in refusal(reader, files.write_dicom(tmp_path / "a.dcm", files.frames_of(), **elements))


def test_a_dicom_that_is_none(reader, tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"x" * 500)
    assert "not a DICOM file" in refusal(reader, tmp_path / "a.dcm")


@pytest.mark.parametrize(("eye", "letter"), [(b"OD", "R"), (b"OS", "L"), (b"\0\0", "")])
def test_a_vol_gives_the_grey_that_is_shown(reader, tmp_path, eye, letter):
    frames = files.frames_of(4)
    scans = read(reader, files.write_vol(tmp_path / "a.vol", frames, eye=eye))
    assert np.abs(stacked(scans).astype(int) - frames).max() <= 1
    assert {s.eye for s in scans} == {letter}


def test_a_vol_that_eyepy_wrote_is_read_as_eyepy_reads_it(reader, tmp_path, monkeypatch):
    # eyepy makes a folder in the user's own.
    monkeypatch.setenv("HOME", str(tmp_path))
    eyepy = pytest.importorskip("eyepy")
    from eyepy.io.he.vol_reader import HeVolReader, vol_format

    # It writes this date as a number with a point, where the format has a whole one.
    date = vol_format.exam_time
    while type(date).__name__ != "DateAdapter":
        date = date.subcon
    monkeypatch.setattr(type(date), "_encode", lambda *_: 132223968000000000)
    frames = files.frames_of(3, 40, 24)
    hdr = 256 + 4 * 24
    bscan = {
        **{k: 0.0 for k in ("start_x", "start_y", "end_x", "end_y", "quality")},
        **{"version": "HSF-BS-103", "bscan_hdr_size": hdr, "num_seg": 1, "shift": 0, "iv_transformation": [0.0] * 6},
        "layer_segmentations": np.zeros((1, 24), np.float32),
    }
    day = "2020-01-02T00:00:00"
    built = vol_format.build(
        {
            **{"version": "HSF-OCT-103", "size_x": 24, "size_y": 40, "n_bscans": 3, "scale_x": 0.01, "scale_y": 0.004},
            **{"distance": 0.1, "size_x_slo": 8, "size_y_slo": 8, "scale_x_slo": 0.1, "scale_y_slo": 0.1},
            **{"scan_position": "OS", "exam_time": day, "bscan_hdr_size": hdr, "id": "1", "reference_id": "1"},
            **{"dob": day, "visit_date": day, "grid_type": 0, "grid_offset": 0, "grid_type1": 0, "grid_offset1": 0},
            **{"prog_id": "1", "localizer": np.zeros((8, 8), np.uint8), "patient_id": "SECRET-ID"},
            "bscans": [{**bscan, "data": files.raw_reflectivity(f).astype(np.float32)} for f in frames],
        }
    )
    path = tmp_path / "a.vol"
    path.write_bytes(built)
    scans = read(reader, path)
    theirs = eyepy.core.utils.from_vol_intensity
    expected = [theirs(np.array(b.data)) for b in HeVolReader(path).parsed_file.bscans]
    assert np.abs(stacked(scans).astype(int) - np.stack(expected)).max() <= 1
    assert np.abs(stacked(scans).astype(int) - frames).max() <= 1
    assert {s.eye for s in scans} == {"L"}


def test_samples_that_are_missing_in_a_vol_are_black(reader, tmp_path):
    path = files.write_vol(tmp_path / "a.vol", files.frames_of(1, 8, 8), own=256, fundus=1)
    raw = bytearray(path.read_bytes())
    first = 2048 + 1 + 256
    for i, value in enumerate((np.finfo(np.float32).max, np.inf, np.nan, -1.0, 5.0)):
        raw[first + 4 * i : first + 4 * i + 4] = struct.pack("<f", value)
    path.write_bytes(raw)
    assert stacked(read(reader, path))[0, 0, :5].tolist() == [0, 0, 0, 0, 255]


def test_a_vol_cut_short_gives_what_is_there_and_says_so(reader, tmp_path):
    path = files.write_vol(tmp_path / "a.vol", files.frames_of(4))
    path.write_bytes(path.read_bytes()[:-2000])
    seen = []
    with pytest.raises(DataError, match="holds 3 of the 4 B-scans"):
        for scan in reader.read(path, "vol"):
            seen.append(scan)
    assert [s.frame for s in seen] == [0, 1, 2]


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (12, 0xFFFFFFFF, "pixels"),
        (16, 0xFFFFFFFF, "4,294,967,295 B-scans"),
        (20, 0, "x 0 pixels"),
        (100, 1 << 30, "ends"),
    ],
)
def test_a_vol_that_lies_is_refused(reader, tmp_path, at, value, words):
    path = files.write_vol(tmp_path / "a.vol", files.frames_of())
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, at, value)
    path.write_bytes(raw)
    assert words in refusal(reader, path)


@pytest.mark.parametrize("kind", ["e2e", "fda", "fds", "img"])
def test_vendors_files_through_oct_converter(reader, tmp_path, kind):
    """Written by hand, after the layouts in OCT-Converter, as no library ships any."""
    pytest.importorskip("oct_converter")
    frames = files.frames_of(4)
    path = tmp_path / f"a{files.SUFFIXES[kind]}"
    if kind == "e2e":
        files.write_e2e(path, [frames, frames[:2]])
        scans = read(reader, path)
        assert [(s.volume, s.frame, s.eye) for s in scans] == [
            *((0, i, "R") for i in range(4)),
            *((1, i, "L") for i in range(2)),
        ]
        found = stacked(scans[:4])
        assert np.abs(found.astype(int) - frames).max() <= 1
        return
    if kind == "img":
        frames = np.repeat(files.frames_of(3, 64, 200), 16, axis=1)
        path = tmp_path / "P12_Optic Disc Cube 200x200_1-2-2020_OS_sn1_cube_z.img"
        files.write_img(path, frames)
    else:
        files.write_kind(kind, path, frames)
    scans = read(reader, path)
    assert (stacked(scans) == frames).all()
    assert {s.eye for s in scans} == {{"fda": "R", "fds": "L", "img": "L"}[kind]}


def test_an_fda_with_raw_samples(reader, tmp_path):
    pytest.importorskip("oct_converter")
    frames = files.frames_of(3)
    assert (stacked(read(reader, files.write_fda(tmp_path / "a.fda", frames, raw=True, eye=1))) == frames).all()


@pytest.mark.parametrize("size", [0, 1000, 1024 * 512 - 1])
def test_an_img_that_is_no_cube(reader, tmp_path, size):
    pytest.importorskip("oct_converter")
    (tmp_path / "a.img").write_bytes(bytes(size))
    assert "no cube" in refusal(reader, tmp_path / "a.img")


def test_a_topcon_header_that_lies_is_refused_before_anything_is_made(reader, tmp_path):
    pytest.importorskip("oct_converter")
    path = files.write_fds(tmp_path / "a.fds", files.frames_of())
    raw = bytearray(path.read_bytes())
    at = raw.index(b"@IMG_SCAN_03") + 12 + 4 + 1
    struct.pack_into("<2I", raw, at, 4000, 4000)
    path.write_bytes(raw)
    assert "shorter than its header says" in refusal(reader, path)


def test_a_missing_package_is_a_sentence(tmp_path):
    from octfast.data.volumes import worker as _volume_worker

    class Out:
        said = b""

        def write(self, data):
            self.said += bytes(data)
            return len(data)

    path = files.write_dicom(tmp_path / "a.dcm", files.frames_of())
    out = Out()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pydicom", None)
        _volume_worker.answer(str(path), "dicom", "a.dcm", out)
    assert b"the package pydicom is not installed" in out.said and b"octfast[oct]" in out.said


def test_a_reader_that_takes_too_long_is_ended_and_the_next_file_is_read(tmp_path):
    good = files.write_vol(tmp_path / "good.vol", files.frames_of())
    os.mkfifo(tmp_path / "pipe.vol")
    with VolumeReader(seconds=1.5) as reader:
        begun = time.monotonic()
        with pytest.raises(DataError, match=r"not read within 1\.5 seconds"):
            list(reader.read(tmp_path / "pipe.vol", "vol"))
        assert time.monotonic() - begun < 10
        assert len(list(VolumeReader().read(good, "vol"))) == 3


def test_memory_is_bounded(tmp_path):
    """A deflated DICOM of a few kilobytes that becomes gigabytes."""
    import zlib

    path = files.write_dicom(tmp_path / "a.dcm", files.frames_of())
    ds = pydicom.dcmread(path)
    meta_end = path.read_bytes().index(b"DICM") + 4
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    ds.save_as(path, enforce_file_format=True)
    raw = path.read_bytes()
    length = struct.unpack_from("<I", raw, meta_end + 8)[0]
    packer = zlib.compressobj(9, wbits=-15)
    sixteen_mb = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    bomb = sixteen_mb * 128 + packer.flush()
    path.write_bytes(raw[: meta_end + 12 + length] + bomb)
    assert path.stat().st_size < 10 << 20
    with VolumeReader(memory=768 << 20) as reader, pytest.raises(DataError) as refused:
        list(reader.read(path, "dicom"))
    assert "memory" in refused.value.message or "crashed" in refused.value.message


def test_nothing_of_the_patient_leaves_the_reading_process(tmp_path):
    """All that it sends is listed: no name, number or date is among it."""
    import subprocess

    wanted = {"volume", "frame", "eye", "height", "width"}
    path = files.write_dicom(tmp_path / "a.dcm", np.zeros((1, 2, 2), np.uint8))
    asked = b'{"path": "%s", "kind": "dicom", "name": "a"}\n' % str(path).encode()
    program = [sys.executable, "-m", "octfast.data.volumes.worker", str(4 << 30)]
    said = subprocess.run(program, input=asked, capture_output=True, check=True).stdout
    import json

    head, rest = said.split(b"\n", 1)
    assert set(json.loads(head)) == wanted and b"SECRET" not in said
    assert rest == bytes(4) + b'{"end": true}\n'


def test_a_folder_of_scans_cannot_bring_its_own_modules(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)
    path = files.write_vol(tmp_path / "a.vol", files.frames_of())
    with VolumeReader() as reader:
        assert len(list(reader.read("a.vol", "vol"))) == 3
    assert path.exists()


def test_a_reading_that_is_left_off_does_not_spoil_the_next(reader, tmp_path):
    path = files.write_vol(tmp_path / "a.vol", files.frames_of(6))
    reading = reader.read(path, "vol")
    next(reading)
    reading.close()
    assert len(read(reader, path)) == 6


def test_a_wrong_answer_of_the_process_is_refused(tmp_path):
    assert MAX_FRAME_PIXELS < 100_000_000
    with VolumeReader() as reader, pytest.raises(DataError, match="damaged"):
        reader._frame({"height": 1 << 20, "width": 1 << 20}, reader._start(), "x")


def test_the_limit_of_memory_is_named_where_it_is_the_reason(tmp_path, monkeypatch):
    from octfast.data.volumes import worker

    def exhausted(*_):
        raise MemoryError

    said = []
    monkeypatch.setattr(worker, "frames_of", exhausted)
    worker.answer("a", "fda", "a.fda", type("Out", (), {"write": lambda _, data: said.append(data)})(), 3 << 30)
    assert b"more than the 3 GB of memory" in said[0] and b"--volume-memory" in said[0]


@pytest.mark.parametrize("modality", ["CR", "CT", "MR", "US", "IVOCT"])
def test_a_dicom_of_another_modality_is_refused_unless_asked_for(reader, tmp_path, modality):
    path = files.write_dicom(tmp_path / "a.dcm", files.frames_of(), Modality=modality)
    assert f"not an OCT scan: its Modality is {modality}" in refusal(reader, path)
    with VolumeReader(any_modality=True) as lenient:
        assert len(read(lenient, path)) == 3


@pytest.mark.parametrize("modality", ["OPT", "OT", ""])
def test_a_dicom_that_may_be_an_oct_is_read(reader, tmp_path, modality):
    assert len(read(reader, files.write_dicom(tmp_path / "a.dcm", files.frames_of(), Modality=modality))) == 3


def test_a_dicomdir_is_no_volume(tmp_path):
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(100))
    assert kind_of(tmp_path / "DICOMDIR") == ""
    os.mkfifo(tmp_path / "a.dcm")
    with pytest.raises(DataError, match="not a plain file"):
        kind_of(tmp_path / "a.dcm")
