"""Finds the pictures and volumes behind what is given: files, folders, patterns, tables, a list on standard input."""

from __future__ import annotations

import glob
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from octfast.data.readers.table import TABLE_SUFFIXES, as_names, candidates, load_table
from octfast.data.scans import IMAGE_SUFFIXES
from octfast.deploy.volumes.kinds import VOLUME_SUFFIXES, kind_of
from octfast.errors import DataError, UsageError

log = logging.getLogger("octfast")


@dataclass(frozen=True)
class Item:
    """One file to read, or the reason why there is none.

    Attributes
    ----------
    path : as it was given, or found below what was given; this is what stands in the tables. A relative one that a
        spreadsheet would take for a formula (it begins with = + - or @) gets a ./ before it, and names the same file.
    problem : why it cannot be read, where that is known already; else empty.
    hint : what to do then.
    """

    path: str
    problem: str = ""
    hint: str = ""

    def __post_init__(self) -> None:
        if self.path.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
            object.__setattr__(self, "path", f".{os.sep}{self.path}")


def find_inputs(
    inputs: Iterable[str | Path], *, recursive: bool = True, stdin: BinaryIO | None = None
) -> Iterator[Item]:
    """The files behind the inputs, in their order; those of a folder sorted by path.

    A folder gives the pictures and volumes in it, told by their ending or else by their first bytes; hidden files and
    all others are passed over, and the log counts them. A CSV, TSV or parquet table gives the files of its column of
    paths, relative to its own folder. A name with `*`, `?` or `[` that is no file is a pattern; `**` stands for any
    folders. `-` reads names from standard input, one a line, as they come. What does not exist costs one item with its
    problem.

    Parameters
    ----------
    inputs : names of files, folders or tables; patterns; "-".
    recursive : look into the folders of a folder, too.
    stdin : where "-" reads; None takes standard input.

    Raises
    ------
    UsageError : "-" given twice.
    DataError : a table that cannot be read, or has no column of paths.
    """
    names = [os.fspath(name) for name in inputs]
    if names.count("-") > 1:
        raise UsageError("- stands twice among the inputs", "standard input can be read once")
    for name in names:
        if name == "-":
            for line in stdin if stdin is not None else _standard_input():
                if given := os.fsdecode(line).rstrip("\r\n"):
                    yield from _named(given, recursive, tables=False)
        else:
            yield from _named(name, recursive)


def _standard_input() -> BinaryIO:
    """Standard input, through a handle of one's own.

    A thread that waits at Python's own for a line holds its lock, and Python dies of that where it ends meanwhile.
    """
    try:
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    except (OSError, ValueError, AttributeError):  # something that was put in its place
        return sys.stdin.buffer


def at_home(name: str | Path) -> Path:
    """A path with the home folder in the place of its ~; as it is where there is no such user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _named(name: str, recursive: bool, tables: bool = True) -> Iterator[Item]:
    path = at_home(name)
    shown = str(path)
    try:
        if path.is_dir():
            yield from _folder(path, recursive)
        elif not path.exists():
            yield from _pattern(name, shown, recursive)
        elif tables and path.suffix.lower() in TABLE_SUFFIXES:
            yield from _table(path)
        else:
            yield Item(shown)
    except (OSError, ValueError) as e:  # a name too long, or with a null in it
        yield Item(shown, f"cannot read {shown!a}: {getattr(e, 'strerror', None) or e}", "give another name")


def _folder(folder: Path, recursive: bool) -> Iterator[Item]:
    found = other = 0
    for at, folders, files in os.walk(folder, onerror=_say_unreadable):
        folders[:] = sorted(d for d in folders if recursive and not d.startswith((".", "__MACOSX")))
        for name in sorted(files):
            if name.startswith("."):
                continue
            path = Path(at) / name
            suffix = path.suffix.lower()
            if suffix in IMAGE_SUFFIXES or suffix in VOLUME_SUFFIXES or _is_readable(path):
                found += 1
                yield Item(str(path))
            else:
                other += 1
    if other:
        log.info("%s: %d files that are neither pictures nor volumes were passed over", folder, other)
    if not found:
        log.warning("%s: no picture and no volume in it", folder)


def _pattern(name: str, shown: str, recursive: bool) -> Iterator[Item]:
    if not glob.has_magic(name):
        yield Item(shown, f"no such file: {shown}", "was it moved? give it again")
        return
    # Not pathlib's, which turns a pattern with .. in it down.
    matches = sorted(glob.glob(str(at_home(name)), recursive=True))  # noqa: PTH207
    matches = [match for match in matches if "__MACOSX" not in Path(match).parts]
    if not matches:
        yield Item(shown, f"nothing matches {shown}", "quote a pattern, so that the shell leaves it alone")
    for match in matches:
        path = Path(match)
        if not path.is_dir():
            yield Item(match)
        elif not name.rstrip("/").endswith("**"):  # whose folders' files match themselves
            yield from _folder(path, recursive)


def _table(file: Path) -> Iterator[Item]:
    table = load_table(file)
    columns = candidates("path", [str(c) for c in table.columns])
    if not columns:
        raise DataError(
            f"{file} has no column that looks like a path; its columns are {', '.join(map(str, table.columns))}",
            "name one of them path",
        )
    if columns[0] != "path":
        log.info("%s: paths from the column %s", file.name, columns[0])
    for n, name in enumerate(as_names(table[columns[0]]), start=2):
        if name is None:
            yield Item(str(file), f"{file}: line {n} has no path", "fill it in, or remove the line")
            continue
        path = file.parent / at_home(name)
        try:
            there = path.exists()
        except OSError as e:  # a name too long, or a folder that may not be looked into
            yield Item(str(path), f"cannot read {path}: {e.strerror}", "correct the table")
            continue
        hint = f"its path is relative to the folder of {file.name}"
        yield Item(str(path)) if there else Item(str(path), f"no such file: {path}", hint)


def _is_readable(path: Path) -> bool:
    try:
        return path.is_file() and kind_of(path) != ""
    except OSError:
        return False


def _say_unreadable(error: OSError) -> None:
    log.warning("cannot look into %s: %s", error.filename, error.strerror)
