"""Finds the files that a table names: relative to it, by a Windows path, in another case, or by a bare name."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from octfast.data.readers.walk import LeftOut, is_scan_name, walk
from octfast.data.volumes.exports import holds_export
from octfast.data.volumes.kinds import is_export

log = logging.getLogger("octfast")


def resolve_paths(paths: Iterable[str], file: Path) -> list[str]:
    """Paths made absolute from the folder of the table `file`; of several ways to read one, the first that exists.

    A backslash stands for a slash where no file has one in its name. Where there is no such file, one below the folder
    of the table is taken whose path or bare name is the same but for upper and lower case or the ending, if there is
    one alone; the log says how many were found so.
    """
    base = file.absolute().parent.resolve()
    below = _Below(base)
    guessed: list[tuple[str, str]] = []

    def resolve(text: str) -> str:
        ways = [text, text.strip()]
        ways += [way.replace("\\", "/") for way in ways if "\\" in way]
        resolved = [os.path.normpath(base / way) for way in ways]
        found = next((path for path in resolved if _is_file(path) or (text.strip() and _is_export(path))), None)
        if found is None and (found := below.find(ways[-1])):
            guessed.append((text, found))
        # A folder may be a volume; a file of its name goes before it.
        found = found or next((path for path in resolved if text.strip() and _is_folder(path)), None)
        return found or (text if PureWindowsPath(text).drive else resolved[-1])

    out = [resolve(str(path)) for path in paths]
    if guessed:
        log.warning(
            "%s: %d files have no such path, and are taken from below its folder by their names; the first: %s is %s",
            *(file.name, len(guessed), *guessed[0]),
        )
    return out


class _Below:
    """The pictures below a folder by their paths, names and stems, whatever their case; looked for when first asked."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def find(self, text: str) -> str:
        """The one picture that a path or bare name can mean, or ""."""
        if PureWindowsPath(text).drive or text.startswith("/"):
            return ""
        name = PurePosixPath(os.path.normpath(text)).as_posix()
        if name.startswith(".."):
            return ""
        for table in (self._paths, self._stems) if "/" in name else (self._paths, self._stems, self._names, self._bare):
            found = table.get(_plain(name), [])
            if len(found) == 1:
                return found[0]
            if found:
                return ""
        return ""

    @cached_property
    def _pictures(self) -> list[str]:
        return [p for f in walk(self._base, LeftOut()).all() for p in f.files if is_scan_name(p) or is_export(p)]

    def _by(self, key: Callable[[Path], str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self._pictures:
            found.setdefault(_plain(key(Path(path))), []).append(path)
        return found

    @cached_property
    def _paths(self) -> dict[str, list[str]]:
        return self._by(lambda p: p.relative_to(self._base).as_posix())

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        return self._by(lambda p: p.relative_to(self._base).with_suffix("").as_posix())

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        return self._by(lambda p: p.name)

    @cached_property
    def _bare(self) -> dict[str, list[str]]:
        return self._by(lambda p: p.stem)


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name too long, or with a null in it
        return False


def _is_export(path: str) -> bool:
    """Whether a folder is an export by HEYEX, of which the XML may bear the folder's name."""
    return _is_folder(path) and holds_export(Path(path))


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
