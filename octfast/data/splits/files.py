"""Writes the splits of `octfast data split` as a CSV, and gives a Scans table its splits from one."""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from octfast.data.readers.columns import split_names
from octfast.data.readers.load import load_table
from octfast.data.readers.locate import resolve_paths
from octfast.data.scans import check_trainable, write_csv
from octfast.data.splits.folds import COLUMNS
from octfast.data.splits.hold_out import shared_patients
from octfast.errors import DataError, UsageError

log = logging.getLogger("octfast")


def check_free(file: str | Path) -> None:
    """Raise a DataError where there is such a file already."""
    if Path(file).expanduser().exists():
        raise DataError(f"{file} exists and is not overwritten", "give another --out, or remove it first")


def save_splits(splits: pd.DataFrame, file: str | Path) -> None:
    """Write splits as CSV, their paths relative to its folder, so that both can be moved together.

    Raises
    ------
    DataError : there is such a file already, or it cannot be written.
    """
    file = Path(file).expanduser()
    check_free(file)
    base = file.absolute().parent.resolve()

    # Of each folder once: it may hold all of a million scans.
    @cache
    def place(folder: str) -> Path:
        try:
            return Path(os.path.relpath(folder, base))
        except ValueError:  # another drive of Windows
            return Path(folder)

    def relative(path: str) -> str:
        folder, name = os.path.split(path)
        return name if place(folder) == Path() else f"{place(folder).as_posix()}/{name}"

    try:
        base.mkdir(parents=True, exist_ok=True)
        write_csv(splits.assign(path=[relative(p) for p in splits["path"]]), file)
    except OSError as e:
        raise DataError(f"cannot write {file}: {e}", "give a folder that can be written to") from e


def apply_splits(scans: pd.DataFrame | None, file: str | Path, fold: int | None = None) -> pd.DataFrame:
    """The scans with the splits that a CSV of `octfast data split` gives them.

    Parameters
    ----------
    scans : a Scans table, of which the CSV's files are taken with their further columns; None takes the CSV's alone.
    file : with the columns path, label, patient, split, and fold where one is asked for; paths from its folder.
    fold : validate on this fold and train on the others; None takes the split column.

    Returns
    -------
    A Scans table, sorted by path.

    Raises
    ------
    UsageError : no such fold.
    DataError : a column or files are missing, labels differ from those of `scans`, or a patient is in two splits.
    """
    file = Path(file).expanduser()
    # As it stands: a class may be named NA, and a patient end in a space.
    table = load_table(file, exact=True)
    lacking = [c for c in COLUMNS if c not in table.columns and (c != "fold" or fold is not None)]
    if lacking:
        raise DataError(
            f"{file} lacks the columns {', '.join(lacking)}", "make it with: octfast data split DATA --out splits.csv"
        )
    if table["path"].isna().any():
        raise DataError(f"{file} has rows without a path", "make it anew: octfast data split DATA --out splits.csv")
    out = table.assign(path=resolve_paths(table["path"], file))
    if out[["label", "patient"]].isna().any(axis=None) or out["path"].duplicated().any():
        raise DataError(f"{file} has rows without a label or patient, or a file twice", "make it anew")
    missing = [p for p in out["path"] if not Path(p).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(out)} files named by {file.name} do not exist; the first is {missing[0]}",
            "its paths start at its own folder: keep it where it was made, or move it with the data",
        )
    out["split"] = split_names(out["split"], file)
    if fold is not None:
        out["split"] = _with_fold(out, file, fold)
    out = _matched(scans, out, file) if scans is not None else out
    out = out.sort_values("path", ignore_index=True)
    shared = shared_patients(out)
    if len(shared):
        first = shared.iloc[0]
        raise DataError(
            f"{file.name} puts {len(shared)} patients into more than one split, the first {first['patient']} "
            f"({first['splits']})",
            "make it anew: octfast data split DATA --out splits.csv",
        )
    check_trainable(out, file.name, "make it anew: octfast data split DATA --out splits.csv")
    lead = ["path", "label", "patient", "split"]
    return out[[*lead, *(c for c in out.columns if c not in lead)]]


def _with_fold(out: pd.DataFrame, file: Path, fold: int) -> np.ndarray:
    numbers = pd.to_numeric(out["fold"], errors="coerce")
    inner = out["split"] != "test"
    if numbers[inner].isna().any():
        raise DataError(
            f"{file.name}: {int(numbers[inner].isna().sum())} scans outside of test are in no fold",
            "make it anew: octfast data split DATA --folds 5 --out splits.csv",
        )
    there = sorted(int(n) for n in numbers[inner].unique())
    if fold not in there:
        raise UsageError(f"--fold {fold}: no such fold in {file.name}", f"its folds are {', '.join(map(str, there))}")
    return np.where(inner, np.where(numbers == fold, "valid", "train"), "test")


def _matched(scans: pd.DataFrame, out: pd.DataFrame, file: Path) -> pd.DataFrame:
    both = scans.merge(out[["path", "label", "patient", "split"]], on="path", suffixes=("", "_new"))
    if both.empty:
        raise DataError(f"{file.name} names none of the {len(scans)} scans given", "is it of another data set?")
    differ = both[both["label"] != both["label_new"]]
    if len(differ):
        first = differ.iloc[0]
        raise DataError(
            f"{file.name} labels {len(differ)} scans otherwise than the data; the first: {first['path']} is "
            f"{first['label_new']} there, {first['label']} here",
            "make it anew: octfast data split DATA --out splits.csv",
        )
    for n, what in ((len(scans) - len(both), "scans are not named by"), (len(out) - len(both), "more scans are in")):
        if n:
            log.warning("%d %s %s and are left out", n, what, file.name)
    return both.assign(patient=both["patient_new"], split=both["split_new"]).drop(
        columns=["label_new", "patient_new", "split_new"]
    )
