"""Rows a volume, an eye or a patient of a model of scans: its scans' answers, put together as was fitted for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octfast.deploy.predict.rows import Row, VolumeOf, Wanted
from octfast.deploy.predictor import answer_columns
from octfast.model.aggregation import Aggregation
from octfast.model.decide import rule_of

_KEYS = {"volume": ("patient", "eye", "volume"), "eye": ("patient", "eye"), "patient": ("patient",)}


class AggregatedTable:
    """Gathers the rows of scans into a row a unit, of one level.

    Scans of a table with the columns `patient`, `eye` and `volume` are told by these, those of a file of volumes by the
    file: its volumes, or its eyes. Scans of which neither is known are in no unit. Those that were given no class, as
    they are unlike the training scans, do not count.

    Parameters
    ----------
    how : the aggregation of the level.
    classes : of the model.
    of : what a table says of each input, see `octfast.deploy.predict.inputs.Item`; empty where inputs come without end.
    urgent : classes to refer instead of the model's; see `octfast.model.decide.rule_of`.

    Attributes
    ----------
    columns : `path` (of its file, or the folder of its first scan), `patient`, `eye`, `volume` (of a file, from 0),
        `name` (of the volume, as a table has it), `frames`, `unread`, `unlike_scans` (that do not count); those of
        `octfast.deploy.predictor.answer_columns`; `scans_<class>` (scans with that class); `most`, the scan that counts
        most, its `most_frame` and `most_attention`; `remarks`; `error`.
    """

    def __init__(
        self,
        how: Aggregation,
        classes: Sequence[str],
        wanted: Wanted,
        of: Sequence[Mapping[str, str]] = (),
        urgent: Sequence[str] | None = None,
    ):
        self.how, self.of = how, of
        self.rule = rule_of(classes, how.calibration, urgent, abstain_below=wanted.abstain_below)
        self.top_k = wanted.top_k or 1
        answer = answer_columns(np.zeros((0, len(classes))), self.rule, self.top_k)
        about = ["path", "patient", "eye", "volume", "name", "frames", "unread", "unlike_scans"]
        counts = [f"scans_{c}" for c in classes]
        self.columns = [*about, *answer, *counts, "most", "most_frame", "most_attention", "remarks", "error"]
        self._found: dict[tuple, dict[str, Any]] = {}
        self._volume_of = VolumeOf()

    def add(self, row: Row) -> None:
        """Count a row."""
        seen = row.values
        key, about = self._unit(row)
        if key is None:
            return
        unit = self._found.setdefault(key, {"about": about, "p": [], "scans": [], "unread": [], "unlike": 0})
        if seen["error"]:
            unit["unread"].append(seen["error"])
        elif seen["predicted"] is None:
            unit["unlike"] += 1
        else:
            unit["p"].append([seen[f"p_{c}"] for c in self.rule.classes])
            unit["scans"].append((seen["path"], seen["frame"], seen["predicted"]))

    def rows(self) -> list[dict[str, Any]]:
        """The units, the most urgent first; without urgent classes in the order of the inputs; unread ones last."""
        found = [self._row(unit) for unit in self._found.values()]
        return sorted(found, key=lambda v: (v["predicted"] is None, -(v.get("urgent_score") or 0.0)))

    def _unit(self, row: Row) -> tuple[tuple | None, dict[str, Any]]:
        """Which unit a row is of, and what is known of that; None where it is of none."""
        level, seen = self.how.level, row.values
        told = self.of[row.item] if row.item < len(self.of) else {}
        path = seen["path"]
        if told.get(level) and (told.get("patient") or level == "volume"):
            own = {key: told.get(key, "") for key in _KEYS[level]}
            about = {"name" if key == "volume" else key: value for key, value in own.items()}
            return ("table", *own.values()), {**about, "path": path if row.of_volume else str(Path(path).parent)}
        if not row.of_volume or level == "patient":
            return None, {}
        if level == "eye":
            known = seen["eye"]
            return (("file", row.item, known) if known else None), {"path": path, "eye": known}
        which = self._volume_of(row)
        return ("file", row.item, which), {"path": path, "eye": seen["eye"], "volume": which}

    def _row(self, unit: dict[str, Any]) -> dict[str, Any]:
        classes, scans, unlike = self.rule.classes, unit["scans"], unit["unlike"]
        row: dict[str, Any] = {**dict.fromkeys(self.columns), "patient": "", "eye": "", "name": "", "remarks": ""}
        row |= unit["about"]
        row |= {"frames": len(scans) + unlike, "unread": len(unit["unread"]), "unlike_scans": unlike}
        row["error"] = unit["unread"][0] if unit["unread"] else ""
        row |= {f"scans_{c}": sum(said == c for *_, said in scans) for c in classes}
        if unlike:
            row["remarks"] = f"{unlike} of its scans are unlike the training scans and do not count"
        if not scans:
            return row
        p, number = np.array(unit["p"], dtype=float), np.zeros(len(scans), dtype=int)
        answer = self.how.probabilities(p, number, 1, classes)
        row |= {name: value for name, (value,) in answer_columns(answer, self.rule, self.top_k).items()}
        weight = self.how.weights(p, number, answer.argmax(1), classes)
        most = int(weight.argmax())
        return row | {"most": scans[most][0], "most_frame": scans[most][1], "most_attention": float(weight[most])}
