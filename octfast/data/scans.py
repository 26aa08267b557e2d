"""The Scans table, a row a B-scan with path, label, patient and split: its classes, its counts, and its file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from octfast.errors import DataError
from octfast.files import path_below, whole_file

log = logging.getLogger("octfast")

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpeg", ".jpg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".jpf", ".png", ".apng", ".tif", ".tiff"),
        *(".bmp", ".dib", ".gif", ".webp", ".avif", ".pgm", ".ppm", ".pbm", ".pnm", ".tga"),
    }
)
# The note in a folder of phantoms.
SPLITS = ("train", "valid", "test")
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}


def class_names(scans: pd.DataFrame) -> list[str]:
    """The classes of the training and validation scans, in the order of their index."""
    return in_order(scans.loc[scans["split"] != "test", "label"].unique())


def in_order(labels: Iterable[str]) -> list[str]:
    """Classes in the order of their index: by number where all are whole numbers, so that 2 stands before 10."""
    labels = list(labels)
    numbers = all(re.fullmatch(r"[+-]?[0-9]{1,18}", label) for label in labels)
    return sorted(labels, key=lambda label: (int(label), label) if numbers else (0, label))


def check_class_names(labels: Iterable[str]) -> None:
    """Refuse names of classes that no trained model can be saved with.

    Raises
    ------
    DataError : a name that is empty, longer than 200 characters, or has a control character such as a line end in it.
    """
    for label in labels:
        if not 0 < len(label) <= 200 or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in label):
            shown = ascii(label[:40])[1:-1] + ("..." if len(label) > 40 else "")
            raise DataError(
                f"the class {shown} has a name that no model can be saved with",
                "give it 1 to 200 characters, without line ends and tabs",
            )


def check_trainable(scans: pd.DataFrame, name: str, hint: str, no_training: str = "") -> None:
    """Refuse scans that no classifier can be trained on.

    Parameters
    ----------
    name : of the folder or table, for the message.
    hint : what to do.
    no_training : the message where all scans are test scans, if not the usual one.

    Raises
    ------
    DataError : no scans to train on, scans of one class alone, a class in test that train lacks, or a name of a class
        that no model can be saved with.
    """
    classes = class_names(scans)
    check_class_names(classes)
    if not classes:
        raise DataError(no_training or f"all scans of {name} are test scans, none is for training", hint)
    if len(classes) < 2:
        raise DataError(f"only one class in {name}: {classes[0]}", f"a classifier needs two or more; {hint}")
    unknown = sorted(set(scans["label"]) - set(classes))
    if unknown:
        raise DataError(
            f"the test scans of {name} have classes that train lacks: {', '.join(unknown)}",
            f"rename or remove them; train has {', '.join(classes)}",
        )


def describe_scans(scans: pd.DataFrame, by: str = "split") -> pd.DataFrame:
    """A row a split (or fold): a column a class with its number of scans, then `scans` and `patients`."""
    counts = pd.crosstab(scans[by], scans["label"])
    if by == "split":
        counts = counts.reindex([s for s in SPLITS if s in counts.index])
    counts = counts[in_order(counts.columns)]
    counts.columns.name = None
    counts["scans"] = counts.sum(axis=1)
    counts["patients"] = scans.groupby(by)["patient"].nunique()
    return counts


def save_scans(scans: pd.DataFrame, file: str | Path, root: str | Path) -> None:
    """Write a table with a `path` column as CSV, its paths relative to `root`, so that it can move with the data."""
    out = scans.copy()
    root = Path(root)
    out["path"] = [path_below(p, root) or str(Path(p)) for p in out["path"]]
    write_csv(out, file)


def write_csv(table: pd.DataFrame, file: str | Path) -> None:
    """Write a table as CSV; the file has its name only when it is whole."""
    with whole_file(Path(file)) as part:
        # With these line ends pandas quotes a carriage return in a name, too.
        table.to_csv(part, index=False, lineterminator="\r\n")


def load_scans(file: str | Path, root: str | Path, as_text: bool = False) -> pd.DataFrame:
    """Read what `save_scans` wrote, its paths absolute again below `root`.

    Parameters
    ----------
    as_text : leave the user's own columns as they stand in the file, so that they are written as they were read.

    Raises
    ------
    DataError : the file is missing or damaged, or lacks a column.
    """
    try:
        scans = pd.read_csv(
            file,
            dtype=str if as_text else dict.fromkeys(("path", "label", "patient", "split", "predicted", "reason"), str),
            keep_default_na=False,
        )
    except (OSError, ValueError) as e:
        raise DataError(f"cannot read the scans of the run: {file}: {e}", "train again, or give another run") from e
    missing = {"path", "label", "patient", "split"} - set(scans.columns)
    if missing:
        raise DataError(f"{file} lacks the columns {', '.join(sorted(missing))}", "train again, or give another run")
    if not scans["split"].isin(SPLITS).all():
        raise DataError(f"{file} has rows of no split", "the file was damaged; train again, or give another run")
    scans["path"] = [str(Path(root) / p) for p in scans["path"]]
    return scans
