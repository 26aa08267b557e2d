"""The one decoder of pictures: strict, upright, 16 bits spread over the greys, and with a word on each change."""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from octfast.errors import DataError

MAX_PIXELS = 100_000_000
# Passes over the whole picture that a progressive JPEG may have; programs write some ten. A file of 20 MB has room for
# half a million, which would take hours. libtiff has the same limit.
MAX_SCANS = 100
MAX_PAGES = 4096
# Of larger pictures threads decode one at a time: one in colour of 100 million pixels takes a gigabyte meanwhile.
LARGE_PIXELS = 25_000_000
_ORIENTATION, _BITS, _PHOTOMETRIC, _MAX_SAMPLE, _SMAX_SAMPLE = 274, 258, 262, 281, 341
_MIN_SAMPLE, _SMIN_SAMPLE = 280, 340
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = {
    2: "mirrored",
    3: "upside down",
    4: "mirrored and upside down",
    6: "on its left side",
    8: "on its right side",
}
_large = threading.Lock()
# What libjpeg says where the compressed samples are not what they should be; its other warnings are of the header.
_DAMAGE = ("corrupt jpeg data", "premature end")
_SPECIAL = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}

# What Pillow warns of is an error here, or of no account; both are said in octfast's words, once a file.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


def _fresh_lock() -> None:
    global _large
    _large = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A process that decodes may be forked while a thread that it does not inherit holds the lock.
    os.register_at_fork(after_in_child=_fresh_lock)


class Unreadable(DataError):  # noqa: N818
    """A file that no scan can be had from.

    Attributes
    ----------
    trouble : "missing", "empty", "truncated", "not-a-picture", "too-large" or "unreadable".
    reason : what is wrong, in a few words without the file's name.
    """

    def __init__(self, message: str, hint: str = "", trouble: str = "unreadable", reason: str = ""):
        super().__init__(message, hint)
        self.trouble = trouble
        self.reason = reason or message


@dataclass(frozen=True)
class Decoded:
    """A picture as a model sees it, and what was done to have it so.

    Attributes
    ----------
    grey : of mode L, upright.
    format, mode : of the file, as Pillow calls them; the mode is that of the page that is read.
    width, height : of the picture, upright, also where `grey` is smaller.
    changes : (check, words) a change: "rotated", "16-bit", "animated".
    colour : the picture before its colours and its transparency were dropped; None where it is grey.
    """

    grey: Image.Image
    format: str = ""
    mode: str = "L"
    width: int = 0
    height: int = 0
    changes: tuple[tuple[str, str], ...] = ()
    colour: Image.Image | None = None


def decode(
    source: str | Path | bytes | Image.Image,
    *,
    formats: Sequence[str] | None = None,
    max_pixels: int | None = None,
    name: str = "",
    small: bool = False,
    page: int | None = None,
    ends: tuple[float, float] | None = None,
) -> Decoded:
    """Decode a picture, strictly.

    The orientation that a camera or viewer noted (EXIF) is applied. Colour becomes luma (ITU-R 601-2), transparency is
    dropped. Of 16 bits those in use count, see `greys`, as in a DICOM file without a window, unless a TIFF names black
    and white (MinSampleValue, MaxSampleValue); where its zero is white, it is turned around.
    Of several pages the largest is read, of equally large ones the first.

    A JPEG whose compressed samples do not end where its picture does was cut short or damaged, and is refused; programs
    that show pictures fill in grey instead.

    Parameters
    ----------
    source : a file, the bytes of one, or a PIL image.
    formats : that are taken; None takes what Pillow knows.
    max_pixels : that a page may have; 100 million by default.
    name : of the picture in messages; by default the file's.
    small : a JPEG may come at an eighth of its size, which is faster; it is checked as strictly.
    page : the one to read; None chooses.
    ends : the darkest and the brightest sample of the volume that the picture is of, where it has more than 8 bits and
        no tags that name black and white, so that all frames are spread alike; None takes the picture's own.

    Raises
    ------
    Unreadable : whatever is wrong with it, in one sentence.
    """
    name = name or (str(source) if isinstance(source, str | Path) else "the picture")
    most = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        if isinstance(source, Image.Image):
            return _decode_image(source, b"", most, small, page, ends)
        with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
            return _decode_file(file, formats, most, small, page, ends)
    except Unreadable as e:
        if e.reason == e.message:
            raise Unreadable(f"{name}: {e.message}", e.hint, e.trouble, e.reason) from None
        raise
    except FileNotFoundError:
        hint = "was the folder moved? give it again"
        raise Unreadable(f"no such file: {name}", hint, "missing", "no such file") from None
    except UnidentifiedImageError:
        hint = "remove it, or save it as JPEG or PNG"
        raise Unreadable(f"not a picture: {name}", hint, "not-a-picture", "not a picture") from None
    except MemoryError:
        reason = "there is not enough memory to decode it"
        raise Unreadable(f"cannot decode {name}: {reason}", "crop or shrink it", "too-large", reason) from None
    # A decoder raises anything over a damaged file: IndexError, struct.error, SyntaxError, KeyError.
    except Exception as e:
        reason = _words(e)
        cut = any(word in reason.lower() for word in ("truncated", "broken", "premature end", "end of file"))
        trouble = "truncated" if cut else "unreadable"
        hint = "fetch the file again, or remove it"
        raise Unreadable(f"cannot decode {name}: {reason}", hint, trouble, reason) from None


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading, unless it is a pipe, a device, a socket or a folder.

    Raises
    ------
    Unreadable : it is no regular file: opening a pipe would wait for ever, and some devices never end.
    OSError : it cannot be opened.
    """
    refuse_special(path)
    return open(path, "rb")  # noqa: PTH123


def refuse_special(path: str | Path) -> None:
    """
    Raises
    ------
    Unreadable : it is no regular file.
    OSError : there is none, or it cannot be looked at.
    """
    kind = stat.S_IFMT(os.stat(path).st_mode)  # noqa: PTH116
    if kind != stat.S_IFREG:
        reason = f"not a plain file but {_SPECIAL.get(kind, 'a device')}"
        raise Unreadable(f"{path} is {reason}", "leave it out", "not-a-picture", reason)


def greys(samples: np.ndarray, darkest: float, brightest: float, inverted: bool = False) -> np.ndarray:
    """Samples of more than 8 bits as uint8 where nothing says what is black and what is white.

    Of the bits in use (8, 10, 12, 14 or 16, the fewest that hold the brightest sample) the upper 8 are taken: a scan of
    8 bits that was saved as more, by zeros below or by itself again, comes back to the bit unless it is very dark.
    Samples below zero, or in an eighth of that range, would be hardly told apart: of these the darkest and the
    brightest become black and white.

    Parameters
    ----------
    darkest, brightest : of the whole picture or volume.
    """
    bits = bits_in_use(darkest, brightest)
    if not bits:
        return spread(samples, darkest, brightest, inverted)
    grey = (np.nan_to_num(np.asarray(samples, np.float64)) // (1 << (bits - 8))).clip(0, 255).astype(np.uint8)
    return 255 - grey if inverted else grey


def bits_in_use(darkest: float, brightest: float) -> int:
    """The fewest bits that devices use and that hold these samples; 0 where there is no saying so, see `greys`."""
    bits = max(8, 2 * math.ceil(int(brightest).bit_length() / 2))
    return bits if darkest >= 0 and brightest - darkest >= (1 << bits) / 8 else 0


def spread(samples: np.ndarray, low: float, high: float, inverted: bool = False) -> np.ndarray:
    """Samples as uint8, `low` black and `high` white, or the other way around.

    Where there is nothing between `low` and `high`, 65,535 is white.
    """
    if not high > low:
        grey = (np.nan_to_num(samples).clip(0, 65535) // 257).astype(np.uint8)
        return 255 - grey if inverted else grey
    grey = np.nan_to_num((np.asarray(samples, np.float64) - low) / (high - low)).clip(0, 1)
    return np.round((1 - grey if inverted else grey) * 255).astype(np.uint8)


def _decode_file(
    file: BinaryIO,
    formats: Sequence[str] | None,
    most: int,
    small: bool,
    page: int | None,
    ends: tuple[float, float] | None,
) -> Decoded:
    head = file.read(3)
    if not head:
        raise Unreadable("empty file", "fetch the file again, or remove it", "empty")
    file.seek(0)
    # Whole, since both Pillow and the strict decoder read it.
    data = file.read() if head == b"\xff\xd8\xff" else b""
    try:
        with Image.open(io.BytesIO(data) if data else file, formats=list(formats) if formats else None) as image:
            return _decode_image(image, data, most, small, page, ends)
    except Image.DecompressionBombError as e:
        found = re.search(r"\d{6,}", str(e))
        raise _too_large(f"{int(found[0]):,} pixels" if found else "too many pixels", most) from None


def _decode_image(
    image: Image.Image, data: bytes, most: int, small: bool, page: int | None, given: tuple[float, float] | None
) -> Decoded:
    changes = [] if page is not None else [*_choose_page(image)]
    if page is not None:
        image.seek(page)
    if image.width * image.height > most:
        raise _too_large(f"{image.width:,} x {image.height:,} pixels", most)
    with _large if image.width * image.height > LARGE_PIXELS else nullcontext():
        return _decode_page(image, data, small, given, changes)


def _decode_page(
    image: Image.Image,
    data: bytes,
    small: bool,
    given: tuple[float, float] | None,
    changes: list[tuple[str, str]],
) -> Decoded:
    mode, form, stored = image.mode, image.format or "", _stored(image)
    noted = _orientation(image)
    loaded = _strict_jpeg(image, data, small) if data and form in ("JPEG", "MPO") else None
    if loaded is None:
        image.load()
        loaded = image
    # Pillow turns some formats itself on loading, and takes the note away.
    left = _orientation(image)
    if noted in _TURNS:
        changes.append(("rotated", f"stored {_TURNED.get(noted, 'on its side and mirrored')}, read upright (EXIF)"))
    if mode == "F" or mode.startswith("I"):
        grey, words = _of_deep(loaded, given)
        changes.append(("16-bit", words))
    else:
        grey = loaded if mode == "L" else loaded.convert("L")
        if ";16" in stored and mode != "L" and np.asarray(grey).max(initial=0) < 128:
            raise Unreadable(
                "16 bits a sample in colour or with transparency, of which the upper ones are empty",
                "save it as grey, of 8 or 16 bits",
            )
    colour = None if mode in ("L", "1", "F") or mode.startswith("I") else loaded
    if left in _TURNS:
        grey = grey.transpose(_TURNS[left])
        colour = colour and colour.transpose(_TURNS[left])
    # A file's own image would be closed with it.
    grey = grey.copy() if grey is image else grey
    grey.info = {}  # where the orientation is noted, which would be applied again
    if colour is not None:
        colour = colour.copy() if colour is image else colour
        colour.info = {}
    size = grey.size
    if loaded.size != image.size:  # it came smaller
        size = image.size[::-1] if left in (5, 6, 7, 8) else image.size
    return Decoded(grey, form, mode, *size, tuple(changes), colour)


def _choose_page(image: Image.Image) -> list[tuple[str, str]]:
    """Go to the largest page of a file, and say so where there are several."""
    # A JPEG with a preview inside counts as two pictures, but the second is not looked for by anything.
    pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if pages < 2:
        return []
    if pages > MAX_PAGES:
        raise Unreadable(f"{pages:,} pictures in one file", f"{MAX_PAGES:,} are the most that are looked at")
    if image.format != "TIFF":
        return [("animated", f"{pages} pictures in one file, the first is read")]
    sizes = []
    for page in range(pages):
        image.seek(page)
        sizes.append(image.width * image.height)
    largest = int(np.argmax(sizes))
    image.seek(largest)
    if sizes.count(sizes[largest]) == 1:
        words = f"the largest is read, of {image.width}x{image.height}"
    else:
        words = f"the first of the largest is read, of {image.width}x{image.height}; save each as a file of its own"
    return [("animated", f"{pages} pictures in one file, {words}")]


def _strict_jpeg(image: Image.Image, data: bytes, small: bool) -> Image.Image | None:
    """A JPEG decoded with libjpeg's warnings as errors, to Pillow's own samples; None where Pillow is to do it."""
    if data.count(b"\xff\xda") > MAX_SCANS:
        # Within the compressed samples this mark cannot stand.
        raise Unreadable(f"the JPEG has more than {MAX_SCANS} scans", "save it again, as PNG or JPEG", "too-large")
    if image.mode not in ("L", "RGB", "CMYK"):
        return None
    kind = "GRAY" if image.mode == "L" else image.mode
    least = {"min_height": max(1, image.height // 8), "min_width": max(1, image.width // 8)} if small else {}
    try:
        samples = simplejpeg.decode_jpeg(data, kind, strict=True, **least)
    except ValueError as e:
        reason = _words(e)
        if not any(word in reason.lower() for word in _DAMAGE):
            return None
        cut = "remature end" in reason
        raise Unreadable(
            f"truncated, or damaged within: {reason}" if cut else f"damaged: {reason}",
            "fetch the file again, or remove it",
            "truncated" if cut else "unreadable",
        ) from None
    if image.mode == "CMYK":
        # Of which Adobe's programs store the negative; Pillow knows.
        return None
    return Image.fromarray(samples[..., 0] if image.mode == "L" else samples)


def deep_ends(image: Image.Image) -> tuple[float, float] | None:
    """The darkest and the brightest sample of more than 8 bits; None of any other picture, or where tags name them.

    Raises
    ------
    Unreadable : 32 bits a sample.
    """
    if not (image.mode == "F" or image.mode.startswith("I")) or _named_ends(image) is not None:
        return None
    samples = _deep_samples(image)
    return float(samples.min(initial=65535)), float(samples.max(initial=0))


def _deep_samples(image: Image.Image) -> np.ndarray:
    bits = getattr(image, "tag_v2", {}).get(_BITS, (16 if image.format != "TIFF" else 32,))
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF" and int(bits[0]) > 16):
        raise Unreadable("32-bit samples have no fixed white", "save it with 8 or 16 bits a sample")
    return np.asarray(image).astype(np.int64)


def _named_ends(image: Image.Image) -> tuple[float, float] | None:
    """What the tags of a TIFF call black and white."""
    tags = getattr(image, "tag_v2", {})
    low, high = (_tag(tags, *t) for t in ((_MIN_SAMPLE, _SMIN_SAMPLE), (_MAX_SAMPLE, _SMAX_SAMPLE)))
    return (low or 0, high) if high is not None and high > (low or 0) else None


def _of_deep(image: Image.Image, given: tuple[float, float] | None) -> tuple[Image.Image, str]:
    """Samples of 16 bits as 8 bits, and words on how."""
    tags = getattr(image, "tag_v2", {})
    samples = _deep_samples(image)
    named = _named_ends(image)
    own = float(samples.min(initial=65535)), float(samples.max(initial=0))
    ends = named or given or own
    inverted = tags.get(_PHOTOMETRIC) == 0
    used = 0 if named else bits_in_use(*ends)
    black, white = (0, (1 << used) - 1) if used else ends
    which = "as its tags say" if named else f"the {used} bits in use" if used else "in it"
    words = f"16 bits a sample, {black:.0f} to {white:.0f} ({which}) spread over"
    words += " white to black" if inverted else " black to white"
    return Image.fromarray((spread if named else greys)(samples, *ends, inverted)), words


def _tag(tags: Mapping[int, Any], *numbers: int) -> float | None:
    for number in numbers:
        value: Any = tags.get(number)
        value = value[0] if isinstance(value, tuple) and value else value
        if value is not None:
            try:
                return float(value)
            except (TypeError, ValueError, ZeroDivisionError):
                continue
    return None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a note that is garbled says nothing
        return 1


def _stored(image: Image.Image) -> str:
    """How the file stores its samples, in Pillow's words, as "RGB;16B"."""
    tile = getattr(image, "tile", None)
    args = tile[0][3] if tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _too_large(what: str, most: int) -> Unreadable:
    limit = f"{most / 1e6:g} million" if most >= 1e6 else f"{most:,}"
    return Unreadable(f"{what}, more than {limit}", "crop or shrink it", "too-large")


def _words(error: Exception) -> str:
    """What an exception says, on one line, or what it is where it says hardly anything."""
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EIO, errno.EISDIR, errno.ENAMETOOLONG):
        return error.strerror or str(error)
    text = " ".join(str(error).split())[:200]
    said = isinstance(error, OSError | SyntaxError | ValueError | EOFError) and len(text) > 3
    if isinstance(error, struct.error):
        return f"it ends or breaks off within a header ({text})"
    return (
        text if said else f"damaged ({type(error).__name__}: {text})" if text else f"damaged ({type(error).__name__})"
    )
