"""Reads Heidelberg's raw export (.vol): a header of 2,048 bytes, the fundus, then B-scans of 32-bit floats."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from octfast.data.volumes.reader import MAX_FRAME_PIXELS, MAX_FRAMES, BScan
from octfast.errors import DataError

_HEADER = 2048
_EYES = {b"OD": "R", b"OS": "L"}


def read_vol(path: Path, name: str) -> Iterator[BScan]:
    """The B-scans of a .vol file.

    The layout is that of Heidelberg's "Spectralis Special Function: Exporting Raw Data": width, number and height of
    the B-scans at byte 12, of the fundus at 48, the eye at 84, the length of a B-scan's own header at 100.

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
        step = own + 4 * width * height
        if first + step > size:
            raise DataError(f"{name} ends before its first B-scan", "the file is cut short; export it again")
        for n in range(frames):
            f.seek(first + n * step + own)
            samples = np.frombuffer(f.read(4 * width * height), "<f4")
            if len(samples) < width * height:
                raise DataError(
                    f"{name} holds {n} of the {frames} B-scans that its header says",
                    "the file is cut short; export it again",
                )
            yield BScan(shown(samples.reshape(height, width)), 0, n, eye)


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
