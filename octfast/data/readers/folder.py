"""Reads a folder of B-scans, by splits and classes or by classes alone, into the Scans table."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from octfast.data.scans import IMAGE_SUFFIXES, SPLIT_WORDS, check_trainable
from octfast.errors import DataError

log = logging.getLogger("octfast")

_CLASS_PATIENT_IMAGE = re.compile(r"(?P<label>.+)-(?P<patient>[^-]+)-(?P<image>\d+)", re.DOTALL)
_LAYOUTS = "expected DATA/train/CNV/*.jpeg, DATA/test/CNV/*.jpeg ... (splits) or DATA/CNV/*.jpeg ... (a folder a class)"


def read_scans(data: str | Path, *, trainable: bool = True) -> pd.DataFrame:
    """Read a folder in OCT2017's layout (splits, then a folder a class), or a folder a class, into a Scans table.

    Nothing is decoded here. The patient is the number in a file name of the form CLASS-PATIENT-IMAGE; a file named
    otherwise is taken for a patient of its own, and the log says how many are.

    Parameters
    ----------
    data : the folder.
    trainable : whether to refuse what cannot be trained on: test scans or one class alone.

    Returns
    -------
    A row a B-scan, sorted by path: `path` (absolute), `label`, `patient`, `split` (train, valid, test).

    Raises
    ------
    DataError : no such folder, no images in it, fewer than two classes, a class in test that train lacks.
    """
    root = data_root(data)
    splits = {d: SPLIT_WORDS[d.name.lower()] for d in _folders(root) if d.name.lower() in SPLIT_WORDS}
    rows: list[tuple[str, str, str]] = []
    other = 0
    if splits:
        stray = [d.name for d in _folders(root) if d not in splits and _has_images(d)]
        if stray:
            log.warning("left out, as they are no split: folders %s in %s", ", ".join(stray), root)
        for folder, split in splits.items():
            for label in _folders(folder):
                found, skipped = _images(label)
                other += skipped
                rows += [(path, label.name, split) for path in found]
    else:
        for label in _folders(root):
            found, skipped = _images(label)
            other += skipped
            rows += [(path, label.name, "train") for path in found]
    unnamed = [path for path, _, _ in rows if not _is_text(path)]
    if unnamed:
        log.warning("left out, as their names are not UTF-8: %d files; the first: %a", len(unnamed), unnamed[0])
        rows = [row for row in rows if row[0] not in set(unnamed)]
    if not rows:
        loose = any(_has_images(d, deep=False) for d in (root, *splits))
        raise DataError(
            f"the images in {root} are in no folder of a class" if loose else f"no images in {root}", _LAYOUTS
        )
    if other:
        log.info("%d files that are no images were left alone", other)
    scans = pd.DataFrame(rows, columns=["path", "label", "split"]).sort_values("path", ignore_index=True)
    scans.insert(2, "patient", patients_from_names(scans, root))
    if trainable:
        check_trainable(scans, str(root), _LAYOUTS, f"no training scans in {root}: only a test folder")
    return scans


def data_root(data: str | Path) -> Path:
    """The folder that holds the classes or splits: `data`, or the only folder in it, and so on down.

    Raises
    ------
    DataError : no such folder, or a file.
    """
    root = Path(data).expanduser()
    if not root.exists():
        raise DataError(f"no such folder: {root}", "give the folder that holds the scans, or no DATA for the phantoms")
    if not root.is_dir():
        raise DataError(f"not a folder: {root}", _LAYOUTS)
    root = root.resolve()
    while True:
        inner = _folders(root)
        # Kaggle's archive unpacks to a lone folder "OCT2017 " that people point above.
        if len(inner) != 1 or inner[0].name.lower() in SPLIT_WORDS or _has_images(inner[0], deep=False):
            return root
        if any(_is_image(f.name) for f in root.iterdir() if f.is_file()):
            return root
        root = inner[0]


def patients_from_names(scans: pd.DataFrame, root: Path) -> list[str]:
    """The patient of each scan: from a name CLASS-PATIENT-IMAGE whose CLASS is one of the labels, else the file itself.

    Says in the log how many were guessed to be a patient of their own.
    """
    labels = {str(label).casefold() for label in scans["label"]}
    patients = []
    guessed = 0
    for path in scans["path"]:
        match = _CLASS_PATIENT_IMAGE.fullmatch(Path(path).stem)
        if match and match["label"].casefold() in labels:
            patients.append(match["patient"])
        else:
            guessed += 1
            patients.append(Path(path).relative_to(root).as_posix())
    if guessed:
        log.warning(
            "patients: %d of %d file names are not CLASS-PATIENT-IMAGE; each of these files is taken for a patient of "
            "its own, so scans of one patient may stand in two splits",
            guessed,
            len(patients),
        )
    return patients


def class_folders(root: Path) -> set[str]:
    """The names of the folders that `read_scans` would take for classes: two or more, or below folders of splits."""
    inner = _folders(root)
    splits = [d for d in inner if d.name.lower() in SPLIT_WORDS]
    holders = [label for split in splits for label in _folders(split)] if splits else inner
    names = {d.name for d in holders if _has_images(d)}
    return names if splits or len(names) > 1 else set()


def _folders(folder: Path) -> list[Path]:
    return sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith((".", "__MACOSX")))


def _walk(folder: Path) -> Iterator[str]:
    """The files below a folder, without hidden ones."""
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(d for d in folders if not d.startswith("."))
        yield from (str(Path(at) / name) for name in files if not name.startswith("."))


def _is_image(path: str) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def _images(folder: Path) -> tuple[list[str], int]:
    """The image files below a folder, and how many files were passed over."""
    files = list(_walk(folder))
    images = [path for path in files if _is_image(path)]
    return images, len(files) - len(images)


def _has_images(folder: Path, deep: bool = True) -> bool:
    files = _walk(folder) if deep else (f.name for f in folder.iterdir() if not f.name.startswith("."))
    return any(map(_is_image, files))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
