"""One factory for every kind of data set: read_data gives the Scans table of a folder, a table or a MedMNIST file."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path

import pandas as pd

from octfast.data.readers.folder import class_folders, data_root, read_scans
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
from octfast.data.scans import IMAGE_SUFFIXES
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
    """What to read in a folder: a table, a MedMNIST file, or the folder itself with its class folders."""
    root = folder
    tables, archives = _tables(folder), sorted(folder.glob("*.npz"))
    if not tables and not archives:
        root = data_root(folder)
        tables, archives = _tables(root), sorted(root.glob("*.npz"))
    classes = class_folders(root)
    if columns_named and len(tables) == 1:
        return tables[0]
    files = [*tables, *archives]
    if not files:
        return folder
    if classes and not archives and all(_same_labels(table, classes) for table in tables):
        names = ", ".join(t.name for t in tables)
        log.info("the folders of %s give the same classes as %s: the folders are read", root, names)
        return folder
    if len(files) == 1 and not classes:
        log.info("reading %s", files[0])
        return files[0]
    shown = ", ".join(p.name for p in files[:6]) + (f" and {len(files) - 6} more" if len(files) > 6 else "")
    also = f", and folders of scans ({', '.join(sorted(classes)[:4])})" if classes else ""
    raise DataError(f"{root} could be read in more than one way: {shown}{also}", f"name the one meant: {files[0]}")


def _tables(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in TABLE_SUFFIXES and not f.name.startswith("."))
    return [f for f in files if f.is_file() and looks_like_scans(f)]


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
