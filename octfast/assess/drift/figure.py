"""The picture of a drift: shares, distributions and, with dates, their course, training grey and new scans blue."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from octfast.assess.drift.result import Drift
from octfast.figure import Figure, short

_OLD, _NEW, _LABEL = "#8a8f94", "#1f6f8b", "#d2d5d8"
_TITLES = {
    "distance": "distance to the training scans",
    "probability": "probability of the predicted class",
    "brightness": "brightness (mean grey, 0 to 1)",
    "contrast": "contrast (deviation of grey)",
}


def draw(found: Drift) -> Figure:
    """Class shares and the distributions of every number at hand; below them the periods, where there are any."""
    panels = [c for c in _TITLES if all(c in t and t[c].notna().any() for t in (found.training, found.new))]
    if "distance" not in panels and "distance" in found.new:
        panels.insert(0, "distance")
    dated = len(found.periods) > 0
    columns = 3
    rows = -(-(1 + len(panels)) // columns)
    fig = Figure(figsize=(12, 3.5 * rows + (3.6 if dated else 0) + 0.6), layout="constrained")
    grid = fig.add_gridspec(rows + dated, columns)
    _classes(fig.add_subplot(grid[0, 0]), found)
    for n, column in enumerate(panels, start=1):
        _spread(fig.add_subplot(grid[n // columns, n % columns]), found, column)
    if dated:
        _unlike_by_period(fig.add_subplot(grid[rows, : 1 if columns == 2 else 2]), found.periods)
        _classes_by_period(fig.add_subplot(grid[rows, 2]), found)
    about = found.about
    fig.suptitle(
        f"{short(about['predictions'], 40)}: {about['scans']:,} scans of {about['patients']:,} patients (blue) against "
        f"{about['training_scans']:,} of {about['training_patients']:,} of {short(about['run'], 40)} (grey)",
        fontsize=11,
    )
    note = "Not a medical device." + (" Synthetic phantoms." if about["synthetic"] else "")
    fig.text(0.995, 0.002, note, ha="right", va="bottom", fontsize=7, color="#555555")
    return fig


def _classes(ax: Axes, found: Drift) -> None:
    rows = found.table[found.table["figure"] == "class share"].set_index("of")
    at = np.arange(len(found.classes))
    bars: list[tuple[str, list[float], str]] = [("training: label", [found.labels[c] for c in found.classes], _LABEL)]
    if len(rows):
        bars += [
            ("training: predicted out of fold", rows.loc[list(found.classes), "training"].tolist(), _OLD),
            ("new: predicted", rows.loc[list(found.classes), "new"].tolist(), _NEW),
        ]
    height = 0.8 / len(bars)
    for n, (name, values, colour) in enumerate(bars):
        ax.barh(at + (n - (len(bars) - 1) / 2) * height, values, height, label=name, color=colour)
    ax.set_yticks(at, [short(c, 14) for c in found.classes])
    ax.invert_yaxis()
    # Room for the legend beside the bars.
    ax.set_xlim(0, 1.6 * max(v for _, values, _ in bars for v in values))
    ax.set_xlabel("share of scans")
    ax.set_title(_verdict("classes", found.table, "class shares"), fontsize=10)
    ax.legend(fontsize=7, loc="lower right", framealpha=0.9)


def _spread(ax: Axes, found: Drift, column: str) -> None:
    """Cumulative shares, which need no choice of bins."""
    for name, table, colour in (("training", found.training, _OLD), ("new", found.new, _NEW)):
        values = np.sort(table[column].dropna().to_numpy(dtype=float)) if column in table else np.zeros(0)
        if len(values):
            ax.step(values, np.arange(1, len(values) + 1) / len(values), where="post", label=name, color=colour, lw=1.8)
    if column == "distance":
        ax.axvline(1, color="#a3140f", lw=1, ls="--")
        ax.text(1, 0.03, " limit: beyond it\n unlike training", fontsize=7, color="#a3140f", va="bottom")
        farthest = float(np.nanmax(found.new[column].to_numpy(dtype=float)))
        if farthest > 8:
            ax.set_xscale("log")
    ax.set_ylim(0, 1.02)
    ax.set_xlabel(_TITLES[column])
    ax.set_ylabel("share of scans up to it")
    ax.set_title(_verdict(column, found.table, column), fontsize=10)
    ax.legend(fontsize=7, loc="lower right" if column != "distance" else "center right")


def _verdict(name: str, table: pd.DataFrame, figure: str) -> str:
    row = table[table["figure"] == figure]
    if row.empty or row["p"].isna().all():
        return f"{name}: not tested"
    p: Any = row["p_adjusted"].iloc[0]
    said = "moved" if bool(row["moved"].iloc[0]) else "not beyond chance"
    return f"{name}: {said} (adjusted p {'< .001' if p < 0.001 else f'{p:.3f}'})"


def _unlike_by_period(ax: Axes, periods: pd.DataFrame) -> None:
    at = np.arange(len(periods))
    if "unlike" in periods:
        share = 100 * periods["unlike"].to_numpy(dtype=float)
        ends = 100 * periods[["low", "high"]].to_numpy(dtype=float)
        apart = np.clip(np.abs(np.stack([share - ends[:, 0], ends[:, 1] - share])), 0, None)
        ax.errorbar(at, share, apart, fmt="o-", color=_NEW, capsize=3, lw=1.5)
        ax.axhline(1, color="#a3140f", lw=1, ls="--", label="1%, for which the limit is set")
        ax.legend(fontsize=7)
        ax.set_ylim(bottom=0)
        ax.set_ylabel("unlike training, % of scans")
    counts = [f"{short(r.period, 12)}\n{r.scans:,} / {r.patients:,}" for r in periods.itertuples()]
    step = max(1, -(-len(counts) // 14))
    ax.set_xticks(at[::step], counts[::step], fontsize=7)
    ax.set_xlabel("period, with scans / patients")
    ax.set_title("scans unlike training by period, 95% intervals by patient", fontsize=10)


def _classes_by_period(ax: Axes, found: Drift) -> None:
    at = np.arange(len(found.periods))
    for name in found.classes:
        ax.plot(at, found.periods[f"share_{name}"], "o-", ms=3, label=short(name, 12))
    step = max(1, -(-len(at) // 6))
    ax.set_xticks(at[::step], [short(p, 12) for p in found.periods["period"]][::step], fontsize=7)
    ax.set_ylim(0, None)
    ax.set_ylabel("share of predicted classes")
    ax.set_title("predicted classes by period", fontsize=10)
    ax.legend(fontsize=7)
