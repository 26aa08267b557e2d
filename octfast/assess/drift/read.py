"""Reads the table that `octfast predict` wrote: whose scan each row is, from when, and what its picture is like."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from octfast.data.preprocess import decode_grey
from octfast.data.readers.load import load_table
from octfast.data.readers.names import class_key, patient_in_name, read_from
from octfast.errors import DataError, OctfastError, UsageError
from octfast.files import in_threads, usable_cores

log = logging.getLogger("octfast")

PERIODS = {"day": "D", "week": "W", "month": "M", "quarter": "Q", "year": "Y"}


def read_answers(file: str | Path, classes: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """(a row a scan that could be read, how many could not).

    Parameters
    ----------
    file : CSV, JSON lines or parquet that `octfast predict` wrote.
    classes : of the model.

    Returns
    -------
    Beside the table's own columns, with numbers as such: `unlike_training` and `referred` as 0 or 1, NaN where nothing
    is said.

    Raises
    ------
    DataError : no such table, one of another model, or one without a scan.
    """
    file = Path(file).expanduser()
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        try:
            table = pd.read_json(file, lines=True, dtype=False)
        except (OSError, ValueError) as e:
            raise DataError(f"cannot read {file}: {e}", "give the table that octfast predict --out wrote") from None
    else:
        table = load_table(file, exact=True)
    wanted = ["path", "predicted", "probability", *(f"p_{c}" for c in classes)]
    missing = [c for c in wanted if c not in table.columns]
    if missing:
        raise DataError(
            f"{file} is no table that octfast predict wrote with this model: it has no column {missing[0]}",
            "give the table of --out, and the run that it was made with: --run RUN",
        )
    strange = [c for c in table.columns if c.startswith("p_") and c not in wanted]
    if strange:
        raise DataError(
            f"{file} is of another model: it has a column {strange[0]}, and this model knows {', '.join(classes)}",
            "name the run that it was made with: --run RUN",
        )
    for name in {*wanted[2:], "distance", "urgent_score"} & set(table.columns):
        table[name] = pd.to_numeric(table[name], errors="coerce")
    for name in {"unlike_training", "referred"} & set(table.columns):
        said = table[name].astype(str).str.strip().str.lower()
        table[name] = said.map({"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0})
    table["predicted"] = table["predicted"].fillna("").astype(str)
    unread = table["probability"].isna() & (table["predicted"] == "")
    if "unlike_training" in table:
        unread &= table["unlike_training"].ne(1)
    answered = table[~unread].reset_index(drop=True)
    if answered.empty:
        raise DataError(f"{file} has no scan that could be read", "predict other scans")
    return answered, int(unread.sum())


def with_column(table: pd.DataFrame, name: str, scans: pd.DataFrame | None, what: str) -> pd.Series:
    """A column of the table of answers, or of the table of scans that were asked about, row by row.

    Parameters
    ----------
    scans : of `read_scans`, by place of the file.

    Raises
    ------
    UsageError : neither has such a column.
    DataError : no row, or not every row, is to be found there.
    """
    if name in table.columns:
        found = table[name]
    elif scans is not None and name in scans.columns:
        found = table["path"].map(lambda p: _place(p)).map(scans[name])
    else:
        where = "neither the table of answers nor --scans has" if scans is not None else "the table of answers has not"
        raise UsageError(f"--{what}-column {name}: {where} such a column", "name the table that has it: --scans TABLE")
    empty = found.isna() | (found.astype(str).str.strip() == "")
    if empty.any():
        raise DataError(
            f"{int(empty.sum()):,} of {len(table):,} scans have no {name}, as {table['path'][empty].iloc[0]}",
            "leave these scans out, or give their " + what,
        )
    return found


def read_scans(file: str | Path, path_column: str | None = None) -> pd.DataFrame:
    """A table of scans by the place of each file; of several rows a file the first."""
    file = Path(file).expanduser()
    table = load_table(file)
    name = path_column or "path"
    if name not in table.columns:
        raise UsageError(f"{file} has no column {name}", "name the one with the files: --path-column NAME")
    here, beside = table.copy(), table.copy()
    here.index = pd.Index([_place(p) for p in table[name].astype(str)])
    beside.index = pd.Index([_place(p, file.parent) for p in table[name].astype(str)])
    both = pd.concat([beside, here])
    return both[~both.index.duplicated()]


def patients_of(
    table: pd.DataFrame, column: str | None, rule: str | None, scans: pd.DataFrame | None, classes: Sequence[str]
) -> tuple[pd.Series, str]:
    """(the patient of each scan, where that comes from in words). Nothing is guessed: without either a file is one.

    Parameters
    ----------
    column, rule : the column with the patient, or where it stands in the path, see `--patient-from`.
    classes : of the model, which names begin with.
    """
    if column is not None and rule is not None:
        raise UsageError("--patient-column and --patient-from do not go together", "give one of them")
    if column is not None:
        return with_column(table, column, scans, "patient").astype(str), f"column {column}"
    if rule is not None:
        places = [_place(p) for p in table["path"].astype(str)]
        if rule == "name":
            found = [patient_in_name(Path(p).stem, {class_key(c) for c in classes}) for p in places]
            if "" in found:
                raise DataError(
                    f"--patient-from name: {Path(places[found.index('')]).name} is not named CLASS-PATIENT-IMAGE",
                    "give a pattern, or --patient-column",
                )
            return pd.Series(found, index=table.index), "the files' names"
        root = Path(os.path.commonpath([str(Path(p).parent) for p in places]))
        # One level up, so that the folder they share has a name to read, too.
        return pd.Series(read_from(places, root.parent, rule, "patient"), index=table.index), f"the path ({rule})"
    log.warning(
        "no patients are named: each file counts as a patient of its own, which makes intervals too narrow where they "
        "have several; --patient-column or --patient-from names them"
    )
    return table["path"].astype(str), "each file"


def periods_of(
    table: pd.DataFrame, by: str, column: str | None, file_dates: bool, scans: pd.DataFrame | None
) -> pd.Series:
    """The day, week, month, quarter or year of each scan.

    Raises
    ------
    UsageError : no dates, or two sources of them.
    DataError : a date that cannot be read without guessing, or a file that is not there.
    """
    if by not in PERIODS:
        raise UsageError(f"--by {by}: unknown", f"one of {', '.join(PERIODS)}")
    if (column is None) == (not file_dates):
        asked = "both a column and the files' dates are asked for" if file_dates else f"--by {by} needs dates"
        raise UsageError(asked, "give --date-column NAME, or --file-dates for when each file was last changed")
    if column is None:
        try:
            stamps = [Path(_place(p)).stat().st_mtime for p in table["path"].astype(str)]
        except OSError as e:
            raise DataError(f"--file-dates: {e.filename} is not there", "give --date-column NAME") from None
        dates = pd.Series(pd.to_datetime(stamps, unit="s"), index=table.index)
    else:
        given = with_column(table, column, scans, "date").astype(str).str.strip()
        # Which of 01/02/2026 is the month cannot be known; ISO's order is one alone.
        dates = pd.to_datetime(given, format="ISO8601", errors="coerce", utc=True).dt.tz_localize(None)
        if dates.isna().any():
            raise DataError(
                f"column {column}: {given[dates.isna()].iloc[0]!r} is no date that can be read without guessing",
                "write dates as 2026-02-01",
            )
    # A week is named by its Monday.
    return dates.dt.to_period(PERIODS[by]).astype(str).str.split("/").str[0]


def measure(paths: Sequence[str], progress: Callable[[int, int], None] | None = None) -> pd.DataFrame:
    """`brightness` and `contrast` of pictures, the mean and the deviation of their grey, 0 to 1; NaN if unreadable."""

    def one(path: str) -> tuple[float, float]:
        try:
            grey = np.asarray(decode_grey(path), dtype=np.float32) / 255
        except OctfastError:
            return float("nan"), float("nan")
        return float(grey.mean()), float(grey.std())

    found = []
    for n, each in enumerate(in_threads(one, paths, min(8, usable_cores())), start=1):
        found.append(each)
        if progress:
            progress(n, len(paths))
    return pd.DataFrame(found, columns=["brightness", "contrast"])


def _place(path: str, folder: Path | None = None) -> str:
    return str(Path(os.path.abspath(Path(folder or ".") / Path(path).expanduser())))  # noqa: PTH100
