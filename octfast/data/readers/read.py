"""One factory for every kind of data set: read_data gives the Scans table of a folder, a table or a MedMNIST file."""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path

import pandas as pd

from octfast.data.readers.folder import data_root, read_scans
from octfast.data.readers.medmnist import read_medmnist
from octfast.data.readers.table import (
    TABLE_SUFFIXES,
    as_names,
    candidates,
    common_folder,
    load_table,
    looks_like_scans,
    read_table,
)
from octfast.data.scans import IMAGE_SUFFIXES, SPLIT_WORDS
from octfast.errors import DataError, UsageError

log = logging.getLogger("octfast")

_KINDS = "give a folder of scans, a CSV, TSV or parquet table of them, or a MedMNIST .npz file"


def read_data(
    source: str | Path,
    *,
    path_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    cache: str | Path | None = None,
    trainable: bool = True,
) -> pd.DataFrame:
    """Read a data set of any kind that octfast knows into a Scans table; what is guessed is said in the log.

    Parameters
    ----------
    source : a folder that `read_scans` understands; a .csv, .tsv or .parquet table (see `read_table`); a MedMNIST .npz
        file (see `read_medmnist`); or a folder that holds one of these.
    path_column, label_column, patient_column, split_column : columns of a table; None guesses them.
    cache : where a MedMNIST file is unpacked; None takes OCTFAST_CACHE, else the user's cache folder.
    trainable : whether to refuse what cannot be trained on: test scans or one class alone.

    Returns
    -------
    A row a scan, sorted by path: `path` (absolute), `label`, `patient`, `split` (train, valid, test), then a table's
    further columns.

    Raises
    ------
    UsageError : a column that the table lacks, or columns named for what is no table.
    DataError : nothing that can be read, or more than one thing that could be meant.
    """
    named = {"path": path_column, "label": label_column, "patient": patient_column, "split": split_column}
    source = Path(source).expanduser()
    if not source.exists():
        raise DataError(f"no such file or folder: {source}", _near(source) or _KINDS)
    kind = source if source.is_file() else _choose(source, any(named.values()))
    suffix = kind.suffix.lower()
    if kind.is_file() and suffix in TABLE_SUFFIXES:
        return read_table(kind, **{f"{role}_column": name for role, name in named.items()}, trainable=trainable)
    role = next((role for role, name in named.items() if name is not None), None)
    if role is not None:
        raise UsageError(f"--{role}-column {named[role]}: {kind} is no table", "leave it out, or give the table")
    if kind.is_dir():
        return read_scans(source, trainable=trainable)
    if suffix == ".npz":
        return read_medmnist(kind, cache=cache)
    if suffix in (".zip", ".gz", ".tar", ".tgz", ".7z", ".rar"):
        raise DataError(f"{kind} is an archive", "unpack it and give the folder")
    what = "one picture, not a data set" if suffix in IMAGE_SUFFIXES else "of no kind that octfast reads"
    raise DataError(f"{kind} is {what}", _KINDS)


def data_folder(source: str | Path, scans: pd.DataFrame) -> Path:
    """The folder that a run keeps its paths relative to: the data's, if all scans lie in it, else their common one.

    Parameters
    ----------
    source : as given to `read_data`.
    scans : what it gave.
    """
    source = Path(source).expanduser()
    if source.is_dir():
        root = data_root(source)
        if all(Path(p).is_relative_to(root) for p in scans["path"]):
            return root
    return common_folder(scans, source)


def _choose(folder: Path, columns_named: bool) -> Path:
    """What in a folder is meant: a table, a MedMNIST file, or the folder itself, with its class folders."""
    place = folder
    tables, archives = _tables(folder), sorted(folder.glob("*.npz"))
    if not tables and not archives:
        place = data_root(folder)
        tables, archives = _tables(place), sorted(place.glob("*.npz"))
    classes = _class_folders(place)
    if columns_named and len(tables) == 1:
        return tables[0]
    found = [*tables, *archives]
    if not found:
        return folder
    if classes and not archives and all(_same_labels(table, classes) for table in tables):
        names = ", ".join(t.name for t in tables)
        log.info("the folders of %s give the same classes as %s: the folders are read", place, names)
        return folder
    if len(found) == 1 and not classes:
        log.info("reading %s", found[0])
        return found[0]
    shown = ", ".join(p.name for p in found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
    also = f", and folders of scans ({', '.join(sorted(classes)[:4])})" if classes else ""
    raise DataError(f"{place} could be read in more than one way: {shown}{also}", f"name the one meant: {found[0]}")


def _tables(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in TABLE_SUFFIXES and not f.name.startswith("."))
    return [f for f in files if f.is_file() and looks_like_scans(f)]


def _class_folders(root: Path) -> set[str]:
    """The names of the class folders that `read_scans` would find: two or more, or below folders of splits."""
    inner = _folders(root)
    splits = [d for d in inner if d.name.lower() in SPLIT_WORDS]
    holders = [label for split in splits for label in _folders(split)] if splits else inner
    names = {d.name for d in holders if _holds_images(d)}
    return names if splits or len(names) > 1 else set()


def _folders(folder: Path) -> list[Path]:
    return [d for d in folder.iterdir() if d.is_dir() and not d.name.startswith((".", "__MACOSX"))]


def _holds_images(folder: Path) -> bool:
    return any(
        Path(name).suffix.lower() in IMAGE_SUFFIXES
        for _, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".")
    )


def _same_labels(table: Path, classes: set[str]) -> bool:
    try:
        raw = load_table(table)
    except DataError:
        return False
    label = candidates("label", [str(c) for c in raw.columns])[0]
    return set(as_names(raw[label]).dropna()) <= classes


def _near(source: Path) -> str:
    try:
        names = [p.name for p in source.absolute().parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(source.name, names, n=1, cutoff=0.6)
    return f"did you mean {source.with_name(near[0])}?" if near else ""
