"""The scans that an exported file is compared and calibrated on: a run's, those of a folder, or phantoms."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from octfast.data.decode import decode
from octfast.data.readers.folder import look_through, read_layout
from octfast.data.readers.load import TABLE_SUFFIXES
from octfast.data.readers.read import read_data
from octfast.data.readers.volumes import with_volumes
from octfast.data.units import units_of
from octfast.errors import DataError, OctfastError
from octfast.model.bundle.info import BundleInfo
from octfast.run.folder import Run

log = logging.getLogger("octfast")

PHANTOMS = 16
# Of a model that answers for units, as many are compared at least.
UNITS = 4


@dataclass(frozen=True)
class Sample:
    """Decoded scans: `pictures`, uint8 of shape (H, W, 1 or 3); `labels`, if all are known; `source` in words.

    `units` : where whole volumes, eyes or patients are answered for, which of them each scan is of.
    """

    pictures: list[np.ndarray]
    labels: list[str] | None
    source: str
    units: list[int] | None = None

    @property
    def bags(self) -> list[list[int]]:
        """The places of the scans of each unit."""
        found: dict[int, list[int]] = {}
        for place, unit in enumerate(self.units or ()):
            found.setdefault(unit, []).append(place)
        return list(found.values())


def check_sample(folder: Path, info: BundleInfo, given: str | Path | None, n: int) -> Sample:
    """At most n scans to compare on: of a folder, else the run's validation scans, else phantoms; the log says which.

    Of a model that answers for units whole ones, as many as have n scans, and four at least.

    Raises
    ------
    DataError : the folder has no picture that can be read.
    """
    return _sample(folder, info, given, "valid", n, info.level)


def calibration_sample(folder: Path, info: BundleInfo, given: str | Path | None, n: int) -> Sample:
    """At most n scans to calibrate on: of a folder, else the run's training scans, else phantoms; the log says which.

    Raises
    ------
    DataError : the folder has no picture that can be read.
    """
    return _sample(folder, info, given, "train", n)


def _sample(
    folder: Path, info: BundleInfo, given: str | Path | None, split: str, n: int, level: str = "scan"
) -> Sample:
    if given is not None:
        return _read(_files_of(given), info, n, f"scans in {given}", level)
    name = {"valid": "validation", "train": "training"}[split]
    try:
        parent = folder.resolve().parent
        if not (parent / "config.json").is_file():
            raise DataError("the model lies in no run folder")
        run = Run(parent)
        scans = run.scans
        part = scans[scans["split"] == split]
        if len(part):
            return _read(part, info, n, f"{name} scans of {run.path.name}", level)
        reason = f"the run {run.path.name} has none"
    except OctfastError as e:
        reason = e.message
    option = "--check" if split == "valid" else "--calibration"
    log.warning("no %s scans at hand (%s): taking phantoms; give scans of your own with %s", name, reason, option)
    return _phantoms(info, min(n, PHANTOMS), 0 if split == "valid" else 1000, level)


def _files_of(folder: str | Path) -> pd.DataFrame:
    """Every picture of a folder or a table as training reads it, with its class; "" where nobody can tell that."""
    if Path(folder).suffix.lower() in TABLE_SUFFIXES and Path(folder).expanduser().is_file():
        return read_data(folder, trainable=False)
    layout = look_through(folder)
    try:
        return with_volumes(read_layout(layout, trainable=False), layout.root, named_patients=False)
    except DataError as e:
        layout.left_out.refuse_unreadable(folder)
        paths = layout.pictures()
        if not paths:
            raise DataError(f"no picture in {folder}", "give another folder") from None
        log.info("the classes in %s are unknown, and no answer is called right or wrong: %s", folder, e.message)
    return pd.DataFrame({"path": paths, "label": ""})


def _read(scans: pd.DataFrame, info: BundleInfo, n: int, source: str, level: str) -> Sample:
    """n of the scans, or whole units of them, drawn with a fixed seed; what cannot be read is left out and said."""
    number = np.arange(len(scans)) if level == "scan" else _unit_numbers(scans, level)
    order = np.random.default_rng(0).permutation(int(number.max(initial=-1)) + 1)
    pictures: list[np.ndarray] = []
    labels: list[str] = []
    units: list[int] = []
    unread = []
    for unit in order:
        members = np.flatnonzero(number == unit)
        if len(pictures) + len(members) > n and (level == "scan" or len(set(units)) >= UNITS):
            break
        for i in members:
            path = scans["path"].iloc[i]
            try:
                pictures.append(samples(path))
                labels.append(scans["label"].iloc[i])
                units.append(int(unit))
            except DataError as e:
                unread.append(e.message)
    if unread:
        log.warning("left out, as they cannot be read: %d of the %s; the first: %s", len(unread), source, unread[0])
    if not pictures:
        raise DataError(f"no picture that can be read among the {source}", "give another folder")
    known = set(labels) <= set(info.classes)
    said = f"{len(pictures)} {source}"
    return Sample(pictures, labels if known else None, said, None if level == "scan" else units)


def _unit_numbers(scans: pd.DataFrame, level: str) -> np.ndarray:
    """Of each scan the unit that it is of; those of a folder where nothing else is known."""
    if {"patient", level} <= set(scans):
        return units_of(scans, level).number
    log.warning("which scans are of one %s is not known: those of a folder are taken for one", level)
    return pd.factorize(scans["path"].map(lambda path: str(Path(path).parent)))[0]


def samples(path: str | Path) -> np.ndarray:
    """A file as a user of an exported model hands it over: uint8 of shape (H, W, 3) if it is in colour, else (H, W, 1).

    Raises
    ------
    DataError : see `octfast.data.decode.decode`.
    """
    found = decode(path)
    if found.mode == "RGB" and found.colour is not None:
        return np.asarray(found.colour)
    return np.asarray(found.grey)[..., None]


def _phantoms(info: BundleInfo, n: int, first: int, level: str) -> Sample:
    from octfast.data.phantom.draw import CLASSES, make_phantom

    labels = [CLASSES[i % len(CLASSES)] for i in range(n)]
    pictures = [make_phantom(label, first + i)[..., None] for i, label in enumerate(labels)]
    known: Sequence[str] = labels if info.synthetic and set(labels) <= set(info.classes) else []
    units = None if level == "scan" else [i % len(CLASSES) for i in range(n)]
    return Sample(pictures, list(known) or None, f"{n} phantoms", units)
