"""The picture of a search: its trials in order, and the best of them beside the default recipe."""

from __future__ import annotations

import pandas as pd
from matplotlib.ticker import MaxNLocator

from octfast.figure import Figure, short
from octfast.train.plots import BLUE, GREEN, ORANGE


def plot_search(trials: pd.DataFrame, default: int, most: int = 12) -> Figure:
    """Left the log-loss of each trial in order, right the best trials' differences to the default, with intervals.

    Parameters
    ----------
    trials : the table of a `Tuned`.
    default : the number of the default recipe's trial.
    most : how many trials are shown on the right.
    """
    fig = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=[2, 3])
    whole = trials[trials["state"] == "complete"]
    left.plot(whole["number"], whole["log_loss"], "o", color=BLUE, markersize=4, label="trial")
    pruned = trials[trials["state"] == "pruned"]["number"]
    if len(pruned):
        top = whole["log_loss"].max()
        left.plot(pruned, [top] * len(pruned), "x", color="0.6", markersize=4, label="given up")
    left.step(whole["number"], whole["log_loss"].cummin(), where="post", color=ORANGE, label="best so far")
    left.axhline(whole.set_index("number")["log_loss"][default], color=GREEN, linestyle="--", label="default recipe")
    left.set(xlabel="trial", ylabel="log-loss out of fold (nats)")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.grid(alpha=0.3)
    left.legend(frameon=False)
    shown = whole[whole["number"] != default].nsmallest(most, "log_loss").iloc[::-1]
    places = range(len(shown))
    right.hlines(places, shown["minus_low"], shown["minus_high"], color=BLUE)
    right.plot(shown["minus_default"], places, "o", color=BLUE, markersize=5)
    right.axvline(0, color=GREEN, linestyle="--")
    right.set_yticks(places, [_named(row) for row in shown.itertuples()], fontsize=8)
    right.set_xlabel("log-loss minus the default recipe's \n(95% interval by patient; left is better)")
    right.grid(alpha=0.3, axis="x")
    return fig


def _named(row: tuple) -> str:
    views = f" x{row.views}" if row.views > 1 else ""  # type: ignore[attr-defined]
    about = f"dropout {row.dropout:.2f}, decay {row.wd:.2g}, rate {row.lr:.1e}"  # type: ignore[attr-defined]
    return f"{row.number}: {short(row.arch, 18)}{views} {row.head}, {about}"  # type: ignore[attr-defined]
