"""Numbers put as a reader of a report reads them: estimates with their intervals, tables of them, and counts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import pandas as pd

# Of each metric: its name, whether it is a percentage, its scale (0 to 1, or None), and what it says.
_METRICS: dict[str, tuple[str, bool, bool, str]] = {
    "accuracy": ("accuracy", True, True, "scans whose class was right"),
    "balanced_accuracy": ("balanced accuracy", True, True, "mean of the sensitivities of the classes"),
    "macro_f1": ("macro F1", False, True, "mean of the F1 of the classes"),
    "cohen_kappa": ("Cohen's kappa", False, True, "agreement beyond chance; 1 is perfect, 0 is chance"),
    "matthews": ("Matthews correlation", False, True, "correlation of true and predicted class; 0 is chance"),
    "nll": ("log-loss", False, False, "mean cross entropy in nats; lower is better"),
    "brier": (
        "Brier score",
        False,
        False,
        "mean squared error of the probabilities, summed over classes; lower is better",
    ),
    "weighted_error": ("weighted error", False, False, "mean cost of a scan; lower is better"),
    "ece": ("calibration error (ECE)", False, False, "how far the probabilities lie from what came true"),
    "sensitivity": ("sensitivity", True, True, "of urgent scans, how many are referred"),
    "specificity": ("specificity", True, True, "of the others, how many are not referred"),
    "ppv": ("PPV", True, True, "of those referred, how many are urgent"),
    "npv": ("NPV", True, True, "of those not referred, how many are not urgent"),
    "f1": ("F1", False, True, "harmonic mean of sensitivity and PPV"),
    "macro_roc_auc": ("macro ROC AUC", False, True, "mean of the ROC AUC of the classes"),
    "roc_auc": ("ROC AUC", False, True, "chance that an urgent scan scores above another"),
    "average_precision": ("average precision", False, True, "area under precision and recall"),
    "lr_positive": ("positive likelihood ratio", False, False, "how far a referral raises the odds"),
    "lr_negative": ("negative likelihood ratio", False, False, "how far no referral lowers the odds"),
}


@dataclass(frozen=True)
class Cell:
    """An estimate as it is shown: its text, its interval, and all three on the scale of a bar from 0 to 100."""

    text: str
    interval: str = ""
    at: float | None = None
    low: float | None = None
    high: float | None = None


EMPTY = Cell("–")


def metric_name(metric: str) -> str:
    """A metric's name in words."""
    return _about(metric)[0]


def metric_meaning(metric: str) -> str:
    """What a metric says, or ""."""
    return _about(metric)[3]


def cell(metric: str, value: Any, low: Any = None, high: Any = None) -> Cell:
    """An estimate and its interval as a cell; "–" where it is not defined."""
    numbers = [_float(v) for v in (value, low, high)]
    if math.isnan(numbers[0]):
        return EMPTY
    _, percent, scaled, _ = _about(metric)
    text = _shown(numbers[0], percent) + ("%" if percent else "")
    interval = (
        "" if any(map(math.isnan, numbers[1:])) else f"{_shown(numbers[1], percent)} to {_shown(numbers[2], percent)}"
    )
    if not scaled:
        return Cell(text, interval)
    at, lower, upper = (None if math.isnan(v) else 100 * min(max(v, 0.0), 1.0) for v in numbers)
    return Cell(text, interval, at, lower, upper)


def find(frame: pd.DataFrame, metric: str, **where: Any) -> Cell:
    """The cell of a metric in a table of estimates, with the given values in other columns; "–" where it has none."""
    rows = frame[frame["metric"] == metric]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    if rows.empty:
        return EMPTY
    row = rows.iloc[0]
    return cell(metric, row["value"], row["low"], row["high"])


def estimate_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a metric: its name, what it says, its cell, and how the interval was made."""
    return [
        {
            "name": metric_name(row.metric),
            "meaning": metric_meaning(row.metric),
            "cell": cell(row.metric, row.value, row.low, row.high),
            "method": str(row.method),
        }
        for row in frame.itertuples()
    ]


def estimate_grid(frame: pd.DataFrame, by: str, extra: str = "") -> dict[str, Any]:
    """A table with a row for each value of column `by`, and a column a metric.

    Parameters
    ----------
    frame : `metric`, `value`, `low`, `high`, `method`, the column `by`, and `n`, the scans of a row.
    extra : a further column with a number a row.

    Returns
    -------
    `metrics` (names), `rows` (each with `name`, `n`, `extra` and `cells`), `methods` (sentences on the intervals).
    """
    metrics = list(dict.fromkeys(frame["metric"]))
    rows = []
    for name, part in frame.groupby(by, sort=False, dropna=False):
        shown = {r.metric: cell(r.metric, r.value, r.low, r.high) for r in part.itertuples()}
        first = part.iloc[0]
        rows.append(
            {
                "name": str(name),
                "n": int(first["n"]),
                "extra": int(first[extra]) if extra else None,
                "cells": [shown.get(m, EMPTY) for m in metrics],
            }
        )
    return {"metrics": [metric_name(m) for m in metrics], "rows": rows, "methods": methods_in_words(frame, by)}


def methods_in_words(frame: pd.DataFrame, by: str = "", names: dict[str, str] | None = None) -> list[str]:
    """How the intervals of a table were made: the most common method, then what was made otherwise.

    Parameters
    ----------
    by : the column whose values name the rows, such as "class".
    names : what to call these values.
    """
    known = frame[frame["value"].notna()]
    if known.empty:
        return []
    usual, *others = known["method"].astype(str).value_counts().index
    said = [f"Intervals by {usual}{', unless said otherwise' if others else ''}."]
    for method in others:
        parts = []
        for metric, rows in known[known["method"] == method].groupby("metric", sort=False):
            # What holds for every row of a metric needs no list of the rows.
            whole = not by or len(rows) == (known["metric"] == metric).sum()
            of = ", ".join(_brief((names or {}).get(str(v), str(v))) for v in rows[by]) if not whole else ""
            parts.append(f"{metric_name(str(metric))}{f' ({of})' if of else ''}")
        how = f"No interval{method.removeprefix('none')}" if method.startswith("none") else f"By {method}"
        said.append(f"{how}: {'; '.join(parts)}.")
    return said


def confusion_rows(counts: pd.DataFrame) -> list[dict[str, Any]]:
    """A row an actual class: its `name`, its `n`, and `cells` with `count`, `share` and `shade` of the row, `right`."""
    rows = []
    for i, (name, row) in enumerate(counts.iterrows()):
        n = int(row.sum())
        cells = [
            {
                "count": int(v),
                "share": f"{v / n:.0%}" if n else "",
                "shade": round(v / n, 3) if n else 0.0,
                "right": i == j,
            }
            for j, v in enumerate(row)
        ]
        rows.append({"name": str(name), "n": n, "cells": cells})
    return rows


def _brief(name: str, most: int = 40) -> str:
    name = name[1:-1] if name.startswith("(") and name.endswith(")") else name
    return name if len(name) <= most else name[: most - 1] + "…"


def _about(metric: str) -> tuple[str, bool, bool, str]:
    if metric in _METRICS:
        return _METRICS[metric]
    if metric.endswith("_at_prevalence"):
        name, percent, scaled, says = _about(metric.removesuffix("_at_prevalence"))
        return f"{name} at that prevalence", percent, scaled, says
    if metric.startswith("urgent_"):
        name, percent, scaled, says = _about(metric.removeprefix("urgent_"))
        return f"{name}, urgent", percent, scaled, says
    if top := re.fullmatch(r"top(\d+)_accuracy", metric):
        return f"top-{top[1]} accuracy", True, True, f"the true class is among the {top[1]} most probable"
    return metric.replace("_", " "), False, False, ""


def _float(value: Any) -> float:
    try:
        return float("nan") if value is None else float(value)
    except (TypeError, ValueError):
        return float("nan")


def _shown(value: float, percent: bool) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if percent:
        return f"{100 * value:.1f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 2 else f"{value:.3f}"
