"""Says of what shapes scans are, and what of them a model will not see."""

from __future__ import annotations

import contextlib
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from octfast.data.fit import MOST, box_of, seen_in_words

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("octfast")

# How many times as long as the other a side is of a scan that is called long.
LONG = 1.5
# Shapes are read from at most so many files, spread evenly over the table.
_LOOKED_AT = 2000


def say_shapes(scans: pd.DataFrame, fit: str) -> None:
    """Say in the log how many scans are long, and what becomes of them: a warning where a part of them is not seen.

    Parameters
    ----------
    scans : a Scans table; of a large one 2,000 files are looked at, and only their headers. What cannot be read is
        left to others to complain of.
    fit : how they become squares, see `octfast.data.fit`.
    """
    step = -(-len(scans) // _LOOKED_AT) or 1
    shapes = [shape for path in scans["path"].iloc[::step] if (shape := _shape(path)) is not None]
    long = [(w, h) for w, h in shapes if max(w, h) > LONG * min(w, h)]
    if not long:
        return
    many = f"{len(long):,} of {len(shapes):,} scans{' looked at' if step > 1 else ''} are longer than {LONG} : 1"
    if MOST[fit] is None:
        log.info(
            "%s and are squeezed; --fit crop, which sees the square in their middle alone, lowered the log-loss on two "
            "sets of real scans by .06 (docs/accuracy.md)",
            many,
        )
        return
    boxes = [(box_of(w, h, fit), w * h) for w, h in long]
    hidden = [1 - (right - left) * (bottom - top) / area for (left, top, right, bottom), area in boxes]
    log.warning(
        "--fit %s: %s; %s, and of these %.0f%% (the median) is not seen, nor what lies there",
        *(fit, seen_in_words(fit), many, 100 * float(np.median(hidden))),
    )


def _shape(path: str | Path) -> tuple[int, int] | None:
    """Width and height of a picture by its header, upright as its EXIF says."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as picture:
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return picture.size[::-1] if turned else picture.size
    return None
