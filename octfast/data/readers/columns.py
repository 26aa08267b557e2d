"""Finds out which columns of a table hold the files, classes, patients and splits."""

from __future__ import annotations

import csv
import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from octfast.data.readers.load import header
from octfast.data.readers.names import split_of
from octfast.errors import DataError, UsageError

log = logging.getLogger("octfast")

ROLES = ("path", "label", "patient", "split")
_GUESSES = {
    "path": (
        *("path", "file_path", "filepath", "image_path", "img_path", "file", "filename", "file_name"),
        *("image_file", "image_name", "image_filename", "image", "img", "scan", "image_id", "fname"),
    ),
    "label": ("label", "class", "class_name", "target", "diagnosis", "dx", "category", "disease", "pathology"),
    "patient": (
        *("patient", "patient_id", "patientid", "subject", "subject_id", "subjectid", "pat_id", "pid", "mrn"),
        *("participant", "participant_id", "person_id", "case_id", "patient_no", "patient_number"),
    ),
    "split": ("split", "set", "subset", "partition", "fold"),
}
_ONES = {v: int(float(v)) for v in (0, 1, "0", "1", "0.0", "1.0")} | {False: 0, True: 1, "False": 0, "True": 1}


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
        # A set may be a hospital's, and a fold a number. In a column named split they would be a mistake, found later.
        if role == "split" and guess and _plain(guess) != "split" and not _has_split_words(table[guess]):
            say = log.info if _plain(guess) == "fold" else log.warning
            say("%s: the column %s holds no splits and is kept as it is", file.name, guess)
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
        columns = header(file)
    except (OSError, ValueError, csv.Error, DataError):
        return False
    return all(candidates(role, columns) for role in ("path", "label"))


def names_patients(file: Path) -> bool:
    """Whether a table has a column for patients, by its names alone."""
    try:
        return bool(candidates("patient", header(file)))
    except (OSError, ValueError, csv.Error, DataError):
        return False


def one_hot(table: pd.DataFrame, file: Path, named: str | None) -> pd.Series | None:
    """The class of each row where a table has a column of 0 and 1 for each class; None where it has not.

    Parameters
    ----------
    named : the columns in one text, as CNV,DME, where they were named; None takes all columns of 0 and 1, if each row
        has a single 1 in them.

    Raises
    ------
    DataError : rows of several classes or of none.
    """
    if named is not None:
        columns = [c.strip() for c in named.split(",")]
        if len(columns) < 2 or not set(columns) <= set(table.columns):
            return None
    elif candidates("label", [str(c) for c in table.columns]):
        return None
    else:
        columns = [str(c) for c in table.columns if _is_binary(table[c])]
    ones = pd.DataFrame({c: table[c].map(_ONES) for c in columns})
    if len(columns) < 2:
        return None
    sums = ones.sum(axis=1)
    wrong = (sums != 1) | ones.isna().any(axis=1)
    if wrong.any():
        raise DataError(
            f"{file.name}: the columns {', '.join(columns)} hold 0 and 1, but {int(wrong.sum())} of {len(table)} rows "
            "have several classes or none",
            "octfast gives a scan one class: name the columns of the classes, as in --label-column CNV,DME",
        )
    if named is None:
        log.warning("%s: the classes are read from the columns of 0 and 1: %s", file.name, ", ".join(columns))
    return ones.idxmax(axis=1)


def refuse_several_labels(labels: pd.Series, file: Path) -> None:
    """Refuse labels that put several classes into a cell, as CNV|DME beside CNV and DME.

    Raises
    ------
    DataError : there are such.
    """
    given = labels.dropna()
    parts = {v: [p.strip() for p in re.split(r"[|;,]", v)] for v in given.unique()}
    often = pd.Series([p for several in parts.values() for p in set(several)]).value_counts()
    mixed = {v for v, several in parts.items() if len(several) > 1 and all(p and often[p] > 1 for p in several)}
    if mixed:
        raise DataError(
            f"{file.name}: {int(given.isin(mixed).sum())} rows have several labels in a cell; the first: {min(mixed)}",
            "octfast gives a scan one class: keep one label a row, or name the combination as a class, as CNV and DME",
        )


def candidates(role: str, columns: Sequence[str]) -> list[str]:
    """The columns whose names are usual for a role of ROLES, the likeliest first."""
    plain = {_plain(c): c for c in reversed(columns)}
    return [plain[guess] for guess in _GUESSES[role] if guess in plain]


def split_names(values: pd.Series, file: Path) -> list[str]:
    """Splits by octfast's names, from train, val, test and the like, see `octfast.data.readers.names.split_of`.

    Raises
    ------
    DataError : another word, or none.
    """
    words = values.fillna("").astype(str).str.strip()
    splits = words.map(split_of)
    unknown = words[splits == ""]
    if len(unknown):
        named = sorted(set(unknown))[:5]
        what = "no split" if named == [""] else f"unknown splits: {', '.join(n or '(none)' for n in named)}"
        raise DataError(
            f"{file.name}: {len(unknown)} of {len(words)} rows have {what}",
            "a split is train, valid or test; name another column with --split-column",
        )
    return splits.tolist()


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
    return any(split_of(word) for word in column.dropna().astype(str).unique())


def _is_binary(column: pd.Series) -> bool:
    values = set(column.dropna().unique())
    return bool(values) and values <= set(_ONES) and column.notna().all()
