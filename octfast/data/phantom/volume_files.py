"""Writes phantom volumes as clinics have them: a folder of PNG files, a TIFF, DICOM, .vol, or HEYEX's XML."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from octfast.errors import DataError


@dataclass(frozen=True)
class Held:
    """What a file of a volume may hold: frames, uint8 of shape (n, H, W), the fundus, (H, W), patient, eye, spacing."""

    frames: np.ndarray
    slo: np.ndarray
    patient: str
    eye: str
    axial_um: float
    lateral_um: float
    between_um: float

    @property
    def positions_mm(self) -> list[float]:
        return [round(n * self.between_um / 1000, 4) for n in range(len(self.frames))]


def write_png(path: Path, held: Held) -> Path:
    """A folder with a PNG a frame, 000.png and so on."""
    path.mkdir()
    for n, frame in enumerate(held.frames):
        Image.fromarray(frame).save(path / f"{n:03d}.png")
    return path


def write_tiff(path: Path, held: Held) -> Path:
    """A TIFF with a page a frame."""
    path = path.with_suffix(".tif")
    pages = [Image.fromarray(frame) for frame in held.frames]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_lzw")
    return path


def write_vol(path: Path, held: Held) -> Path:
    """Heidelberg's raw export, after the layout that `octfast.data.volumes.vol` reads."""
    path = path.with_suffix(".vol")
    (count, height, width), own = held.frames.shape, 512
    header = bytearray(2048)
    struct.pack_into("<12s3I", header, 0, b"HSF-OCT-103", width, count, height)
    struct.pack_into("<3d", header, 24, *(um / 1000 for um in (held.lateral_um, held.between_um, held.axial_um)))
    side = held.lateral_um / 1000
    struct.pack_into("<2I2d", header, 48, held.slo.shape[1], held.slo.shape[0], side, side)
    struct.pack_into("<4s", header, 84, {"R": b"OD", "L": b"OS"}[held.eye])
    struct.pack_into("<2i", header, 96, 3, own)
    struct.pack_into("<21s", header, 140, held.patient.encode())
    across, covered = held.lateral_um * width / 1000, held.positions_mm[-1]
    with path.open("wb") as f:
        f.write(bytes(header) + held.slo.tobytes())
        for frame, mm in zip(held.frames, held.positions_mm, strict=True):
            about = bytearray(own)
            struct.pack_into("<12si4d", about, 0, b"HSF-BS-103", own, 0.0, covered - mm, across, covered - mm)
            # The inverse of how such samples are shown.
            raw = np.exp(frame.astype(np.float64) / 255 * 8.285 - 8.3) - 2.44e-4
            f.write(bytes(about) + raw.astype("<f4").tobytes())
    return path


def write_heyex(path: Path, held: Held) -> Path:
    """HEYEX's export: a folder with an XML and the pictures that it names, after `octfast.data.volumes.heyex`."""
    path.mkdir()
    (count, _, width), covered = held.frames.shape, held.positions_mm[-1]
    side = held.lateral_um / 1000

    def image(number: int, kind: str, pixels: np.ndarray, deep: float, line: tuple[float, ...] = ()) -> dict[str, Any]:
        name = f"{path.name}_{number:03d}.png"
        Image.fromarray(pixels).save(path / name)
        size = {"Width": pixels.shape[1], "Height": pixels.shape[0], "ScaleX": f"{side:.9g}", "ScaleY": f"{deep:.9g}"}
        ends = zip(("Start", "End"), (line[:2], line[2:]), strict=True)
        size |= {end: {"Coord": {"X": f"{x:.9g}", "Y": f"{y:.9g}"}} for end, (x, y) in ends} if line else {}
        return {
            **{"ID": number, "ImageNumber": number, "Laterality": held.eye, "ImageType": {"Type": kind}},
            **{"OphthalmicAcquisitionContext": size},
            "ImageData": {"Extension": "PNG", "ExamURL": f"file:///C:\\export\\{name}"},
        }

    across = side * width
    lines = [(0.0, covered - mm, across, covered - mm) for mm in held.positions_mm]
    scans = enumerate(zip(held.frames, lines, strict=True), 1)
    series = {
        **{"ID": 1, "Modality": "OCT", "Type": "Volume", "Laterality": held.eye, "NumImages": count + 1},
        "GeneralEquipment": {"ManufacturerModelName": "Spectralis"},
        "Image": [
            image(0, "LOCALIZER", held.slo, side),
            *(image(n, "OCT", frame, held.axial_um / 1000, line) for n, (frame, line) in scans),
        ],
    }
    patient = {"ID": 1, "PatientID": held.patient, "LastName": "PHANTOM", "Study": {"ID": 1, "Series": series}}
    root = ElementTree.Element("HEDX")
    _fill(root, {"BODY": {"ExportType": "Data", "Patient": patient}})
    ElementTree.indent(root)
    file = path / f"{path.name}.xml"
    ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)
    return file


def _fill(element: ElementTree.Element, said: dict[str, Any]) -> None:
    for tag, value in said.items():
        for one in value if isinstance(value, list) else [value]:
            child = ElementTree.SubElement(element, tag)
            if isinstance(one, dict):
                _fill(child, one)
            else:
                child.text = str(one)


def write_dicom(path: Path, held: Held) -> Path:
    """A multi-frame DICOM file of ophthalmic tomography, uncompressed.

    Raises
    ------
    DataError : pydicom is not installed.
    """
    try:
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian, OphthalmicTomographyImageStorage, generate_uid
    except ImportError:
        hint = "pip install 'octfast[oct]', or give another --format"
        raise DataError("writing DICOM needs the package pydicom", hint) from None

    def item(**elements: Any) -> Dataset:
        made = Dataset()
        for keyword, value in elements.items():
            setattr(made, keyword, value)
        return made

    path = path.with_suffix(".dcm")
    count, rows, columns = held.frames.shape
    uid = generate_uid(entropy_srcs=[path.name, held.patient])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = OphthalmicTomographyImageStorage, uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    deep, across, between = (um / 1000 for um in (held.axial_um, held.lateral_um, held.between_um))
    measures = item(PixelSpacing=[f"{deep:.6g}", f"{across:.6g}"], SliceThickness=f"{between:.6g}")
    ds = item(
        SOPClassUID=OphthalmicTomographyImageStorage,
        SOPInstanceUID=uid,
        StudyInstanceUID=generate_uid(entropy_srcs=["study", held.patient]),
        SeriesInstanceUID=generate_uid(entropy_srcs=["series", path.name, held.patient]),
        PatientID=held.patient,
        PatientName=f"PHANTOM^{held.patient}",
        Modality="OPT",
        ImageLaterality=held.eye,
        Manufacturer="octfast",
        ManufacturerModelName="phantom",
        NumberOfFrames=count,
        Rows=rows,
        Columns=columns,
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        SharedFunctionalGroupsSequence=[item(PixelMeasuresSequence=[measures])],
        PerFrameFunctionalGroupsSequence=[
            item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, f"{mm:.6g}"])]) for mm in held.positions_mm
        ],
        PixelData=held.frames.tobytes(),
    )
    ds.file_meta = meta
    ds.save_as(path, enforce_file_format=True)
    return path


WRITERS: dict[str, Callable[[Path, Held], Path]] = {
    "png": write_png,
    "tiff": write_tiff,
    "dicom": write_dicom,
    "vol": write_vol,
    "heyex": write_heyex,
}
