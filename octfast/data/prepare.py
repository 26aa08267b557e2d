"""Prepares scans for training: reads and checks them, applies splits, holds out by patient and refuses leaks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.console import track
from octfast.data.also import add_scans
from octfast.data.audit.checks import quick_audit, wilson
from octfast.data.corrections import Applied, apply_corrections
from octfast.data.decode import Unreadable, decode
from octfast.data.look import unusual
from octfast.data.readers.columns import split_names
from octfast.data.readers.load import as_names
from octfast.data.readers.names import patients_from_names
from octfast.data.readers.read import data_folder, read_data
from octfast.data.readers.table import common_folder
from octfast.data.readers.volumes import why_unreadable
from octfast.data.scans import class_names, describe_scans
from octfast.data.splits import leaks
from octfast.data.splits.files import apply_splits
from octfast.data.splits.hold_out import assign_validation
from octfast.data.volumes.kinds import is_named_as_volume
from octfast.errors import DataError, UsageError
from octfast.files import in_threads

log = logging.getLogger("octfast")

_UNUSUAL = {
    "rotated": "stored rotated or mirrored, read upright as their EXIF says",
    "16-bit": "16-bit grey, of which the bits in use are read unless tags name black and white",
    "CMYK": "CMYK, read as grey",
    "RGBA": "RGBA, read as grey without its transparency",
    "LA": "grey with transparency, read without it",
    "RGB": "colour, read as grey",
    "P": "palette colour, read as grey",
    "animated": "animated or of several pages, of which one is read, the largest or the first",
    "blank": "blank, of one grey all over",
    "tiny": "lower or narrower than 28 pixels",
    "huge": "larger than 25 million pixels, which takes memory and seconds at each reading; crop or shrink them",
}


@dataclass(frozen=True)
class Prepared:
    """Scans that are ready to be trained on.

    Attributes
    ----------
    scans : the Scans table, every scan in its split; no patient in two splits, unless that was allowed.
    left_out : the scans that are not used, with a column `reason`: unreadable files, leaks that were dropped, and what
        a reviewer left out.
    root : the folder that the paths are written relative to.
    corrected : what a file of corrections changed, where one was given.
    """

    scans: pd.DataFrame
    left_out: pd.DataFrame
    root: Path
    corrected: Applied | None = None


def prepare(
    data: str | Path | pd.DataFrame,
    *,
    valid: str | float = 0.1,
    seed: int = 0,
    splits: str | Path | None = None,
    fold: int | None = None,
    drop_leaks: bool = False,
    allow_leaks: bool = False,
    corrections: str | Path | None = None,
    also: str | Path | None = None,
    cache: str | Path | None = None,
    **columns: Any,
) -> Prepared:
    """Read a data set, leave out unreadable files, give every scan its split, and refuse patients in two splits.

    Parameters
    ----------
    data : what `read_data` reads, or a Scans table. A table's files are taken as readable, and where it has validation
        scans, or `splits` has, these are kept whatever `valid` says.
    valid : the share of scans to hold out by patient, or "folder" to keep the given validation folder.
    seed : of the held-out patients.
    splits, fold : a CSV of `octfast data split` to take the splits from, and the fold of it to validate on.
    drop_leaks : leave out scans whose patient, or an identical file, is in a split that goes before theirs.
    allow_leaks : warn of patients in two splits instead of refusing them.
    corrections : a file of corrections of `octfast review`, see `apply_corrections`.
    also : further labelled scans, see `octfast.data.also.add_scans`.
    cache : where a MedMNIST file is unpacked.
    columns : `path_column`, `label_column`, `patient_column`, `split_column` of a table of scans, also of a DataFrame;
        `patient_from` and `label_from` of what `read_data` reads.

    Raises
    ------
    DataError : patients stand in two splits and `allow_leaks` is not set; and what `read_data`, `apply_splits`,
        `leave_out_unreadable`, `drop_leaks` and `assign_validation` raise.
    UsageError : a column, share or fold that cannot be.
    """
    given = isinstance(data, pd.DataFrame)
    if isinstance(data, pd.DataFrame):
        if data.empty:
            raise DataError("there are no scans in the table", "give a table with a row a scan")
        scans = _scans_of(data, {name: value for name, value in columns.items() if value is not None})
        root = common_folder(scans, Path("the table"))
    else:
        scans = read_data(data, cache=cache, **columns)
        root = data_folder(data, scans)
    if splits is not None:
        scans = apply_splits(scans, splits, fold)
    left_out = scans.iloc[:0].assign(reason="")
    corrected = None
    if corrections is not None:
        scans, left_out, corrected = apply_corrections(scans, corrections, root)
    if also is not None:
        scans, untrained = add_scans(scans, also)
        left_out = pd.concat([left_out, untrained], ignore_index=True)
    if not given:
        with track("checking files", len(scans)) as update:
            scans, unreadable = leave_out_unreadable(scans, update)
        left_out = pd.concat([left_out, unreadable], ignore_index=True)
    # Splits that were drawn beforehand bring their validation with them.
    if (given or splits is not None) and (scans["split"] == "valid").any():
        valid = "folder"
    if drop_leaks:
        if valid != "folder":
            # The given validation is drawn anew below, so it holds no training scan back.
            scans["split"] = scans["split"].where(scans["split"] == "test", "train")
        scans, leaked = leaks.drop_leaks(scans)
        left_out = pd.concat([left_out, leaked], ignore_index=True)
    scans = assign_validation(scans, valid, seed)
    leaks.refuse_leaks(scans, allow_leaks)
    return Prepared(scans, left_out, root, corrected)


def _scans_of(table: pd.DataFrame, columns: dict[str, Any]) -> pd.DataFrame:
    """A Scans table of a DataFrame whose columns may have names of their own, or lack patient and split.

    Raises
    ------
    UsageError : a column that the table lacks, or a rule that is for files.
    """
    scans, needed = table.reset_index(drop=True), ["path", "label", "patient", "split"]
    if not columns and set(needed) <= set(scans.columns):
        return scans
    named = {name.removesuffix("_column"): column for name, column in columns.items() if name.endswith("_column")}
    for rule in (r for r in columns if not r.endswith("_column")):
        raise UsageError(f"{rule} is for folders and files, not for a DataFrame", "give it a column patient or label")
    for role in ("path", "label", *named):
        if (wanted := named.get(role, role)) not in scans:
            raise UsageError(
                f"the DataFrame has no column {wanted}",
                f"name the one of the {role}: {role}_column=, one of {', '.join(map(str, scans.columns))}",
            )
    replaced = [role for role, column in named.items() if role != column and role in scans]
    scans = scans.drop(columns=replaced).rename(columns={column: role for role, column in named.items()})
    scans["path"] = [str(Path(p).expanduser().absolute()) for p in scans["path"]]
    scans["label"] = as_names(scans["label"])
    if scans["label"].isna().any():
        first = scans.loc[scans["label"].isna(), "path"].iloc[0]
        raise DataError(f"a row of the DataFrame has no label: {first}", "leave it out")
    if "patient" in scans:
        scans["patient"] = as_names(scans["patient"]).fillna(scans["path"])
    else:
        log.info("the DataFrame has no column of patients: they are taken from names CLASS-PATIENT-IMAGE")
        scans["patient"] = patients_from_names(scans, common_folder(scans, Path("the table")))
    scans["split"] = split_names(as_names(scans["split"]), Path("the table")) if "split" in scans else "train"
    return scans.sort_values("path", ignore_index=True)


def log_scans(scans: pd.DataFrame) -> None:
    """Log the findings of the quick audit, a line a check, then the classes and the splits.

    Leaks are left to `prepare`. Of a small validation split the log gives the Wilson interval of an accuracy of 90%.
    """
    findings = pd.DataFrame(quick_audit(scans), columns=["severity", "check", "path", "detail", "related"])
    findings = findings[findings["severity"].isin(["error", "warning"])]
    said_elsewhere = ("patient-across-splits", "small-validation")
    for check, rows in findings[~findings["check"].isin(said_elsewhere)].groupby("check", sort=False):
        first = rows.iloc[0]
        log.warning("%s (%d): %s", check, len(rows), " ".join(filter(None, (first["path"], first["detail"]))))
    n = int((scans["split"] == "valid").sum())
    if n < 200:
        right = round(0.9 * n)
        low, high = wilson(right, n)
        log.warning(
            "validation has only %d scans: an accuracy of %.0f%% on it has a 95%% interval from %.0f%% to %.0f%%",
            *(n, 100 * right / n, 100 * low, 100 * high),
        )
    log.info("classes: %s", ", ".join(f"{i} {name}" for i, name in enumerate(class_names(scans))))
    for split, row in describe_scans(scans).iterrows():
        log.info("%s: %d scans of %d patients", split, row["scans"], row["patients"])


def check_file(path: str | Path) -> tuple[str, tuple[str, ...]]:
    """What is wrong with a scan, and what is unusual about it. It is decoded as strictly as when it is used.

    Returns
    -------
    (why it cannot be read, or ""; modes that are read with a change, and checks of `octfast.data.look.unusual`).
    """
    if is_named_as_volume(path):
        # Those that can be read are pictures by now.
        return why_unreadable(path) or "not a picture", ()
    try:
        picture = decode(path, small=True)
    except Unreadable as e:
        return e.reason, ()
    checks = {check for check, _ in unusual(picture) if check not in ("colour", "cmyk", "dark")}
    return "", (picture.mode.partition(";")[0], *sorted(checks))


def leave_out_unreadable(
    scans: pd.DataFrame, progress: Callable[[int, int], None] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Check every file of a Scans table, and log what is unreadable or unusual.

    Returns
    -------
    The readable scans, and the rest with a column `reason`.

    Raises
    ------
    DataError : none can be read, or what is left has fewer than two classes to train on.
    """
    results = []
    for n, result in enumerate(in_threads(check_file, scans["path"]), 1):
        results.append(result)
        if progress:
            progress(n, len(scans))
    reason = pd.Series([r for r, _ in results], index=scans.index)
    first: dict[str, str] = {}
    often = Counter(kind for _, kinds in results for kind in kinds if kind in _UNUSUAL)
    for path, (_, kinds) in zip(scans["path"], results, strict=True):
        for kind in kinds:
            first.setdefault(kind, path)
    for kind, count in often.most_common():
        if kind == "RGB":
            log.info("%d scans are colour pictures, read as grey", count)
        else:
            log.warning("%d scans are %s; the first: %s", count, _UNUSUAL[kind], first[kind])
    bad = scans.assign(reason=reason)[reason != ""].reset_index(drop=True)
    good = scans[reason == ""].reset_index(drop=True)
    for row in bad.head(5).itertuples():
        log.warning("left out, unreadable: %s (%s)", row.path, row.reason)
    if len(bad) > 5:
        log.warning("left out, unreadable: %d more", len(bad) - 5)
    left = good.loc[good["split"] != "test", "label"].nunique()
    if left < 2:
        raise DataError(
            f"{len(bad)} of {len(scans)} files cannot be read, and the rest has {left} classes to train on",
            "fetch the data again; two classes or more are needed",
        )
    return good, bad
