"""Figures of a Predictions table: the confusion matrix, and the scans with the top losses."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from octfast.data.preprocess import decode_grey
from octfast.errors import DataError

RIGHT, WRONG = "#0072B2", "#D55E00"
_FOOTER = "Not a medical device."


def plot_confusion_matrix(
    counts: pd.DataFrame,
    title: str = "Confusion matrix",
    note: str = "",
    *,
    cmap: str = "Blues",
    text: Callable[[int, float], str] = "{}\n{:.0%}".format,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """A confusion matrix: in each cell the count and its share of the actual class, which also gives the shade.

    Parameters
    ----------
    counts : actual by predicted, see `octfast.assess.interpret.confusion_matrix`.
    note : a line below the figure.
    text : gives what stands in a cell from its count and share.
    figsize : in inches; None fits the classes.
    """
    n = len(counts)
    side = max(4.5, 1.1 * n + 1.5)
    fig = Figure(figsize=figsize or (side + 1, side), dpi=dpi, layout="constrained")
    ax = fig.subplots()
    values = counts.to_numpy()
    sums = values.sum(1, keepdims=True)
    share = np.divide(values, sums, out=np.zeros(values.shape), where=sums > 0)
    shade = ax.imshow(share, cmap=cmap, vmin=0, vmax=1)
    for i in range(n):
        for j in range(n):
            cell = text(values[i, j], share[i, j]) if sums[i] else f"{values[i, j]}"
            ax.text(j, i, cell, ha="center", va="center", color="white" if share[i, j] > 0.55 else "black")
    actual = [f"{_short(c)}\n(n={s})" for c, s in zip(counts.index, sums[:, 0], strict=True)]
    names = [_short(c) for c in counts.columns]
    ax.set_xticks(range(n), names, rotation=0 if n <= 5 else 60, ha="center" if n <= 5 else "right")
    ax.set_yticks(range(n), actual)
    ax.set(xlabel="predicted", ylabel="actual", title=title)
    fig.colorbar(shade, ax=ax, label="share of the actual class", shrink=0.8)
    _footer(fig, note)
    return fig


def plot_top_losses(
    rows: pd.DataFrame,
    title: str = "Top losses",
    note: str = "",
    *,
    ncols: int | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """Scans in a grid, each whole, with what it is, what it was taken for, both probabilities, its loss and file name.

    Parameters
    ----------
    rows : from `octfast.assess.interpret.top_losses`.
    note : a line below the figure.
    ncols : scans a line; None takes as many as lines, to 5.
    figsize : in inches; None fits the scans.
    """
    n = max(1, len(rows))
    columns = ncols or min(n, 5, math.ceil(math.sqrt(n)))
    lines = math.ceil(n / columns)
    fig = Figure(figsize=figsize or (4.0 * columns, 3.9 * lines + 0.6), dpi=dpi, layout="constrained")
    axes = np.atleast_1d(fig.subplots(lines, columns)).ravel()
    for ax in axes[len(rows) :]:
        ax.axis("off")
    for ax, row in zip(axes, rows.itertuples(), strict=False):
        _show(ax, str(row.path))
        wrong = row.label != row.predicted
        head = f"actual {_short(row.label)} ({row.p_actual:.0%})"
        ax.set_title(
            f"{head}\npredicted {_short(row.predicted)} ({row.probability:.0%})\nloss {row.loss:.2f}, "
            f"{'wrong' if wrong else 'right'}",
            fontsize=10,
            color=WRONG if wrong else RIGHT,
            loc="left",
        )
        name = "\n".join(textwrap.wrap(Path(row.path).name, 44)) or row.path
        ax.text(0, -0.02, name, transform=ax.transAxes, va="top", fontsize=7, color="#444444")
    fig.suptitle(title, fontsize=12)
    _footer(fig, note)
    return fig


def _show(ax, path: str) -> None:
    ax.set(xticks=[], yticks=[])
    try:
        ax.imshow(np.asarray(decode_grey(path)), cmap="gray", vmin=0, vmax=255)
    except DataError as e:
        reason = "\n".join(textwrap.wrap(e.message, 34))
        ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", fontsize=8)


def _short(name: object, most: int = 24) -> str:
    text = str(name)
    return text if len(text) <= most else text[: most - 1] + "…"


def _footer(fig: Figure, note: str) -> None:
    fig.supxlabel(f"{note}  {_FOOTER}".strip(), fontsize=8, color="#444444")
