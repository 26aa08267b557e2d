"""Reads Heidelberg's raw export (.vol): a header of 2,048 bytes, the fundus, then B-scans of 32-bit floats."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

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
from octfast.errors import DataError

_HEADER = 2048
_EYES = {b"OD": "R", b"OS": "L"}
_PATIENT = slice(140, 161)
# Where what may name a person or a day stands.
_FIELDS = {
    **{"ExamTime": slice(88, 96), "ID": slice(104, 120), "ReferenceID": slice(120, 136), "PID": slice(136, 140)},
    **{"PatientID": _PATIENT, "DOB": slice(164, 172), "VID": slice(172, 176), "VisitID": slice(176, 200)},
    **{"VisitDate": slice(200, 208), "ProgID": slice(224, 258), "Spare": slice(258, 2048)},
}
# Of the patterns of scans those whose middles lie in no row: a circle, a star.
_CIRCLE, _STAR = 2, 5
_NO_ROWS = (_CIRCLE, _STAR)


def read_vol(path: Path, name: str, tell: bool = False) -> Iterator[About | BScan]:
    """The B-scans of a .vol file, after what its header says.

    The layout is that of Heidelberg's "Spectralis Special Function: Exporting Raw Data": width, number and height of
    the B-scans at byte 12, their spacing in millimetres at 24, of the fundus at 48, the eye at 84, the length of a
    B-scan's own header at 100, the patient's number at 140; in a B-scan's own header where it begins and ends at 16.

    Parameters
    ----------
    tell : say what the header says; nothing otherwise.

    Raises
    ------
    DataError : no .vol, sizes that cannot be, or fewer B-scans than its header says, after those that are there.
    """
    size = path.stat().st_size
    with path.open("rb") as f:
        header = f.read(_HEADER)
        if len(header) < _HEADER or not header.startswith((b"HSF-OCT", b"ep-v")):
            raise DataError(f"{name} is not a .vol file", "export it again from HEYEX")
        width, frames, height = struct.unpack_from("<3I", header, 12)
        fundus_width, fundus_height = struct.unpack_from("<2I", header, 48)
        eye = _EYES.get(header[84:86], "")
        (own,) = struct.unpack_from("<I", header, 100)
        if not (0 < width * height <= MAX_FRAME_PIXELS and 0 < frames <= MAX_FRAMES):
            raise DataError(
                f"{name} has {frames:,} B-scans of {width:,} x {height:,} pixels",
                f"a volume may have {MAX_FRAMES:,} of {MAX_FRAME_PIXELS:,}",
            )
        first = _HEADER + fundus_width * fundus_height
        own = _own(f, first, own, 4 * width * height * frames, frames, size)
        step = own + 4 * width * height
        if first + step > size:
            raise DataError(f"{name} ends before its first B-scan", "the file is cut short; export it again")
        across, between, deep = (micrometres(mm) for mm in struct.unpack_from("<3d", header, 24))
        away: list[float | None] = [None] * frames
        lines: list[tuple[float, float, float, float] | None] = [None] * frames
        if tell:
            ends = _ends(f, first, step, own, frames)
            away, lines = _places(ends, frames, between, header), _lines(ends, frames, header)
        if tell:
            f.seek(_HEADER)
            slo = np.frombuffer(f.read(fundus_width * fundus_height), np.uint8)
            shaped = 0 < slo.size <= MAX_FRAME_PIXELS
            yield About(
                *(0, words(header[_PATIENT]), eye, "Heidelberg", "Spectralis", deep, across, between),
                slo.reshape(fundus_height, fundus_width) if shaped else None,
                {field: 1 for field, at in _FIELDS.items() if any(header[at])},
            )
        for n in range(frames):
            f.seek(first + n * step + own)
            samples = np.frombuffer(f.read(4 * width * height), "<f4")
            if len(samples) < width * height:
                raise DataError(
                    f"{name} holds {n} of the {frames} B-scans that its header says",
                    "the file is cut short; export it again",
                )
            yield BScan(shown(samples.reshape(height, width)), 0, n, eye, away[n], lines[n])


def _own(f: BinaryIO, first: int, said: int, samples: int, frames: int, size: int) -> int:
    """The length of a B-scan's own header: as the file's says, unless the first B-scan's own alone fits the file."""
    f.seek(first + 12)
    (own,) = struct.unpack("<I", f.read(4).ljust(4, b"\0"))
    return own if own >= 16 and first + said * frames + samples > size == first + own * frames + samples else said


def _ends(f: BinaryIO, first: int, step: int, own: int, frames: int) -> np.ndarray | None:
    """Where each B-scan begins and ends on the fundus, in millimetres, of shape (B-scans, 2, 2) with x before y."""
    if own < 48:
        return None
    ends = []
    for n in range(frames):
        f.seek(first + n * step + 16)
        ends.append(np.frombuffer(f.read(32).ljust(32, b"\0"), "<f8").reshape(2, 2))
    return np.array(ends)


def _lines(ends: np.ndarray | None, frames: int, header: bytes) -> list[tuple[float, float, float, float] | None]:
    """Each B-scan on the picture of the fundus, in shares of its sides; None for what does not lie on it.

    A circle has its middle for an end, so no line is drawn of it.
    """
    width, height, across, down = struct.unpack_from("<2I2d", header, 48)
    circle = struct.unpack_from("<i", header, 96)[0] == _CIRCLE
    return [None] * frames if ends is None or circle else on_fundus(ends, (width * across, height * down))


def _places(ends: np.ndarray | None, frames: int, between: float | None, header: bytes) -> list[float | None]:
    """The position of each B-scan in millimetres: by where their own headers say they lie, else by the distance."""
    blank: list[float | None] = [None] * frames
    if ends is None or struct.unpack_from("<i", header, 96)[0] in _NO_ROWS:
        return blank
    with np.errstate(all="ignore"):
        away = distances(np.mean(ends, axis=1))
    if away is None and between is not None and frames > 1:
        away = [round(n * between / 1000, 4) for n in range(frames)]
    return blank if away is None else [*away]


def shown(samples: np.ndarray) -> np.ndarray:
    """Raw reflectivity as the grey that HEYEX shows, uint8.

    (ln(r + 2.44e-4) + 8.3) / 8.285 for r up to 1, as eyepy and OCT-Converter have it (OCT-Converter's thread 21);
    samples that are missing (the largest float) are black.
    """
    r = np.asarray(samples, np.float64)
    valid = np.isfinite(r) & (r >= 0) & (r <= 1)
    grey = (np.log(np.where(valid, r, 0) + 2.44e-4) + 8.3) / 8.285
    # Above 1 there is white, and the mark for what is missing.
    grey = np.where(valid, grey, np.isfinite(r) & (r > 1) & (r < 1e38))
    return np.round(grey.clip(0, 1) * 255).astype(np.uint8)
