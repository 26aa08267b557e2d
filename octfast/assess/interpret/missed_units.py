"""Volumes, eyes or patients that were taken for something else: which of their scans counted, and what these say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from octfast.assess.at_level import at_level, levels_of
from octfast.assess.interpret.heatmap import overlay
from octfast.assess.interpret.plots import Heat, bound, with_seen
from octfast.assess.interpret.rows import missed_urgent, top_losses
from octfast.data.preprocess import decode_grey
from octfast.data.units import unit_columns
from octfast.errors import DataError
from octfast.figure import Figure, short
from octfast.model.bundle.info import BundleInfo
from octfast.model.units import unit_names
from octfast.notices import CAUTION, NOTICE

FRAMES = 3
MOST_UNITS = 6


def wrong_units(units: pd.DataFrame, urgent: Sequence[str]) -> pd.DataFrame:
    """The rows of a Predictions table of urgent units that were missed; without urgent classes of all wrong ones."""
    return missed_urgent(units, urgent) if urgent else top_losses(units[units["label"] != units["predicted"]], 10**6)


def put_together(table: pd.DataFrame, info: BundleInfo) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame, list[str]]]:
    """What a model of scans says of whole units: each level at which any has several scans, for which it was fitted.

    Parameters
    ----------
    table : the Predictions table of the model; of one that answers for units itself there is nothing.

    Yields
    ------
    (the level, the Predictions table of its units, how their scans counted, how they were put together).
    """
    for level in levels_of(table, info):
        units, _, each, notes = at_level(table, info, level)
        # Where no scan has others beside it, nothing is put together.
        if each is not None and (units["scans"] > 1).any():
            yield level, units, each, notes


def frames_of(
    units: pd.DataFrame,
    each: pd.DataFrame,
    level: str,
    frames: int = FRAMES,
    *,
    suspicious: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The scans that counted most in some units, or the most suspicious ones, a row a scan.

    Parameters
    ----------
    units : rows of a Predictions table of units.
    each : how the scans of these and of others counted, see `octfast.assess.predictions.scan_answers`.
    suspicious : takes the scans that alone have the highest probabilities of these classes, of none those of their
        label, in place of those that counted most. Of scans that are put together by a mean all count alike.

    Returns
    -------
    `unit` (its name), the columns of `unit_columns`, `label`, `predicted`, `probability` and `loss` of the unit; `rank`
    from 1, `path`, `attention`, `alone_<class>` and `frame`, where it is known, of the scan. In the order of the units.
    """
    keys = unit_columns(list(units.columns), level)
    about = units[[*keys, "label", "predicted", "probability", "loss"]].assign(
        unit=unit_names(units, level), place=range(len(units))
    )
    alone = [c for c in each if c.startswith("alone_")]
    more = [c for c in ("frame",) if c in each]
    rows = about.merge(each[[*keys, "path", "attention", *alone, *more]], on=keys, how="inner")
    by = rows["attention"] if suspicious is None else _alone(rows, suspicious)
    rows["rank"] = by.groupby(rows["place"]).rank(method="first", ascending=False).astype(int)
    rows = rows[rows["rank"] <= frames].sort_values(["place", "rank"])
    first = ["unit", *keys, "label", "predicted", "probability", "loss", "rank", "path", "attention"]
    return rows[[*first, *alone, *more]].reset_index(drop=True)


def plot_units(
    units: pd.DataFrame,
    each: pd.DataFrame,
    level: str,
    title: str,
    note: str = "",
    *,
    asked: Sequence[str] = (),
    heat: Heat | None = None,
    fit: str = "squeeze",
    suspicious: bool = False,
) -> Figure:
    """A line a unit: scans, over them what raised the score of its label; and a strip of all of its scans.

    The scans are those that counted most, or the most suspicious ones.

    The strip has a bar a scan, how much it counts, and a point, what it alone says for the classes asked about.

    Parameters
    ----------
    units, each : see `frames_of`; of many units the first six are drawn.
    asked : classes whose probabilities the points add up; none takes each unit's label.
    heat : gives the heat map of a path and a class.
    fit : that of the model; what it does not see of a scan is bounded, see `octfast.data.fit.box_of`.
    suspicious : whether to draw the scans that alone have the highest probabilities of the classes asked about.
    """
    units = units.head(MOST_UNITS)
    shown = frames_of(units, each, level, suspicious=asked if suspicious else None)
    lines = max(1, len(units))
    fig = Figure(figsize=(3.1 * FRAMES + 5, 2.9 * lines + 0.9), layout="constrained")
    axes = np.atleast_2d(fig.subplots(lines, FRAMES + 1, width_ratios=[*[1] * FRAMES, 1.6]))
    names = unit_names(units, level)
    for line, (name, row) in enumerate(zip(names, units.to_dict("records"), strict=True)):
        own = shown[shown["unit"] == name].to_dict("records")
        of = [*asked] or [str(row["label"])]
        for ax, scan in zip(axes[line], [*own, *[None] * (FRAMES - len(own))], strict=False):
            _scan(ax, scan, str(row["label"]), heat, fit)
            if scan is not None:
                alone = f"alone {sum(scan[f'alone_{c}'] for c in of):.0%}, " if suspicious else ""
                ax.set_title(f"{alone}counts {scan['attention']:.0%}", fontsize=9, loc="left")
        axes[line][0].set_ylabel(short(name), fontsize=9)
        _strip(axes[line][FRAMES], scans_of(row, each, level), of)
        head = f"label {short(row['label'])}, taken for {short(row['predicted'])} ({row['probability']:.0%})"
        axes[line][FRAMES].set_title(head, fontsize=9, loc="left")
    if not len(units):
        for ax in axes.ravel():
            ax.axis("off")
        axes[0][0].text(0.5, 0.5, "none", transform=axes[0][0].transAxes, ha="center", va="center", fontsize=12)
    fig.suptitle(title, fontsize=12)
    said = [f"Over the scans: what raised the score of the label; {CAUTION}."] if heat and len(units) else []
    fig.supxlabel("\n".join(filter(None, [*said, with_seen(note, fit) if len(units) else note, NOTICE])), fontsize=8)
    return fig


def plot_strip(unit: dict[Any, Any], each: pd.DataFrame, level: str, of: Sequence[str]) -> Figure:
    """The strip of `plot_units` of one unit alone.

    Parameters
    ----------
    unit : a row of a Predictions table of units.
    each : see `frames_of`.
    of : classes whose probabilities the points add up.
    """
    fig = Figure(figsize=(5.2, 2.0), layout="constrained")
    _strip(fig.subplots(), scans_of(unit, each, level), of)
    return fig


def _alone(rows: pd.DataFrame, of: Sequence[str]) -> pd.Series:
    """What each scan says alone of some classes together, of none of its label."""
    if of:
        return rows[[f"alone_{c}" for c in of]].sum(axis=1)
    return pd.Series([row[f"alone_{row['label']}"] for row in rows.to_dict("records")], index=rows.index, dtype=float)


def scans_of(unit: dict[Any, Any], each: pd.DataFrame, level: str) -> pd.DataFrame:
    """The scans of a unit, by frame where that is known, else by path.

    Parameters
    ----------
    unit : a row of a Predictions table of units.
    each : see `frames_of`.
    """
    keys = unit_columns(list(each.columns), level)
    own = each[np.logical_and.reduce([each[key] == unit[key] for key in keys])]
    return own.sort_values([c for c in ("frame", "path") if c in own])


def _scan(ax: Any, scan: dict[Any, Any] | None, label: str, heat: Heat | None, fit: str) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    if scan is None:
        ax.axis("off")
        return
    try:
        grey = decode_grey(scan["path"])
        drawn = heat(str(scan["path"]), label) if heat else ""
        if isinstance(drawn, np.ndarray):
            ax.imshow(overlay(grey, drawn, fit=fit))
        else:
            ax.imshow(grey, cmap="gray")
            bound(ax, grey, fit)
    except DataError as e:
        drawn = ""
        ax.text(0.5, 0.5, e.message, transform=ax.transAxes, ha="center", va="center", fontsize=7, wrap=True)
    below = [Path(str(scan["path"])).name]
    if isinstance(drawn, str):
        below += [f"no heat map: {drawn}"] if drawn else []
    elif not drawn.any():
        below.append(f"nothing raised the score of {short(label)}")
    ax.set_xlabel("\n".join(below), fontsize=7)


def _strip(ax: Any, scans: pd.DataFrame, of: Sequence[str]) -> None:
    at = np.arange(len(scans))
    alone = scans[[f"alone_{c}" for c in of]].sum(axis=1)
    # Of one scan or two, bars as wide as those of three.
    ax.set_xlim(-0.5, max(len(at), FRAMES) - 0.5)
    ax.bar(at, scans["attention"], color="#0072B2", label="how much it counts")
    ax.plot(at, alone, "o", color="#D55E00", markersize=3, label=f"alone: {', '.join(short(c) for c in of)}")
    ax.set_ylim(0, 1)
    what, names = numbers_of(scans)
    shown = at[:: max(1, -(-len(at) // 8))]
    ax.set_xticks(shown, [str(names[i]) for i in shown])
    ax.set_xlabel(what, fontsize=8)
    ax.tick_params(labelsize=7)
    ax.legend(fontsize=7, loc="upper right")


def numbers_of(scans: pd.DataFrame) -> tuple[str, np.ndarray]:
    """What the scans of a unit are called in its strip, and their whole numbers.

    These are of the frames where they are known, and else of the scans in the order given, from 1.
    """
    if "frame" in scans and scans["frame"].notna().all():
        return "B-scan", scans["frame"].astype(int).to_numpy()
    return "scan", np.arange(len(scans)) + 1
