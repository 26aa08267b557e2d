"""Curves of a Predictions table: ROC, precision-recall, reliability, and risk against coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from octfast.assess.metrics.abstain import coverage_risk, risk_area
from octfast.assess.metrics.referral import referral_at, urgent_score
from octfast.assess.metrics.reliability import ece, reliability
from octfast.figure import Place, one_axes, plain_text, whole_place
from octfast.model.temperature import rescale, table_temperature

# Okabe and Ito's colours without the yellow, which is too light for a line. Each has a dash and a marker of its own,
# so that none of them is needed.
_STYLES = [
    ("#0072B2", "-", "o"),
    ("#D55E00", (0, (6, 2)), "s"),
    ("#009E73", (0, (1.5, 1.5)), "^"),
    ("#CC79A7", (0, (6, 2, 1.5, 2)), "D"),
    ("#56B4E9", (0, (10, 3)), "v"),
    ("#E69F00", (0, (3, 1, 1, 1, 1, 1)), "P"),
    ("#000000", (0, (1, 3)), "X"),
    ("#7F7F7F", (0, (8, 2, 1, 2, 1, 2)), "*"),
]
# A bin of the reliability diagram with fewer scans stands alone: its place is mostly luck.
_JOINED = 10
_FOOTER = "Not a medical device."
_GREY = "#444444"


@dataclass(frozen=True)
class _Curve:
    name: str
    x: np.ndarray
    y: np.ndarray
    area: float
    positives: int


def plot_roc(
    table: pd.DataFrame,
    classes: Sequence[str],
    *,
    urgent: Sequence[str] | None = None,
    threshold: float | None = None,
    title: str = "ROC, each class against the rest",
    note: str = "",
    place: Place = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Any:
    """Sensitivity against the false alarms, a line a class, with the areas below them.

    With more than eight classes those with the smallest areas have a line of their own, the others thin grey ones.

    Parameters
    ----------
    urgent : classes whose referral has a thick line too.
    threshold : of the urgent score, marked by a star.
    note : a line below the figure.
    place : where to draw, see `octfast.figure`; None makes a figure.

    Returns
    -------
    The figure, or the axes that was given.
    """
    curves = []
    for name, actual, score in _each(table, classes):
        x, y, _ = roc_curve(actual, score)
        curves.append(_Curve(name, x, y, float(roc_auc_score(actual, score)), int(actual.sum())))
    fig, ax = _square(place, figsize, dpi)
    ax.plot([0, 1], [0, 1], color="#999999", linewidth=1, zorder=1)
    ax.text(0.5, 0.48, "chance", color=_GREY, fontsize=8, rotation=45, ha="center", va="top")
    if urgent:
        actual, score = table["label"].isin(urgent).to_numpy(), urgent_score(table, urgent)
        if 0 < actual.sum() < len(actual):
            x, y, _ = roc_curve(actual, score)
            ax.plot(x, y, color="black", linewidth=3, label=f"urgent referral: AUC {roc_auc_score(actual, score):.3f}")
            if threshold is not None:
                found = referral_at(table, urgent, threshold)
                at = 1 - found["specificity"], found["sensitivity"]
                said = f"operating point: {at[1]:.0%} sensitive, {found['specificity']:.0%} specific"
                star: dict[str, Any] = {"markeredgecolor": "white", "linestyle": "", "zorder": 5, "clip_on": False}
                ax.plot(*at, marker="*", markersize=17, color="black", label=said, **star)
    _draw(ax, curves, "AUC", len(classes) - len(curves))
    ax.set(xlabel="1 - specificity (false alarms)", ylabel="sensitivity", title=title)
    return _finish(fig, note, ax, "lower right", legend=True)


def plot_precision_recall(
    table: pd.DataFrame,
    classes: Sequence[str],
    *,
    title: str = "Precision and recall, each class against the rest",
    note: str = "",
    place: Place = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Any:
    """How many of the scans called a class are of it, against how many of it are found; with the average precisions.

    A short line at the right edge marks the share of the class in the table, which is the precision of chance.

    Parameters
    ----------
    note : a line below the figure.
    place : where to draw, see `octfast.figure`; None makes a figure.

    Returns
    -------
    The figure, or the axes that was given.
    """
    curves = []
    for name, actual, score in _each(table, classes):
        y, x, _ = precision_recall_curve(actual, score)
        # As steps, since precision between two thresholds is not on the line between them.
        x, y = np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]
        curves.append(_Curve(name, x, y, float(average_precision_score(actual, score)), int(actual.sum())))
    fig, ax = _square(place, figsize, dpi)
    drawn = _draw(ax, curves, "AP", len(classes) - len(curves))
    for curve, (colour, _, _) in drawn:
        share = curve.positives / len(table)
        ax.plot([1.01, 1.035], [share, share], color=colour, linewidth=2.5, clip_on=False)
    if drawn:
        ax.plot([], [], color=_GREY, linewidth=2.5, label="at the right edge: share of the class, as by chance")
    ax.set(xlabel="recall (sensitivity)", ylabel="precision (positive predictive value)", title=title)
    return _finish(fig, note, ax, "lower left", legend=True)


def before_and_after(table: pd.DataFrame, classes: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """(a Predictions table without a temperature, the table as it is; None where it has no temperature)."""
    if table_temperature(table) == 1:
        return table, None
    return rescale(table, classes, 1.0), table


def plot_reliability(
    before: pd.DataFrame,
    after: pd.DataFrame | None,
    classes: Sequence[str],
    *,
    bins: int = 15,
    title: str = "Reliability",
    note: str = "",
    place: Place = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Any:
    """How often the predicted class is right by its probability, and how many scans have that probability.

    Parameters
    ----------
    before : the table without a temperature.
    after : at the fitted one; None draws `before` alone.
    note : a line below the figure.
    place : where to draw, see `octfast.figure`; None makes a figure.

    Returns
    -------
    The figure, or the axes that was given.
    """
    fig = whole_place(place, figsize or (6.4, 7.6), dpi)
    ax, below = fig.subplots(2, 1, height_ratios=[3.2, 1], sharex=True)
    ax.plot([0, 1], [0, 1], color="#999999", linewidth=1, zorder=1)
    start = 0.0 if len(classes) > 2 else 0.5
    ax.text(*[start + 0.12 * (1 - start)] * 2, "perfectly calibrated", color=_GREY, fontsize=8, ha="right", va="bottom")
    tables = [("uncalibrated", before)] if after is None else [("before", before), ("after", after)]
    looks = [("#D55E00", (0, (5, 2)), "s", "white", -1), ("#0072B2", "-", "o", "#0072B2", 1)]
    for (name, table), (colour, dash, marker, face, side) in zip(tables, looks[-len(tables) :], strict=True):
        rows = reliability(table, classes, bins).query("count > 0")
        at = f", T = {table_temperature(table):.3g}" if name == "after" else ""
        errors = [rows["accuracy"] - rows["accuracy_low"], rows["accuracy_high"] - rows["accuracy"]]
        # Side by side, as the intervals of a bin would hide each other.
        x = rows["confidence"] + (0.004 * side if after is not None else 0)
        point: dict[str, Any] = {"color": colour, "marker": marker, "markerfacecolor": face, "markersize": 5.5}
        ax.errorbar(
            x, rows["accuracy"], np.clip(errors, 0, None), **point, linestyle="", elinewidth=0.9, capsize=2.5,
            zorder=3 + side,
        )  # fmt: skip
        many = rows["count"] >= _JOINED
        ax.plot(x[many], rows["accuracy"][many], color=colour, linestyle=dash, zorder=3 + side)
        label = f"{name}{at}: ECE {ece(table, classes, bins):.3f}"
        ax.plot([], [], **point, linestyle=dash, label=label)
        outline = {"color": colour, "linestyle": dash, "linewidth": 1.6, "histtype": "step"}
        filled = {"color": colour, "alpha": 0.35, "histtype": "stepfilled"}
        sure = table[[f"p_{c}" for c in classes]].to_numpy(dtype=float).max(1, initial=0)
        below.hist(sure, np.linspace(0, 1, bins + 1), **(filled if side == 1 else outline), label=name)
    said = f"95% intervals by patient; joined: {_JOINED} scans or more"
    # Room for the legend above all points.
    ax.set(ylabel="accuracy", title=title, xlim=(start, 1.01), ylim=(0, 1.24), yticks=np.linspace(0, 1, 6))
    ax.legend(
        loc="upper left",
        frameon=False,
        alignment="left",
        title=said,
        title_fontsize=9,
    )
    below.set(xlabel="probability of the predicted class", ylabel="scans")
    below.margins(y=0.15)
    if after is not None:
        below.legend(loc="upper left", frameon=False)
    for axes in (ax, below):
        axes.grid(alpha=0.3)
    return _finish(fig, note, ax)


def plot_coverage_risk(
    table: pd.DataFrame,
    *,
    title: str = "Risk by coverage: what abstaining gains",
    note: str = "",
    place: Place = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Any:
    """The share of wrong answers against the share of scans answered, the surest first; thresholds marked on it.

    Parameters
    ----------
    note : a line below the figure.
    place : where to draw, see `octfast.figure`; None makes a figure.

    Returns
    -------
    The figure, or the axes that was given.
    """
    curve = coverage_risk(table)
    fig, ax = one_axes(place, figsize or (7.2, 5), dpi)
    if len(curve):
        overall = float(curve["risk"].iloc[-1])
        # The first few scans alone have intervals from 0 to 1, which would press the curve flat.
        shown = curve[curve["scans"] >= min(20, len(table))]
        low, high = shown["risk_low"], shown["risk_high"]
        ax.fill_between(shown["coverage"], low, high, color="#0072B2", alpha=0.15, linewidth=0, step="pre")
        ax.plot(curve["coverage"], curve["risk"], color="#0072B2", drawstyle="steps-pre")
        ax.axhline(overall, color=_GREY, linestyle=":", linewidth=1.2)
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
        said = f"all answered: {overall:.1%} wrong"
        ax.text(0.03, overall, said, color=_GREY, fontsize=8, va="bottom", bbox=box, zorder=5)
        _mark_thresholds(ax, curve)
        ax.set_ylim(0, max(0.02, 1.3 * float(np.max(np.asarray(high), initial=overall))))
        said = f"area (AURC) {risk_area(curve):.4f}; shaded: 95% intervals by patient"
        ax.text(0.02, 0.97, said, transform=ax.transAxes, va="top", fontsize=9)
    ax.set(xlabel="coverage: share of scans answered", ylabel="risk: share of these that are wrong", title=title)
    ax.set_xlim(0, 1.02)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    ax.grid(alpha=0.3)
    return _finish(fig, note, ax)


def _mark_thresholds(ax: Axes, curve: pd.DataFrame) -> None:
    """Mark where the model would stand if it abstained below round probabilities, as far as there is room."""
    last = 2.0
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999):
        kept = curve[curve["threshold"] >= threshold]
        coverage = 0.0 if kept.empty else float(kept["coverage"].iloc[-1])
        if coverage < 0.12 or last - coverage < 0.1:
            continue
        last = coverage
        ax.plot(last, kept["risk"].iloc[-1], marker="o", color="#D55E00", markersize=6, zorder=4, clip_on=False)
        ax.annotate(
            f"p ≥ {threshold:g}", (last, kept["risk"].iloc[-1]), (-4, 5), fontsize=8,
            textcoords="offset points", ha="right", va="bottom", zorder=5,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip


def _each(table: pd.DataFrame, classes: Sequence[str]):
    """Name, truth and score of each class that has scans and is not all there is."""
    for c in classes:
        actual = (table["label"] == c).to_numpy()
        if 0 < actual.sum() < len(actual):
            yield c, actual, table[f"p_{c}"].to_numpy(dtype=float)


def _draw(ax: Axes, curves: list[_Curve], area: str, missing: int) -> list[tuple[_Curve, tuple]]:
    """Draw the curves, those of the smallest areas in a style each; gives these with their styles."""
    hardest = sorted(curves, key=lambda c: c.area)[: len(_STYLES)] if len(curves) > len(_STYLES) else curves
    shown = [(c, s) for c, s in zip([c for c in curves if c in hardest], _STYLES, strict=False)]
    rest = [c for c in curves if c not in hardest]
    for curve in rest:
        ax.plot(curve.x, curve.y, color="#BBBBBB", linewidth=0.8, zorder=1.5)
    for i, (curve, (colour, dash, marker)) in enumerate(shown):
        label = f"{_name(curve.name)} (n={curve.positives}): {area} {curve.area:.3f}"
        ax.plot(curve.x, curve.y, color=colour, linestyle=dash, linewidth=1.8, zorder=3)
        x, y = _places(curve, i, len(shown))
        ax.plot(x, y, color=colour, linestyle="", marker=marker, markersize=6, zorder=4, clip_on=False)
        ax.plot([], [], color=colour, linestyle=dash, linewidth=1.8, marker=marker, markersize=6, label=label)
    if rest:
        least = min(c.area for c in rest)
        ax.plot([], [], color="#BBBBBB", linewidth=0.8, label=f"{len(rest)} others: {area} ≥ {least:.3f}")
    if missing:
        ax.plot([], [], linestyle="", label=f"{missing} without scans, or without others")
    return shown


def _places(curve: _Curve, i: int, of: int, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Points of a curve at equal steps of its length, shifted for each curve so that their markers keep apart."""
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(curve.x), np.diff(curve.y)))])
    wanted = (np.arange(count) + (i + 0.5) / of) / count * length[-1]
    return np.interp(wanted, length, curve.x), np.interp(wanted, length, curve.y)


def _square(place: Place, figsize: tuple[float, float] | None, dpi: float | None) -> tuple[Any, Axes]:
    fig, ax = one_axes(place, figsize or (6.4, 6.6), dpi)
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    ax.grid(alpha=0.3)
    return fig, ax


def _finish(fig: Any, note: str, ax: Axes, loc: Any = "best", legend: bool = False) -> Any:
    """Write the legend, and the line below a figure; there is none below an axes that was given."""
    if legend and ax.get_legend_handles_labels()[1]:
        ax.legend(loc=loc, fontsize=8.5, framealpha=0.9, edgecolor="none", handlelength=3.4)
    plain_text(ax if fig is None else fig)
    if fig is None:
        return ax
    fig.supxlabel(f"{note}  {_FOOTER}".strip(), fontsize=8, color=_GREY, parse_math=False)
    return fig


def _name(name: object, most: int = 24) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in str(name)).split())
    # matplotlib leaves a name that begins with an underscore out of its legends.
    text = f"\u2009{text}" if text.startswith("_") else text
    return text if len(text) <= most else text[: most - 1] + "…"
