"""Reads the pages of a TIFF, or the pictures in a folder, as the B-scans of one volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from octfast.data.decode import Unreadable, decode, deep_ends
from octfast.data.volumes.about import MAX_FRAMES, About, BScan
from octfast.data.volumes.kinds import frames_in
from octfast.errors import DataError

_NOTES = {"tiff": "a TIFF says nothing of an eye", "folder": "pictures say nothing of an eye"}


def read_stack(path: Path, name: str) -> Iterator[About | BScan]:
    """The B-scans of a TIFF by its pages, or of a folder by the numbers in the names, after an empty About.

    Of 16 bits those in use in the whole volume count, see `octfast.data.decode.greys`: all frames are spread alike, as
    those of a DICOM file are.

    Raises
    ------
    DataError : no pictures, more than a volume may have, or one that cannot be read.
    """
    kind = "folder" if path.is_dir() else "tiff"
    yield About(notes=(_NOTES[kind],))
    files = frames_in(path) if kind == "folder" else [path]
    if not files:
        raise DataError(f"{name} holds no pictures", "leave it out")
    with _pages(path) as pages:
        count = len(files) if kind == "folder" else pages.n_frames  # type: ignore[union-attr]
        if count > MAX_FRAMES:
            raise DataError(f"{name} has {count:,} B-scans", f"a volume may have {MAX_FRAMES:,}")
        ends = ends_of(files if pages is None else [pages] * count)
        for n in range(count):
            at = files[n] if pages is None else pages
            page = None if pages is None else n
            try:
                grey = decode(at, page=page, ends=ends, name=f"{name}, B-scan {n}").grey
            except Unreadable as e:
                raise DataError(e.message, e.hint) from None
            yield BScan(np.asarray(grey), 0, n)


def ends_of(frames: Sequence[Path | Image.Image]) -> tuple[float, float] | None:
    """The darkest and the brightest sample of the frames of a volume, where the first has more than 8 bits; else None.

    Parameters
    ----------
    frames : files, or for each page of an open picture that picture.
    """
    ends = None
    for n, frame in enumerate(frames):
        found = _ends(frame, n)
        if found is not None:
            ends = found if ends is None else (min(ends[0], found[0]), max(ends[1], found[1]))
        elif n == 0:
            break
    return ends


@contextmanager
def _pages(path: Path) -> Iterator[Image.Image | None]:
    if path.is_dir():
        yield None
        return
    with Image.open(path, formats=["TIFF"]) as image:
        yield image


def _ends(at: Path | Image.Image, page: int) -> tuple[float, float] | None:
    """The darkest and the brightest sample of a frame of more than 8 bits; None of any other, and of a damaged one."""
    try:
        if isinstance(at, Image.Image):
            at.seek(page)
            return deep_ends(at)
        with Image.open(at) as image:
            return deep_ends(image)
    except (OSError, ValueError, SyntaxError, Unreadable, Image.DecompressionBombError):
        return None
