"""Loads CSV, TSV and parquet tables as people save them, every value as text."""

from __future__ import annotations

import csv
import logging
import re
from pathlib import Path

import pandas as pd

from octfast.errors import DataError
from octfast.files import refuse_address

log = logging.getLogger("octfast")

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet", ".pq"})
LIST_SUFFIX = ".txt"
WORKBOOKS = frozenset({".xlsx", ".xls", ".xlsm", ".ods"})
# Not "None": among the grades of a disease it is a class.
_MISSING = ["", "NA", "N/A", "#N/A", "NaN", "nan", "<NA>", "null", "NULL"]


def load_table(file: str | Path, exact: bool = False) -> pd.DataFrame:
    """A table as it stands; every value of a CSV or TSV is text, or missing.

    Parameters
    ----------
    file : .csv (comma, semicolon, tab or bar; UTF-8, UTF-16 or Windows-1252), .tsv or .parquet; or .txt, a path a line.
    exact : take every value of text as it stands, as octfast wrote it: "NA" and spaces too; only "" is missing.

    Raises
    ------
    DataError : no such file, an unknown kind, no rows, or it cannot be parsed.
    """
    refuse_address(file)
    file = Path(file)
    if not file.is_file():
        raise DataError(f"no such table: {file}", "give a CSV, TSV or parquet file")
    if file.suffix.lower() == LIST_SUFFIX:
        return _list(file)
    if file.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(f"not a table: {file}", f"tables end in {', '.join(sorted(TABLE_SUFFIXES))}")
    try:
        refuse_workbook(file)
        table = _parquet(file) if _is_parquet(file) else _text(file, exact)
    except (OSError, ValueError, csv.Error) as e:
        said = " ".join(str(e).split()) or type(e).__name__
        raise DataError(f"cannot read {file}: {said}", "save it again, as CSV with a line of column names") from e
    if table.empty:
        raise DataError(f"{file} has no rows", "it needs a row a scan, below a row of column names")
    return table


def as_names(column: pd.Series) -> pd.Series:
    """Labels, patients or splits as text without spaces around; None where missing.

    Where all are whole numbers, some written as 3.0, these become "3": pandas writes them so beside a gap. So does one
    whose "3" is there, too.
    """
    text = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    given = text[text != ""]
    point = given.str.fullmatch(r"-?\d+\.0")
    if point.any():
        short = given[point].str.removesuffix(".0")
        if not given.str.fullmatch(r"-?\d+(\.0)?").all():
            short = short[short.isin(set(given))]
        text = text.where(~text.index.isin(short.index), text.str.removesuffix(".0"))
    return text.astype(object).where(text != "", None)


def as_numbers(column: pd.Series) -> pd.Series:
    """A further column as numbers where all of it is; 007 is a name, not a number."""
    if column.dtype != object and not pd.api.types.is_string_dtype(column.dtype):
        return column
    text = column.dropna().astype(str).str.strip()
    if text.empty or text.str.match(r"[-+]?0\d").any():
        return column
    try:
        return pd.to_numeric(column)
    except (ValueError, TypeError):
        return column


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() in (".parquet", ".pq")


def _encoding(file: Path) -> str:
    with file.open("rb") as f:
        if f.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
    try:
        with file.open(encoding="utf-8-sig") as text:
            while text.read(1 << 20):
                pass
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig"


def _first_line(file: Path, encoding: str) -> tuple[list[str], str, int]:
    """The column names, the separator (the one that cuts the first line into most columns), and lines above to skip."""
    with file.open(encoding=encoding, newline="") as f:
        lines = [f.readline() for _ in range(3)]
    # Excel's own line for the separator.
    if said := re.fullmatch(r'"?sep=(.)"?', lines[0].strip("\r\n"), re.IGNORECASE):
        return [c.strip() for c in next(csv.reader(lines[1:], delimiter=said[1]), [])], said[1], 1
    seps = "\t" if file.suffix.lower() == ".tsv" else ",;\t|"
    cut = {sep: next(csv.reader(lines, delimiter=sep), []) for sep in seps}
    sep = max(cut, key=lambda s: len(cut[s]))
    return [c.strip() for c in cut[sep]], sep, 0


def header(file: Path) -> list[str]:
    """The names of a table's columns.

    Raises
    ------
    OSError, ValueError, csv.Error, DataError : it cannot be read.
    """
    refuse_workbook(file)
    return [str(c) for c in _parquet(file).columns] if _is_parquet(file) else _first_line(file, _encoding(file))[0]


def refuse_workbook(file: Path) -> None:
    """Refuse what Excel saves in place of a table, whatever its name.

    Raises
    ------
    DataError : it is a workbook.
    """
    with file.open("rb") as f:
        start = f.read(8)
    if file.suffix.lower() in WORKBOOKS or start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(
            f"{file} is a workbook of Excel or an archive, whatever its name",
            "in Excel: File, Save As, CSV UTF-8 (comma delimited); then give that file",
        )


def _text(file: Path, exact: bool) -> pd.DataFrame:
    encoding = _encoding(file)
    if encoding == "cp1252":
        log.warning("%s is not UTF-8: read as Windows-1252", file.name)
    names, sep, above = _first_line(file, encoding)
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two columns are named {twice}")
    # As text, since pandas would make 7 of a patient 007, and a gap of a class None.
    table = pd.read_csv(
        file,
        sep=sep,
        encoding=encoding,
        dtype=str,
        keep_default_na=False,
        na_values=[""] if exact else _MISSING,
        skipinitialspace=not exact,
        skiprows=above,
    )
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("its rows have more values than there are columns")
    table.columns = [str(c).strip() for c in table.columns]
    return table


def _list(file: Path) -> pd.DataFrame:
    try:
        lines = [line.strip() for line in file.read_text(encoding=_encoding(file)).splitlines()]
    except (OSError, ValueError) as e:
        raise DataError(f"cannot read {file}: {e}", "save it as plain text, a path a line") from None
    if not any(lines):
        raise DataError(f"{file} has no lines", "it needs a path a line")
    return pd.DataFrame({"path": [line for line in lines if line]})


def _parquet(file: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(file)
    except ImportError as e:
        raise DataError(f"reading {file.name} needs the package pyarrow", "pip install 'octfast[parquet]'") from e
    except Exception as e:
        # pyarrow has errors of its own, and it must not be imported to name them.
        raise ValueError(f"not a parquet table: {e}") from e
    if not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index()
    table.columns = [str(c) for c in table.columns]
    return table
