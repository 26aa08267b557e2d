"""The scans of a pool without labels: which files they are, whose they are, and which of them cannot be asked about."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from octfast.console import track
from octfast.data.prepare import check_file
from octfast.data.readers.columns import candidates
from octfast.data.readers.load import TABLE_SUFFIXES, as_names, load_table
from octfast.data.readers.locate import resolve_paths
from octfast.data.readers.names import class_key, merge_zeros, patient_in_name, patient_key, read_from
from octfast.data.splits.groups import identical_files
from octfast.data.volumes.kinds import kind_of
from octfast.deploy.predict.inputs import Item, at_home, find_inputs
from octfast.errors import DataError, UsageError
from octfast.files import in_threads
from octfast.run.folder import Run
from octfast.train.again.pool import digests_of

log = logging.getLogger("octfast")


@dataclass(frozen=True)
class Pool:
    """Scans that may be suggested.

    Attributes
    ----------
    scans : `path` and `patient`, sorted by path.
    digests : the SHA-256 of each file, uint8 of shape (scans, 32).
    left_out : `path` and `reason` of every file that was given and is not among them.
    """

    scans: pd.DataFrame
    digests: np.ndarray
    left_out: pd.DataFrame


def find_pool(
    run: Run,
    pool: Sequence[str | Path],
    *,
    path_column: str | None = None,
    patient_column: str | None = None,
    patient_from: str | None = None,
    recursive: bool = True,
) -> Pool:
    """The scans of a pool that a run may ask labels for.

    Left out are files that cannot be read, volumes, scans that the run has already, as the same file or the same
    bytes, and scans of patients whom the run is tested on; the log counts them.

    Parameters
    ----------
    pool : files, folders, patterns and tables, see `octfast.deploy.predict.inputs.find_inputs`.
    path_column, patient_column : of tables; None takes those that are named as such columns are.
    patient_from : where the patient stands in a path: as for `octfast.data.readers.read.read_data`. None takes a
        table's column, else names CLASS-PATIENT-IMAGE, else each file for a patient of its own, which is said.

    Raises
    ------
    UsageError : a column that a table lacks, or a rule that cannot be.
    DataError : a table that cannot be read; a rule that gives no patient; or no scan is left.
    """
    reasons: dict[str, str] = {}
    of_table: dict[str, str] = {}
    paths: list[str] = []
    for item in _items(pool, path_column, patient_column, recursive, of_table):
        if item.problem:
            reasons[item.path] = item.problem
        else:
            paths.append(_absolute(item.path))
    paths = sorted(dict.fromkeys(paths))
    with track("checking files", len(paths)) as update:
        for n, (path, reason) in enumerate(zip(paths, in_threads(_wrong_with, paths), strict=True), 1):
            update(n, len(paths))
            if reason:
                reasons[path] = reason
    paths = [p for p in paths if p not in reasons]
    reasons |= _known(run, paths)
    paths = [p for p in paths if p not in reasons]
    table = pd.DataFrame({"path": paths}, dtype=object)
    if paths:
        table["patient"] = _patients(run, paths, of_table, patient_from)
        scans = run.scans
        tested = {patient_key(str(p)) for p in scans.loc[scans["split"] == "test", "patient"]}
        theirs = table["patient"].map(lambda p: patient_key(str(p)) in tested).to_numpy(dtype=bool)
        reasons |= dict.fromkeys(table.loc[theirs, "path"], "its patient is among the run's test scans")
        table = table[~theirs].reset_index(drop=True)
    left_out = pd.DataFrame(sorted(reasons.items()), columns=["path", "reason"])
    _say(left_out)
    if table.empty:
        raise DataError(
            f"no scan of {', '.join(map(str, pool))} can be suggested",
            "see the reasons above; give scans that the run does not have",
        )
    return Pool(table, digests_of(table["path"].tolist()), left_out)


def _items(
    pool: Sequence[str | Path],
    path_column: str | None,
    patient_column: str | None,
    recursive: bool,
    of_table: dict[str, str],
) -> list[Item]:
    """What is in the pool; the patients that tables name, by path, go into `of_table`."""
    found: list[Item] = []
    for given in pool:
        file = at_home(given)
        if not (file.is_file() and file.suffix.lower() in TABLE_SUFFIXES):
            if path_column or patient_column:
                option = "path" if path_column else "patient"
                raise UsageError(f"--{option}-column: {given} is not a table", "leave it out, or give the table")
            found += find_inputs([given], recursive=recursive)
            continue
        raw = load_table(file)
        columns = {}
        for role, name in (("path", path_column), ("patient", patient_column)):
            if name is not None and name not in raw.columns:
                raise UsageError(
                    f"--{role}-column {name}: {file.name} has no such column; its columns are {', '.join(raw.columns)}",
                    "name one of them",
                )
            columns[role] = name or next(iter(candidates(role, [str(c) for c in raw.columns])), None)
        if columns["path"] is None:
            raise DataError(
                f"{file} has no column that looks like a path; its columns are {', '.join(map(str, raw.columns))}",
                "name it: --path-column NAME",
            )
        raw = raw[raw[columns["path"]].notna()].reset_index(drop=True)
        paths = resolve_paths(raw[columns["path"]], file)
        for path in paths:
            missing = not Path(path).exists()
            found.append(Item(path, f"no such file: {path}") if missing else Item(path))
        if columns["patient"] is not None:
            log.info("%s: patients from the column %s", file.name, columns["patient"])
            patients = as_names(raw[columns["patient"]])
            named = patients.notna()
            patients[named] = merge_zeros(patients[named], file.name)
            of_table |= {
                _absolute(path): str(who) for path, who in zip(paths, patients, strict=True) if who is not None
            }
    return found


def _wrong_with(path: str) -> str:
    """Why a file cannot be suggested; "" where it can."""
    try:
        if kind_of(path) not in ("picture", ""):
            return "a volume: export its B-scans as pictures first"
    except DataError as e:
        return e.message
    except (OSError, ValueError) as e:
        return getattr(e, "strerror", None) or str(e)
    return check_file(path)[0]


def _known(run: Run, paths: Sequence[str]) -> dict[str, str]:
    """Which files the run has already, by path or by bytes, with this as the reason."""
    have = [_absolute(p) for p in run.scans["path"]]
    known = set(have)
    found = {path: "the run has it already" for path in paths if path in known}
    rest = [path for path in paths if path not in known]
    alike = identical_files([*have, *rest])
    same = np.isin(alike[len(have) :], alike[: len(have)])
    why = "the run has the same file under another name"
    return found | {path: why for path, copy in zip(rest, same, strict=True) if copy}


def _patients(run: Run, paths: Sequence[str], of_table: dict[str, str], rule: str | None) -> list[str]:
    """The patient of each file."""
    root = Path(os.path.commonpath([Path(p).parent for p in paths]))
    if rule and rule != "name":
        return read_from(list(paths), root, rule, "patient")
    labels = {class_key(str(label)) for label in run.scans["label"].unique()}
    patients, alone = [], 0
    for path in paths:
        patient = of_table.get(path) if rule is None else None
        patient = patient or patient_in_name(Path(path).stem, labels)
        if not patient:
            alone += 1
            patient = path
        patients.append(patient)
    if alone:
        log.warning(
            "patients: of %d of %d scans nothing says the patient; each of these is taken for a patient of its own, so "
            "that several scans of one patient may be suggested; --patient-from folder or a pattern names them",
            *(alone, len(patients)),
        )
    return patients


def _absolute(path: str | Path) -> str:
    return str(Path(path).expanduser().absolute())


def _say(left_out: pd.DataFrame) -> None:
    # Reasons of single files name these, and are counted together.
    plain = left_out["reason"].str.replace(r"^(no such file|cannot read).*", r"\1", regex=True)
    for reason, rows in left_out.groupby(plain, sort=False):
        log.warning("left out: %d of the pool: %s; the first: %s", len(rows), reason, rows["path"].iloc[0])
