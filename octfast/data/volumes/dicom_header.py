"""What the header of a DICOM file says of its volume: patient, eye, device, spacing, places of frames, what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from octfast.data.volumes.about import About, distances, micrometres, words

# Kinds of values that may hold a name, a number, a day or free text, or what nobody knows.
_TELLING = frozenset(
    {
        *("AE", "AS", "CS", "DA", "DT", "LO", "LT", "OB", "OW", "PN", "SH", "ST", "TM", "UC", "UI", "UN", "UR", "UT"),
    }
)
# Codes of the standard, the pixels' own, and what is kept.
_HARMLESS = frozenset(
    {
        *("SOPClassUID", "MediaStorageSOPClassUID", "TransferSyntaxUID", "FileMetaInformationVersion", "Modality"),
        *("ImageType", "PhotometricInterpretation", "SpecificCharacterSet", "LossyImageCompression"),
        *("ImageLaterality", "Laterality", "FrameLaterality", "BurnedInAnnotation"),
        *("VOILUTFunction", "RescaleType", "LUTData", "Manufacturer", "ManufacturerModelName"),
        *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    }
)
_BURNT = "BurnedInAnnotation is YES: its pixels hold text, which stays in them"


def about_dicom(header: Any, eye: str) -> tuple[About, list[float | None]]:
    """What a header says, and the position of each frame in millimetres.

    The device is blank where its name holds the patient's name or number.

    Parameters
    ----------
    header : pydicom's dataset of all but the pixels.
    eye : "R", "L" or "".
    """
    frames = int(header.get("NumberOfFrames") or 1)
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    own = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    measures = next((m for g in (shared, *own[:1], {}) for m in (g.get("PixelMeasuresSequence") or [])[:1]), header)
    deep, across = _spacing(measures)
    between = next(
        (um for k in ("SpacingBetweenSlices", "SliceThickness") if (um := micrometres(measures.get(k))) is not None),
        None,
    )
    middles = [_place(group) for group in own]
    away = distances(np.array(middles)) if len(middles) == frames and all(middles) else None
    if away is not None and between is None:
        between = round(1000 * away[-1] / (frames - 1), 4)
    if away is None and between is not None and frames > 1:
        away = [round(n * between / 1000, 4) for n in range(frames)]
    behind = Counter(_fields(header))
    behind.update(_fields(getattr(header, "file_meta", ())))
    behind["preamble"] += int(any(getattr(header, "preamble", None) or b""))
    patient = words(header.get("PatientID"))
    notes = (_BURNT,) if str(header.get("BurnedInAnnotation", "")).upper() == "YES" else ()
    names = {patient.casefold(), *str(header.get("PatientName", "")).casefold().replace("^", " ").split()} - {""}
    maker, device = (
        "" if any(name in text.casefold() for name in names) else text
        for text in (words(header.get("Manufacturer")), words(header.get("ManufacturerModelName")))
    )
    about = About(
        *(0, patient, eye, maker, device, deep, across, between if frames > 1 else None, None),
        *({name: n for name, n in sorted(behind.items()) if n}, notes),
    )
    blank: list[float | None] = [None] * frames
    return about, blank if away is None else [*away]


def _spacing(measures: Any) -> tuple[float | None, float | None]:
    """Micrometres from row to row, which is in depth, and from column to column."""
    values = measures.get("PixelSpacing")
    try:
        deep, across = values
    except (TypeError, ValueError):
        return None, None
    return micrometres(deep), micrometres(across)


def _place(group: Any) -> list[float]:
    """Where the first pixel of a frame lies, in millimetres; all frames being alike, as good as its middle."""
    for position in (group.get("PlanePositionSequence") or [])[:1]:
        try:
            found = [float(mm) for mm in position.get("ImagePositionPatient") or ()]
        except (TypeError, ValueError):
            return []
        return found if len(found) == 3 else []
    return []


def _fields(header: Any) -> Iterator[str]:
    """The names of the elements, nested ones too, that are filled and may tell who was examined, when or where."""
    for element in header:
        if element.VR == "SQ":
            for item in element.value or ():
                yield from _fields(item)
        if not element.value and element.VR != "SQ":
            continue
        if element.tag.is_private:
            yield f"private ({element.tag.group:04x},{element.tag.element:04x})"
        elif element.VR in _TELLING and element.keyword not in _HARMLESS:
            yield element.keyword or f"unknown ({element.tag.group:04x},{element.tag.element:04x})"
