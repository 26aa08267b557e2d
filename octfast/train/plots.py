"""Figures of training: loss and accuracy by epoch, and the learning rate finder."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from octfast.figure import Figure

# Okabe and Ito's colours, which can be told apart without colour vision.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def plot_history(history: pd.DataFrame, title: str = "") -> Figure:
    """Loss and accuracy by epoch, training dashed and validation solid, the epoch of the lowest validation loss marked.

    Parameters
    ----------
    history : the columns of history.csv.
    """
    fig = Figure(figsize=(10, 4), layout="constrained")
    left, right = fig.subplots(1, 2)
    best = int(history["valid_loss"].argmin())
    _curve(left, history, best, "train_loss", "valid_loss", "loss (cross entropy, nats)")
    if "accuracy" in history:
        _curve(right, history, best, "train_accuracy", "accuracy", "accuracy")
        right.set_ylim(min(0.5, right.get_ylim()[0]), 1.01)
    if title:
        fig.suptitle(title, fontsize=10)
    return fig


def plot_lr_find(rates: list[float], losses: list[float], chosen: float) -> Figure:
    """Loss against learning rate as `lr_find` raised it, and the rate that was chosen."""
    fig = Figure(figsize=(6, 4), layout="constrained")
    ax = fig.subplots()
    ax.plot(rates, losses, color=BLUE)
    ax.axvline(chosen, color=ORANGE, linestyle="--", label=f"chosen: {chosen:.1e}")
    ax.set(xscale="log", xlabel="learning rate", ylabel="loss (smoothed)")
    # Powers of ten are formulas by default, which octfast's figures do not read.
    ax.xaxis.set_major_formatter("{x:.0e}")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return fig


def _curve(ax: Axes, history: pd.DataFrame, best: int, train: str, valid: str, label: str) -> None:
    ax.plot(history["epoch"], history[train], color=BLUE, linestyle="--", marker=".", label="training")
    ax.plot(history["epoch"], history[valid], color=ORANGE, marker="o", markersize=4, label="validation")
    epoch, value = history["epoch"].iloc[best], history[valid].iloc[best]
    ax.axvline(epoch, color=GREEN, linewidth=1)
    ax.plot([epoch], [value], marker="*", markersize=13, color=GREEN, linestyle="", label=f"best: epoch {epoch}")
    ax.set(xlabel="epoch", ylabel=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
