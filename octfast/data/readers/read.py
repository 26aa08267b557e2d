"""One factory for every kind of data set: read_data gives the Scans table of a folder, a table or a MedMNIST file."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path

import pandas as pd

from octfast.data.readers.columns import candidates, looks_like_scans, names_patients
from octfast.data.readers.folder import look_through, read_layout
from octfast.data.readers.layout import Layout
from octfast.data.readers.load import LIST_SUFFIX, TABLE_SUFFIXES, WORKBOOKS, as_names, load_table, refuse_workbook
from octfast.data.readers.medmnist import read_medmnist
from octfast.data.readers.names import class_key, patient_in_name
from octfast.data.readers.table import common_folder, read_table
from octfast.data.readers.volumes import TAG, names_volumes, with_volumes
from octfast.data.scans import IMAGE_SUFFIXES
from octfast.data.volumes.kinds import is_volume
from octfast.data.volumes.store import ABOUT, is_fundus
from octfast.errors import DataError, UsageError
from octfast.files import refuse_address

log = logging.getLogger("octfast")

_KINDS = (
    "give a folder of scans or volumes, a CSV, TSV or parquet table or a .txt list of them, or a MedMNIST .npz file"
)


def read_data(
    source: str | Path,
    *,
    path_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    patient_from: str | None = None,
    label_from: str | None = None,
    cache: str | Path | None = None,
    trainable: bool = True,
) -> pd.DataFrame:
    """Read a data set of any kind that octfast knows into a Scans table; what is guessed is said in the log.

    Parameters
    ----------
    source : a folder that `read_scans` understands; a .csv, .tsv or .parquet table (see `read_table`); a .txt list of
        paths, whose classes are the folders that they lie in; a MedMNIST .npz file (see `read_medmnist`); or a folder
        that holds one of these. In folders, tables and lists, volumes may stand in the place of pictures, see
        `octfast.data.readers.volumes.with_volumes`.
    path_column, label_column, patient_column, split_column : columns of a table; None guesses them.
    patient_from, label_from : where the patient or the class stands: `folder` (that the file lies in), `folder:2` (the
        one above), a pattern for the path, or a column of a table; for the patient also `name` (CLASS-PATIENT-IMAGE)
        and `tag` (the file of a volume). None goes by the layout, the columns, and files of volumes.
    cache : where a MedMNIST file and volumes are unpacked; None takes OCTFAST_CACHE, else the user's cache folder.
    trainable : whether to refuse what cannot be trained on: test scans or one class alone.

    Returns
    -------
    A row a scan, sorted by path: `path` (absolute), `label`, `patient`, `split` (train, valid, test), then a table's
    further columns; and where there are volumes, those that `octfast.data.readers.volumes.with_volumes` adds.

    Raises
    ------
    UsageError : a column that the table lacks, or columns named for what is no table.
    DataError : nothing that can be read, or more than one thing that could be meant.
    """
    named = {"path": path_column, "label": label_column, "patient": patient_column, "split": split_column}
    refuse_address(source)
    source = Path(source).expanduser()
    if not source.exists():
        raise DataError(f"no such file or folder: {source}", _near(source) or _KINDS)
    origin = {"patient_from": None if patient_from == TAG else patient_from, "label_from": label_from}
    layout = look_through(source) if source.is_dir() else None
    kind = _choose(layout, source, any(named.values())) if layout else source
    suffix = kind.suffix.lower()
    if kind.is_file() and suffix in (*TABLE_SUFFIXES, LIST_SUFFIX):
        columns = {f"{role}_column": name for role, name in named.items()}
        if suffix == LIST_SUFFIX and not label_from:
            origin["label_from"] = "folder"
        scans = read_table(kind, **columns, **origin, trainable=trainable)
        if layout:
            _say_unnamed(layout, scans, kind)
        by_name = bool(patient_column or patient_from) or names_patients(kind)
        base = kind.absolute().parent.resolve()
        return with_volumes(scans, base, named_patients=by_name, patient_from=patient_from, cache=cache)
    role = next((role for role, name in named.items() if name is not None), None)
    if role is not None:
        raise UsageError(f"--{role}-column {named[role]}: {kind} is not a table", "leave it out, or give the table")
    if layout and kind.is_dir():
        scans = read_layout(layout, **origin, trainable=trainable)
        _say_tables(layout, source)
        by_rule = patient_from is not None
        return with_volumes(scans, layout.root, named_patients=by_rule, patient_from=patient_from, cache=cache)
    if suffix in WORKBOOKS:
        refuse_workbook(kind)
    if suffix == ".npz":
        return read_medmnist(kind, cache=cache)
    if suffix in (".zip", ".gz", ".tar", ".tgz", ".7z", ".rar"):
        raise DataError(f"{kind} is an archive", "unpack it and give the folder")
    what = "one picture, not a data set" if suffix in IMAGE_SUFFIXES else "of no kind that octfast reads"
    if is_volume(kind):
        raise DataError(f"{kind} is one volume, not a data set", "octfast predict asks a model about it")
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
        root = look_through(source).root
        if all(Path(p).is_relative_to(root) for p in scans["path"]):
            return root
    made = next((Path(p) for p in scans["path"] if (Path(p).parent / ABOUT).is_file()), None)
    if made is not None and not made.is_relative_to(source.absolute()):
        # Of volumes, the folder of the cache that has a folder a file.
        return made.parents[1]
    return common_folder(scans, source)


def _choose(layout: Layout, folder: Path, columns_named: bool) -> Path:
    """What to read in a folder: a table, a MedMNIST file, or the folder itself with its class folders."""
    tables, archives = _tables(layout, folder), _files(layout, folder, ".npz")
    if columns_named and len(tables) == 1:
        return tables[0]
    files = [*tables, *archives]
    if not files:
        return folder
    classes = _classes(layout)
    if classes and not archives and all(_same_labels(table, classes) for table in tables):
        names = ", ".join(t.name for t in tables)
        if len(tables) == 1 and names_patients(tables[0]) and not _names_say_patients(layout, classes):
            log.warning("the folders of %s do not say the patients, but %s does: the table is read", layout.root, names)
            return tables[0]
        log.info("the folders of %s give the same classes as %s: the folders are read", layout.root, names)
        return folder
    if len(files) == 1 and (not classes or (tables and _of_volumes(tables[0]))):
        log.info("reading %s", files[0])
        return files[0]
    shown = ", ".join(p.name for p in files[:6]) + (f" and {len(files) - 6} more" if len(files) > 6 else "")
    also = f", and folders of scans ({', '.join(sorted(classes)[:4])})" if classes else ""
    raise DataError(
        f"{layout.root} could be read in more than one way: {shown}{also}", f"name the one meant: {files[0]}"
    )


def _of_volumes(table: Path) -> bool:
    """Whether a table names volumes, or pictures that were made of them, as far as its first rows tell."""
    try:
        raw = load_table(table)
    except DataError:
        return False
    column = candidates("path", [str(c) for c in raw.columns])[0]
    return names_volumes([str(table.parent / p) for p in as_names(raw[column].head(20)).dropna()])


def _classes(layout: Layout) -> set[str]:
    """The classes that folders make: two or more, or those of splits; none where nobody can tell."""
    try:
        places = layout.places()
    except DataError:
        return set()
    names = {p.label for p in places}
    return names if len(names) > 1 or any(Path(p.folder.path).parent != layout.root for p in places) else set()


def _names_say_patients(layout: Layout, classes: set[str]) -> bool:
    keys = {class_key(c) for c in classes}
    return all(patient_in_name(Path(p).stem, keys) for p in layout.pictures())


def _files(layout: Layout, folder: Path, *suffixes: str) -> list[Path]:
    """The files with an ending in the folder, and in those on the way down to the root of its scans."""
    folder = folder.resolve()
    inner = layout.root.relative_to(folder).parts
    places = [folder.joinpath(*inner[:n]) for n in range(len(inner) + 1)]
    found = (f for at in places for f in sorted(at.iterdir()) if f.suffix.lower() in suffixes)
    return [f for f in found if f.is_file() and not f.name.startswith(".")]


def _tables(layout: Layout, folder: Path) -> list[Path]:
    return [f for f in _files(layout, folder, *TABLE_SUFFIXES) if looks_like_scans(f)]


def _say_tables(layout: Layout, folder: Path) -> None:
    """Say where a table lies beside the folders that names patients, and is not read."""
    for file in _files(layout, folder, *TABLE_SUFFIXES, *WORKBOOKS):
        if file.suffix.lower() in WORKBOOKS:
            log.warning("there is a workbook here that is not read: %s; as CSV it can be given instead", file)
        elif names_patients(file):
            log.warning("there is a table here with patients that is not read: %s; give it instead to take them", file)


def _say_unnamed(layout: Layout, scans: pd.DataFrame, file: Path) -> None:
    named = set(scans["path"])
    made = [p for p in layout.pictures() if p not in named and str(Path(p).parent) not in named]
    # Beside the B-scans of an extracted volume lies the picture of its fundus.
    rest = [p for p in made if not is_fundus(Path(p))]
    if rest:
        log.warning(
            "left out: %d pictures below %s in no row of %s; the first: %a", len(rest), layout.root, file.name, rest[0]
        )


def _same_labels(table: Path, classes: set[str]) -> bool:
    try:
        raw = load_table(table)
    except DataError:
        return False
    label = candidates("label", [str(c) for c in raw.columns])[0]
    return {class_key(name) for name in as_names(raw[label]).dropna()} <= {class_key(name) for name in classes}


def _near(source: Path) -> str:
    try:
        names = [p.name for p in source.absolute().parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(source.name, names, n=1, cutoff=0.6)
    return f"did you mean {source.with_name(near[0])}?" if near else ""
