"""Reads CSV, TSV and parquet files that list scans into the Scans table."""

from __future__ import annotations

import logging
import os
from pathlib import Path, PureWindowsPath

import pandas as pd

from octfast.data.readers.columns import ROLES, find_columns, one_hot, refuse_several_labels, split_names
from octfast.data.readers.load import as_names, as_numbers, load_table
from octfast.data.readers.locate import resolve_paths
from octfast.data.readers.names import merge_spellings, merge_zeros, patients_from_names, read_from
from octfast.data.scans import SPLITS, check_trainable
from octfast.errors import DataError

log = logging.getLogger("octfast")

_OWN = ["path", "label", "patient", "split"]


def read_table(
    file: str | Path,
    *,
    path_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    patient_from: str | None = None,
    label_from: str | None = None,
    trainable: bool = True,
) -> pd.DataFrame:
    """Read a CSV, TSV or parquet table of scans into a Scans table.

    Relative paths are taken from the table's folder, and a backslash stands for a slash where no file has one in its
    name. Rows without a path, a label or an existing file are left out, which the log says. Without a patient column
    the patient comes from names CLASS-PATIENT-IMAGE, else it is the file itself; without a split column all scans are
    training scans.

    Parameters
    ----------
    file : the table, see `octfast.data.readers.load.load_table`.
    path_column, label_column, patient_column, split_column : its columns; None guesses them by their names.
        `label_column` may name several, as CNV,DME, with a 1 in the one of the class.
    patient_from, label_from : a column, or where in the path it stands: as for `read_data`.
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
    own = _is_own(raw, file)
    if own:
        raw = load_table(file, exact=True)
    if patient_from in raw.columns:
        patient_column, patient_from = patient_from, None
    if label_from in raw.columns:
        label_column, label_from = label_from, None
    labels = one_hot(raw, file, label_column) if label_column not in raw.columns and not label_from else None
    if label_from:
        # Read from the paths below, once these are found.
        labels = pd.Series("?", index=raw.index)
    if labels is not None:
        label_column = next(n for n in ("label", "label of path", "label of path ") if n not in raw.columns)
        raw = raw.assign(**{label_column: labels})
    named = {"path": path_column, "label": label_column, "patient": patient_column, "split": split_column}
    columns = find_columns(raw, file, named)
    as_text = _exact if own else as_names
    scans = pd.DataFrame({role: as_text(raw[column]) for role, column in columns.items() if role != "path"})
    scans.insert(0, "path", raw[columns["path"]].astype(object).where(raw[columns["path"]].notna(), None))
    if not own:
        refuse_several_labels(scans["label"], file)
    further = raw.drop(columns=list(columns.values())).apply(as_numbers)
    taken = {c: f"{c}_in_table" for c in further.columns if c in ROLES}
    if taken:
        log.warning(
            "%s: further columns are renamed: %s", file.name, ", ".join(f"{a} to {b}" for a, b in taken.items())
        )
    scans = _without_gaps(pd.concat([scans, further.rename(columns=taken)], axis=1), file)
    scans["path"] = resolve_paths(scans["path"], file)
    scans = _without_missing_files(scans, file)
    if label_from:
        scans["label"] = read_from(scans["path"].tolist(), _base(scans, file), label_from, "label")
    if not own:
        scans["label"] = merge_spellings(scans["label"], file.name)
    if "split" not in scans:
        scans["split"] = "train"
        log.info("%s has no column of splits: all scans are training scans", file.name)
    scans["split"] = split_names(scans["split"], file)
    scans = _without_repeats(scans, file).sort_values("path", ignore_index=True)
    scans["patient"] = _patients(scans, file, patient_from)
    if not own:
        scans["patient"] = merge_zeros(scans["patient"], file.name)
    if trainable:
        check_trainable(scans, file.name, "name another --label-column or --split-column")
    return scans[[*ROLES, *(c for c in scans.columns if c not in ROLES)]]


def _without_gaps(scans: pd.DataFrame, file: Path) -> pd.DataFrame:
    for role in ("path", "label"):
        gaps = scans[role].isna()
        if gaps.all():
            raise DataError(f"no row of {file.name} has a {role}", f"name another column with --{role}-column")
        if gaps.any():
            first = int(gaps.to_numpy().argmax())
            log.warning(
                "%s: %d rows without a %s are left out, the first of them %s (NA, nan and null count as none)",
                *(file.name, gaps.sum(), role, scans["path"].iloc[first] or f"row {first + 1}"),
            )
            scans = scans[~gaps]
    return scans.copy()


def _without_missing_files(scans: pd.DataFrame, file: Path) -> pd.DataFrame:
    lost = scans.loc[[not Path(p).exists() for p in scans["path"]], "path"]
    if len(lost) == len(scans):
        foreign = PureWindowsPath(lost.iloc[0]).drive and os.name != "nt"
        raise DataError(
            f"none of the {len(scans)} files named by {file.name} exists; the first is {lost.iloc[0]}",
            "its paths are those of another machine; make them relative to the table's folder"
            if foreign
            else "relative paths start at the table's folder; move the table, or name another --path-column",
        )
    gone = sorted(set(scans["label"]) - set(scans.drop(index=lost.index)["label"]))
    if gone:
        raise DataError(
            f"none of the files of {gone[0]} exists, and {len(lost)} of {len(scans)} of {file.name} do not; the first "
            f"is {lost.iloc[0]}",
            "correct the paths, or remove these rows: no class is dropped unawares",
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


def _is_own(raw: pd.DataFrame, file: Path) -> bool:
    """Whether octfast wrote a table of scans or splits, in which every value stands as it is meant."""
    if list(raw.columns[:4]) != _OWN or not raw["split"].isin(SPLITS).all():
        return False
    with file.open("rb") as f:
        return f.readline().endswith(b"\r\n")


def _exact(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.notna(), None)


def _patients(scans: pd.DataFrame, file: Path, rule: str | None) -> list[str]:
    root = common_folder(scans, file)
    if rule == "name":
        return patients_from_names(scans, root)
    if rule:
        return read_from(scans["path"].tolist(), _base(scans, file), rule, "patient")
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


def _base(scans: pd.DataFrame, file: Path) -> Path:
    """What parts of paths are counted from: the table's folder, or the common one where scans lie outside of it."""
    base = file.absolute().parent.resolve()
    return base if all(Path(p).is_relative_to(base) for p in scans["path"]) else common_folder(scans, file)


def common_folder(scans: pd.DataFrame, file: Path) -> Path:
    """The folder that all scans of a table lie in.

    Raises
    ------
    DataError : they lie on several drives.
    """
    try:
        return Path(os.path.commonpath([Path(p).parent for p in scans["path"]]))
    except ValueError as e:
        raise DataError(f"the files of {file.name} lie on several drives", "move them to one") from e
