"""Numbers put as a reader of a report reads them: estimates with their intervals, tables of them, and counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from octfast.assess.metrics.definitions import metric


@dataclass(frozen=True)
class Cell:
    """An estimate as it is shown: its text, its interval, and all three on the scale of a bar from 0 to 100."""

    text: str
    interval: str = ""
    at: float | None = None
    low: float | None = None
    high: float | None = None


EMPTY = Cell("–")


def cell(key: str, value: Any, low: Any = None, high: Any = None) -> Cell:
    """An estimate and its interval as a cell; "–" where it is not defined."""
    numbers = [_float(v) for v in (value, low, high)]
    if math.isnan(numbers[0]):
        return EMPTY
    about = metric(key)
    percent = about.percent
    text = _shown(numbers[0], percent) + ("%" if percent else "")
    interval = (
        "" if any(map(math.isnan, numbers[1:])) else f"{_shown(numbers[1], percent)} to {_shown(numbers[2], percent)}"
    )
    if not about.unit:
        return Cell(text, interval)
    at, lower, upper = (None if math.isnan(v) else 100 * min(max(v, 0.0), 1.0) for v in numbers)
    return Cell(text, interval, at, lower, upper)


def difference_cell(value: float, low: float, high: float) -> Cell:
    """A difference of two estimates and its interval as a cell; "–" where it is not defined."""
    if not math.isfinite(value):
        return EMPTY
    return Cell(f"{value:+.3f}", "" if math.isnan(low) or math.isnan(high) else f"{low:+.3f} to {high:+.3f}")


def find(frame: pd.DataFrame, key: str, **where: Any) -> Cell:
    """The cell of a metric in a table of estimates, with the given values in other columns; "–" where it has none."""
    rows = frame[frame["metric"] == key]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    if rows.empty:
        return EMPTY
    row = rows.iloc[0]
    return cell(key, row["value"], row["low"], row["high"])


def estimate_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a metric: its name, what it says, its cell, and how the interval was made."""
    return [
        {
            "name": metric(row.metric).name,
            "meaning": metric(row.metric).meaning,
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
    keys = list(dict.fromkeys(frame["metric"]))
    rows = []
    for name, part in frame.groupby(by, sort=False, dropna=False):
        shown = {r.metric: cell(r.metric, r.value, r.low, r.high) for r in part.itertuples()}
        first = part.iloc[0]
        rows.append(
            {
                "name": str(name),
                "n": int(first["n"]),
                "extra": int(first[extra]) if extra else None,
                "cells": [shown.get(k, EMPTY) for k in keys],
            }
        )
    return {"metrics": [metric(k).name for k in keys], "rows": rows, "methods": methods_in_words(frame, by)}


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
        for key, rows in known[known["method"] == method].groupby("metric", sort=False):
            # What holds for every row of a metric needs no list of the rows.
            whole = not by or len(rows) == (known["metric"] == key).sum()
            of = ", ".join(_brief((names or {}).get(str(v), str(v))) for v in rows[by]) if not whole else ""
            parts.append(f"{metric(str(key)).name}{f' ({of})' if of else ''}")
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
