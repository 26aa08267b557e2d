"""Reads a file once and measures all that an audit needs: format, readability, brightness, hashes and texture."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from octfast.data import preprocess
from octfast.data.audit.annotations import chroma, find_annotations, white_border
from octfast.errors import DataError
from octfast.files import usable_cores

# 144 bits and not the usual 64: OCT scans of different patients lie within 6 of 64 bits of each other, but not within
# 20 of 144, where re-encoded, resized and brightened copies lie within 6.
HASH_SIZE = 12
TEXTURE_SIZE = 64
_THUMB = 96
# In square roots of grey levels; a smaller difference is no texture but rounding.
_FLAT = 0.04
# Standard deviation of the greys of the picture made small; JPEG leaves a single grey at 0.
_BLANK = 1.5
_DARK = 30
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
    try:
        data = path.read_bytes()
    except OSError as e:
        return ImageStats("unreadable", e.strerror or str(e))
    if not data:
        return ImageStats("empty", "0 bytes")
    content = hashlib.blake2b(data, digest_size=16).digest()
    try:
        with Image.open(io.BytesIO(data)) as image:
            known = ImageStats(format=image.format or "", mode=image.mode, width=image.width, height=image.height)
            known = known._replace(content=content)
            if image.width * image.height > preprocess.MAX_PIXELS:
                return known._replace(trouble="unreadable", detail=f"more than {preprocess.MAX_PIXELS:,} pixels")
            frames = getattr(image, "n_frames", 1)
            grey = preprocess.decode_grey(image)
            remarks = [*_of_format(path, image, frames), *_of_mode(image)]
    except UnidentifiedImageError:
        return ImageStats("not-a-picture", _first_line(data), content=content)
    except (DataError, OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as e:
        text = e.message.removeprefix("cannot decode the picture: ") if isinstance(e, DataError) else str(e)
        cut = "truncated" in text.lower() or "broken" in text
        return ImageStats("truncated" if cut else "unreadable", text.replace("the picture", "it"), content=content)
    return _of_picture(known, grey, remarks)


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
    with ThreadPoolExecutor(workers or min(8, usable_cores())) as pool:
        # In blocks, so that a stop is heeded and no queue of 100,000 is made.
        for start in range(0, len(paths), 512):
            for of_one in pool.map(image_stats, paths[start : start + 512]):
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
    if small.std() < _BLANK:
        return stats._replace(remarks=(*remarks, ("blank", f"grey {small.mean():.0f} all over")))
    brightest = np.percentile(small[small < 250], 99) if (small < 250).any() else 255
    if brightest < _DARK:
        remarks.append(("dark", f"99 of 100 pixels at grey {brightest:.0f} of 255 or below"))
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


def _of_format(path: Path, image: Image.Image, frames: int) -> list[tuple[str, str]]:
    remarks = []
    suffix, kind = path.suffix.lower(), image.format or ""
    if suffix in _FORMATS and kind not in _FORMATS[suffix]:
        remarks.append(("wrong-extension", f"a {kind} named {suffix}"))
    # A JPEG with a preview inside counts as two pictures, but the second is not looked for by anything.
    if frames > 1 and kind != "MPO":
        remarks.append(("animated", f"{frames} pictures in one file, the first is read"))
    return remarks


def _of_mode(image: Image.Image) -> list[tuple[str, str]]:
    mode = image.mode.partition(";")[0]
    if mode == "I":
        return [("16-bit", "16 bits a sample, read with 65,535 as white")]
    if mode in ("L", "1"):
        return []
    remarks = []
    if mode == "CMYK":
        remarks.append(("cmyk", "CMYK, read as grey"))
    if mode in ("RGBA", "LA", "PA") and (lowest := min(image.convert("RGBA").getchannel("A").tobytes())) < 255:
        remarks.append(("transparent", f"opacity down to {lowest} of 255, read without it"))
    if mode == "LA":
        return remarks
    share, strong = chroma(np.asarray(image.convert("RGB")))
    if share > 0.1:
        remarks.append(("colour", f"{share:.0%} of the pixels are coloured, read as grey"))
    elif strong >= 20:
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
