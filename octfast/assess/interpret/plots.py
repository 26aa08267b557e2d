"""Plots of a Predictions table: the confusion matrix, scans beside their heat maps, a montage of the classes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.patches import Rectangle
from PIL import Image

from octfast.assess.interpret.heatmap import COLOURS, overlay, wedges_in_words
from octfast.assess.interpret.rows import MOST_CLASSES, confused_classes
from octfast.data.fit import box_of, hides, seen_in_words
from octfast.data.preprocess import decode_grey
from octfast.errors import DataError
from octfast.figure import Place, one_axes, plain_text, short, whole_place
from octfast.notices import CAUTION, NOTICE

RIGHT, WRONG = "#0072B2", "#D55E00"
# The heat map of a scan (its path) and a class: float32 of the scan's height and width; or why there is none.
Heat = Callable[[str, str], np.ndarray | str]


def plot_confusion_matrix(
    counts: pd.DataFrame,
    title: str = "Confusion matrix",
    note: str = "",
    *,
    cmap: str = "Blues",
    text: Callable[[int, float], str] = "{}\n{:.0%}".format,
    place: Place = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Any:
    """A confusion matrix: in each cell the count and its share of the labelled class, which also gives the shade.

    Of more than 20 classes, those 20 are drawn that were confused most; counts and shares stay those of all.

    Parameters
    ----------
    counts : label by predicted, see `octfast.assess.interpret.rows.confusion_matrix`.
    note : a line below the plot.
    text : gives what stands in a cell from its count and share.
    place : where to draw, see `octfast.figure`; None makes a figure.
    figsize : in inches; None fits the classes.

    Returns
    -------
    The figure, or the axes that was given.
    """
    sums = counts.to_numpy().sum(1, keepdims=True)
    if len(counts) > MOST_CLASSES:
        note = f"The {MOST_CLASSES} of {len(counts)} classes that were confused most.  {note}".strip()
        chosen = confused_classes(counts)
        sums = sums[counts.index.isin(chosen)]
        counts = counts.loc[chosen, chosen]
    n = len(counts)
    side = max(4.5, 1.1 * n + 1.5)
    fig, ax = one_axes(place, figsize or (side + 1, side), dpi)
    values = counts.to_numpy()
    share = np.divide(values, sums, out=np.zeros(values.shape), where=sums > 0)
    shade = ax.imshow(share, cmap=cmap, vmin=0, vmax=1)
    for i in range(n):
        for j in range(n):
            cell = text(values[i, j], share[i, j]) if sums[i] else f"{values[i, j]}"
            ax.text(j, i, cell, ha="center", va="center", color="white" if share[i, j] > 0.55 else "black")
    labels = [f"{short(c)}\n(n={s})" for c, s in zip(counts.index, sums[:, 0], strict=True)]
    names = [short(c) for c in counts.columns]
    ax.set_xticks(range(n), names, rotation=0 if n <= 5 else 60, ha="center" if n <= 5 else "right")
    ax.set_yticks(range(n), labels)
    ax.set(xlabel="predicted", ylabel="label", title=title)
    (fig or ax.figure).colorbar(shade, ax=ax, label="share of the labelled class", shrink=0.8)
    return _finish(fig, note, ax)


def plot_top_losses(
    rows: pd.DataFrame,
    title: str = "Top losses",
    note: str = "",
    *,
    heat: Heat | None = None,
    fit: str = "squeeze",
    ncols: int | None = None,
    place: Place = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Any:
    """Scans in a grid, each whole, with its label, what it was taken for, both probabilities, its loss and file name.

    Parameters
    ----------
    rows : from `octfast.assess.interpret.rows.top_losses` or one of its neighbours.
    note : a line below the plot.
    heat : gives the heat map of a path and a class; beside each scan stands that of its predicted class.
    fit : that of the model; lines bound what it sees of a scan, see `octfast.data.fit.box_of`.
    ncols : scans a line; None takes as many as lines, to 5 (to 3 with heat maps).
    place : where to draw, see `octfast.figure`; None makes a figure.
    figsize : in inches; None fits the scans.

    Returns
    -------
    The figure, or the part of it that the axes had which was given.
    """
    n = max(1, len(rows))
    columns = ncols or min(n, 3 if heat else 5, math.ceil(math.sqrt(n)))
    lines = math.ceil(n / columns)
    panels = 2 if heat else 1
    wide = 3.1 * panels * columns + 0.7 if heat else 4.0 * columns
    fig = whole_place(place, figsize or (wide, 3.9 * lines + 0.6), dpi)
    axes = np.atleast_1d(fig.subplots(lines, panels * columns)).ravel()
    for ax in axes[panels * len(rows) :]:
        ax.axis("off")
    for i, row in enumerate(rows.itertuples()):
        ax = axes[panels * i]
        picture = _show(ax, str(row.path), fit)
        wrong = row.label != row.predicted
        head = f"label {short(row.label)} ({row.p_actual:.0%})"
        ax.set_title(
            f"{head}\npredicted {short(row.predicted)} ({row.probability:.0%})\nloss {row.loss:.2f}, "
            f"{'wrong' if wrong else 'right'}",
            fontsize=10,
            color=WRONG if wrong else RIGHT,
            loc="left",
        )
        name = "\n".join(textwrap.wrap(Path(row.path).name, 44)) or row.path
        _write_below(ax, name)
        if heat:
            found = heat(str(row.path), str(row.predicted))
            _show_heat(axes[panels * i + 1], picture, found, str(row.predicted), fit)
    if not len(rows):
        axes[0].text(0.5, 0.5, "none", transform=axes[0].transAxes, ha="center", va="center", fontsize=12)
    fig.suptitle(title, fontsize=12)
    if heat and len(rows):
        note = f"{_heat_bar(fig, axes)}\n{note}".strip()
    _in_line(axes)
    return _finish(fig, with_seen(note, fit))


def plot_montage(
    rows: pd.DataFrame,
    title: str = "Montage",
    note: str = "",
    *,
    classes: Sequence[str] = (),
    fit: str = "squeeze",
    place: Place = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Any:
    """A line of scans a class, from its smallest loss to its largest, each with what it was taken for.

    Parameters
    ----------
    rows : from `octfast.assess.interpret.rows.montage_rows`.
    note : a line below the plot.
    classes : the lines, from above; by default those of the rows.
    fit : see `plot_top_losses`.
    place : where to draw, see `octfast.figure`; None makes a figure.
    figsize : in inches; None fits the scans.

    Returns
    -------
    The figure, or the part of it that the axes had which was given.
    """
    names = list(classes) or list(dict.fromkeys(rows["label"]))
    most = max(1, int(rows["label"].value_counts().max())) if len(rows) else 1
    lines = max(1, len(names))
    fig = whole_place(place, figsize or (2.5 * most + 0.5, 2.75 * lines + 0.9), dpi)
    axes = fig.subplots(lines, most, squeeze=False)
    for line, name in zip(axes, names, strict=False):
        part = rows[rows["label"] == name]
        line[0].set_ylabel(short(name), fontsize=11)
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.set_frame_on(False)
        if part.empty:
            line[0].text(0.5, 0.5, "no scans", transform=line[0].transAxes, ha="center", va="center", fontsize=8)
        for ax, row in zip(line, part.itertuples(), strict=False):
            _show(ax, str(row.path), fit)
            wrong = row.label != row.predicted
            said = f"wrong: {short(row.predicted, 18)}" if wrong else "right"
            ax.set_title(f"{said} ({row.probability:.0%})", fontsize=9, color=WRONG if wrong else RIGHT, loc="left")
            ax.set_frame_on(True)
            ax.spines[:].set(color=WRONG if wrong else RIGHT, linewidth=2.5 if wrong else 1)
            file = "\n".join(textwrap.wrap(Path(row.path).name, 36)[:2])
            _write_below(ax, file, 6)
    fig.suptitle(title, fontsize=12)
    _in_line(axes.ravel())
    said = f"In each line from the smallest loss, left, to the largest.\n{note}".strip()
    return _finish(fig, with_seen(said, fit))


def bound(ax: Axes, picture: Image.Image, fit: str) -> None:
    """Draw lines around what a model sees of a scan, where that is not all of it."""
    if hides(picture.width, picture.height, fit):
        left, top, right, bottom = box_of(picture.width, picture.height, fit)
        at, shape = (left - 0.5, top - 0.5), (right - left, bottom - top)
        ax.add_patch(Rectangle(at, *shape, fill=False, edgecolor="#F0E442", linewidth=1, linestyle="--"))


def with_seen(note: str, fit: str) -> str:
    """A note, with what a reader of scans that are bounded must know before it."""
    said = seen_in_words(fit)
    return f"{said[:1].upper()}{said[1:]}, within the lines.\n{note}".strip() if said else note


def _show(ax: Axes, path: str, fit: str) -> Image.Image | None:
    """Draw a scan and give it back; or say in its place why it cannot be drawn."""
    ax.set(xticks=[], yticks=[])
    try:
        picture = decode_grey(path)
    except DataError as e:
        _say(ax, e.message)
        return None
    ax.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255)
    bound(ax, picture, fit)
    return picture


def _show_heat(ax: Axes, picture: Image.Image | None, heat: np.ndarray | str, name: str, fit: str) -> None:
    ax.set(xticks=[], yticks=[])
    if isinstance(heat, str) or picture is None:
        _say(ax, f"no heat map: {heat if isinstance(heat, str) else 'the scan is gone'}")
        return
    ax.imshow(np.asarray(overlay(picture, heat, fit=fit)))
    what = "what raised the score of" if heat.any() else "nothing raised the score of"
    hidden = wedges_in_words(picture, heat)
    _write_below(ax, f"{what}\n{short(name)}" + (f"\n{hidden}" if hidden else ""))


def _heat_bar(fig: Any, axes: Any) -> str:
    """A colour bar for the heat maps; gives the line that says what they are not."""
    bar = fig.colorbar(ScalarMappable(cmap=COLOURS), ax=axes.tolist(), fraction=0.015, pad=0.01, shrink=0.6)
    bar.set_label("share of the strongest in the scan", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return f"Colours: what raised the score of the predicted class; {CAUTION}."


def _write_below(ax: Axes, words: str, size: int = 7) -> None:
    ax.text(0, -0.02, words, transform=ax.transAxes, va="top", fontsize=size, color="#444444")


def _say(ax: Axes, what: str) -> None:
    reason = "\n".join(textwrap.wrap(what, 34))
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", fontsize=8)


def _in_line(axes: Any) -> None:
    """Give all scans of a grid boxes of one shape, however wide they are, so that the words around them align."""
    shapes = [ax.images[0].get_array().shape[:2] for ax in axes if ax.images]
    if not shapes:
        return
    shape = max(high / wide for high, wide in shapes)
    for ax in axes:
        ax.set_box_aspect(shape)
        if ax.images:
            # A wider scan leaves room above and below itself, within its box.
            ax.set_adjustable("datalim")
            ax.set_facecolor("#eeeeee")


def _finish(fig: Any, note: str, ax: Axes | None = None) -> Any:
    """Write the line below a figure; there is none below an axes that was given."""
    plain_text(ax if fig is None else fig)
    if fig is None:
        return ax
    fig.supxlabel(f"{note}  {NOTICE}".strip(), fontsize=8, color="#444444", parse_math=False)
    return fig
