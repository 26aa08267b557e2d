"""The spoilt pictures that are planted among phantoms: what a file's bytes become under each fault."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from octfast.data.phantom.draw import QUALITY

# Takes a scan, gives the new bytes of its file and a detail for the list.
Spoil = Callable[["Scan"], tuple[bytes, str]]


@dataclass(frozen=True)
class Scan:
    """A phantom's file, and what its place and name say of it."""

    path: Path
    split: str
    label: str
    patient: str


def jpeg(picture: Image.Image, quality: int = QUALITY, comment: str = "") -> bytes:
    """The picture as the bytes of a JPEG file."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality, comment=comment.encode())
    return out.getvalue()


def open_grey(scan: Scan) -> Image.Image:
    """The picture of a scan, of mode L."""
    with Image.open(scan.path) as picture:
        return picture.convert("L")


def truncated(scan: Scan) -> tuple[bytes, str]:
    """The first three fifths of the file."""
    data = scan.path.read_bytes()
    kept = len(data) * 3 // 5
    return data[:kept], f"{kept} of {len(data)} bytes"


def text(scan: Scan) -> tuple[bytes, str]:
    """A text that names the scan, so that no two are identical files."""
    return f"This is a text file and no picture, whatever its name says: {scan.path.stem}\n".encode(), "a text"


def flat(grey: int) -> Spoil:
    """One grey all over, with a comment that names the scan, so that no two are identical files."""
    return lambda scan: (
        jpeg(Image.new("L", open_grey(scan).size, grey), comment=scan.path.stem),
        f"all samples {grey}",
    )


def almost(scan: Scan, way: int) -> tuple[bytes, str]:
    """The same picture, re-encoded, smaller or brighter by turns of `way`."""
    picture = open_grey(scan)
    if way % 3 == 0:
        return jpeg(picture, 55), "JPEG quality 55"
    if way % 3 == 1:
        size = (round(picture.width * 0.9), round(picture.height * 0.9))
        return jpeg(picture.resize(size, Image.Resampling.BILINEAR)), "nine tenths of the size"
    return jpeg(picture.point([min(255, round(v * 1.1 + 6)) for v in range(256)])), "brighter by a tenth"


def coloured(scan: Scan) -> tuple[bytes, str]:
    """False colours: the three channels differ."""
    grey = np.asarray(open_grey(scan)).astype(float)
    colour = np.stack([grey, grey * 0.6, 255 - grey], axis=-1).round().astype(np.uint8)
    return jpeg(Image.fromarray(colour)), "red, green and blue differ"


def written_on(scan: Scan) -> tuple[bytes, str]:
    """A made-up identity, white in the upper left corner."""
    picture = open_grey(scan)
    words = f"ID {scan.patient} OD 24.03.1961"
    # The letters are drawn on a strip and enlarged, as PIL's own font is of one small size.
    strip = Image.new("L", (7 * len(words), 14), 0)
    ImageDraw.Draw(strip).text((2, 1), words, fill=255)
    width = int(0.7 * picture.width)
    strip = strip.resize((width, max(8, width * strip.height // strip.width)), Image.Resampling.BILINEAR)
    picture.paste(255, (4, 4), strip)
    return jpeg(picture, 90), words


def odd_size(scan: Scan) -> tuple[bytes, str]:
    """Twice as wide and a quarter as high."""
    picture = open_grey(scan)
    size = (picture.width * 2 + 1, max(8, picture.height // 4))
    return jpeg(picture.resize(size)), f"{size[0]} x {size[1]}"


def saved(kind: str, change: Callable[[Image.Image], Image.Image], detail: str) -> Spoil:
    """The picture, changed, in another file format by Pillow's name."""

    def make(scan: Scan) -> tuple[bytes, str]:
        out = io.BytesIO()
        change(open_grey(scan)).save(out, kind)
        return out.getvalue(), detail

    return make


def sixteen_bits(grey: Image.Image) -> Image.Image:
    """The same greys with 65,535 as white."""
    return Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)


def half_clear(grey: Image.Image) -> Image.Image:
    """With an alpha channel of 200."""
    picture = grey.convert("RGBA")
    picture.putalpha(200)
    return picture
