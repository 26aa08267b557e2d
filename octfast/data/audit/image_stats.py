"""Reads a file once and measures all that an audit needs: format, readability, brightness, hashes and texture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from octfast.data.audit.annotations import find_annotations, white_border
from octfast.data.decode import Decoded, Unreadable, decode, open_regular
from octfast.data.look import brightness, chroma, colours
from octfast.data.readers.volumes import why_unreadable
from octfast.data.volumes.kinds import is_named_as_volume
from octfast.files import in_threads, usable_cores

# 144 bits and not the usual 64: OCT scans of different patients lie within 6 of 64 bits of each other, but not within
# 20 of 144, where re-encoded, resized and brightened copies lie within 6.
HASH_SIZE = 12
TEXTURE_SIZE = 64
_THUMB = 96
# In square roots of grey levels; a smaller difference is no texture but rounding.
_FLAT = 0.04
_FORMATS = {
    ".jpeg": ("JPEG", "MPO"),
    ".jpg": ("JPEG", "MPO"),
    ".png": ("PNG",),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
    ".bmp": ("BMP", "DIB"),
    ".gif": ("GIF",),
    ".webp": ("WEBP",),
}


class ImageStats(NamedTuple):
    """What an audit knows of one file.

    `trouble` is why it cannot be read (empty, truncated, not-a-picture, unreadable) or "", `remarks` what is unusual
    about it, as (check, detail). `content` and `pixels` are digests of the file and of its grey samples; `pixels` is
    empty for a
    blank picture, which is like every other. `hashes` is uint8 of shape (2, 18): the perceptual hash of the picture and
    of its mirror image. `texture` is uint8 of shape (2, 512): where its fine structure lies above and below its
    surroundings, 64 x 64 bits each. Both are None where the picture is blank or lower or narrower than 64 pixels.
    """

    trouble: str = ""
    detail: str = ""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    brightness: float = float("nan")
    border: float = 0.0
    content: bytes = b""
    pixels: bytes = b""
    hashes: np.ndarray | None = None
    texture: np.ndarray | None = None
    remarks: tuple[tuple[str, str], ...] = ()


def image_stats(path: str | Path) -> ImageStats:
    """Read and decode one file and measure it; nothing is raised for a file that is broken."""
    path = Path(path)
    if is_named_as_volume(path):
        # Those that can be read are pictures by now.
        return ImageStats("unreadable", why_unreadable(path) or "not a picture")
    try:
        with open_regular(path) as file:
            data = file.read()
    except Unreadable as e:
        return ImageStats(e.trouble, e.reason)
    except (OSError, ValueError) as e:
        return ImageStats("unreadable", getattr(e, "strerror", None) or str(e))
    content = hashlib.blake2b(data, digest_size=16).digest()
    try:
        picture = decode(data, name="it")
    except Unreadable as e:
        trouble = e.trouble if e.trouble in ("empty", "truncated", "not-a-picture") else "unreadable"
        known = {"empty": "0 bytes", "not-a-picture": _first_line(data)}
        return ImageStats(trouble, known.get(trouble, e.reason), content=content if data else b"")
    stats = ImageStats("", "", picture.format, picture.mode, picture.width, picture.height, content=content)
    return _of_picture(stats, picture.grey, [*_of_format(path, picture.format), *picture.changes, *_of_mode(picture)])


def all_image_stats(
    paths: Sequence[str], workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> list[ImageStats]:
    """`image_stats` of each file, in their order, in threads: decoding, hashing and resizing let go of Python's lock.

    Parameters
    ----------
    paths : the files.
    workers : threads; by default one a core, 8 at most.
    progress : called with (done, all) in the calling thread.
    """
    stats: list[ImageStats] = []
    for of_one in in_threads(image_stats, paths, workers or min(8, usable_cores())):
        stats.append(of_one)
        if progress:
            progress(len(stats), len(paths))
    return stats


def texture(grey: Image.Image) -> np.ndarray:
    """Where the fine structure of a picture, its speckle above all, lies above and below its surroundings.

    Two slices of one eye have the same layers but other speckle; a copy has the same speckle even when it was saved
    again, resized or made brighter. The picture is squeezed to 64 x 64, its square root taken, which gives speckle
    about the same height everywhere, and a Gaussian blur of 1.5 pixels subtracted.

    Returns
    -------
    uint8 of shape (2, 512): the bits of what lies above, and of what lies below, row by row.
    """
    from scipy.ndimage import gaussian_filter

    side = (TEXTURE_SIZE, TEXTURE_SIZE)
    root = np.sqrt(np.asarray(grey.resize(side, Image.Resampling.BILINEAR), dtype=np.float32))
    rest = root - gaussian_filter(root, 1.5, mode="nearest")
    return np.packbits(np.stack([rest > _FLAT, rest < -_FLAT]).reshape(2, -1), axis=1)


def _of_picture(known: ImageStats, grey: Image.Image, remarks: list[tuple[str, str]]) -> ImageStats:
    import imagehash

    samples = np.asarray(grey)
    thumb = grey.resize((_THUMB, _THUMB), Image.Resampling.BILINEAR)
    small = np.asarray(thumb)
    border = white_border(small)
    stats = known._replace(brightness=float(samples.mean()), border=border)
    remarks += brightness(small)
    if any(check == "blank" for check, _ in remarks):
        return stats._replace(remarks=tuple(remarks))
    text = find_annotations(samples)
    if text and not any(check == "burnt-in" for check, _ in remarks):
        remarks.append(("burnt-in", text))
    size = f"{grey.width}x{grey.height}:".encode()
    stats = stats._replace(
        pixels=hashlib.blake2b(size + samples.tobytes(), digest_size=16).digest(), remarks=tuple(remarks)
    )
    if min(grey.size) < TEXTURE_SIZE:
        return stats
    mirrored = thumb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    hashes = [imagehash.phash(p, hash_size=HASH_SIZE).hash.ravel() for p in (thumb, mirrored)]
    return stats._replace(hashes=np.packbits(np.stack(hashes), axis=1), texture=texture(grey))


def _of_format(path: Path, kind: str) -> list[tuple[str, str]]:
    suffix = path.suffix.lower()
    wrong = suffix in _FORMATS and kind not in _FORMATS[suffix]
    return [("wrong-extension", f"a {kind} named {suffix}")] if wrong else []


def _of_mode(picture: Decoded) -> list[tuple[str, str]]:
    image, remarks = picture.colour, []
    if image is None:
        return []
    if picture.mode == "CMYK":
        remarks.append(("cmyk", "CMYK, read as grey"))
    transparent = picture.mode in ("RGBA", "LA", "PA")
    if transparent and (lowest := min(image.convert("RGBA").getchannel("A").tobytes())) < 255:
        remarks.append(("transparent", f"opacity down to {lowest} of 255, read without it"))
    if picture.mode == "LA":
        return remarks
    if coloured := colours(image):
        return remarks + coloured
    _, strong = chroma(np.asarray(image.convert("RGB")))
    if strong >= 20:
        remarks.append(("burnt-in", f"surely coloured marks, {strong} pixels"))
    return remarks


def _first_line(data: bytes) -> str:
    if data[:4] in (b"PK\x03\x04", b"%PDF"):
        return "a zip archive" if data[:2] == b"PK" else "a PDF"
    if data[128:132] == b"DICM":
        return "a DICOM file"
    line = data[:60].split(b"\n")[0]
    text = line.decode("ascii", errors="replace")
    return f"text: {text}" if text.isprintable() and text.isascii() and text else "of no format that Pillow knows"
