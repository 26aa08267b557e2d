"""One factory for every kind of data set: read_data gives the Scans table of a folder, a table or a MedMNIST file."""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path, PureWindowsPath

import pandas as pd

from octfast.data.readers.medmnist import read_medmnist
from octfast.data.readers.table import (
    ROLES,
    TABLE_SUFFIXES,
    as_names,
    as_numbers,
    candidates,
    find_columns,
    load_table,
    looks_like_scans,
    split_names,
)
from octfast.data.scans import IMAGE_SUFFIXES, SPLIT_WORDS, data_root, patients_from_names, read_scans
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


def read_table(
    file: str | Path,
    *,
    path_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    trainable: bool = True,
) -> pd.DataFrame:
    """Read a CSV, TSV or parquet table of scans into a Scans table.

    Relative paths are taken from the table's folder, and a backslash stands for a slash where no file has one in its
    name. Rows without a path, a label or an existing file are left out, which the log says. Without a patient column
    the patient comes from names CLASS-PATIENT-IMAGE, else it is the file itself; without a split column all scans are
    training scans.

    Parameters
    ----------
    file : the table, see `octfast.data.readers.table.load_table`.
    path_column, label_column, patient_column, split_column : its columns; None guesses them by their names.
    trainable : as for `read_data`.

    Returns
    -------
    As `read_data`.

    Raises
    ------
    UsageError : a column that the table lacks.
    DataError : the table cannot be read, none of its files exists, an unknown split, a file under two labels, fewer
        than two classes to train on.
    """
    file = Path(file).expanduser()
    raw = load_table(file)
    named = {"path": path_column, "label": label_column, "patient": patient_column, "split": split_column}
    columns = find_columns(raw, file, named)
    scans = pd.DataFrame({role: as_names(raw[column]) for role, column in columns.items() if role != "path"})
    scans.insert(0, "path", raw[columns["path"]].astype(object).where(raw[columns["path"]].notna(), None))
    further = raw.drop(columns=list(columns.values())).apply(as_numbers)
    taken = {c: f"{c}_in_table" for c in further.columns if c in ROLES}
    if taken:
        log.warning(
            "%s: further columns are renamed: %s", file.name, ", ".join(f"{a} to {b}" for a, b in taken.items())
        )
    scans = _without_gaps(pd.concat([scans, further.rename(columns=taken)], axis=1), file)
    scans["path"] = resolve_paths(scans["path"], file)
    scans = _without_missing_files(scans, file)
    if "split" not in scans:
        scans["split"] = "train"
        log.info("%s has no column of splits: all scans are training scans", file.name)
    scans["split"] = split_names(scans["split"], file)
    scans = _without_repeats(scans, file).sort_values("path", ignore_index=True)
    scans["patient"] = _patients(scans, file)
    if trainable:
        check_trainable(scans, file)
    return scans[[*ROLES, *(c for c in scans.columns if c not in ROLES)]]


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
    return _common_folder(scans, source)


def resolve_paths(paths: pd.Series, file: Path) -> list[str]:
    """Paths made absolute from the folder of the table `file`; of several ways to read one, the first that exists."""
    base = file.absolute().parent.resolve()

    def resolve(text: str) -> str:
        ways = [text, text.strip()]
        ways += [way.replace("\\", "/") for way in ways if "\\" in way]
        places = [os.path.normpath(base / way) for way in ways]
        found = next((place for place in places if Path(place).is_file()), None)
        return found or (text if PureWindowsPath(text).drive else places[-1])

    return [resolve(str(path)) for path in paths]


def check_trainable(scans: pd.DataFrame, file: Path) -> None:
    """Raise a DataError where nothing or one class alone is left to train on, or test has a class that train lacks."""
    classes = sorted(scans.loc[scans["split"] != "test", "label"].unique())
    if not classes:
        raise DataError(f"all scans of {file.name} are test scans, none is for training", "give some another split")
    if len(classes) < 2:
        raise DataError(
            f"only one class in {file.name}: {classes[0]}",
            "a classifier needs two or more; another column is named with --label-column",
        )
    strange = sorted(set(scans.loc[scans["split"] == "test", "label"]) - set(classes))
    if strange:
        raise DataError(
            f"the test scans of {file.name} have classes that train lacks: {', '.join(strange)}",
            f"rename or remove them; train has {', '.join(classes)}",
        )


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


def _without_gaps(scans: pd.DataFrame, file: Path) -> pd.DataFrame:
    for role in ("path", "label"):
        gaps = scans[role].isna()
        if gaps.all():
            raise DataError(f"no row of {file.name} has a {role}", f"name another column with --{role}-column")
        if gaps.any():
            first = int(gaps.to_numpy().argmax())
            log.warning(
                "%s: %d rows without a %s are left out, the first of them %s",
                *(file.name, gaps.sum(), role, scans["path"].iloc[first] or f"row {first + 1}"),
            )
            scans = scans[~gaps]
    return scans.copy()


def _without_missing_files(scans: pd.DataFrame, file: Path) -> pd.DataFrame:
    lost = scans.loc[[not Path(p).is_file() for p in scans["path"]], "path"]
    if len(lost) == len(scans):
        foreign = PureWindowsPath(lost.iloc[0]).drive and os.name != "nt"
        raise DataError(
            f"none of the {len(scans)} files named by {file.name} exists; the first is {lost.iloc[0]}",
            "its paths are those of another machine; make them relative to the table's folder"
            if foreign
            else "relative paths start at the table's folder; move the table, or name another --path-column",
        )
    if len(lost):
        log.warning("%s: %d of %d files do not exist and are left out", file.name, len(lost), len(scans))
    for path in lost.head(5):
        log.warning("no such file: %s", path)
    if len(lost) > 5:
        log.warning("no such file: %d more", len(lost) - 5)
    return scans.drop(index=lost.index)


def _without_repeats(scans: pd.DataFrame, file: Path) -> pd.DataFrame:
    again = scans[scans.duplicated("path", keep=False)]
    for role in ("label", "patient", "split"):
        if role not in again or again.empty:
            continue
        values = again.fillna({role: ""}).groupby("path")[role].unique()
        for path, several in values[values.map(len) > 1].items():
            raise DataError(
                f"{file.name} gives {path} more than one {role}: {', '.join(map(str, several))}",
                "keep one row for each file",
            )
    if len(again):
        log.warning("%s names %d files more than once; each counts once", file.name, again["path"].nunique())
    return scans.drop_duplicates("path")


def _patients(scans: pd.DataFrame, file: Path) -> list[str]:
    root = _common_folder(scans, file)
    if "patient" not in scans:
        log.info("%s has no column of patients: they are taken from names CLASS-PATIENT-IMAGE", file.name)
        return patients_from_names(scans, root)
    gaps = scans["patient"].isna()
    if gaps.any():
        log.warning(
            "%s: %d rows have no patient; each of these scans is taken for a patient of its own", file.name, gaps.sum()
        )
    own = (Path(p).relative_to(root).as_posix() for p in scans["path"])
    return [name if gap else str(who) for name, gap, who in zip(own, gaps, scans["patient"], strict=True)]


def _common_folder(scans: pd.DataFrame, file: Path) -> Path:
    try:
        return Path(os.path.commonpath([Path(p).parent for p in scans["path"]]))
    except ValueError as e:
        raise DataError(f"the files of {file.name} lie on several drives", "move them to one") from e
