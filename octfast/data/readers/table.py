"""Reads CSV, TSV and parquet files that list scans, and finds out which of their columns holds what."""

from __future__ import annotations

import csv
import difflib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath

import pandas as pd

from octfast.data.readers.folder import patients_from_names
from octfast.data.scans import SPLIT_WORDS, check_trainable
from octfast.errors import DataError, UsageError

log = logging.getLogger("octfast")

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet", ".pq"})
ROLES = ("path", "label", "patient", "split")
_GUESSES = {
    "path": (
        *("path", "file_path", "filepath", "image_path", "img_path", "file", "filename", "file_name"),
        *("image_file", "image_name", "image_filename", "image", "img", "scan"),
    ),
    "label": ("label", "class", "class_name", "target", "diagnosis", "dx", "category"),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id", "subjectid"),
    "split": ("split", "set", "subset", "partition", "fold"),
}
# Not "None": among the grades of a disease it is a class.
_MISSING = ["", "NA", "N/A", "#N/A", "NaN", "nan", "<NA>", "null", "NULL"]


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
        check_trainable(scans, file.name, "name another --label-column or --split-column")
    return scans[[*ROLES, *(c for c in scans.columns if c not in ROLES)]]


def load_table(file: str | Path) -> pd.DataFrame:
    """A table as it stands; every value of a CSV or TSV is text, or missing.

    Parameters
    ----------
    file : .csv (comma, semicolon, tab or bar; UTF-8, UTF-16 or Windows-1252), .tsv or .parquet.

    Raises
    ------
    DataError : no such file, an unknown kind, no rows, or it cannot be parsed.
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(f"no such table: {file}", "give a CSV, TSV or parquet file")
    if file.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(f"not a table: {file}", f"tables end in {', '.join(sorted(TABLE_SUFFIXES))}")
    try:
        table = _parquet(file) if _is_parquet(file) else _text(file)
    except (OSError, ValueError, csv.Error) as e:
        said = " ".join(str(e).split()) or type(e).__name__
        raise DataError(f"cannot read {file}: {said}", "save it again, as CSV with a line of column names") from e
    if table.empty:
        raise DataError(f"{file} has no rows", "it needs a row a scan, below a row of column names")
    return table


def find_columns(table: pd.DataFrame, file: Path, named: Mapping[str, str | None]) -> dict[str, str]:
    """Which column holds what (a role of ROLES to a column): those named, the rest guessed, which the log says.

    Raises
    ------
    UsageError : a named column that is not there, or one named twice.
    DataError : no column looks like a path, or none like a label.
    """
    columns = [str(c) for c in table.columns]
    found = {role: _named_column(role, name, columns, file) for role, name in named.items() if name is not None}
    twice = [c for c in found.values() if list(found.values()).count(c) > 1]
    if twice:
        raise UsageError(f"the column {twice[0]} of {file.name} is named for two things", "name each column once")
    guessed = []
    for role in ROLES:
        if role in found:
            continue
        guess = next((c for c in candidates(role, columns) if c not in found.values()), None)
        # Numbers of folds are no splits. In a column of another name they would be a mistake, found later.
        if role == "split" and guess and _plain(guess) == "fold" and not _has_split_words(table[guess]):
            log.info("%s: the column %s holds no splits and is kept as it is", file.name, guess)
        elif guess is not None:
            found[role] = guess
            guessed.append(f"{role} from {guess}")
        elif role in ("path", "label"):
            near = _nearest(role, [c for c in columns if c not in found.values()])
            raise DataError(
                f"{file.name} has no column that looks like a {role}; its columns are {', '.join(columns)}",
                f"name it: --{role}-column NAME" + (f"; did you mean {near}?" if near else ""),
            )
    if guessed:
        log.info("%s: columns guessed: %s", file.name, ", ".join(guessed))
    return found


def looks_like_scans(file: Path) -> bool:
    """Whether a table has a column for paths and one for labels, by its names alone."""
    try:
        columns = _header(file)
    except (OSError, ValueError, csv.Error, DataError):
        return False
    return all(candidates(role, columns) for role in ("path", "label"))


def candidates(role: str, columns: Sequence[str]) -> list[str]:
    """The columns whose names are usual for a role of ROLES, the likeliest first."""
    plain = {_plain(c): c for c in reversed(columns)}
    return [plain[guess] for guess in _GUESSES[role] if guess in plain]


def as_names(column: pd.Series) -> pd.Series:
    """Labels, patients or splits as text without spaces around; None where missing.

    Where all are whole numbers written as 3.0, they become "3": pandas writes them so beside a gap.
    """
    text = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    given = text[text != ""]
    if len(given) and given.str.fullmatch(r"-?\d+\.0").all():
        text = text.str.removesuffix(".0")
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


def split_names(values: pd.Series, file: Path) -> list[str]:
    """Splits by octfast's names, from train, training, val, valid, validation, test or testing in any case.

    Raises
    ------
    DataError : another word, or none.
    """
    words = values.fillna("").astype(str).str.strip()
    unknown = words[~words.str.casefold().isin(list(SPLIT_WORDS))]
    if len(unknown):
        named = sorted(set(unknown))[:5]
        what = "no split" if named == [""] else f"unknown splits: {', '.join(n or '(none)' for n in named)}"
        raise DataError(
            f"{file.name}: {len(unknown)} of {len(words)} rows have {what}",
            "a split is train, valid or test; name another column with --split-column",
        )
    return [SPLIT_WORDS[w] for w in words.str.casefold()]


def resolve_paths(paths: pd.Series, file: Path) -> list[str]:
    """Paths made absolute from the folder of the table `file`; of several ways to read one, the first that exists."""
    base = file.absolute().parent.resolve()

    def resolve(text: str) -> str:
        ways = [text, text.strip()]
        ways += [way.replace("\\", "/") for way in ways if "\\" in way]
        resolved = [os.path.normpath(base / way) for way in ways]
        found = next((path for path in resolved if Path(path).is_file()), None)
        return found or (text if PureWindowsPath(text).drive else resolved[-1])

    return [resolve(str(path)) for path in paths]


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


def _first_line(file: Path, encoding: str) -> tuple[list[str], str]:
    """The column names, and the separator: the one that cuts the first line into most columns."""
    with file.open(encoding=encoding, newline="") as f:
        lines = [f.readline() for _ in range(3)]
    seps = "\t" if file.suffix.lower() == ".tsv" else ",;\t|"
    cut = {sep: next(csv.reader(lines, delimiter=sep), []) for sep in seps}
    sep = max(cut, key=lambda s: len(cut[s]))
    return [c.strip() for c in cut[sep]], sep


def _header(file: Path) -> list[str]:
    return [str(c) for c in _parquet(file).columns] if _is_parquet(file) else _first_line(file, _encoding(file))[0]


def _text(file: Path) -> pd.DataFrame:
    encoding = _encoding(file)
    if encoding == "cp1252":
        log.warning("%s is not UTF-8: read as Windows-1252", file.name)
    names, sep = _first_line(file, encoding)
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two columns are named {twice}")
    # As text, since pandas would make 7 of a patient 007, and a gap of a class None.
    table = pd.read_csv(
        file, sep=sep, encoding=encoding, dtype=str, keep_default_na=False, na_values=_MISSING, skipinitialspace=True
    )
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("its rows have more values than there are columns")
    table.columns = [str(c).strip() for c in table.columns]
    return table


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


def _plain(name: str) -> str:
    return re.sub(r"[\s.\-]+", "_", name.strip().casefold())


def _nearest(name: str, columns: Sequence[str]) -> str:
    plain = {_plain(c): c for c in reversed(columns)}
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.5)
    return plain[near[0]] if near else ""


def _named_column(role: str, name: str, columns: list[str], file: Path) -> str:
    if name in columns:
        return name
    near = _nearest(name, columns) or next(iter(candidates(role, columns)), "")
    raise UsageError(
        f"--{role}-column {name}: {file.name} has no such column; its columns are {', '.join(columns)}",
        f"did you mean {near}?" if near else "name one of them",
    )


def _has_split_words(column: pd.Series) -> bool:
    return bool(column.dropna().astype(str).str.strip().str.casefold().isin(list(SPLIT_WORDS)).any())


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
    root = common_folder(scans, file)
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


def common_folder(scans: pd.DataFrame, file: Path) -> Path:
    try:
        return Path(os.path.commonpath([Path(p).parent for p in scans["path"]]))
    except ValueError as e:
        raise DataError(f"the files of {file.name} lie on several drives", "move them to one") from e
