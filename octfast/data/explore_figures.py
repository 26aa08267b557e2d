"""Figures of a data set: bars of its counts, histograms of widths and heights, brightness, and a grid of samples."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from octfast.data.preprocess import decode_grey
from octfast.data.scans import SPLITS, in_order
from octfast.errors import DataError
from octfast.figure import Figure, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which can be told apart without colour vision.
COLOURS = {"train": "#0072B2", "valid": "#D55E00", "test": "#009E73"}


def plot_counts(scans: pd.DataFrame, ax: Axes | None = None, of: str = "scans") -> Axes:
    """Bars of the scans, or of the patients, of each class and split.

    Parameters
    ----------
    scans : a Scans table.
    ax : where to draw; None makes a figure.
    of : scans or patients.
    """
    ax = _axes(ax)
    by = scans.groupby(["split", "label"])["patient"]
    table = (by.size() if of == "scans" else by.nunique()).unstack(fill_value=0).reindex(_splits(scans))
    at, width = np.arange(len(table.columns)), 0.8 / len(table)
    for i, (split, row) in enumerate(table.iterrows()):
        bars = ax.bar(at + (i - (len(table) - 1) / 2) * width, row, width, color=COLOURS[str(split)], label=str(split))
        ax.bar_label(bars, fmt="{:,.0f}", fontsize=8, padding=1)
    ax.set_xticks(at, [short(c) for c in table.columns], parse_math=False)
    _leaning(ax, len(table.columns))
    ax.set(ylabel=of)
    _finish_bars(ax)
    return ax


def plot_sizes(scans: pd.DataFrame, ax: Axes | None = None, of: str = "width") -> Axes:
    """A histogram of the widths or the heights of each split; where there are few, each is a bar of its own.

    Parameters
    ----------
    scans : of `octfast.data.explore.measure`.
    ax : where to draw; None makes a figure.
    of : width or height.
    """
    ax = _axes(ax)
    readable = scans[scans["width"] > 0]
    splits = _splits(readable)
    parts = [readable.loc[readable["split"] == s, of].to_numpy() for s in splits]
    values = np.unique(readable[of])
    if 0 < len(values) <= 12:
        below = np.zeros(len(values))
        for split, part in zip(splits, parts, strict=True):
            number = np.array([(part == v).sum() for v in values])
            ax.bar(range(len(values)), number, bottom=below, color=COLOURS[split], label=split, width=0.7)
            below += number
        for i, total in enumerate(below):
            ax.annotate(f"{total:,.0f}", (i, total), (0, 2), textcoords="offset points", ha="center", fontsize=8)
        ax.set_xticks(range(len(values)), [str(v) for v in values])
        room = max(0.6, 2 - len(values) / 2)
        ax.set_xlim(-room, len(values) - 1 + room)
    elif len(values):
        ax.hist(
            parts, bins=min(60, max(10, len(values))), stacked=True, color=[COLOURS[s] for s in splits], label=splits
        )
    ax.set(xlabel=f"{of} (pixels)", ylabel="scans")
    _finish_bars(ax)
    return ax


def plot_brightness(scans: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Boxes of the mean grey of each class: quartiles, and whiskers to 1.5 times their distance; dots lie beyond.

    Parameters
    ----------
    scans : of `octfast.data.explore.measure`, with the brightness.
    ax : where to draw; None makes a figure.
    """
    ax = _axes(ax)
    measured = scans.dropna(subset="brightness")
    labels = in_order(measured["label"].unique())
    for at, label in enumerate(labels):
        ax.boxplot(
            measured.loc[measured["label"] == label, "brightness"].to_numpy(),
            positions=[at],
            widths=0.6,
            medianprops={"color": COLOURS["valid"]},
            flierprops={"marker": ".", "markersize": 4, "markeredgecolor": "#666666"},
        )
    names = [f"{short(c)}\n(n={(measured['label'] == c).sum():,})" for c in labels]
    ax.set_xticks(range(len(labels)), names, parse_math=False)
    _leaning(ax, len(labels))
    ax.set(ylabel="mean grey of a scan (0 to 255)")
    ax.grid(axis="y", alpha=0.3)
    return ax


def plot_samples(
    scans: pd.DataFrame, per_class: int = 4, seed: int = 0, *, title: str = "Samples", note: str = ""
) -> Figure:
    """A grid of scans drawn at random, a row a class, each of another patient as far as there are enough.

    Parameters
    ----------
    scans : a Scans table.
    per_class : how many of each class.
    seed : of the choice.
    note : a line below the figure.
    """
    labels = in_order(scans["label"].unique())
    fig = Figure(figsize=(2.6 * per_class + 0.4, 2.55 * len(labels) + 0.9), layout="constrained")
    axes = np.atleast_2d(fig.subplots(len(labels), per_class, squeeze=False))
    for line, label in zip(axes, labels, strict=True):
        mixed = scans[scans["label"] == label].sample(frac=1, random_state=seed)
        firsts = mixed.drop_duplicates("patient")
        chosen = pd.concat([firsts, mixed.drop(index=firsts.index)]).head(per_class)
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.set_frame_on(False)
        line[0].set_ylabel(short(label), fontsize=11)
        for ax, path in zip(line, chosen["path"], strict=False):
            _show(ax, str(path))
    _finish(fig, title, note)
    return fig


def counts_figure(scans: pd.DataFrame, name: str, note: str = "") -> Figure:
    """Scans and patients of each class and split, side by side."""
    wide = max(4.5, 0.9 * scans["label"].nunique() + 1)
    fig = Figure(figsize=(2 * wide, 4), layout="constrained")
    for ax, of in zip(fig.subplots(1, 2), ("scans", "patients"), strict=True):
        plot_counts(scans, ax, of)
    _finish(fig, f"{name}: scans and patients", note)
    return fig


def sizes_figure(scans: pd.DataFrame, name: str, note: str = "") -> Figure:
    """Histograms of widths and heights, side by side."""
    fig = Figure(figsize=(10, 4), layout="constrained")
    for ax, of in zip(fig.subplots(1, 2), ("width", "height"), strict=True):
        plot_sizes(scans, ax, of)
    _finish(fig, f"{name}: widths and heights", note)
    return fig


def brightness_figure(scans: pd.DataFrame, name: str, note: str = "") -> Figure:
    """Boxes of the mean grey of each class."""
    fig = Figure(figsize=(max(5.0, 1.1 * scans["label"].nunique() + 1), 4), layout="constrained")
    plot_brightness(scans, fig.subplots())
    _finish(fig, f"{name}: brightness", note)
    return fig


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _show(ax: Axes, path: str) -> None:
    name = Path(path).name
    ax.set_title("\n".join(textwrap.wrap(name, 34)[:2]) or name, fontsize=7, color="#444444")
    try:
        ax.imshow(np.asarray(decode_grey(path)), cmap="gray", vmin=0, vmax=255)
        # White borders would melt into a white page.
        ax.set_frame_on(True)
        ax.spines[:].set(color="#999999", linewidth=0.6)
    except DataError as e:
        reason = "\n".join(textwrap.wrap(e.message.replace(path, "").strip(" :"), 28)[:4])
        ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", fontsize=8)


def _splits(scans: pd.DataFrame) -> Sequence[str]:
    return [s for s in SPLITS if (scans["split"] == s).any()]


def _finish_bars(ax: Axes) -> None:
    ax.margins(y=0.12)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    if ax.get_legend_handles_labels()[1]:
        # Above the axes, as bars of equal height leave no room within.
        ax.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)


def _leaning(ax: Axes, labels: int) -> None:
    if labels > 6:
        ax.tick_params(axis="x", labelrotation=60)


def _finish(fig: Figure, title: str, note: str) -> None:
    fig.suptitle(title, fontsize=12)
    fig.supxlabel(f"{note}  Not a medical device.".strip(), fontsize=8, color="#444444")
