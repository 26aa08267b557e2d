"""Which DICOM files with one B-scan each are one volume, by what their headers say, and in which order."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octfast.console import track
from octfast.data.scans import IMAGE_SUFFIXES
from octfast.data.volumes.about import MAX_FRAMES
from octfast.data.volumes.kinds import VOLUME_SUFFIXES, kind_of, natural
from octfast.data.volumes.reader import VolumeReader
from octfast.errors import DataError

log = logging.getLogger("octfast")

# A file with such an ending is no DICOM, or its reader says so.
_OTHERS = IMAGE_SUFFIXES | {suffix for suffix, kind in VOLUME_SUFFIXES.items() if kind != "dicom"}


@dataclass(frozen=True)
class Header:
    """What tells the series of a DICOM file and its place there; no name of a patient is in it.

    Attributes
    ----------
    study, series, instance : StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID.
    frames, rows, columns : of its pixels.
    number : InstanceNumber, or None.
    place : ImagePositionPatient in millimetres, or None.
    eye : "R", "L" or "".
    modality : as OPT.
    """

    study: str
    series: str
    instance: str
    frames: int
    rows: int
    columns: int
    number: int | None = None
    place: tuple[float, float, float] | None = None
    eye: str = ""
    modality: str = ""


def find_series(
    paths: Iterable[str | Path], reader: VolumeReader | None = None
) -> tuple[dict[Path, tuple[Path, ...]], set[Path]]:
    """The files that are one volume together, by the first of them, which names the volume.

    These are DICOM files with one B-scan each that agree in StudyInstanceUID and SeriesInstanceUID, in size, modality
    and eye. They are ordered by where they lie (ImagePositionPatient, along the line through them, in the direction in
    which InstanceNumber grows), or else by InstanceNumber, or else by name, which the log says. Of copies of one B-scan
    (SOPInstanceUID) the first counts.

    Returns
    -------
    The files of each volume in their order, by the first of them; and the copies, which are of none.

    Parameters
    ----------
    paths : of any files; what is no DICOM, or cannot be read, is passed over.
    reader : which reads the headers; None takes one for the time.
    """
    # Most are pictures, and a path of each of a million takes its time.
    others = [Path(path) for path in paths if not str(path).lower().endswith(tuple(_OTHERS))]
    asked = [path for path in dict.fromkeys(others) if _is_dicom(path)]
    if len(asked) < 2:
        return {}, set()
    if reader is None:
        with VolumeReader() as own:
            return find_series(asked, own)
    groups: dict[tuple[Any, ...], dict[str, tuple[Path, Header]]] = {}
    copies: set[Path] = set()
    for path, head in _headers(asked, reader):
        if head is None or head.frames > 1 or not head.series:
            continue
        key = (head.study, head.series, head.rows, head.columns, head.modality, head.eye)
        own_group = groups.setdefault(key, {})
        if head.instance and head.instance in own_group:
            copies.add(path)
        own_group.setdefault(head.instance or str(path), (path, head))
    found: dict[Path, tuple[Path, ...]] = {}
    said: Counter[str] = Counter()
    for group in groups.values():
        if not 1 < len(group) <= MAX_FRAMES:
            continue
        members = sorted(group.values(), key=lambda one: natural(one[0].name))
        order, by = in_order([head for _, head in members])
        said[by] += 1
        files = tuple(members[i][0] for i in order)
        found[files[0]] = files
    for by, n in said.items():
        log.info(
            "%d DICOM series with a file a B-scan read as one volume each, ordered by %s, and named by its first file",
            *(n, by),
        )
    if copies:
        log.warning("%d DICOM files are copies of a B-scan of their series, and count once", len(copies))
    return found, copies


def in_order(heads: list[Header]) -> tuple[list[int], str]:
    """The order of the B-scans of a series, and by what it is, in words."""
    numbers = [head.number for head in heads]
    numbered = None not in numbers and len(set(numbers)) == len(numbers)
    places = [head.place for head in heads]
    if None not in places:
        away = _along(np.array(places, dtype=float))
        if away is not None:
            order = np.argsort(away, kind="stable")
            if numbered:
                along = np.array(numbers, dtype=float)[order]
                if np.corrcoef(along, np.arange(len(along)))[0, 1] < 0:
                    order = order[::-1]
            elif order[0] > order[-1]:
                order = order[::-1]
            return order.tolist(), "their place (ImagePositionPatient)"
    if numbered:
        return np.argsort(np.array(numbers, dtype=float), kind="stable").tolist(), "their number (InstanceNumber)"
    return list(range(len(heads))), "name, as neither place nor number tells an order"


def _along(places: np.ndarray) -> np.ndarray | None:
    """How far each place lies along the line through the two that are farthest apart; None where two are at one."""
    if not np.isfinite(places).all() or np.abs(places).max() > 1e4:
        return None
    far = np.linalg.norm(places - places[0], axis=1).argmax()
    end = np.linalg.norm(places - places[far], axis=1).argmax()
    line = places[end] - places[far]
    length = float(np.linalg.norm(line))
    if length < 1e-3:
        return None
    away = (places - places[far]) @ (line / length)
    return away if np.diff(np.sort(away)).min() > 1e-4 else None


def _headers(paths: list[Path], reader: VolumeReader) -> Iterator[tuple[Path, Header | None]]:
    with track("reading DICOM headers", len(paths), "files") as update:
        for n, path in enumerate(paths, 1):
            yield path, read_header(path, reader)
            update(n, len(paths))


def read_header(path: Path, reader: VolumeReader) -> Header | None:
    """What tells the series of a DICOM file; None where it cannot be read."""
    try:
        said = reader.header(path)
    except DataError:
        return None  # reading its pixels says what is wrong
    place = said.pop("place", None)
    return Header(**said, place=None if place is None else tuple(place))


def is_one_of_several(path: Path, reader: VolumeReader) -> bool:
    """Whether a file is a DICOM file with one B-scan, of whose series there may be others."""
    head = read_header(path, reader) if _is_dicom(path) else None
    return head is not None and head.frames <= 1 and bool(head.series)


def _is_dicom(path: Path) -> bool:
    try:
        return path.suffix.lower() not in _OTHERS and path.is_file() and kind_of(path) == "dicom"
    except (OSError, DataError):
        return False
