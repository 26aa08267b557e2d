"""Checks of a Scans table that need no picture decoded: patients, classes, validation, names, identical files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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
    findings = check_table(scans)
    for i, key in enumerate(identical.tolist()):
        if first.setdefault(key, i) != i:
            findings += copy_findings(scans, first[key], i, "duplicate", "the same bytes", within=False)
    return sort_findings(findings)


def copy_findings(scans: pd.DataFrame, of: int, copy: int, check: str, how: str, within: bool = True) -> list[Finding]:
    """What it means that the scan at position `copy` is a copy of that at `of`: a leak, two labels, or a repetition."""
    paths, labels, splits = (scans[c].to_numpy() for c in ("path", "label", "split"))
    ends = str(paths[copy]), how, str(paths[of])
    findings = []
    if splits[of] != splits[copy]:
        detail = f"{splits[copy]} and {splits[of]}; {how}"
        findings.append(Finding(ERROR, f"{check}-across-splits", ends[0], detail, ends[2]))
    if labels[of] != labels[copy]:
        detail = f"{labels[copy]} and {labels[of]}; {how}"
        findings.append(Finding(ERROR, f"{check}-across-classes", ends[0], detail, ends[2]))
    if not findings and within:
        patients = scans["patient"].astype(str).to_numpy()
        # A file that is a patient of its own, as nothing tells whose it is, is not under another.
        known = not any(patients[i].endswith(Path(str(paths[i])).name) for i in (of, copy))
        if known and patients[of] != patients[copy]:
            ends = ends[0], f"{how}, {TWO_PATIENTS} {patients[copy]} and {patients[of]}", ends[2]
        findings.append(Finding(WARNING, check, *ends))
    return findings


def sort_findings(findings: list[Finding]) -> list[Finding]:
    """The worst first, then by check, then by path."""
    checks = list(MEANING)
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), checks.index(f.check), f.path, f.related))


def wilson(right: int, scans: int) -> tuple[float, float]:
    """The 95% Wilson interval of a share, here an accuracy of `right` out of `scans`."""
    from scipy.stats import binomtest

    interval = binomtest(right, scans).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _shared(scans: pd.DataFrame, column: str, check: str, severity: str) -> Iterator[Finding]:
    several = scans.groupby("patient")[column].nunique()
    among = scans[scans["patient"].isin(several.index[several > 1])]
    for patient, rows in among.groupby("patient"):
        firsts = rows.drop_duplicates(column)
        values = " and ".join(sorted(firsts[column]))
        for path, value in zip(rows["path"], rows[column], strict=True):
            other = firsts.loc[firsts[column] != value, "path"].iloc[0]
            yield Finding(severity, check, path, f"patient {patient} in {values}", other)


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
    for name, rows in among[~own].groupby("name"):
        first = rows.iloc[0]
        for row in rows[rows["folder"] != first["folder"]].itertuples():
            yield Finding(
                WARNING, "same-name", str(row.path), f"{name} in {row.folder} and {first['folder']}", first["path"]
            )
