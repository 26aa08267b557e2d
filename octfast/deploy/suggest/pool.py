"""The scans of a pool without labels: which files they are, whose they are, and which of them cannot be asked about."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
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
from octfast.data.readers.volumes import TAG
from octfast.data.splits.groups import identical_files
from octfast.data.units import units_of
from octfast.data.volumes.kinds import kind_of
from octfast.deploy.predict.inputs import Item, at_home, find_inputs
from octfast.deploy.suggest.units import scans_of_units
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
    scans : `path` and `patient`, sorted by path; of units also the columns of `octfast.data.units.unit_columns`.
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
    level: str = "scan",
    path_column: str | None = None,
    patient_column: str | None = None,
    patient_from: str | None = None,
    recursive: bool = True,
    cache: str | Path | None = None,
) -> Pool:
    """The scans of a pool that a run may ask labels for.

    Left out are files that cannot be read, volumes, scans that the run has already, as the same file or the same
    bytes, and scans of patients whom the run is tested on; the log counts them. At a level of whole units volumes are
    read, and units of which the run has a scan are left out.

    Parameters
    ----------
    level : what the run answers for, one of `octfast.data.units.LEVELS`.
    pool : files, folders, patterns and tables, see `octfast.deploy.predict.inputs.find_inputs`.
    path_column, patient_column : of tables; None takes those that are named as such columns are.
    patient_from : where the patient stands in a path: as for `octfast.data.readers.read.read_data`. None takes a
        table's column, else names CLASS-PATIENT-IMAGE, else each file (or unit) for a patient of its own, which is
        said.
    cache : where pictures of volumes are kept; None takes OCTFAST_CACHE, else the user's cache folder.

    Raises
    ------
    UsageError : a column that a table lacks, or a rule that cannot be.
    DataError : a table that cannot be read; a rule that gives no patient; or no scan is left.
    """
    reasons: dict[str, str] = {}
    of_table: dict[str, dict[str, str]] = {}
    paths: list[str] = []
    for item in _items(pool, path_column, patient_column, recursive, of_table):
        if item.problem:
            reasons[item.path] = item.problem
        else:
            paths.append(_absolute(item.path))
    paths = sorted(dict.fromkeys(paths))
    table = pd.DataFrame({"path": paths}, dtype=object)
    if level != "scan" and paths:
        whose = _patients(run, paths, of_table, None if patient_from == TAG else patient_from)
        table = scans_of_units(paths, of_table, whose, level, _base(paths), rule=patient_from, cache=cache)
        paths = table["path"].tolist()
    wrong_with = _wrong_with if level == "scan" else lambda path: check_file(path)[0]
    with track("checking files", len(paths)) as update:
        for n, (path, reason) in enumerate(zip(paths, in_threads(wrong_with, paths), strict=True), 1):
            update(n, len(paths))
            if reason:
                reasons[path] = reason
    paths = [p for p in paths if p not in reasons]
    table = table[table["path"].isin(set(paths))].reset_index(drop=True)
    known = _known(run, paths)
    if level != "scan" and known:
        number = pd.Series(units_of(table, level).number, index=table["path"])
        whole = number.index[number.isin(number[list(known)])]
        known = dict.fromkeys(whole, f"the run has a scan of its {level} already") | known
    reasons |= known
    table = table[~table["path"].isin(set(known))].reset_index(drop=True)
    if len(table):
        if level == "scan":
            paths = table["path"].tolist()
            table["patient"] = _said(_patients(run, paths, of_table, patient_from), paths)
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
    of_table: dict[str, dict[str, str]],
) -> list[Item]:
    """What is in the pool; the `patient`, `eye` and `volume` that tables name, by path, go into `of_table`."""
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
        columns |= {role: role if role in raw else None for role in ("eye", "volume")}
        if columns["patient"] is not None:
            log.info("%s: patients from the column %s", file.name, columns["patient"])
        for role in ("patient", "eye", "volume"):
            if columns[role] is None:
                continue
            names = as_names(raw[columns[role]])
            named = names.notna()
            if role == "patient":
                names[named] = merge_zeros(names[named], file.name)
            for path, name in zip(paths, names, strict=True):
                if name is not None:
                    of_table.setdefault(_absolute(path), {})[role] = str(name)
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


def _base(paths: Sequence[str]) -> Path:
    return Path(os.path.commonpath([Path(p).parent for p in paths]))


def _patients(run: Run, paths: Sequence[str], of_table: Mapping[str, Mapping[str, str]], rule: str | None) -> list[str]:
    """The patient of each file; "" where nothing says it."""
    if rule and rule != "name":
        return read_from(list(paths), _base(paths), rule, "patient")
    labels = {class_key(str(label)) for label in run.scans["label"].unique()}
    said = [of_table.get(path, {}).get("patient", "") if rule is None else "" for path in paths]
    return [who or patient_in_name(Path(path).stem, labels) or "" for who, path in zip(said, paths, strict=True)]


def _said(patients: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The patients, a file of which nothing says any being one of its own, which the log says."""
    if alone := sum(not patient for patient in patients):
        log.warning(
            "patients: of %d of %d scans nothing says the patient; each of these is taken for a patient of its own, so "
            "that several scans of one patient may be suggested; --patient-from folder or a pattern names them",
            *(alone, len(patients)),
        )
    return [patient or path for patient, path in zip(patients, paths, strict=True)]


def _absolute(path: str | Path) -> str:
    return str(Path(path).expanduser().absolute())


def _say(left_out: pd.DataFrame) -> None:
    # Reasons of single files name these, and are counted together.
    plain = left_out["reason"].str.replace(r"^(no such file|cannot read).*", r"\1", regex=True)
    for reason, rows in left_out.groupby(plain, sort=False):
        log.warning("left out: %d of the pool: %s; the first: %s", len(rows), reason, rows["path"].iloc[0])
