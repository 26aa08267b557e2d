"""Tells pictures and the formats of OCT volumes apart, by their first bytes or else by their ending."""

from __future__ import annotations

from pathlib import Path

from octfast.data.decode import open_regular
from octfast.data.scans import IMAGE_SUFFIXES

VOLUME_SUFFIXES = {
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".vol": "vol",
    ".e2e": "e2e",
    ".fda": "fda",
    ".fds": "fds",
    ".img": "img",
}
_HEAD = 132
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")


def kind_of(path: str | Path) -> str:
    """What a file is: "picture", "dicom", "vol", "e2e", "fda", "fds" or "img"; "" where nothing tells.

    The first bytes decide where they are known, so that a DICOM file without an ending, or with a wrong one, is read as
    what it is; else the ending does. Zeiss's .img has no mark of its own. A DICOMDIR, which lists
    the files of a disc and holds no picture, is "".

    Raises
    ------
    OSError : the file cannot be opened.
    DataError : it is a pipe, a device, a socket or a folder.
    """
    if Path(path).name.upper() == "DICOMDIR":
        return ""
    with open_regular(path) as f:
        found = kind_of_bytes(f.read(_HEAD))
    suffix = Path(path).suffix.lower()
    if found == "topcon":
        return "fds" if suffix == ".fds" else "fda"
    return found or VOLUME_SUFFIXES.get(suffix, "") or ("picture" if suffix in IMAGE_SUFFIXES else "")


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
