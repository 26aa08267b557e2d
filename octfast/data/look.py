"""What is unusual about a picture that a model is to learn from or answer for: blank, dark, coloured, tiny."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from octfast.data.decode import LARGE_PIXELS, Decoded, decode
from octfast.errors import DataError

# Standard deviation of the greys of the picture made small; JPEG leaves a single grey at 0.
_BLANK = 1.5
_DARK = 30
_COLOURED, _STRONG = 0.1, 60
# MedMNIST's scans, the smallest in use, have 28.
_TINY = 28
# JPEG's rounding of one picture written twice.
_ALIKE = 2
_SIDE = 96


def unusual(picture: Decoded, small: np.ndarray | None = None) -> list[tuple[str, str]]:
    """What was changed in a picture on reading, and what is doubtful about it, each as (check, words).

    Quick enough for every picture that a model is asked about: colours and brightness are judged on the picture made
    small.

    Parameters
    ----------
    small : the picture made small, uint8 of shape (H, W), where that is there already.
    """
    found = [*picture.changes]
    if min(picture.width, picture.height) < _TINY:
        found.append(("tiny", f"tiny: {picture.width}x{picture.height} pixels"))
    if picture.width * picture.height > LARGE_PIXELS:
        size = f"{picture.width}x{picture.height} pixels"
        found.append(("huge", f"huge: {size}, which take memory and seconds at each reading"))
    if picture.mode == "CMYK":
        found.append(("cmyk", "CMYK, read as grey"))
    if small is None:
        # What came small already needs no filter.
        way = Image.Resampling.NEAREST if picture.grey.width < picture.width else Image.Resampling.BILINEAR
        small = np.asarray(picture.grey.resize((_SIDE, _SIDE), way))
    small = small[:: max(1, small.shape[0] // _SIDE), :: max(1, small.shape[1] // _SIDE)]
    found += brightness(small)
    if picture.colour is not None:
        found += colours(picture.colour.resize((_SIDE, _SIDE), Image.Resampling.NEAREST))
    return found


def brightness(small: np.ndarray) -> list[tuple[str, str]]:
    """Whether a picture, made small, is of one grey or almost black."""
    if small.std() < _BLANK:
        return [("blank", f"blank: grey {small.mean():.0f} all over")]
    # More than a hundredth that is brighter and not white, which a border may be, is quickly seen.
    if np.count_nonzero((small >= _DARK) & (small < 250)) > small.size / 100:
        return []
    brightest = np.percentile(small[small < 250], 99) if (small < 250).any() else 255
    if brightest < _DARK:
        return [("dark", f"dark: 99 of 100 pixels at grey {brightest:.0f} of 255 or below")]
    return []


def colours(picture: Image.Image) -> list[tuple[str, str]]:
    """Whether a tenth of a picture is coloured."""
    share, _ = chroma(np.asarray(picture.convert("RGB")))
    return [("colour", f"{share:.0%} of the pixels are coloured, read as grey")] if share > _COLOURED else []


def refuse_alike(paths: Sequence[str], most: int = 64) -> None:
    """Refuse pictures that are all alike, from which nothing can be learnt.

    Parameters
    ----------
    most : so many are looked at, evenly over all, and no more once two of them differ.

    Raises
    ------
    DataError : all that were looked at are the same picture, within two of 255 greys.
    """
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int)]
    first: np.ndarray | None = None
    for path in chosen:
        try:
            grey = np.asarray(decode(path, small=True).grey.resize((_SIDE, _SIDE)), np.int16)
        except DataError:  # said elsewhere
            continue
        first = grey if first is None else first
        if np.abs(grey - first).max() > _ALIKE:
            return
    if first is not None and len(chosen) > 1:
        what = f"grey {first.mean():.0f} all over" if first.std() < _BLANK else "the same picture"
        raise DataError(
            f"the training scans are all alike: {len(chosen)} of {len(paths)} were looked at, and each is {what}",
            "nothing can be learnt from these; see what they show: octfast data explore DATA --out figures",
        )


def chroma(rgb: np.ndarray) -> tuple[float, int]:
    """How coloured a picture is.

    Parameters
    ----------
    rgb : uint8 of shape (H, W, 3).

    Returns
    -------
    The share of pixels whose channels lie more than 24 apart, and the number of those more than 60 apart.
    """
    spread = rgb.max(-1) - rgb.min(-1)
    return float((spread > 24).mean()), int((spread > _STRONG).sum())
