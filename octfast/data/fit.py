"""How a scan of any shape becomes a square: which part of it is seen."""

from __future__ import annotations

import difflib

from octfast.errors import UsageError

# How many times as long as the other a side may be that is seen whole, as a fraction; None sees everything.
MOST: dict[str, tuple[int, int] | None] = {"squeeze": None, "crop": (1, 1)}
FITS = tuple(MOST)
_WORDS = {"squeeze": "squeezed", "crop": "cut to the square in the middle, resized"}
_SEEN = {"squeeze": "", "crop": "the model sees the square in the middle of a scan alone"}

Box = tuple[int, int, int, int]


def box_of(width: int, height: int, fit: str) -> Box:
    """The part of a picture that a network sees, in whole pixels and from the middle: left, top, right, bottom.

    Parameters
    ----------
    width, height : of the picture, 1 or more.
    fit : "squeeze" sees all of it; "crop" a square as high as a wide scan, and as wide as a high one.

    Raises
    ------
    UsageError : another word.
    """
    most = MOST[check_fit(fit)]
    if most is None:
        return 0, 0, width, height
    wide, high = min(width, _times(height, most)), min(height, _times(width, most))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def hides(width: int, height: int, fit: str) -> bool:
    """Whether a part of a picture is not seen."""
    return box_of(width, height, fit) != (0, 0, width, height)


def fit_in_words(fit: str, size: int) -> str:
    """What is done to a scan, as "squeezed to 224 × 224 pixels"."""
    return f"{_WORDS[fit]} to {size} × {size} pixels"


def seen_in_words(fit: str) -> str:
    """What a reader of pictures must know of what is not seen, without a full stop; empty where all is."""
    return _SEEN[fit]


def check_fit(fit: str) -> str:
    """
    Raises
    ------
    UsageError : no such way.
    """
    if fit not in FITS:
        near = difflib.get_close_matches(str(fit), FITS, n=1, cutoff=0.3)
        raise UsageError(f"no way named {fit!r} to bring a scan to a square", f"did you mean {(near or FITS)[0]}?")
    return fit


def _times(side: int, most: tuple[int, int]) -> int:
    """A side times a fraction, rounded with halves going up."""
    up, down = most
    return (2 * up * side + down) // (2 * down)
