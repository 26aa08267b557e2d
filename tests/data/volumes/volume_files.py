"""Volumes of every format that is read, written by hand after their layouts, and ways to spoil them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

SUFFIXES = {"dicom": ".dcm", "vol": ".vol", "e2e": ".e2e", "fda": ".fda", "fds": ".fds", "img": ".img"}


def frames_of(count: int = 3, height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """Grey B-scans, uint8 of shape (count, height, width), each smooth, its own brightness, black and white in it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, 4), dtype=np.uint8)
    made = np.stack([np.asarray(Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC)) for c in coarse])
    made[:, 0, 0], made[:, -1, -1] = 0, 255
    return made


def write_dicom(path: Path, frames: np.ndarray, *, syntax: str | None = None, **elements: object) -> Path:
    """An OCT volume as DICOM, of a patient with a name; `elements` by keyword replace what stands there."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, OphthalmicTomographyImageStorage, generate_uid

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = OphthalmicTomographyImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.file_meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = OphthalmicTomographyImageStorage, ds.file_meta.MediaStorageSOPInstanceUID
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "SECRET^NAME", "SECRET-ID", "19010203"
    ds.Modality, ds.ImageLaterality = "OPT", "L"
    colour = frames.ndim == 4
    ds.NumberOfFrames, ds.Rows, ds.Columns = frames.shape[:3]
    ds.SamplesPerPixel = 3 if colour else 1
    if colour:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    bits = frames.dtype.itemsize * 8
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit, ds.PixelRepresentation = bits - 1, int(frames.dtype.kind == "i")
    ds.PixelData = frames.tobytes()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path, frames: np.ndarray, places: Sequence[float] | None = None, series: str = "1.2.3", **elements: object
) -> list[Path]:
    """The B-scans as DICOM files of one series, in an order of their names that is not theirs.

    places : in millimetres; None writes InstanceNumber alone, 1 and up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for n, frame in enumerate(frames):
        more: dict[str, object] = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": series, **elements}
        more |= {"InstanceNumber": n + 1} if places is None else {"ImagePositionPatient": [1, places[n], 2]}
        name = f"{series}-{(7 * n + 3) % 11:02d}.dcm"
        written.append(write_dicom(folder / name, frame[None], **{"NumberOfFrames": 1, **more}))
    return written


def raw_reflectivity(grey: np.ndarray) -> np.ndarray:
    """What Heidelberg's files hold for grey of 0 to 255: the inverse of how it is shown."""
    return np.exp(grey.astype(np.float64) / 255 * 8.285 - 8.3) - 2.44e-4


def write_vol(path: Path, frames: np.ndarray, *, eye: bytes = b"OD", own: int = 512, fundus: int = 16) -> Path:
    """Heidelberg's raw export: a header of 2,048 bytes, the fundus, then each B-scan with a header of its own."""
    count, height, width = frames.shape
    header = bytearray(2048)
    struct.pack_into("<12s3I", header, 0, b"HSF-OCT-103", width, count, height)
    struct.pack_into("<2I", header, 48, fundus, fundus)
    struct.pack_into("<4s", header, 84, eye)
    struct.pack_into("<I", header, 100, own)
    struct.pack_into("<24s", header, 140, b"SECRET-ID")
    body = b"".join(b"HSF-BS-103".ljust(own, b"\0") + raw_reflectivity(f).astype("<f4").tobytes() for f in frames)
    path.write_bytes(bytes(header) + bytes(fundus * fundus) + body)
    return path


def write_img(path: Path, frames: np.ndarray) -> Path:
    """Zeiss's cube: no header, columns from top to bottom, 1,024 high."""
    assert frames.shape[1] == 1024
    path.write_bytes(np.ascontiguousarray(frames.transpose(0, 2, 1)).tobytes())
    return path


def topcon_chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of Topcon's files: the length of its name, its name, its length, its content."""
    return bytes([len(name)]) + name + struct.pack("<I", len(content)) + content


def _topcon(path: Path, kind: bytes, chunks: Sequence[bytes], eye: int) -> Path:
    captured = struct.pack("<BBI100s6H", eye, 2, 0, b"", 2020, 1, 2, 3, 4, 5)
    patient = b"SECRET-ID".ljust(32, b"\0") + b"SECRET".ljust(32, b"\0") + bytes(700)
    extra = [topcon_chunk(b"@PATIENT_INFO_02", patient), topcon_chunk(b"@CAPTURE_INFO_02", captured)]
    path.write_bytes(b"FOCT" + kind + struct.pack("<2I", 2, 0) + b"".join([*chunks, *extra]) + b"\0")
    return path


def write_fda(path: Path, frames: np.ndarray, *, eye: int = 0, raw: bool = False) -> Path:
    """Topcon's .fda: B-scans as JPEG 2000, or as 16-bit samples."""
    count, height, width = frames.shape
    if raw:
        return _topcon(path, b"FDA", [topcon_chunk(b"@IMG_MOT_COMP_03", _topcon_raw(frames))], eye)
    content = struct.pack("<B6I", 2, 0, 0, width, height, count, 0)
    for frame in frames:
        held = io.BytesIO()
        Image.fromarray(frame).save(held, format="JPEG2000", irreversible=False)
        content += struct.pack("<i", len(held.getvalue())) + held.getvalue()
    return _topcon(path, b"FDA", [topcon_chunk(b"@IMG_JPEG", content)], eye)


def write_fds(path: Path, frames: np.ndarray, *, eye: int = 1) -> Path:
    """Topcon's .fds: B-scans as 16-bit samples."""
    return _topcon(path, b"FDS", [topcon_chunk(b"@IMG_SCAN_03", _topcon_raw(frames))], eye)


def _topcon_raw(frames: np.ndarray) -> bytes:
    count, height, width = frames.shape
    # The first side changes fastest, and it is the width.
    samples = (frames.astype("<u2") * 64).tobytes()
    return struct.pack("<B4IBI", 2, width, height, 16, count, 0, len(samples)) + samples


def write_e2e(
    path: Path, volumes: Sequence[np.ndarray], eyes: str = "RL", more: Sequence[tuple[int, int, bytes]] = ()
) -> Path:
    """Heidelberg's .e2e: a directory of chunks; B-scans as 16-bit floats of a kind of their own.

    more : chunks beside these: series, type, content.
    """
    at = 36 + 52
    chunks: list[tuple[int, int, int, bytes]] = []  # series, slice, type, content
    for n, frames in enumerate(volumes):
        chunks.append((n, -1, 3, struct.pack("<I1s", 0, eyes[n].encode()) + bytes(11)))
        for i, frame in enumerate(frames):
            samples = ufloat16(raw_reflectivity(frame)).tobytes()
            head = struct.pack("<5I", len(samples), 33620481, 0, *frame.shape)
            chunks.append((n, 2 * i, 1073741824, head + samples))
    chunks += [(series, -1, kind, content) for series, kind, content in more]
    patient = b"SECRET".ljust(31, b"\0") + b"NAME".ljust(51, b"\0") + bytes(45)
    chunks.append((0, -1, 9, patient))
    start = at + 52 + 44 * len(chunks)
    directory, data = b"", b""
    for series, slice_id, kind, content in chunks:
        ids = (7, 8, series, slice_id)
        here = start + len(data)
        directory += struct.pack("<7Ii2H2I", 0, here, len(content), 0, *ids, 0, 0, kind, 0)
        is_scan = int(kind == 1073741824)
        data += (
            struct.pack("<12s5I3Ii2H2I", b"MDbData", 0, 0, here, len(content), 0, *ids, is_scan, 0, kind, 0) + content
        )
    words = [0] * 10
    header = struct.pack("<12sI10H", b"CMDb", 0x10064, *words)
    first = struct.pack("<12sI10H4I", b"MDbMDir", 0x10064, *words, 0, at, 0, 0)
    folder = struct.pack("<12sI10H4I", b"MDbDir", 0x10064, *words, len(chunks), at, 0, 0)
    path.write_bytes(header + first + folder + directory + data)
    return path


def ufloat16(values: np.ndarray) -> np.ndarray:
    """Numbers as floats without a sign, with 6 bits of exponent (63 off) and a mantissa of 10 bits in turned order."""
    values = np.maximum(values, 2.0**-62)
    exponent = np.floor(np.log2(values)).astype(int)
    mantissa = np.minimum(1023, np.round((values / 2.0**exponent - 1) * 1024)).astype(int)
    turned = sum(((mantissa >> bit) & 1) << (9 - bit) for bit in range(10))
    return (((exponent + 63) << 10) | turned).astype("<u2")


def write_heyex(folder: Path, frames: np.ndarray) -> Path:
    """HEYEX's export of a left eye: an XML named as its folder, and pictures NAME_0.png (the fundus), NAME_1.png ..."""
    folder.mkdir(parents=True, exist_ok=True)
    name = folder.name
    Image.new("L", (40, 40), 77).save(folder / f"{name}_0.png")
    images = f"""<Image><ID>0</ID><ImageNumber>0</ImageNumber><Laterality>L</Laterality>
<ImageType><Type>LOCALIZER</Type><LightSource>IR</LightSource></ImageType>
<OphthalmicAcquisitionContext><Width>40</Width><Height>40</Height><ScaleX>0.0719</ScaleX><ScaleY>0.0695</ScaleY>
</OphthalmicAcquisitionContext>
<ImageData><ExamURL>file:///C:\\XMLDATA\\SECRET\\{name}_0.png</ExamURL></ImageData></Image>"""
    for n, frame in enumerate(frames, 1):
        Image.fromarray(frame).save(folder / f"{name}_{n}.png")
        height, width = frame.shape
        y = f"{2.5 - 0.24 * (n - 1):g}"
        images += f"""<Image><ID>{n}</ID><ImageNumber>{n}</ImageNumber><Laterality>L</Laterality>
<AcquisitionTime><Time><Hour>17</Hour><Minute>22</Minute><Second>5.4</Second></Time></AcquisitionTime>
<ImageType><Type>OCT</Type></ImageType><OphthalmicAcquisitionContext><Width>{width}</Width><Height>{height}</Height>
<ScaleX>0.0115</ScaleX><ScaleY>0.0039</ScaleY><ImageQuality>28</ImageQuality>
<Start><Coord><X>0.2876</X><Y>{y}</Y></Coord></Start><End><Coord><X>2.5884</X><Y>{y}</Y></Coord></End>
</OphthalmicAcquisitionContext>
<ImageData><ExamURL>file:///C:\\XMLDATA\\SECRET\\{name}_{n}.png</ExamURL></ImageData>
<Segmentation><SegLine><Name>ILM</Name><Array>{"9.5 " * width}</Array></SegLine></Segmentation></Image>"""
    path = folder / f"{name}.xml"
    path.write_text(
        f"""<?xml version="1.0" encoding="utf-8"?>
<HEDX><BODY><ExportType>Data</ExportType><Patient><ID>148</ID><PatientID>SECRET-ID</PatientID>
<LastName>SECRET-NAME</LastName><FirstNames>SECRET</FirstNames>
<Birthdate><Date><Year>1901</Year><Month>2</Month><Day>3</Day></Date></Birthdate><Sex>F</Sex>
<Study><StudyUID>SECRET.1</StudyUID><ID>319</ID>
<StudyDate><Date><Year>2022</Year><Month>2</Month><Day>15</Day></Date></StudyDate>
<Series><ID>1393</ID><Modality>OCT</Modality><Type>Volume</Type><Laterality>L</Laterality>
<GeneralEquipment><ManufacturerModelName>Spectralis</ManufacturerModelName></GeneralEquipment>
{images}</Series></Study></Patient></BODY></HEDX>
""",
        encoding="utf-8",
    )
    return path


def write_kind(kind: str, path: Path, frames: np.ndarray) -> Path:
    """A small good file of a kind; .img takes a shape of its own."""
    if kind == "img":
        tall = np.repeat(frames[:2, :1, :1], 1024, axis=1).repeat(200, axis=2)
        return write_img(path, tall)
    writers: dict[str, Callable[[Path, np.ndarray], Path]] = {
        "dicom": write_dicom,
        "vol": write_vol,
        "e2e": lambda p, f: write_e2e(p, [f, f[:2]]),
        "fda": write_fda,
        "fds": write_fds,
    }
    return writers[kind](path, frames)


def spoil(good: bytes, draw: Random) -> bytes:
    """A file spoilt in one of several ways: cut, bits turned, numbers made absurd, parts moved, doubled or wiped."""
    held = bytearray(good)
    how = draw.randrange(8)
    # Most of what a reader trusts stands at the beginning.
    end = len(held) if draw.random() < 0.4 else min(len(held), 400)
    if how == 0:
        return bytes(held[: draw.randrange(len(held))])
    if how == 1:
        for _ in range(draw.choice((1, 3, 30))):
            held[draw.randrange(end)] ^= 1 << draw.randrange(8)
    elif how in (2, 3):
        for _ in range(draw.choice((1, 1, 4))):
            at = draw.randrange(max(1, end - 4))
            value = draw.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x10000, 65535, draw.randrange(1 << 32)))
            held[at : at + 4] = struct.pack(draw.choice("<>") + "I", value)
    elif how == 4:
        at, size = draw.randrange(end), draw.randrange(1, 64)
        held[at : at + size] = draw.randbytes(size)
    elif how == 5:
        at, size = draw.randrange(end), draw.randrange(1, 256)
        del held[at : at + size]
    elif how == 6:
        at, to, size = draw.randrange(end), draw.randrange(end), draw.randrange(1, 256)
        held[to:to] = held[at : at + size]
    else:
        at, size = draw.randrange(end), draw.randrange(1, 512)
        held[at : at + size] = bytes([draw.choice((0, 255, 65))]) * size
    return bytes(held)
