"""Reads a folder of B-scans, by splits and classes or by classes alone, into the Scans table."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import pandas as pd

from octfast.data.readers.layout import Layout, Place
from octfast.data.readers.names import (
    is_patient_name,
    merge_spellings,
    merge_zeros,
    patients_from_names,
    read_from,
    role_of,
    splits_of,
)
from octfast.data.readers.volumes import TAG, with_volumes
from octfast.data.scans import check_trainable
from octfast.errors import DataError
from octfast.files import refuse_address

log = logging.getLogger("octfast")

_LAYOUTS = "expected DATA/train/CNV/*.jpeg, DATA/test/CNV/*.jpeg ... (splits) or DATA/CNV/*.jpeg ... (a folder a class)"


def read_scans(
    data: str | Path, *, trainable: bool = True, patient_from: str | None = None, label_from: str | None = None
) -> pd.DataFrame:
    """Read a folder in OCT2017's layout (splits, then a folder a class), or a folder a class, into a Scans table.

    Nothing is decoded here. The patient is the number in a file name of the form CLASS-PATIENT-IMAGE, else a folder in
    the class's where these look like patients; a file that is neither is taken for a patient of its own. What is
    guessed or left out is said in the log, a line a reason.

    Parameters
    ----------
    data : the folder.
    trainable : whether to refuse what cannot be trained on: test scans or one class alone.
    patient_from, label_from : where in the path the patient or the class stands: `folder`, `folder:2` (the one above)
        or a pattern, see `octfast.data.readers.names.read_from`; None goes by the layout; for the patient also `tag`.

    Returns
    -------
    A row a B-scan, sorted by path: `path` (absolute), `label`, `patient`, `split` (train, valid, test), and `eye` or
    `device` where folders name these; of volumes also what `octfast.data.readers.volumes.with_volumes` adds.

    Raises
    ------
    DataError : no such folder or a part that cannot be looked into, no images in it, folders that can be understood in
        two ways, fewer than two classes, a class in test that train lacks.
    """
    layout = look_through(data)
    rule = None if patient_from == TAG else patient_from
    scans = read_layout(layout, trainable=trainable, patient_from=rule, label_from=label_from)
    return with_volumes(scans, layout.root, named_patients=rule is not None, patient_from=patient_from)


def look_through(data: str | Path) -> Layout:
    """The folders and files of a data set, not yet understood.

    Raises
    ------
    DataError : no such folder, or a file.
    """
    refuse_address(data)
    root = Path(data).expanduser()
    if not root.exists():
        raise DataError(f"no such folder: {root}", "give the folder that holds the scans, or no DATA for the phantoms")
    if not root.is_dir():
        raise DataError(f"not a folder: {root}", _LAYOUTS)
    return Layout(root.resolve())


def read_layout(
    layout: Layout, *, trainable: bool = True, patient_from: str | None = None, label_from: str | None = None
) -> pd.DataFrame:
    """The Scans table of a folder that was looked through; as `read_scans`."""
    root, left_out = layout.root, layout.left_out
    left_out.refuse_unreadable(root)
    rows: list[_Row]
    if label_from is None:
        rows = [(path, p.label, p.split, p) for p in layout.places() for path in layout.class_pictures(p)]
    else:
        rows = _by_rule(layout, label_from)
    rows = _without_links(_with_text_names(rows, layout), layout)
    for note in layout.notes:
        log.warning("%s", note)
    if not rows:
        left_out.say()
        raise DataError(
            f"the images in {root} are in no folder of a class" if layout.has_loose() else f"no images in {root}",
            _LAYOUTS,
        )
    left_out.say()
    if layout.others():
        log.info("%d files that are no images were left alone", layout.others())
    rows.sort(key=lambda row: row[0])
    scans = pd.DataFrame([row[:3] for row in rows], columns=["path", "label", "split"])
    scans["label"] = merge_spellings(scans["label"], str(root))
    patients = pd.Series(_patients(scans, rows, root, patient_from))
    scans.insert(2, "patient", merge_zeros(patients, str(root)))
    for name in ("eye", "device"):
        values = [p.extra.get(name) if p else None for *_, p in rows]
        if any(values):
            scans[name] = values
    if trainable:
        check_trainable(scans, str(root), _LAYOUTS, f"no training scans in {root}: only a test folder")
    return scans


_Row = tuple[str, str, str, Place | None]


def _by_rule(layout: Layout, rule: str) -> list[_Row]:
    """The rows where the class stands somewhere in the path; folders of splits count at the top alone."""
    paths = layout.pictures()
    labels = read_from(paths, layout.root, rule, "label")
    tops = [Path(path).relative_to(layout.root).parts[0] for path in paths]
    splits = splits_of(sorted(set(tops)))
    stray = [path for path, top in zip(paths, tops, strict=True) if splits and top not in splits]
    layout.left_out.add("pictures beside the folders of splits", *stray)
    rows = zip(paths, labels, tops, strict=True)
    return [(path, label, splits.get(top, "train"), None) for path, label, top in rows if not splits or top in splits]


def _patients(scans: pd.DataFrame, rows: list[_Row], root: Path, rule: str | None) -> list[str]:
    if rule not in (None, "name"):
        return read_from(scans["path"].tolist(), root, str(rule), "patient")
    return patients_from_names(scans, root, None if rule else _patient_folders(rows))


def _patient_folders(rows: list[_Row]) -> list[str]:
    """The folder in its class's that names the patient of each scan, or ""."""
    inner = []
    for path, _, _, place in rows:
        # Most lie in the folder of the class itself.
        deeper = place and os.path.dirname(path) != place.folder.path  # noqa: PTH120
        parts = Path(path).relative_to(place.folder.path).parts[:-1] if place and deeper else ()
        named = [part for part in parts if not role_of(part)]
        inner.append((place.patient if place else "") or (named[0] if named else ""))
    # Folders with files of the same names, 001.tif in each, are patients or volumes; neither may be torn apart.
    names = Counter((inside, Path(row[0]).name) for inside, row in zip(inner, rows, strict=True) if inside)
    often = Counter(name for _, name in names)
    repeated = {inside for inside, name in names if often[name] > 1}
    return [
        inside
        if inside
        and ((row[3] and row[3].patient) or is_patient_name(inside) or inside.isdecimal() or inside in repeated)
        else ""
        for inside, row in zip(inner, rows, strict=True)
    ]


def _with_text_names(rows: list[_Row], layout: Layout) -> list[_Row]:
    unnamed = {row[0] for row in rows if not _is_text(row[0])}
    layout.left_out.add("files, as their names are not UTF-8", *unnamed)
    return [row for row in rows if row[0] not in unnamed]


def _without_links(rows: list[_Row], layout: Layout) -> list[_Row]:
    """The rows without links to files that are rows themselves."""
    own = {row[0] for row in rows if row[0] not in layout.linked}
    again = {row[0] for row in rows if row[0] in layout.linked and os.path.realpath(row[0]) in own}
    layout.left_out.add("links to scans that are read themselves", *again)
    return [row for row in rows if row[0] not in again]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
