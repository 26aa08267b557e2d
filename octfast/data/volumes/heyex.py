"""Reads HEYEX's exports as XML: what the file says of each series, and the pictures that it names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from octfast.data.decode import Unreadable, decode
from octfast.data.volumes.about import (
    MAX_FRAME_PIXELS,
    MAX_FRAMES,
    About,
    BScan,
    distances,
    micrometres,
    on_fundus,
    words,
)
from octfast.data.volumes.exports import file_of, parse
from octfast.data.volumes.kinds import eye_of
from octfast.data.volumes.stack import ends_of
from octfast.errors import DataError

_FORMATS = ("TIFF", "BMP", "PNG", "JPEG")
_CONTEXT = "OphthalmicAcquisitionContext"
# What may name a person or a day, and what does not.
_BEHIND = {
    "Patient": ("PatientUIDList", "ID", "PatientID", "LastName", "FirstNames", "Title", "Birthdate", "Sex"),
    "Study": ("StudyUID", "ID", "StudyDate", "Operator", "ReferringPhysician", "Comment"),
    "Series": ("SeriesUID", "ID", "ProgID", "ReferenceSeries", "Comment"),
    "Image": ("ID", "AcquisitionTime", "ImageData"),
}
_PLAIN = {
    "Patient": ("Study",),
    "Study": ("Series",),
    "Series": (
        *("Image", "ExaminedStructure", "Modality", "ModalityProcedure", "Type", "Laterality", "GeneralEquipment"),
        *("OCTFieldSize", "ThicknessGrid", "NumImages"),
    ),
    "Image": ("ImageNumber", "Laterality", "ImageType", _CONTEXT, "Segmentation"),
}
# Share of the mean by which the distances between B-scans that lie evenly may differ: places have three digits.
_EVEN = 0.05


@dataclass(frozen=True)
class _Series:
    """A series with B-scans: what stands above it, its pictures, and its localizer where there is one."""

    patient: Element
    study: Element
    series: Element
    scans: list[Element]
    localizer: Element | None


def read_heyex(path: Path, name: str, tell: bool = False) -> Iterator[About | BScan]:
    """The B-scans of a HEYEX export, series by series, each after what is said of it.

    The layout is HEDX/BODY/Patient/Study/Series/Image, as eyepy reads it, but each series is a volume of its own, an
    eye that is not named stays blank, and B-scans come by ImageNumber where each has one. Pictures are looked for
    beside the file under the last part of the path that it names, and nowhere else.

    Parameters
    ----------
    tell : say what the file says of each volume; nothing otherwise.

    Raises
    ------
    DataError : it cannot be trusted or read, holds no B-scans or too many, or names a picture that is not there, leads
        elsewhere, or cannot be decoded.
    """
    volumes = _volumes(parse(path, name))
    if not volumes:
        raise DataError(f"{name} names no B-scans", "it may be an export of photographs alone; leave it out")
    if (count := sum(len(volume.scans) for volume in volumes)) > MAX_FRAMES:
        raise DataError(f"{name} names {count:,} B-scans", f"a volume may have {MAX_FRAMES:,}")
    beside = {file.name.casefold(): file for file in path.parent.iterdir()}
    found = [[_picture(scan, beside, path, name) for scan in volume.scans] for volume in volumes]
    for n, (volume, files) in enumerate(zip(volumes, found, strict=True)):
        eye = _eye(volume)
        ends = _ends(volume)
        places = None if ends is None else distances(ends.mean(axis=1))
        lines = [None] * len(files) if ends is None else on_fundus(ends, _sides(volume))
        if tell:
            yield _about(n, volume, files, places, beside, path, name)
        spread = ends_of(files)
        for i, file in enumerate(files):
            pixels = _decoded(file, f"{name}, B-scan {i} ({words(file.name)})", spread)
            yield BScan(pixels, n, i, eye, None if places is None else places[i], lines[i])


def _volumes(root: Element) -> list[_Series]:
    found = []
    for patient in root.iter("Patient"):
        for study in patient.iter("Study"):
            for series in study.iter("Series"):
                images = series.findall("Image")
                scans = [image for image in images if _said(image, "ImageType/Type").upper() == "OCT"]
                others = (image for image in images if _said(image, "ImageType/Type").upper() == "LOCALIZER")
                numbers = [_number(_said(scan, "ImageNumber")) for scan in scans]
                if all(number is not None for number in numbers) and len(set(numbers)) == len(numbers):
                    scans = [scans[i] for i in np.argsort(np.array(numbers), kind="stable")]
                if scans:
                    found.append(_Series(patient, study, series, scans, next(others, None)))
    return found


def _about(
    volume: int,
    of: _Series,
    files: list[Path],
    places: list[float] | None,
    beside: dict[str, Path],
    path: Path,
    name: str,
) -> About:
    notes = []
    patient = words(_said(of.patient, "PatientID"))
    if not patient and (own := words(_said(of.patient, "ID"))):
        patient = f"HEYEX {own}"
        notes.append("its patient has no number but that of HEYEX itself, which is taken")
    deep, across = (_same([_said(scan, f"{_CONTEXT}/{side}") for scan in of.scans]) for side in ("ScaleY", "ScaleX"))
    sizes = {_said(scan, f"{_CONTEXT}/Width") + "x" + _said(scan, f"{_CONTEXT}/Height") for scan in of.scans}
    if (held := _size(files[0])) and sizes != {"x"} and sizes != {held}:
        deep = across = None
        notes.append("its pictures are not of the size that it says, so their spacing is not known")
    gaps = np.diff(places) if places else np.zeros(0)
    even = bool(gaps.size) and bool((np.abs(gaps - gaps.mean()) <= _EVEN * gaps.mean()).all())
    if gaps.size and not even:
        notes.append("its B-scans do not lie evenly, so there is no one distance between them")
    if places is None and len(files) > 1:
        notes.append("its B-scans lie in no row, or the file does not say where")
    slo = None
    if of.localizer is not None:
        try:
            slo = _decoded(_picture(of.localizer, beside, path, name), name)
        except DataError:
            notes.append("the picture of its fundus cannot be read")
    device = words(_said(of.series, "GeneralEquipment/ManufacturerModelName"))
    return About(
        *(volume, patient, _eye(of), "Heidelberg", device, micrometres(deep), micrometres(across)),
        micrometres(gaps.mean()) if even else None,
        slo,
        _left_behind(of),
        tuple(notes),
    )


def _left_behind(of: _Series) -> dict[str, int]:
    """The fields that could name a person or a day, or are not known, where they are filled."""
    behind: dict[str, int] = {}
    images = of.scans if of.localizer is None else [*of.scans, of.localizer]
    for element in (of.patient, of.study, of.series, *images):
        for child in element:
            if child.tag in _PLAIN[element.tag] or not any(e.text and e.text.strip() for e in child.iter()):
                continue
            known = child.tag in _BEHIND[element.tag]
            behind[f"{element.tag} {child.tag if known else 'of unknown fields'}"] = 1
    return behind


def _picture(image: Element, beside: dict[str, Path], path: Path, name: str) -> Path:
    """The file of a picture.

    Raises
    ------
    DataError : none is named or there, or it lies elsewhere.
    """
    said = file_of(_said(image, "ImageData/ExamURL"))
    shown = words(said) or "a picture without a name"
    file = beside.get(said.casefold())
    if file is None:
        raise DataError(f"{name} names {shown}, which is not beside it", "copy the whole folder of the export")
    if file.resolve().parent != path.parent.resolve():
        raise DataError(f"{name} names {shown}, a link out of its folder", "put the picture itself there")
    return file


def _decoded(file: Path, name: str, ends: tuple[float, float] | None = None) -> np.ndarray:
    try:
        return np.asarray(decode(file, formats=_FORMATS, max_pixels=MAX_FRAME_PIXELS, name=name, ends=ends).grey)
    except Unreadable as e:
        raise DataError(e.message, e.hint) from None


def _size(file: Path) -> str:
    from PIL import Image

    try:
        with Image.open(file, formats=_FORMATS) as image:
            return f"{image.width}x{image.height}"
    except Exception:  # decoding it says what is wrong
        return ""


def _eye(of: _Series) -> str:
    """R or L where all that stands in the series agrees."""
    said = {eye_of(_said(element, "Laterality")) for element in (of.series, *of.scans)} - {""}
    return said.pop() if len(said) == 1 else ""


def _ends(of: _Series) -> np.ndarray | None:
    """Where each B-scan begins and ends on the fundus in mm, (B-scans, 2, 2) with x before y; None of circles."""
    if "circ" in _said(of.series, "Type").casefold():
        return None
    ends = [
        [[_number(_said(scan, f"{_CONTEXT}/{end}/Coord/{axis}")) for axis in "XY"] for end in ("Start", "End")]
        for scan in of.scans
    ]
    held = np.array(ends, dtype=float)
    return held if np.isfinite(held).all() else None


def _sides(of: _Series) -> tuple[float, float]:
    """The width and the height of the picture of the fundus in mm; 0 where the file does not say."""
    if of.localizer is None:
        return 0.0, 0.0
    said = [
        [_number(_said(of.localizer, f"{_CONTEXT}/{what}")) or 0.0 for what in pair]
        for pair in (("Width", "ScaleX"), ("Height", "ScaleY"))
    ]
    return said[0][0] * said[0][1], said[1][0] * said[1][1]


def _same(said: list[str]) -> float | None:
    """The one number that all say; None where they differ or one says none."""
    numbers = {_number(one) for one in said}
    return numbers.pop() if len(numbers) == 1 else None


def _number(said: str) -> float | None:
    try:
        found = float(said)
    except ValueError:
        return None
    return found if np.isfinite(found) else None


def _said(element: Element, where: str) -> str:
    """The text of the first element at a place; "" where there is none."""
    return (element.findtext(where) or "").strip()
