"""Rows of a model that answers for volumes, eyes or patients: one a scan, which says how it counted, and one a unit."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from octfast.data.volumes.reader import VolumeReader
from octfast.deploy.predict.dealt import scans_of
from octfast.deploy.predict.inputs import Item
from octfast.deploy.predict.rows import Origin, Wanted
from octfast.deploy.predictor import Answer, Predictor, answer_columns
from octfast.errors import DataError, UsageError
from octfast.model.decide import Rule, unlike_words

log = logging.getLogger("octfast")

# Scans of a unit of which heat maps are drawn.
MAPS = 3


@dataclass
class UnitTables:
    """The columns of both tables, and how answers become rows of them.

    Attributes
    ----------
    columns : of scans, in order: `path`; `volume`, `frame` (both from 0) and `eye` of a B-scan in a volume; `unit`, the
        number of the unit that it is of, from 0; `attention`, how much it counts, which sums to 1 over a unit;
        `alone_<class>`, what it says alone, which is no answer; `unlike_training` and `distance`; `remarks`; `error`.
    unit_columns : `unit`, `path` (of its file or folder), `patient`, `eye`, `volume` (of a file, from 0), `name` (of
        the volume, as a table has it); `frames` and `unread`;
        those of `octfast.deploy.predictor.answer_columns`; `most`, the file of the scan that counted most, its
        `most_frame` and `most_attention`; `remarks`; `error`.
        With heat maps `heat_map`, the file's name, before `remarks` of scans.
    rule : by which the model answers.
    heat_maps : a folder for the heat maps of the scans that count most in each unit.
    """

    predictor: Predictor
    top_k: int | None = None
    abstain_below: float | None = None
    answer_anyway: bool = False
    heat_maps: Path | None = None
    rule: Rule = field(init=False)
    columns: list[str] = field(init=False)
    unit_columns: list[str] = field(init=False)

    def __post_init__(self) -> None:
        n, k = len(self.predictor.classes), self.top_k
        if k is not None and not 1 <= k <= n:
            raise UsageError(f"--top-k {k}: the model has {n} classes", f"give 1 to {n}")
        self.rule = self.predictor.rule(abstain_below=self.abstain_below, answer_anyway=self.answer_anyway)
        far = ["unlike_training", "distance"] if self.rule.unlike else []
        alone = [f"alone_{c}" for c in self.rule.classes]
        place = ["path", "volume", "frame", "eye"]
        heat_map = [] if self.heat_maps is None else ["heat_map"]
        self.columns = [*place, "unit", "attention", *alone, *far, *heat_map, "remarks", "error"]
        answer = answer_columns(np.zeros((0, n)), self.rule, k or 1, np.zeros(0))
        most = ["most", "most_frame", "most_attention"]
        about = ["unit", "path", "patient", "eye", "volume", "name", "frames", "unread"]
        self.unit_columns = [*about, *answer, *most, "remarks", "error"]

    def rows(
        self, number: int, scans: list[tuple[Origin, Item, Answer, torch.Tensor | None]]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The rows of the scans of a unit, and the row of the unit."""
        answer = self.predictor.pooled([a for _, _, a, _ in scans], [o for *_, o in scans])
        each = []
        for (origin, _, said, _), attention in zip(scans, answer.attention, strict=True):
            row: dict[str, Any] = dict.fromkeys(self.columns)
            row |= {"path": origin.path, "volume": origin.volume, "frame": origin.frame, "eye": origin.eye}
            row |= {"unit": number, "remarks": "; ".join(said.remarks), "error": ""}
            if said.error is not None:
                row["error"] = said.error.message
            if said.probabilities is not None:
                row["attention"] = float(attention)
                row |= {f"alone_{c}": float(p) for c, p in zip(self.rule.classes, said.probabilities, strict=True)}
            if "distance" in row and said.distance is not None:
                row |= {"unlike_training": said.distance > 1, "distance": said.distance}
            each.append(row)
        unit = self._unit(number, scans, answer, each)
        if self.heat_maps is not None and unit["predicted"] is not None:
            self._draw(number, scans, answer, each, unit)
        return each, unit

    def _draw(
        self, number: int, scans: list[Any], answer: Any, each: list[dict[str, Any]], unit: dict[str, Any]
    ) -> None:
        """Write the heat maps of the scans that count most, of the class that their unit is given."""
        from octfast.deploy.predict.pictures import heat_map_name, write_heat_map

        assert self.heat_maps is not None
        for rank, i in enumerate(np.argsort(-answer.attention, kind="stable")[:MAPS].tolist(), 1):
            if not answer.attention[i] > 0:
                return
            row = each[i]
            name = f"{number:06d}-{rank}-{heat_map_name(i, row)}"
            try:
                words = {"predicted": unit["predicted"], "probability": unit["probability"]}
                of = f"of the {self.predictor.info.level}; this scan counts {answer.attention[i]:.0%}"
                write_heat_map(self.predictor, scans[i][2].picture, words, self.heat_maps / name, of)
                row["heat_map"] = name
            except (DataError, OSError) as e:
                log.warning("no heat map of %s: %s", row["path"], str(e).splitlines()[0])

    def _unit(self, number: int, scans: list[Any], answer: Any, each: list[dict[str, Any]]) -> dict[str, Any]:
        origin, item = scans[0][:2]
        alone = len({row["path"] for row in each}) == 1
        unread = [row for row in each if row["error"]]
        unit: dict[str, Any] = dict.fromkeys(self.unit_columns)
        unit |= {"unit": number, "path": origin.path if alone else str(Path(origin.path).parent)}
        unit |= {"patient": item.of.get("patient", ""), "eye": origin.eye or item.of.get("eye", "")}
        unit |= {"volume": origin.volume, "name": item.of.get("volume", "")}
        unit |= {"frames": len(each) - len(unread), "unread": len(unread), "remarks": ""}
        unit["error"] = unread[0]["error"] if unread else ""
        if answer.probabilities is None:
            return unit
        far = np.array([np.nan if answer.distance is None else answer.distance])
        columns = answer_columns(answer.probabilities[None], self.rule, self.top_k or 1, far)
        unit |= {name: value for name, (value,) in columns.items()}
        if unit.get("unlike_training"):
            unit["remarks"] = unlike_words(float(far[0]), withheld=not self.answer_anyway)
        most = each[int(answer.attention.argmax())]
        unit |= {"most": most["path"], "most_frame": most["frame"], "most_attention": most["attention"]}
        return unit


def groups_of(items: Iterable[Item], level: str) -> list[list[Item]]:
    """The inputs that are of the same unit, or may be: a volume's file alone, and what belongs together of the others.

    Volumes of a file are told by the file, and so are eyes; pictures that a table with columns `patient`, `eye` and
    `volume` names are put together by these, and others by the folder that they lie in.

    Raises
    ------
    UsageError : the model answers for eyes, and a table names eyes without their patients.
    """
    groups: dict[tuple, list[Item]] = {}
    for item in items:
        groups.setdefault(_group(item, level), []).append(item)
    _say_groups(groups, level)
    return list(groups.values())


def stream_units(
    tables: UnitTables,
    groups: Sequence[Sequence[Item]],
    reader: VolumeReader,
    bs: int = 16,
    done: int = 0,
    first: int = 0,
) -> Generator[tuple[int, bool, list[dict[str, Any]], dict[str, Any]], None, None]:
    """Read the inputs and answer unit by unit, the scans divided among the processes that work together.

    Parameters
    ----------
    groups : see `groups_of`.
    reader : of volumes; the caller closes it.
    done : how many of the groups are passed over.
    first : the number of the first unit.

    Yields
    ------
    (which group the unit is of, from 0; whether it is the last of that; the rows of its scans; its own row).
    """
    level = tables.predictor.info.level
    flat = [(at, item) for at, group in enumerate(groups) for item in group]
    items = [(n, item) for n, (_, item) in enumerate(flat)]
    wanted = Wanted(heat_maps=tables.heat_maps is not None)
    said = scans_of(tables.predictor, wanted, items, reader, bs, sum(map(len, groups[:done])))
    for at, of_group in groupby(said, lambda one: flat[one[0].item][0]):
        units = _units([(origin, flat[origin.item][1], *rest) for origin, *rest in of_group], level)
        for n, unit in enumerate(units, 1):
            yield at, n == len(units), *tables.rows(first, unit)
            first += 1


def _group(item: Item, level: str) -> tuple:
    """What scans of other files are of the same unit, or may be."""
    if item.of.get(level):
        if level == "eye" and not item.of.get("patient"):
            raise UsageError(
                f"{item.path}: the table says which eye it is of, and not whose",
                "give the table a column patient; all right eyes would be taken for one",
            )
        return ("table", *(item.of.get(role, "") for role in ("patient", "eye", "volume")[: _DEPTH[level]]))
    path = Path(item.path)
    return ("folder", str(path.parent)) if _is_picture(item) else ("file", str(path))


_DEPTH = {"patient": 1, "eye": 2, "volume": 3}


def _is_picture(item: Item) -> bool:
    from octfast.data.scans import IMAGE_SUFFIXES

    return Path(item.path).suffix.lower() in IMAGE_SUFFIXES


def _units(scans: list[Any], level: str) -> list[list[Any]]:
    """The units of a group: of a volume's file its volumes, or its eyes."""
    found: dict[Any, list[Any]] = {}
    last: Any = None
    for entry in scans:
        origin = entry[0]
        key: Any = None
        if level == "volume" and origin.of_volume:
            # What went wrong belongs to the volume that was being read.
            key = (origin.path, origin.volume) if origin.volume is not None else last or (origin.path, 0)
        elif level == "eye" and origin.of_volume and origin.eye:
            key = origin.eye
        last = key
        found.setdefault(key, []).append(entry)
    return list(found.values())


def _say_groups(groups: dict[tuple, list[Item]], level: str) -> None:
    folders = [key for key in groups if key[0] == "folder"]
    if folders:
        log.warning(
            "the pictures of a folder are taken for one %s (%d folders); a table with the columns path and %s says "
            "otherwise",
            *(level, len(folders), level),
        )
