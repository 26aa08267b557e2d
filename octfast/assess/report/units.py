"""The sections of a report on volumes, eyes and patients that were missed: their scans, and a strip of all of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from octfast.assess.interpret.missed_units import (
    FRAMES,
    MOST_UNITS,
    frames_of,
    numbers_of,
    plot_strip,
    put_together,
    scans_of,
    wrong_units,
)
from octfast.assess.report.page import Frame, MissedUnit, MissedUnits, Plot
from octfast.assess.report.pictures import HeatPictures, figure_picture, scan_pictures
from octfast.data.units import one
from octfast.model.bundle.info import BundleInfo
from octfast.model.units import unit_names


@dataclass(frozen=True)
class Missed:
    """The units of a level that were missed.

    Attributes
    ----------
    urgent : classes that they should have been taken for one of; none where any wrong answer counts.
    units : rows of the Predictions table of units, the worst first.
    drawn : those that are shown.
    each : how the scans of all units counted.
    frames : the scans to show, see `octfast.assess.interpret.missed_units.frames_of`.
    of : how many units could have been missed.
    own : whether the model answers for units itself; else it puts together what it says of their scans.
    notes : how it does, and what was left out.
    """

    level: str
    urgent: tuple[str, ...]
    units: pd.DataFrame
    drawn: pd.DataFrame
    each: pd.DataFrame
    frames: pd.DataFrame
    of: int
    own: bool
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> pd.DataFrame:
        """The frames as rows whose predicted class is their label, which their heat maps are of."""
        return self.frames.assign(predicted=self.frames["label"])


def missed_of(
    table: pd.DataFrame, info: BundleInfo, urgent: Sequence[str], answers: Callable[[], pd.DataFrame]
) -> list[Missed]:
    """What was missed of the model's own level, or of each that it puts scans together for as was fitted.

    Parameters
    ----------
    table : the Predictions table.
    answers : gives how each scan counted, of a model that answers for units.
    """
    if info.level != "scan":
        return [_missed(table, answers(), info.level, tuple(urgent), own=True)]
    found: list[Missed] = []
    for level, units, each, notes in put_together(table, info):
        found.append(_missed(units, each, level, tuple(urgent), own=False, notes=tuple(notes), above=found))
    return found


def _missed(
    units: pd.DataFrame,
    each: pd.DataFrame,
    level: str,
    urgent: tuple[str, ...],
    own: bool,
    notes: tuple[str, ...] = (),
    above: Sequence[Missed] = (),
) -> Missed:
    """`above` : of other levels, whose units are not drawn again where they are of the same scans."""
    wrong = wrong_units(units, urgent)
    of = int(units["label"].isin(urgent).sum()) if urgent else len(units)
    seen = [scans for found in above for scans in _scans_of(found.drawn, found.each, found.level)]
    worst = wrong.head(MOST_UNITS)
    drawn = worst[np.array([scans not in seen for scans in _scans_of(worst, each, level)], dtype=bool)]
    frames = frames_of(drawn, each, level, suspicious=None if own else urgent)
    return Missed(level, urgent, wrong, drawn, each, frames, of, own, notes)


def _scans_of(units: pd.DataFrame, each: pd.DataFrame, level: str) -> list[frozenset[str]]:
    """The scans of each unit."""
    return [frozenset(scans_of(row, each, level)["path"]) for row in units.to_dict("records")]


def missed_units_section(found: Missed, heat: HeatPictures) -> MissedUnits:
    """The units that were missed, each with its scans beside heat maps and a strip of all of them."""
    level, n = found.level, len(found.units)
    kind = f"urgent {level}" if found.urgent else level
    wrong = "a class that is not urgent" if found.urgent else "another class"
    heading = f"{kind.capitalize()}s that were missed" if found.urgent else f"{level.capitalize()}s that were wrong"
    if not n:
        right = "an urgent class" if found.urgent else "its own"
        words = f"None: every {kind} was taken for {right} ({found.of:,} {level}s)."
    else:
        words = f"{n:,} {kind}{'s were' if n > 1 else ' was'} taken for {wrong}, of {found.of:,}"
        words += f"; the {MOST_UNITS} surest misses are shown." if n > MOST_UNITS else "."
        of = " + ".join(found.urgent) if found.urgent else "the label"
        which = "counted most" if found.own else f"alone have the highest probability of {of}"
        words += f" Of each up to {FRAMES} scans are shown that {which}."
        words += f" The strip has a bar a scan, how much it counts in the answer for {one(level)}, "
        words += f"and a point, what it says alone of {of}."
        if again := min(n, MOST_UNITS) - len(found.drawn):
            words += f" {again} of these {'is' if again == 1 else 'are'} of the same scans as one above, and not shown "
            words += "again."
    words = " ".join([words, *found.notes])
    names = unit_names(found.drawn, level)
    shown = [_unit(name, row, found, heat) for name, row in zip(names, found.drawn.to_dict("records"), strict=True)]
    return MissedUnits(heading, words, heat.said(f"the label of its {level}") if shown else "", shown)


def _unit(name: str, unit: dict[Any, Any], found: Missed, heat: HeatPictures) -> MissedUnit:
    scans = scans_of(unit, found.each, found.level)
    what, numbers = numbers_of(scans)
    place = dict(zip(scans["path"], numbers, strict=True))
    rows = found.frames[found.frames["unit"] == name].to_dict("records")
    frames = [_frame(row, (what, str(place[row["path"]])), heat) for row in rows]
    asked = [*found.urgent] or [str(unit["label"])]
    strip = None
    if unit["scans"] > 1:
        fig = plot_strip(unit, found.each, found.level, asked)
        alt = f"How much each of {unit['scans']} scans of {name} counts, and what each alone says of {', '.join(asked)}"
        strip = Plot(figure_picture(fig, alt), "")
    actual, predicted, sure = str(unit["label"]), str(unit["predicted"]), f"{unit['probability']:.0%}"
    return MissedUnit(name, actual, predicted, sure, frames, strip)


def _frame(row: dict[Any, Any], place: tuple[str, str], heat: HeatPictures) -> Frame:
    label = str(row["label"])
    scan, drawn, problem = scan_pictures(str(row["path"]), label, f"scan of {label}", heat)
    alone = {c.removeprefix("alone_"): float(row[c]) for c in row if str(c).startswith("alone_")}
    said = list(dict.fromkeys([label, max(alone, key=lambda c: alone[c])]))
    return Frame(
        name=Path(str(row["path"])).name,
        place=place,
        counts=f"{row['attention']:.0%}",
        alone=[(c, f"{alone[c]:.0%}") for c in said],
        scan=scan,
        heat=drawn,
        problem=problem,
    )
