"""From files to rows of the table of answers: pictures and volumes mixed in one stream, in the order given."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from octfast.assess.metrics.referral import urgent_classes
from octfast.deploy.predict.inputs import Item
from octfast.deploy.predictor import Answer, Predictor
from octfast.deploy.volumes.kinds import kind_of
from octfast.deploy.volumes.reader import VolumeReader
from octfast.errors import DataError, UsageError

log = logging.getLogger("octfast")


@dataclass(frozen=True)
class Wanted:
    """What a row shall hold beside the predicted class and the probabilities.

    Attributes
    ----------
    top_k : name the classes up to the k-th most probable; None names the first alone.
    abstain_below : mark rows whose predicted class has a lower probability than this. None goes by the bundle's
        prediction sets, where it has them: marked is where more than one class is possible.
    heat_maps : a column with the name of the heat map.
    """

    top_k: int | None = None
    abstain_below: float | None = None
    heat_maps: bool = False

    def check(self, classes: int) -> None:
        """Raise UsageError where a model of so many classes cannot give this."""
        if self.top_k is not None and not 1 <= self.top_k <= classes:
            raise UsageError(f"--top-k {self.top_k}: the model has {classes} classes", f"give 1 to {classes}")
        if self.abstain_below is not None and not 0 <= self.abstain_below <= 1:
            raise UsageError(f"--abstain-below {self.abstain_below} is no probability", "give 0 to 1")


@dataclass
class Row:
    """One row of the table, and what is known beside it.

    Attributes
    ----------
    item : which input it is of, from 0.
    values : by column.
    last : whether it is the last row of its input.
    of_volume : whether the input is a volume.
    picture : what was looked at: a path, or grey samples; None where there was nothing.
    """

    item: int
    values: dict[str, Any]
    last: bool
    of_volume: bool = False
    picture: Any = None


@dataclass
class _Place:
    item: int
    path: str
    last: bool = True
    of_volume: bool = False
    volume: int | None = None
    frame: int | None = None
    eye: str = ""


@dataclass
class Table:
    """The columns of the table, and how an answer becomes a row of it.

    Attributes
    ----------
    columns : in order: `path`; `volume`, `frame` (both from 0) and `eye` (R or L) of a B-scan in a volume; `predicted`,
        `probability`, then `predicted_2`, `probability_2` and so on; `abstained`; `urgent` (the sum over the urgent
        classes) and `referred` (whether it reaches the bundle's operating point); `p_<class>`; `heat_map`; `error`.
    urgent : indices of the urgent classes; empty where the model has none.
    threshold : of the bundle's operating point, or None.
    sets : the bundle's prediction sets, where they decide what is abstained.
    """

    predictor: Predictor
    wanted: Wanted
    columns: list[str] = field(init=False)
    urgent: list[int] = field(init=False)
    threshold: float | None = field(init=False)
    sets: dict[str, Any] | None = field(init=False)

    def __post_init__(self) -> None:
        info, classes = self.predictor.info, self.predictor.classes
        self.wanted.check(len(classes))
        operating = info.calibration.get("operating")
        named = urgent_classes(classes, operating["urgent"] if operating else None)
        self.urgent = [classes.index(c) for c in named]
        self.threshold = operating["threshold"] if operating else None
        self.sets = info.calibration.get("conformal") if self.wanted.abstain_below is None else None
        names = ["path", "volume", "frame", "eye", "predicted", "probability"]
        for k in range(2, (self.wanted.top_k or 1) + 1):
            names += [f"predicted_{k}", f"probability_{k}"]
        names += ["abstained"] if self.wanted.abstain_below is not None or self.sets else []
        names += ["urgent"] if self.urgent else []
        names += ["referred"] if self.threshold is not None else []
        names += [f"p_{c}" for c in classes]
        self.columns = [*names, *(["heat_map"] if self.wanted.heat_maps else []), "error"]

    def row(self, place: _Place, answer: Answer) -> Row:
        """The row of an answer."""
        values: dict[str, Any] = dict.fromkeys(self.columns)
        values |= {"path": place.path, "volume": place.volume, "frame": place.frame, "eye": place.eye}
        values["error"] = "" if answer.error is None else answer.error.message
        if answer.probabilities is not None:
            values |= self.answered(answer.probabilities)
        return Row(place.item, values, place.last, place.of_volume, answer.picture)

    def answered(self, p: np.ndarray) -> dict[str, Any]:
        """What a row says of probabilities, float64 of shape (classes,)."""
        classes = self.predictor.classes
        order = np.argsort(-p, kind="stable")
        values: dict[str, Any] = {}
        for k in range(self.wanted.top_k or 1):
            end = f"_{k + 1}" if k else ""
            values[f"predicted{end}"] = classes[order[k]]
            values[f"probability{end}"] = float(p[order[k]])
        if self.wanted.abstain_below is not None:
            values["abstained"] = bool(values["probability"] < self.wanted.abstain_below)
        elif self.sets:
            values["abstained"] = int((p >= self.sets["threshold"]).sum()) > 1
        if self.urgent:
            values["urgent"] = float(p[self.urgent].sum())
            if self.threshold is not None:
                values["referred"] = bool(values["urgent"] >= self.threshold)
        return values | {f"p_{c}": float(p[i]) for i, c in enumerate(classes)}


def stream_rows(
    table: Table, items: Iterable[tuple[int, Item]], reader: VolumeReader, bs: int = 16
) -> Generator[Row, None, None]:
    """Read the inputs and ask the model, row by row in their order; what cannot be read is a row with its error.

    Files are read in another thread while the model computes, and a batch may hold pictures of several files.

    Parameters
    ----------
    items : numbered inputs; may go on for ever.
    reader : of volumes; the caller closes it.
    bs : pictures a batch.
    """
    places: deque[_Place] = deque()

    def pictures() -> Iterator[Any]:
        for n, item in items:
            for place, picture in _pictures_of(n, item, reader):
                # Before the picture is handed on, so that its answer finds it.
                places.append(place)
                yield picture

    for answer in table.predictor.stream(pictures(), bs):
        yield table.row(places.popleft(), answer)


def _pictures_of(n: int, item: Item, reader: VolumeReader) -> Iterator[tuple[_Place, Any]]:
    """What an input holds, each with its place; where something is wrong, the error is the last of them."""
    if item.problem:
        yield _Place(n, item.path), DataError(item.problem, item.hint)
        return
    try:
        if Path(item.path).exists() and not Path(item.path).is_file():
            # Opening a pipe or a device would wait for ever.
            raise DataError(f"{item.path} is no plain file", "leave it out")
        kind = kind_of(item.path)
    except DataError as e:
        yield _Place(n, item.path), e
        return
    except (OSError, ValueError) as e:
        reason = "no such file" if isinstance(e, FileNotFoundError) else getattr(e, "strerror", None) or str(e)
        yield _Place(n, item.path), DataError(f"cannot read {item.path}: {reason}")
        return
    if kind in ("picture", ""):
        yield _Place(n, item.path), item.path
        return
    held = None
    try:
        # One behind, as only the next one shows which is the last.
        for scan in reader.read(item.path, kind):
            if held is not None:
                yield held
            held = _Place(n, item.path, False, True, scan.volume, scan.frame, scan.eye), scan.pixels
    except DataError as e:
        if held is not None:
            yield held
        if e.hint:
            log.warning("%s: %s", e.message, e.hint)
        yield _Place(n, item.path, of_volume=True), e
        return
    if held is None:
        yield _Place(n, item.path, of_volume=True), DataError(f"{item.path} holds no B-scans")
    else:
        held[0].last = True
        yield held


class VolumeTable:
    """Gathers the rows of B-scans into a row a volume.

    No vote is taken: one B-scan with an urgent finding among many without is what matters. A volume is as urgent as its
    most urgent B-scan.

    Attributes
    ----------
    columns : `path`; `volume` (which of the file's, from 0); `eye`; `frames` and `unread` (B-scans with and without an
        answer); `urgent` (the highest of its B-scans), `urgent_frame` (which one that is), `referred` (whether any is);
        `scans_<class>` (B-scans with that predicted class) and `highest_p_<class>` a class; `error`.
    """

    def __init__(self, classes: Sequence[str], urgent: bool, referred: bool):
        self.classes = list(classes)
        self.columns = [
            *("path", "volume", "eye", "frames", "unread"),
            *(("urgent", "urgent_frame") if urgent else ()),
            *(("referred",) if referred else ()),
            *(f"scans_{c}" for c in classes),
            *(f"highest_p_{c}" for c in classes),
            "error",
        ]
        self._found: dict[tuple[int, int], dict[str, Any]] = {}
        self._last: dict[int, int] = {}

    def add(self, row: Row) -> None:
        """Count a row; those of pictures are passed over."""
        if not row.of_volume:
            return
        seen = row.values
        # What went wrong belongs to the volume that was being read.
        which = seen["volume"] if seen["volume"] is not None else self._last.get(row.item, 0)
        self._last[row.item] = which
        if (row.item, which) not in self._found:
            empty = {**dict.fromkeys(self.columns), "frames": 0, "unread": 0, "error": "", "eye": ""}
            empty |= {f"scans_{c}": 0 for c in self.classes} | {"path": seen["path"], "volume": which}
            self._found[row.item, which] = empty
        volume = self._found[row.item, which]
        volume["eye"] = volume["eye"] or seen["eye"]
        if seen["error"]:
            volume["unread"] += 1
            volume["error"] = volume["error"] or seen["error"]
            return
        volume["frames"] += 1
        volume[f"scans_{seen['predicted']}"] += 1
        for c in self.classes:
            volume[f"highest_p_{c}"] = max(volume[f"highest_p_{c}"] or 0.0, seen[f"p_{c}"])
        if "urgent" in self.columns and (volume["urgent"] is None or seen["urgent"] > volume["urgent"]):
            volume["urgent"], volume["urgent_frame"] = seen["urgent"], seen["frame"]
        if "referred" in self.columns:
            volume["referred"] = bool(volume["referred"]) or bool(seen["referred"])

    def rows(self) -> list[dict[str, Any]]:
        """The volumes, the most urgent first; without urgent classes in the order of the inputs; unread ones last."""
        found = [self._found[key] for key in sorted(self._found)]
        return sorted(found, key=lambda v: (v["frames"] == 0, -(v.get("urgent") or 0.0)))
