"""Finds the pictures and volumes behind what is given: files, folders, patterns, tables, a list on standard input."""

from __future__ import annotations

import glob
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from octfast.data.readers.columns import candidates
from octfast.data.readers.load import TABLE_SUFFIXES, as_names, load_table
from octfast.data.readers.locate import resolve_paths
from octfast.data.readers.walk import LeftOut, walk
from octfast.data.scans import IMAGE_SUFFIXES
from octfast.data.volumes.about import MAX_FRAMES
from octfast.data.volumes.exports import export_in, holds_export, taken_by_exports
from octfast.data.volumes.kinds import VOLUME_SUFFIXES, kind_of
from octfast.data.volumes.reader import VolumeReader
from octfast.data.volumes.series import find_series, is_one_of_several
from octfast.data.volumes.store import is_fundus
from octfast.errors import DataError, UsageError
from octfast.files import refuse_address

log = logging.getLogger("octfast")


# Columns of a table by which its scans are told to be of one volume, eye or patient.
_OF = ("patient", "eye", "volume")


@dataclass(frozen=True)
class Item:
    """One file to read, or the reason why there is none.

    Attributes
    ----------
    path : as it was given, or found below what was given; this is what stands in the tables. A relative one that a
        spreadsheet would take for a formula (it begins with = + - or @) gets a ./ before it, and names the same file.
    problem : why it cannot be read, where that is known already; else empty.
    hint : what to do then.
    of : what a table says of it beside: its `patient`, `eye` and `volume`, where there are such columns.
    files : of a DICOM series with a file a B-scan, in their order, of which `path` is the first.
    """

    path: str
    problem: str = ""
    hint: str = ""
    of: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.path.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
            object.__setattr__(self, "path", f".{os.sep}{self.path}")


def find_inputs(
    inputs: Iterable[str | Path],
    *,
    recursive: bool = True,
    stdin: BinaryIO | None = None,
    path_column: str | None = None,
) -> Iterator[Item]:
    """The files behind the inputs, in their order; those of a folder sorted by path.

    A folder gives the pictures and volumes in it, told by their ending or else by their first bytes; links are
    followed, hidden files and all others are passed over, and the log counts them; a folder in it that cannot be looked
    into is an item with its problem. A CSV, TSV or parquet table gives the files of its column of paths, relative to
    its own folder, see `octfast.data.readers.locate.resolve_paths`. A name with `*`, `?` or `[` that is no file is a
    pattern; `**` stands for any folders. `-` reads names from standard input, one a line, as they come. What does not
    exist costs one item with its problem.

    Parameters
    ----------
    inputs : names of files, folders or tables; patterns; "-".
    recursive : look into the folders of a folder, too.
    stdin : where "-" reads; None takes standard input.
    path_column : of tables; None takes the one that is named as such columns are.

    Raises
    ------
    UsageError : "-" given twice, or a column that a table lacks.
    DataError : a table that cannot be read, or has no column of paths.
    """
    names = [os.fspath(name) for name in inputs]
    if names.count("-") > 1:
        raise UsageError("- stands twice among the inputs", "standard input can be read once")
    for name in names:
        if name == "-":
            for line in stdin if stdin is not None else _standard_input():
                if given := os.fsdecode(line).rstrip("\r\n"):
                    yield from _named(given, recursive, None, tables=False)
        else:
            yield from _named(name, recursive, path_column)


def with_series(items: Sequence[Item], reader: VolumeReader) -> list[Item]:
    """The items with one for each DICOM series with a file a B-scan, in the place of the first of its files.

    Files of which a table names the volume stay as they are. Pictures of an export by HEYEX that is among the items are
    read with it alone.
    """
    if taken := taken_by_exports(item.path for item in items if not item.problem and not item.of):
        items = [item for item in items if item.path not in taken]
    found, copies = find_series([item.path for item in items if not item.problem and not item.of.get("volume")], reader)
    series = {str(file): files for files in found.values() for file in files}
    out: list[Item] = []
    done: set[tuple[Path, ...]] = set()
    for item in items:
        files = series.get(str(Path(item.path)))
        if Path(item.path) in copies:
            continue
        if files is None:
            out.append(item)
        elif files not in done:
            done.add(files)
            out.append(Item(str(files[0]), of=item.of, files=tuple(map(str, files))))
    return out


def as_they_come(items: Iterable[Item], reader: VolumeReader) -> Iterator[Item]:
    """The same of items of which nobody knows whether more will follow, as names on standard input are.

    From the first DICOM file with one B-scan in a folder on, or where an export by HEYEX lies there, what is named of
    that folder is held back until a file of another one is named, or none follows.

    Parameters
    ----------
    reader : of headers, in a process of its own, as the caller may read pixels meanwhile.
    """
    held: list[Item] = []
    last: Path | None = None
    exported = False
    for item in items:
        folder = Path(item.path).parent
        if held and (folder != last or len(held) >= MAX_FRAMES):
            yield from with_series(held, reader)
            held = []
        if folder != last:
            last, exported = folder, holds_export(folder)
        if held or (not item.problem and (exported or is_one_of_several(Path(item.path), reader))):
            held.append(item)
        else:
            yield item
    yield from with_series(held, reader)


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


def _named(name: str, recursive: bool, path_column: str | None, tables: bool = True) -> Iterator[Item]:
    path = at_home(name)
    shown = str(path)
    try:
        if path.is_dir():
            yield from _folder(path, recursive)
        elif not path.exists():
            yield from _pattern(name, shown, recursive)
        elif tables and path.suffix.lower() in TABLE_SUFFIXES:
            yield from _table(path, path_column)
        else:
            yield Item(shown)
    except (OSError, ValueError) as e:  # a name too long, or with a null in it
        yield Item(shown, f"cannot read {shown!a}: {getattr(e, 'strerror', None) or e}", "give another name")


def _folder(folder: Path, recursive: bool) -> Iterator[Item]:
    found = other = 0
    left_out = LeftOut()
    for inner in walk(folder, left_out, recursive).all():
        taken = taken_by_exports(inner.files)
        for path in map(Path, inner.files):
            suffix = path.suffix.lower()
            if str(path) in taken:
                continue
            if is_fundus(path):
                other += 1
            elif suffix in IMAGE_SUFFIXES or suffix in VOLUME_SUFFIXES or _is_readable(path):
                found += 1
                yield Item(str(path))
            else:
                other += 1
    for closed, why in sorted(left_out.unreadable):
        yield Item(closed, f"cannot look into {closed}: {why}", "make it readable: the scans in it were not predicted")
    left_out.say()
    if other:
        log.info("%s: skipped %d files that are neither pictures nor volumes", folder, other)
    if not found:
        log.warning("%s has no pictures or volumes", folder)


def _pattern(name: str, shown: str, recursive: bool) -> Iterator[Item]:
    try:
        refuse_address(name)
    except DataError as e:
        yield Item(name, e.message, e.hint)
        return
    if not glob.has_magic(name):
        yield Item(shown, f"no such file: {shown}", "was it moved? give it again")
        return
    # Not pathlib's, which turns a pattern with .. in it down.
    matches = sorted(glob.glob(str(at_home(name)), recursive=True))  # noqa: PTH207
    matches = [match for match in matches if "__MACOSX" not in Path(match).parts]
    if not matches:
        yield Item(shown, f"nothing matches {shown}", "put the pattern in quotes, so that the shell does not expand it")
    for match in matches:
        path = Path(match)
        if not path.is_dir():
            yield Item(match)
        elif not name.rstrip("/").endswith("**"):  # whose folders' files match themselves
            yield from _folder(path, recursive)


def _table(file: Path, path_column: str | None) -> Iterator[Item]:
    table = load_table(file)
    names = [str(c) for c in table.columns]
    if path_column is not None and path_column not in names:
        raise UsageError(
            f"--path-column {path_column}: {file.name} has no such column; its columns are {', '.join(names)}",
            "name one of them",
        )
    columns = [path_column] if path_column else candidates("path", names)
    if not columns:
        raise DataError(
            f"{file} has no column that looks like a path; its columns are {', '.join(names)}",
            "name it: --path-column NAME",
        )
    if columns[0] != "path":
        log.info("%s: paths from the column %s", file.name, columns[0])
    cells = list(as_names(table[columns[0]]))
    of = {role: next(iter(candidates("patient", names) if role == "patient" else [role]), role) for role in _OF}
    said = {role: list(as_names(table[column])) for role, column in of.items() if column in names}
    ways = [file.parent / at_home(name) if name else file for name in cells]
    lost = [name for name, path in zip(cells, ways, strict=True) if name and _trouble(path)]
    elsewhere = dict(zip(lost, resolve_paths(lost, file), strict=True))
    for n, (name, path) in enumerate(zip(cells, ways, strict=True), start=2):
        if name is None:
            yield Item(str(file), f"{file}: line {n} has no path", "fill it in, or remove the line")
            continue
        if name in elsewhere and not _trouble(found := Path(elsewhere[name])):
            path = found
        path = (export_in(path) if path.is_dir() else None) or path
        problem, hint = _trouble(path, f"its path is relative to the folder of {file.name}") or ("", "")
        yield Item(str(path), problem, hint, {role: column[n - 2] or "" for role, column in said.items()})


def _trouble(path: Path, hint: str = "") -> tuple[str, ...]:
    """Why there is no file of a path, and what to do; empty where there is one."""
    try:
        return () if path.exists() else (f"no such file: {path}", hint)
    except (OSError, ValueError) as e:  # a name too long, or a folder that may not be looked into
        return f"cannot read {path}: {getattr(e, 'strerror', None) or e}", "correct the table"


def _is_readable(path: Path) -> bool:
    try:
        return path.is_file() and kind_of(path) != ""
    except OSError:
        return False
