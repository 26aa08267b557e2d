"""Checks of a Scans table that need no picture decoded: patients, classes, validation, names, identical files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from octfast.data.scans import SPLITS, in_order
from octfast.data.splits.groups import identical_files

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
# What each check means, in words for a table; the order is that of a report.
MEANING = {
    "empty": "empty files",
    "truncated": "files cut short",
    "not-a-picture": "files that are not pictures, despite their names",
    "unreadable": "files that cannot be read",
    "duplicate-across-splits": "the same scan in two splits: a leak",
    "near-duplicate-across-splits": "almost the same scan in two splits: a leak",
    "patient-across-splits": "scans of a patient who stands in two splits: a leak",
    "duplicate-across-classes": "the same scan under two labels",
    "near-duplicate-across-classes": "almost the same scan under two labels",
    "gives-class-away": "a property of the files that gives the class away by itself",
    "class-missing": "a split without a class",
    "duplicate": "the same scan again in its class and split",
    "near-duplicate": "almost the same scan again in its class and split",
    "patient-two-labels": "scans of a patient who stands under two labels",
    "few-scans": "a class with hardly a scan",
    "small-validation": "a validation split too small to steer by",
    "wrong-extension": "files of another format than their names say",
    "blank": "pictures of one grey all over",
    "dark": "pictures that are almost black",
    "colour": "pictures in colour",
    "burnt-in": "text, lines or coloured marks burnt in",
    "odd-size": "sizes far from the others",
    "16-bit": "16 bits a sample",
    "cmyk": "CMYK",
    "transparent": "pictures with transparency",
    "animated": "more than one picture in a file",
    "same-name": "file names that stand in two splits or classes",
    "other-format": "files of another format than most",
    "too-small": "scans too small to look for near-duplicates among",
    "white-border": "white borders, as rotation leaves them",
    "release": "the release of OCT2017",
}
# In the detail of a copy that stands under another patient than its original.
TWO_PATIENTS = "under the patients"
_FEWEST = {"train": 20, "test": 10}
_WIDEST = 0.10


class Finding(NamedTuple):
    """Something found: how bad it is, the check's name, the file ("" for the set as a whole), and the other file."""

    severity: str
    check: str
    path: str
    detail: str
    related: str = ""


def check_table(scans: pd.DataFrame) -> list[Finding]:
    """All checks that need the table alone; no file is opened.

    Parameters
    ----------
    scans : a Scans table: `path`, `label`, `patient`, `split`.
    """
    return [
        *_shared(scans, "split", "patient-across-splits", ERROR),
        *_shared(scans, "label", "patient-two-labels", WARNING),
        *_classes(scans),
        *_validation(scans),
        *_names(scans),
    ]


def quick_audit(scans: pd.DataFrame) -> list[Finding]:
    """What would spoil a result and can be told without decoding a picture, quick enough to run before each training.

    Patients in two splits or under two labels, missing and tiny classes, the size of the validation split, file names
    in two splits, and files that are the same byte for byte in two splits or classes. For the last, files are read
    only where another has their size.

    Parameters
    ----------
    scans : a Scans table: `path`, `label`, `patient`, `split`.

    Returns
    -------
    The findings, the worst first; empty where there is nothing to say.
    """
    paths = scans["path"].tolist()
    identical = identical_files(paths)
    first: dict[int, int] = {}
    copies = []
    for i, key in enumerate(identical.tolist()):
        if first.setdefault(key, i) != i:
            copies.append((first[key], i, "duplicate", "the same bytes"))
    return sort_findings([*check_table(scans), *copy_findings(scans, copies, within=False)])


def copy_findings(
    scans: pd.DataFrame, copies: Iterable[tuple[int, int, str, str]], within: bool = True
) -> Iterator[Finding]:
    """What it means that a scan is a copy of another: a leak, two labels, or a repetition.

    Parameters
    ----------
    copies : the position of a scan, that of its copy, the check's name, and how one is made of the other.
    within : whether to name copies that are in one class and split, too.
    """
    # Once for all copies, of which there may be as many as scans.
    paths, labels, splits, patients = (scans[c].astype(str).tolist() for c in ("path", "label", "split", "patient"))
    for of, copy, check, how in copies:
        path, other = paths[copy], paths[of]
        if splits[of] != splits[copy]:
            detail = f"{splits[copy]} and {splits[of]}; {how}"
            yield Finding(ERROR, f"{check}-across-splits", path, detail, other)
        if labels[of] != labels[copy]:
            detail = f"{labels[copy]} and {labels[of]}; {how}"
            yield Finding(ERROR, f"{check}-across-classes", path, detail, other)
        if within and splits[of] == splits[copy] and labels[of] == labels[copy]:
            # A file that is a patient of its own, as nothing tells whose it is, is not under another.
            known = not any(patients[i].endswith(Path(paths[i]).name) for i in (of, copy))
            two = f", {TWO_PATIENTS} {patients[copy]} and {patients[of]}"
            yield Finding(WARNING, check, path, how + (two if known and patients[of] != patients[copy] else ""), other)


def sort_findings(findings: list[Finding]) -> list[Finding]:
    """The worst first, then by check, then by path."""
    checks = {check: i for i, check in enumerate(MEANING)}
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), checks[f.check], f.path, f.related))


def wilson(right: int, scans: int) -> tuple[float, float]:
    """The 95% Wilson interval of a share, here an accuracy of `right` out of `scans`."""
    from scipy.stats import binomtest

    interval = binomtest(right, scans).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _shared(scans: pd.DataFrame, column: str, check: str, severity: str) -> Iterator[Finding]:
    several = scans.groupby("patient")[column].nunique()
    among = scans[scans["patient"].isin(several.index[several > 1])].sort_values("patient", kind="stable")
    # Of each patient the first path of each value, by value; plain dicts, as a table asked a scan takes a millisecond.
    firsts: dict[Any, dict[str, str]] = {}
    for patient, value, path in zip(among["patient"], among[column], among["path"], strict=True):
        firsts.setdefault(patient, {}).setdefault(value, path)
    for patient, value, path in zip(among["patient"], among[column], among["path"], strict=True):
        own = firsts[patient]
        other = next(first for another, first in own.items() if another != value)
        yield Finding(severity, check, path, f"patient {patient} in {' and '.join(sorted(own))}", other)


def _classes(scans: pd.DataFrame) -> Iterator[Finding]:
    counts = pd.crosstab(scans["split"], scans["label"])
    counts = counts[in_order(counts.columns)]
    for split in (s for s in SPLITS if s in counts.index):
        row = counts.loc[split]
        if missing := row.index[row == 0].tolist():
            yield Finding(ERROR, "class-missing", "", f"{split} has no scan of {', '.join(missing)}")
        few = row[(row > 0) & (row < _FEWEST.get(split, 0))]
        if len(few):
            listed = ", ".join(f"{label} ({n})" for label, n in few.items())
            yield Finding(WARNING, "few-scans", "", f"{split} has fewer than {_FEWEST[split]} scans of {listed}")


def _validation(scans: pd.DataFrame) -> Iterator[Finding]:
    n = int((scans["split"] == "valid").sum())
    if not n:
        return
    right = round(0.9 * n)
    low, high = wilson(right, n)
    if high - low > _WIDEST:
        points = round(100 * (high - low))
        yield Finding(
            WARNING,
            "small-validation",
            "",
            f"{n} scans: with {right} of {n} right, the accuracy's 95% Wilson interval is {low:.1%} to {high:.1%}, "
            f"{points} points wide; --valid 0.1 holds out more, by patient",
        )


def _names(scans: pd.DataFrame) -> Iterator[Finding]:
    if "volume" in scans:
        # B-scans of volumes are numbered in each.
        scans = scans[scans["volume"].fillna("") == ""]
    names = pd.Series([Path(p).name.casefold() for p in scans["path"]], index=scans.index)
    folders = scans.assign(name=names, folder=scans["split"] + "/" + scans["label"])
    several = folders.groupby("name")["folder"].nunique()
    among = folders[folders["name"].isin(several.index[several > 1])]
    # A file that is a patient of its own has a name that says nothing, such as 0001.png, and may well recur.
    own = np.array(
        [str(p).casefold().endswith(n) for p, n in zip(among["patient"], among["name"], strict=True)], dtype=bool
    )
    if own.any():
        generic = among[own]
        detail = f"{generic['name'].nunique()} names, such as {Path(generic['path'].iloc[0]).name}, stand in several"
        yield Finding(NOTE, "same-name", "", f"{detail} splits or classes: merging the folders would lose files")
    first: dict[str, tuple[str, str]] = {}
    for row in among[~own].sort_values("name", kind="stable").itertuples():
        folder, path = first.setdefault(str(row.name), (str(row.folder), str(row.path)))
        if row.folder != folder:
            yield Finding(WARNING, "same-name", str(row.path), f"{row.name} in {row.folder} and {folder}", path)
