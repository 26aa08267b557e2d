"""Reads the frames of a DICOM file as 8-bit grey, as its header says that they are to be shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from octfast.data.decode import greys, spread
from octfast.data.volumes.about import MAX_FRAME_PIXELS, MAX_FRAMES, About, BScan, distances, micrometres
from octfast.data.volumes.dicom_header import about_dicom
from octfast.errors import DataError

# Photographs of the eye, and slices of a volume seen from the front, come from the same devices.
_NO_BSCANS = {"OP": "a photograph of the eye", "OPTENF": "an en-face picture"}
# The standard's, what some programs write instead, what exports write that call it "other", and none at all.
_OCT = ("OPT", "OPTBSV", "OCT", "OT", "")
# Of the functional groups of multi-frame files, those that say how samples become grey.
_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_COLOURS = ("Red", "Green", "Blue")
_SHOWN = (
    *("BitsStored", "PixelRepresentation", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
)
# All that is read of a file: nothing that names a patient.
_READ = (
    *("Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "ImageLaterality", "Laterality", *_SHOWN),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(f"{colour}PaletteColorLookupTable{what}" for colour in _COLOURS for what in ("Data", "Descriptor")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _COLOURS),
)


# What a report about a file takes of it.
_EVIDENCE = (
    *("SpecificCharacterSet", "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "IssuerOfPatientID"),
    *("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
    *("StudyDescription", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "NumberOfFrames", "Modality"),
)


def read_dicom(path: Path, name: str, any_modality: bool = False, tell: bool = False) -> Iterator[About | BScan]:
    """The frames of a DICOM file in their order, after what its header says.

    Modality and VOI transformations (rescale, lookup tables, windows) are applied. Without a window 8 bits are taken as
    they are, and of more those that the file uses, see `octfast.data.decode.greys`, since few files fill 16 bits.
    MONOCHROME1 is turned around, colour becomes luma.

    Parameters
    ----------
    tell : say what the header says: the whole of it is read then, else only what is needed to show the pixels.

    Raises
    ------
    DataError : no DICOM, no pixels, a photograph, no OCT (unless `any_modality` allows that), sizes that cannot be, or
        a compression that nothing here decodes.
    """
    from pydicom import dcmread

    about = _header(path, name, _READ)
    _check(about, name, any_modality)
    eye = _eye(about)
    away: list[float | None] = [None] * int(about.get("NumberOfFrames") or 1)
    if tell:
        try:
            said, away = about_dicom(dcmread(path, stop_before_pixels=True), eye)
        except Exception:  # pydicom raises anything over a value that cannot be; the pixels may be whole
            said = About(eye=eye, notes=("its header is damaged, and nothing else of it is taken",))
        yield said
    for n, grey in enumerate(_greys(path, about, name)):
        yield BScan(grey, 0, n, eye, away[n] if n < len(away) else None)


def read_series(paths: list[Path], any_modality: bool = False, tell: bool = False) -> Iterator[About | BScan]:
    """The B-scans of a series with a file each, in the order given, as those of one volume; see `read_dicom`.

    What is said of the volume is what the first file says. Where nothing tells what is black and white, all are spread
    alike.

    Raises
    ------
    DataError : as `read_dicom`, for the first that cannot be read.
    """
    from pydicom import dcmread
    from pydicom.pixels import iter_pixels

    heads = []
    for path in paths:
        heads.append(_header(path, str(path), (*_READ, "ImagePositionPatient")))
        _check(heads[-1], str(path), any_modality)
    eye = _eye(heads[0])
    away: list[float | None] = [None] * len(paths)
    if tell:
        places = [_place(head) for head in heads]
        along = distances(np.array(places)) if all(places) else None
        try:
            said, _ = about_dicom(dcmread(paths[0], stop_before_pixels=True), eye)
            between = micrometres(heads[0].get("SpacingBetweenSlices"))
        except Exception:  # as for one file
            said, between = About(eye=eye, notes=("its header is damaged, and nothing else of it is taken",)), None
        if along is not None:
            between = between or round(1000 * along[-1] / (len(along) - 1), 4)
            away = [*along]
        yield replace(said, between_um=between)
    ends: tuple[float, float] | None = None
    for path, about in zip(paths, heads, strict=True):
        if _needs_ends(about):
            with path.open("rb") as f:
                low, high = _ends(iter_pixels(f), about)
            ends = (low, high) if ends is None else (min(ends[0], low), max(ends[1], high))
    for n, (path, about) in enumerate(zip(paths, heads, strict=True)):
        for grey in islice(_greys(path, about, str(path), ends if _needs_ends(about) else None), 1):
            yield BScan(grey, 0, n, eye, away[n])


def series_of(path: Path, name: str) -> dict[str, Any]:
    """What tells the series of a file; see `octfast.data.volumes.series.Header`."""
    tags = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "InstanceNumber", "ImagePositionPatient")
    about = _header(path, name, (*_READ[:7], *tags, "SharedFunctionalGroupsSequence", "Modality"))
    found: dict[str, Any] = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "instance": "SOPInstanceUID"}
    found = {key: str(about.get(tag) or "")[:64] for key, tag in found.items()}
    for key, tag in (("frames", "NumberOfFrames"), ("rows", "Rows"), ("columns", "Columns")):
        found[key] = int(about.get(tag) or (1 if key == "frames" else 0))
    number = about.get("InstanceNumber")
    found |= {"number": None if number is None else int(number), "place": _place(about) or None}
    return {**found, "eye": _eye(about), "modality": str(about.get("Modality") or "")[:16]}


def evidence_of(path: Path, name: str) -> dict[str, Any]:
    """Who and which study a file is of, and what refers to it, as DICOM JSON; see `VolumeReader.evidence`."""
    return _header(path, name, _EVIDENCE).to_json_dict()


def _header(path: Path, name: str, tags: Sequence[str]) -> Any:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        return dcmread(path, stop_before_pixels=True, specific_tags=[*tags])
    except InvalidDicomError:
        raise DataError(f"{name} is not a DICOM file", "it lacks DICOM's mark; save it again, or remove it") from None


def _place(about: Any) -> list[float]:
    """Where the first pixel of a file with one frame lies, in millimetres; empty where it does not say."""
    try:
        found = [float(mm) for mm in about.get("ImagePositionPatient") or ()]
    except (TypeError, ValueError):
        return []
    return found if len(found) == 3 and all(map(np.isfinite, found)) else []


def _greys(path: Path, about: Any, name: str, ends: tuple[float, float] | None = None) -> Iterator[np.ndarray]:
    """The frames of a file as they are shown; `ends` of the whole volume where it has other files, too."""
    from pydicom.pixels import iter_pixels

    try:
        # Not by its path, which pydicom follows to a name that a file in memory has not.
        with path.open("rb") as f:
            if ends is None and _needs_ends(about):
                ends = _ends(iter_pixels(f), about)
                f.seek(0)
            for n, samples in enumerate(iter_pixels(f)):
                yield _grey(samples, _look(about, n), about, name, ends)
    except (NotImplementedError, RuntimeError) as e:
        syntax = getattr(getattr(about, "file_meta", None), "TransferSyntaxUID", None)
        if "decode" not in str(e) and "plugin" not in str(e) and "decompress" not in str(e):
            raise
        raise DataError(
            f"{name} is compressed as {getattr(syntax, 'name', syntax)}, which cannot be decoded here",
            "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg pyjpegls, or save it uncompressed",
        ) from None


def _check(about: Any, name: str, any_modality: bool) -> None:
    modality = str(about.get("Modality", "")).strip()
    if modality in _NO_BSCANS:
        raise DataError(f"{name} is {_NO_BSCANS[modality]} (Modality {modality}), not an OCT", "leave it out")
    if modality not in _OCT and not any_modality:
        raise DataError(
            f"{name} is not an OCT scan: its Modality is {modality[:16]}",
            "leave it out; octfast predict --any-modality reads it all the same",
        )
    try:
        height, width = int(about.get("Rows") or 0), int(about.get("Columns") or 0)
        frames = int(about.get("NumberOfFrames") or 1)
        bits = int(about.get("BitsStored") or 0)
    except (TypeError, ValueError):
        said = f"{name}: its number of rows, columns or frames is not a number"
        raise DataError(said, "the file is damaged") from None
    if not height or not width:
        raise DataError(f"{name} holds no pictures" + (f" (Modality {modality})" if modality else ""), "leave it out")
    if not (0 < height * width <= MAX_FRAME_PIXELS and 0 < frames <= MAX_FRAMES):
        raise DataError(
            f"{name} has {frames:,} frames of {height} x {width} pixels",
            f"a volume may have {MAX_FRAMES:,} B-scans of {MAX_FRAME_PIXELS:,} pixels",
        )
    if not 1 <= bits <= 16:
        raise DataError(f"{name} has {bits} bits a sample", "8 to 16 are read")


def _eye(about: Any) -> str:
    shared = (about.get("SharedFunctionalGroupsSequence") or [{}])[0]
    anatomy = (shared.get("FrameAnatomySequence") or [{}])[0]
    found = (anatomy.get("FrameLaterality"), about.get("ImageLaterality"), about.get("Laterality"))
    return next((str(e) for e in found if e in ("R", "L")), "")


def _look(about: Any, frame: int) -> Any:
    """What says how the samples of a frame are shown: the frame's own, else that of all frames, else the file's."""
    from pydicom.dataset import Dataset

    look = Dataset()
    own = about.get("PerFrameFunctionalGroupsSequence") or []
    for groups in (about.get("SharedFunctionalGroupsSequence") or [])[:1], own[frame : frame + 1]:
        for item in groups:
            for group in _GROUPS:
                for values in (item.get(group) or [])[:1]:
                    for element in values:
                        look.add(element)
    for keyword in _SHOWN:
        if keyword in about and keyword not in look:
            look[keyword] = about[keyword]
    return look


def _needs_ends(about: Any) -> bool:
    """Whether nothing says what is black and what is white."""
    look = _look(about, 0)
    told = any(look.get(k) for k in ("WindowWidth", "VOILUTSequence", "ModalityLUTSequence"))
    return not told and int(about.BitsStored) > 8 and int(about.get("SamplesPerPixel") or 1) == 1


def _ends(frames: Iterator[np.ndarray], about: Any) -> tuple[float, float]:
    from pydicom.pixels.processing import apply_modality_lut

    low, high = np.inf, -np.inf
    for n, samples in enumerate(frames):
        shown = apply_modality_lut(samples, _look(about, n))
        low, high = min(low, float(shown.min())), max(high, float(shown.max()))
    return low, high


def _grey(samples: np.ndarray, look: Any, about: Any, name: str, ends: tuple[float, float] | None = None) -> np.ndarray:
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

    kind = str(about.get("PhotometricInterpretation", "MONOCHROME2"))
    if kind == "PALETTE COLOR":
        samples = apply_color_lut(samples, about)
    if samples.ndim == 3:
        return _luma(samples)
    if samples.ndim != 2:
        raise DataError(f"{name}: a frame of shape {samples.shape}", "the file is damaged")
    shown = np.asarray(apply_voi_lut(apply_modality_lut(samples, look), look), dtype=np.float64)
    inverted = kind == "MONOCHROME1"
    return greys(shown, *ends, inverted) if ends else spread(shown, *_range(look), inverted)


def _range(look: Any) -> tuple[float, float]:
    """What black and white are after the transformations: the range that the stored or looked-up bits can hold."""
    for tables in ("VOILUTSequence", "ModalityLUTSequence"):
        # A window beside a lookup table of values of interest is another choice, which pydicom does not make.
        if look.get(tables):
            return 0.0, 2.0 ** int(look[tables][0].LUTDescriptor[2]) - 1
    bits = int(look.BitsStored)
    signed = look.get("PixelRepresentation") == 1
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    slope, intercept = float(look.get("RescaleSlope", 1)), float(look.get("RescaleIntercept", 0))
    ends = slope * low + intercept, slope * high + intercept
    return min(ends), max(ends)


def _luma(samples: np.ndarray) -> np.ndarray:
    """Colour, of shape (H, W, 3 or 4), as grey: ITU-R 601-2, as for pictures."""
    from PIL import Image

    if samples.dtype != np.uint8:
        samples = (samples.astype(np.uint32) * 255 // max(1, np.iinfo(samples.dtype).max)).astype(np.uint8)
    return np.asarray(Image.fromarray(np.ascontiguousarray(samples[..., :3])).convert("L"))
