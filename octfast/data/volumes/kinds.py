"""Tells pictures and the formats of OCT volumes apart, by their first bytes or else by their ending."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from octfast.data.decode import MAX_PAGES, open_regular
from octfast.data.scans import IMAGE_SUFFIXES
from octfast.errors import DataError

VOLUME_SUFFIXES = {
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".vol": "vol",
    ".e2e": "e2e",
    ".fda": "fda",
    ".fds": "fds",
    ".img": "img",
}
# The file of HEYEX's export as XML, which says of pictures beside it which are the B-scans of a volume.
EXPORT_SUFFIX = ".xml"
_HEAD = 132
# Before the first element of an XML may stand its declaration and remarks.
_PROLOGUE = 2048
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", *_TIFF)


def kind_of(path: str | Path) -> str:
    """What a file is: "picture", "tiff", "dicom", "vol", "heyex", "e2e", "fda", "fds" or "img"; "" where nothing tells.

    "heyex" is the XML of an export by HEYEX; any other XML is "".

    "tiff" is a TIFF of several pages of one size, as volumes are saved; one whose pages differ, as those with previews
    and smaller copies do, is a picture. The first bytes decide where they are known, so that a DICOM file without an
    ending, or with a wrong one, is read as what it is; else the ending does. Zeiss's .img has no mark of its own. A
    DICOMDIR, which lists the files of a disc and holds no picture, is "".

    Raises
    ------
    OSError : the file cannot be opened.
    DataError : it is a pipe, a device, a socket or a folder.
    """
    if Path(path).name.upper() == "DICOMDIR":
        return ""
    with open_regular(path) as f:
        return kind_in(f, Path(path).name)


def kind_in(file: BinaryIO, name: str) -> str:
    """What an open file is, as `kind_of` has it; its name is of account where its first bytes tell nothing."""
    head = file.read(_HEAD)
    found = kind_of_bytes(head)
    if head.startswith(_TIFF) and _is_stack(file):
        return "tiff"
    suffix = Path(name).suffix.lower()
    if suffix == EXPORT_SUFFIX:
        return "heyex" if b"<HEDX" in (head + file.read(_PROLOGUE)).replace(b"\0", b"") else ""
    if found == "topcon":
        return "fds" if suffix == ".fds" else "fda"
    return found or VOLUME_SUFFIXES.get(suffix, "") or ("picture" if suffix in IMAGE_SUFFIXES else "")


def is_volume(path: str | Path) -> bool:
    """Whether a file is a volume: by its ending, or by its first bytes."""
    suffix = Path(path).suffix.lower()
    if suffix in VOLUME_SUFFIXES:
        return True
    if suffix in IMAGE_SUFFIXES - {".tif", ".tiff"}:
        return False
    try:
        return kind_of(path) not in ("picture", "")
    except (OSError, DataError):
        return False


def is_export(path: str | Path) -> bool:
    """Whether a file is the XML of an export by HEYEX."""
    try:
        return Path(path).suffix.lower() == EXPORT_SUFFIX and kind_of(path) == "heyex"
    except (OSError, DataError):
        return False


def is_named_as_volume(path: str | Path) -> bool:
    """Whether a file is no picture by its ending, but may be a volume, or is a folder; nothing in it is looked at."""
    return Path(path).suffix.lower() in (*VOLUME_SUFFIXES, EXPORT_SUFFIX) or Path(path).is_dir()


def eye_of(word: str) -> str:
    """R or L of what people write for an eye, as OD or left; else ""."""
    word = word.strip().casefold()
    return "R" if word in ("r", "od", "right", "re") else "L" if word in ("l", "os", "left", "le") else ""


def frames_in(folder: str | Path) -> list[Path]:
    """The pictures that lie in a folder, in the order of the numbers in their names: 2 stands before 10."""
    files = (p for p in Path(folder).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted((p for p in files if p.is_file()), key=lambda p: natural(p.name))


def looks_like_frames(files: Sequence[Path], least: int = 25, most: int = 200) -> bool:
    """Whether pictures of one folder look like the B-scans of one volume.

    Their names differ in one number that counts on from picture to picture, and all have one size.

    Parameters
    ----------
    files : as `frames_in` gives them.
    least, most : how many a volume has.
    """
    if not least <= len(files) <= most:
        return False
    parts = [re.split(r"([0-9]+)", p.name) for p in files]
    if len({len(each) for each in parts}) > 1:
        return False
    moving = [i for i in range(len(parts[0])) if len({each[i] for each in parts}) > 1]
    if len(moving) != 1 or not all(each[moving[0]].isdecimal() for each in parts):
        return False
    numbers = [int(each[moving[0]]) for each in parts]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return False
    try:
        sizes = set()
        for file in files:
            with Image.open(file) as image:
                sizes.add(image.size)
                if len(sizes) > 1 or getattr(image, "n_frames", 1) > 1:
                    return False
    except Exception:  # Pillow raises anything over a damaged file
        return False
    return True


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """What to sort names by so that their numbers count as such."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)], name


def _is_stack(file: BinaryIO) -> bool:
    try:
        with Image.open(file, formats=["TIFF"]) as image:
            pages = getattr(image, "n_frames", 1)
            if not 1 < pages <= MAX_PAGES:
                return False
            size = image.size
            for page in range(1, pages):
                image.seek(page)
                if image.size != size:
                    return False
            return True
    except Exception:  # a damaged one is read as a picture, which says what is wrong
        return False


def kind_of_bytes(head: bytes) -> str:
    """What a file is by its first 132 bytes: as `kind_of`, but "topcon" for both of Topcon's."""
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(b"HSF-OCT"):
        return "vol"
    if head.startswith((b"CMDb", b"E2EMultipleVolumeFile")):
        return "e2e"
    if head.startswith(b"FOCT"):
        return "topcon"
    # Of a bitmap two letters alone would take in text, too.
    bitmap = head[:2] == b"BM" and head[6:10] == bytes(4)
    if head.startswith(_PICTURES) or bitmap or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "picture"
    return ""
