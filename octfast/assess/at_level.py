"""From answers for scans to those for volumes, eyes and patients, as the model of a run puts them together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from octfast.data.units import LEVELS, one
from octfast.errors import DataError, UsageError
from octfast.model.aggregation import Aggregation, aggregation_of, fitted_levels
from octfast.model.bundle.info import BundleInfo
from octfast.model.units import aggregated_tables, level_note


def check_level_asked(level: str | None, info: BundleInfo) -> str:
    """The level that is judged: the one asked for, else that of the model.

    Raises
    ------
    UsageError : another word.
    DataError : a level that the model does not answer for.
    """
    if level is None or level == info.level:
        return info.level
    if level not in LEVELS:
        raise UsageError(f"--level {level}", f"one of {', '.join(LEVELS)}")
    if info.level != "scan":
        raise DataError(
            f"the model answers for a whole {info.level}, and not for {one(level)}",
            f"leave --level out, or train a model at that level: octfast train --level {level}",
        )
    return level


def at_level(
    table: pd.DataFrame, info: BundleInfo, level: str
) -> tuple[pd.DataFrame, BundleInfo, pd.DataFrame | None, list[str]]:
    """The Predictions table of a level, what the model is at that level, its scans, and what to know of it.

    Parameters
    ----------
    table : of the model, at its temperature.
    level : see `check_level_asked`.

    Returns
    -------
    (the table; the info with the temperature, the operating point and the sets of that level; how each scan counted, or
    None where the table is of what the model answers for itself; notes, a sentence each).

    Raises
    ------
    UsageError : the scans do not say which unit they are of.
    DataError : no unit has one label.
    """
    if level == info.level:
        return table, info, None, list(filter(None, [level_note(table, level)]))
    how = aggregation_of(info.calibration, level, info.classes)
    units, each = aggregated_tables(table, how, info.classes)
    notes = [level_note(units, level, how)]
    if left := len(table) - len(each):
        notes.append(f"Left out, as their {level} has scans of several labels: {left:,} of {len(table):,} scans.")
    return units, info_at(info, how), each, notes


def info_at(info: BundleInfo, how: Aggregation) -> BundleInfo:
    """What the model is for units: with their temperature, operating point and sets."""
    kept: dict[str, Any] = {key: info.calibration[key] for key in ("unlike", "quality") if key in info.calibration}
    # That the temperature is one of a fit; of what was not, nothing is calibrated.
    fitted: dict[str, Any] = {"nll_after": None} if how.fitted else {}
    return replace(info, temperature=how.temperature, calibration={**kept, **fitted, **how.calibration})


def levels_of(table: pd.DataFrame, info: BundleInfo) -> list[str]:
    """The levels above the model's own for which its scans can be put together as was fitted."""
    if info.level != "scan":
        return []
    return [level for level in fitted_levels(info.calibration) if level in table]
