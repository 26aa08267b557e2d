"""Scans beside those of other patients that are most like them: what a model has learned of their kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from octfast.assess.interpret.plots import RIGHT, WRONG
from octfast.data.preprocess import decode_grey
from octfast.errors import DataError
from octfast.figure import Place, plain_text, short, whole_place
from octfast.notices import NOTICE

# Scans beside each of the largest losses.
NEAR = 4


def plot_neighbours(
    rows: pd.DataFrame, near: pd.DataFrame, title: str, note: str = "", *, place: Place = None, dpi: float | None = None
) -> Any:
    """A line a scan: the scan itself, then its nearest training and validation scans of other patients.

    Parameters
    ----------
    rows : scans with `path`, `label` and `predicted`.
    near : of these paths, see `octfast.assess.similar.similar`.
    note : a line below the plot.
    place : where to draw, see `octfast.figure`; None makes a figure.

    Returns
    -------
    The figure, or the part of it that was given.
    """
    lines, most = max(1, len(rows)), int(near["rank"].max()) if len(near) else 0
    fig = whole_place(place, (2.7 * (most + 1), 2.6 * lines + 0.8), dpi)
    axes = np.atleast_2d(fig.subplots(lines, most + 1, squeeze=False))
    for ax in axes.ravel():
        ax.axis("off")
    for line, row in zip(axes, rows.itertuples(), strict=False):
        said = f"{short(Path(str(row.path)).name)}\nlabel {short(row.label)}, predicted {short(row.predicted)}"
        _show(line[0], str(row.path), said, "black")
        for ax, other in zip(line[1:], near[near["path"] == row.path].itertuples(), strict=False):
            colour = RIGHT if other.label == row.label else WRONG
            _show(ax, str(other.neighbour), f"{short(other.label)}, distance {other.distance:.2f}", colour)
    fig.suptitle(title)
    words = "Beside each scan the most similar labelled scans of other patients; blue where the label is the same."
    fig.supxlabel("\n".join(filter(None, (words, note, NOTICE))), fontsize=8)
    plain_text(fig)
    return fig


def _show(ax: Axes, path: str, title: str, colour: str) -> None:
    ax.set_title(title, fontsize=8, color=colour)
    try:
        ax.imshow(np.asarray(decode_grey(path)), cmap="gray", vmin=0, vmax=255)
    except DataError:
        ax.text(0.5, 0.5, "cannot be read", ha="center", va="center", transform=ax.transAxes, fontsize=8)
