"""From files to rows of the table of answers: pictures and volumes mixed in one stream, in the order given."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from octfast.data.volumes.kinds import kind_of
from octfast.data.volumes.reader import VolumeReader
from octfast.deploy.predict.inputs import Item
from octfast.deploy.predictor import Answer, Predictor, answer_columns
from octfast.errors import DataError, UsageError
from octfast.model.decide import Rule, unlike_words

log = logging.getLogger("octfast")


@dataclass(frozen=True)
class Wanted:
    """What a row holds beside the predicted class and the probabilities.

    Attributes
    ----------
    top_k : name the classes up to the k-th most probable; None names the first alone.
    abstain_below : least probability of the predicted class at which the model answers; see `Rule`.
    heat_maps : a column with the name of the heat map.
    answer_anyway : give a class to scans that are unlike the training scans, too.
    """

    top_k: int | None = None
    abstain_below: float | None = None
    heat_maps: bool = False
    answer_anyway: bool = False


@dataclass
class Row:
    """One row of the table, and what is known beside it.

    Attributes
    ----------
    item : which input it is of, from 0.
    values : by column.
    last : whether it is the last row of its input.
    of_volume : whether the input is a volume.
    picture : a path, or grey samples; None where there was nothing to read.
    unit : of the last scan of a volume, an eye or a patient that a model answers for, the row of this.
    """

    item: int
    values: dict[str, Any]
    last: bool
    of_volume: bool = False
    picture: Any = None
    unit: dict[str, Any] | None = None


@dataclass
class Origin:
    """Where a picture comes from: which input, and of a volume which B-scan; `last` of its input or not."""

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
    columns : in order: `path`; `volume`, `frame` (both from 0) and `eye` (R or L) of a B-scan in a volume; those of
        `octfast.deploy.predictor.answer_columns`; `heat_map`; `quality` (in what it is worse than the
        training scans, where the model knows that; in the remarks too); `remarks` (what was changed in a picture on
        reading it, and what is doubtful about it); `error`.
    rule : by which the model answers.

    Raises
    ------
    UsageError : more classes are to be named than the model has, or `abstain_below` is no probability.
    """

    predictor: Predictor
    wanted: Wanted
    rule: Rule = field(init=False)
    columns: list[str] = field(init=False)

    def __post_init__(self) -> None:
        n, k = len(self.predictor.classes), self.wanted.top_k
        if k is not None and not 1 <= k <= n:
            raise UsageError(f"--top-k {k}: the model has {n} classes", f"give 1 to {n}")
        self.rule = self.predictor.rule(
            abstain_below=self.wanted.abstain_below, answer_anyway=self.wanted.answer_anyway
        )
        answer = answer_columns(np.zeros((0, n)), self.rule, k or 1, np.zeros(0))
        heat_map = ["heat_map"] if self.wanted.heat_maps else []
        quality = ["quality"] if self.predictor.tells_quality else []
        self.columns = ["path", "volume", "frame", "eye", *answer, *heat_map, *quality, "remarks", "error"]

    def row(self, origin: Origin, answer: Answer) -> Row:
        """The row of an answer."""
        values: dict[str, Any] = dict.fromkeys(self.columns)
        values |= {"path": origin.path, "volume": origin.volume, "frame": origin.frame, "eye": origin.eye}
        values["remarks"] = "; ".join(answer.remarks)
        if self.predictor.tells_quality:
            values["quality"] = "; ".join(answer.quality)
        values["error"] = "" if answer.error is None else answer.error.message
        if answer.probabilities is not None:
            far = np.array([np.nan if answer.distance is None else answer.distance])
            columns = answer_columns(answer.probabilities[None], self.rule, self.wanted.top_k or 1, far)
            values |= {name: value for name, (value,) in columns.items()}
            if values.get("unlike_training"):
                words = unlike_words(float(far[0]), withheld=not self.rule.answer_anyway)
                values["remarks"] = "; ".join([words, *answer.remarks])
        return Row(origin.item, values, origin.last, origin.of_volume, answer.picture)


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
    origins: deque[Origin] = deque()

    def pictures() -> Iterator[Any]:
        for n, item in items:
            for origin, picture in pictures_of(n, item, reader):
                # Before the picture is handed on, so that its answer finds it.
                origins.append(origin)
                yield picture

    for answer in table.predictor.stream(pictures(), bs):
        yield table.row(origins.popleft(), answer)


def pictures_of(n: int, item: Item, reader: VolumeReader) -> Iterator[tuple[Origin, Any]]:
    """What an input holds, each with its origin; where something is wrong, the error is the last of them."""
    if item.problem:
        yield Origin(n, item.path), DataError(item.problem, item.hint)
        return
    try:
        kind = kind_of(item.path)
    except DataError as e:
        yield Origin(n, item.path), e
        return
    except (OSError, ValueError) as e:
        reason = "no such file" if isinstance(e, FileNotFoundError) else getattr(e, "strerror", None) or str(e)
        yield Origin(n, item.path), DataError(f"cannot read {item.path}: {reason}")
        return
    if kind in ("picture", ""):
        yield Origin(n, item.path), item.path
        return
    held = None
    try:
        # One behind, as only the next one shows which is the last.
        for scan in reader.read(item.path, kind, item.files):
            if held is not None:
                yield held
            held = Origin(n, item.path, False, True, scan.volume, scan.frame, scan.eye), scan.pixels
    except DataError as e:
        if held is not None:
            yield held
        if e.hint:
            log.warning("%s: %s", e.message, e.hint)
        yield Origin(n, item.path, of_volume=True), e
        return
    if held is None:
        yield Origin(n, item.path, of_volume=True), DataError(f"{item.path} holds no B-scans")
    else:
        held[0].last = True
        yield held


class VolumeOf:
    """Which volume of a file a row belongs to: what went wrong belongs to the one that was being read."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}

    def __call__(self, row: Row) -> int:
        """The number of the volume, from 0; rows come in the order in which they were read."""
        which = row.values["volume"]
        self._last[row.item] = self._last.get(row.item, 0) if which is None else which
        return self._last[row.item]


class VolumeTable:
    """Gathers the rows of B-scans into a row a volume.

    No vote is taken: one B-scan with an urgent finding among many without is what matters. A volume is as urgent as its
    most urgent B-scan.

    Attributes
    ----------
    columns : `path`; `volume` (which of the file's, from 0); `eye`; `frames` and `unread` (B-scans that could be read
        and that could not); `unlike_training` (B-scans that are unlike the training scans, where the model knows that);
        `urgent_score` (the highest of its B-scans), `urgent_frame` (which one that is) and `referred` (whether any is),
        where the model has urgent classes; `scans_<class>` (B-scans with that predicted class) and `highest_p_<class>`
        a class; `error`.
    """

    def __init__(self, rule: Rule):
        self.classes = rule.classes
        self.columns = [
            *("path", "volume", "eye", "frames", "unread"),
            *(("unlike_training",) if rule.unlike else ()),
            *(("urgent_score", "urgent_frame", "referred") if rule.urgent else ()),
            *(f"scans_{c}" for c in rule.classes),
            *(f"highest_p_{c}" for c in rule.classes),
            "error",
        ]
        self._found: dict[tuple[int, int], dict[str, Any]] = {}
        self._volume_of = VolumeOf()

    def add(self, row: Row) -> None:
        """Count a row; those of pictures are passed over."""
        if not row.of_volume:
            return
        seen = row.values
        which = self._volume_of(row)
        if (row.item, which) not in self._found:
            empty = {**dict.fromkeys(self.columns), "frames": 0, "unread": 0, "error": "", "eye": ""}
            empty |= dict.fromkeys({"unlike_training"} & set(self.columns), 0)
            empty |= {f"scans_{c}": 0 for c in self.classes} | {"path": seen["path"], "volume": which}
            self._found[row.item, which] = empty
        volume = self._found[row.item, which]
        volume["eye"] = volume["eye"] or seen["eye"]
        if seen["error"]:
            volume["unread"] += 1
            volume["error"] = volume["error"] or seen["error"]
            return
        volume["frames"] += 1
        if seen.get("unlike_training"):
            volume["unlike_training"] += 1
        if seen["predicted"] is None:
            # It is unlike the training scans, and was given no class.
            return
        volume[f"scans_{seen['predicted']}"] += 1
        for c in self.classes:
            volume[f"highest_p_{c}"] = max(volume[f"highest_p_{c}"] or 0.0, seen[f"p_{c}"])
        if "urgent_score" in self.columns:
            if volume["urgent_score"] is None or seen["urgent_score"] > volume["urgent_score"]:
                volume["urgent_score"], volume["urgent_frame"] = seen["urgent_score"], seen["frame"]
            volume["referred"] = bool(volume["referred"] or seen["referred"])

    def rows(self) -> list[dict[str, Any]]:
        """The volumes, the most urgent first; without urgent classes in the order of the inputs; unread ones last."""
        found = [self._found[key] for key in sorted(self._found)]
        return sorted(found, key=lambda v: (v["frames"] == 0, -(v.get("urgent_score") or 0.0)))
