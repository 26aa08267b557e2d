"""Walks a folder of scans once, through links too, and keeps account of every file that it does not give."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from octfast.data.scans import IMAGE_SUFFIXES
from octfast.data.volumes.kinds import EXPORT_SUFFIX, VOLUME_SUFFIXES, is_export, kind_of_bytes
from octfast.errors import DataError

log = logging.getLogger("octfast")

# Made by systems and network drives, some of them full of thumbnails.
_SYSTEM = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}
)
# Beside those of `kind_of_bytes`.
_MAGIC = (b"\0\0\0\x0cjP  ",)
# Never worth a look at their first bytes.
_TEXT = frozenset({".txt", ".csv", ".tsv", ".json", ".md", ".html", ".npz", ".npy", ".db", ".ini", ".parquet"})

HIDDEN = "hidden files with endings of pictures"
BROKEN = "links that lead nowhere, or back to a folder above"
SPECIAL = "pipes, sockets or devices with names of pictures"


class LeftOut:
    """The files that are not read, by the reason in words that follow a number; nothing is in it twice."""

    def __init__(self) -> None:
        self.paths: dict[str, list[str]] = {}
        self.unreadable: list[tuple[str, str]] = []
        self._counted: set[str] = set()

    def add(self, reason: str, *paths: str) -> None:
        """Count files under a reason, each but once, though several steps of reading a tree may come by it."""
        new = [p for p in dict.fromkeys(paths) if p not in self._counted]
        self._counted.update(new)
        if new:
            self.paths.setdefault(reason, []).extend(new)

    def say(self) -> None:
        """Log a warning for each reason: how many, and the first."""
        for reason, paths in self.paths.items():
            log.warning("left out: %s %s; the first: %a", f"{len(paths):,}", reason, min(paths))

    def refuse_unreadable(self, root: str | Path) -> None:
        """Refuse a tree of which a part could not be looked into: whole classes and patients may lie there.

        Raises
        ------
        DataError : there is such a folder.
        """
        if not self.unreadable:
            return
        path, why = min(self.unreadable)
        folders = "1 folder" if len(self.unreadable) == 1 else f"{len(self.unreadable)} folders"
        raise DataError(
            f"cannot look into {folders} below {root}; the first: {path} ({why})",
            "allow it to be read, or move it out of the data; nothing is trained or judged on a part unawares",
        )


@dataclass
class Folder:
    """A folder with what lies in it; hidden and system folders are not among its `folders`.

    path : as it is reached from the top, through links.
    files : paths of its own regular files that are not hidden, sorted.
    folders : sorted by name.
    linked : the files reached through a link, be it one of their folders or they themselves.
    """

    path: str
    files: list[str] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    linked: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return os.path.basename(self.path)  # noqa: PTH119

    def all(self) -> Iterator[Folder]:
        """This folder and all below it, each before those in it."""
        stack = [self]
        while stack:
            folder = stack.pop()
            yield folder
            stack += reversed(folder.folders)


def walk(root: str | Path, left_out: LeftOut, recursive: bool = True) -> Folder:
    """Look through a folder; links to files and folders are followed, but never back to where they come from.

    Parameters
    ----------
    left_out : gets the hidden pictures, broken links, special files, and folders that cannot be read.
    recursive : look into its folders, too.
    """
    top = Folder(str(root))
    real = os.path.realpath(root)
    stack: list[tuple[Folder, tuple[str, ...], bool, bool]] = [(top, (real,), False, False)]
    while stack:
        # trail: the real path of the folder, after those of the folders with the links that led here.
        folder, trail, hidden, linked = stack.pop()
        try:
            with os.scandir(folder.path) as found:
                entries = sorted(found, key=lambda e: e.name)
        except OSError as e:
            # What a system hides, such as .Trashes, is often closed and holds no scan.
            if not hidden:
                left_out.unreadable.append((folder.path, e.strerror or str(e)))
            continue
        for entry in entries:
            path, concealed = entry.path, hidden or entry.name.startswith(".")
            kind, is_link = _kind(entry)
            if kind == "folder":
                target = os.path.realpath(path) if is_link else os.path.join(trail[-1], entry.name)  # noqa: PTH118
                if is_link and any(t == target or t.startswith(target.rstrip(os.sep) + os.sep) for t in trail):
                    left_out.add(BROKEN, path)
                elif recursive and not (is_link and concealed):
                    inner = Folder(path)
                    concealed = concealed or entry.name.casefold() in _SYSTEM
                    if not concealed:
                        folder.folders.append(inner)
                    way = (*trail, target) if is_link else (*trail[:-1], target)
                    stack.append((inner, way, concealed, linked or is_link))
            elif concealed:
                if is_picture_name(entry.name):
                    left_out.add(HIDDEN, path)
            elif kind == "file":
                folder.files.append(path)
                if linked or is_link:
                    top.linked.add(path)
            elif kind == "nothing":
                left_out.add(BROKEN, path)
            elif is_picture_name(entry.name):
                left_out.add(SPECIAL, path)
    return top


def is_picture_name(name: str) -> bool:
    """Whether a name ends as those of pictures do."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def is_scan_name(name: str) -> bool:
    """Whether a name ends as those of pictures or of volumes do."""
    return is_picture_name(name) or os.path.splitext(name)[1].lower() in VOLUME_SUFFIXES  # noqa: PTH122


def is_scan(path: str) -> bool:
    """Whether a file is a picture or a volume by its ending, or by its first bytes where the ending says nothing."""
    if is_scan_name(path):
        return True
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
    if suffix in _TEXT or suffix == EXPORT_SUFFIX:
        return suffix == EXPORT_SUFFIX and is_export(path)
    try:
        with open(path, "rb") as f:  # noqa: PTH123
            head = f.read(132)
    except OSError:
        return False
    return head.startswith(_MAGIC) or bool(kind_of_bytes(head))


def _kind(entry: os.DirEntry[str]) -> tuple[str, bool]:
    """What a name stands for (folder, file, special, nothing), and whether through a link."""
    try:
        is_link = entry.is_symlink()
        mode = entry.stat(follow_symlinks=True).st_mode if is_link else None
    except OSError:
        return "nothing", True
    if entry.is_dir() if mode is None else stat.S_ISDIR(mode):
        return "folder", is_link
    return ("file" if (entry.is_file() if mode is None else stat.S_ISREG(mode)) else "special"), is_link
