"""The tables of an evaluation as CSV and LaTeX, and its curves as figures, for a paper."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from octfast.assess.curves import (
    before_and_after,
    plot_coverage_risk,
    plot_precision_recall,
    plot_reliability,
    plot_roc,
)
from octfast.assess.metrics.definitions import metric
from octfast.assess.metrics.metrics import Evaluation
from octfast.figure import Files
from octfast.files import new_folder, write_text
from octfast.notices import SYNTHETIC_NOTE

# The column that tells the rows of a metric apart, by table.
_BY = {"overall": "", "per_class": "class", "referral": "point", "units": "rule", "groups": "group"}
_POINTS = {"argmax": "by predicted class", "operating": "at the operating point", "score": "at every threshold"}


def write_tables(found: Evaluation, folder: str | Path) -> list[Path]:
    """Write each table of an evaluation as CSV (all digits, a row a figure) and as LaTeX (as a paper prints it).

    The LaTeX is made by pandas and needs the package booktabs.

    Parameters
    ----------
    folder : a new or empty one.

    Returns
    -------
    The files: overall, per_class, referral, units, groups and confusion, where there are such, as .csv and .tex.

    Raises
    ------
    UsageError : the folder is not empty, or cannot be written.
    """
    folder = new_folder(Path(folder).expanduser(), "give another --tables; nothing is ever overwritten")
    level = f"{found.settings['level']:.0%}"
    where = ", ".join(str(found.source[k]) for k in ("run", "data", "split") if found.source.get(k))
    files = []
    for name, by in _BY.items():
        table: pd.DataFrame = getattr(found, name)
        if table.empty:
            continue
        caption = f"{name.replace('_', ' ').capitalize()} of {where or 'the scans'}, with {level} intervals."
        files += [folder / f"{name}.csv", folder / f"{name}.tex"]
        write_text(files[-2], table.to_csv(index=False))
        write_text(files[-1], _latex(_printed(table, by), caption, f"tab:{name}"))
    files += [folder / "confusion.csv", folder / "confusion.tex"]
    counts = found.confusion.rename_axis(index="label", columns=None).reset_index()
    write_text(files[-2], counts.to_csv(index=False))
    caption = f"Scans of {where or 'the table'} by label (rows) and predicted class (columns)."
    write_text(files[-1], _latex(counts, caption, "tab:confusion"))
    return files


def write_curves(table: pd.DataFrame, found: Evaluation, folder: str | Path, files: Files | None = None) -> list[Path]:
    """Draw ROC, precision-recall, reliability and risk-coverage curves of a Predictions table that was evaluated.

    Parameters
    ----------
    folder : a new or empty one.

    Raises
    ------
    UsageError : the folder is not empty, or cannot be written.
    """
    folder = new_folder(Path(folder).expanduser(), "give another --figures; nothing is ever overwritten")
    write, asked = files or Files(), found.settings
    classes, note = asked["classes"], SYNTHETIC_NOTE if found.source.get("synthetic") else ""
    threshold = (asked["operating"] or {}).get("threshold")
    before, after = before_and_after(table, classes)
    figures = {
        "roc": plot_roc(table, classes, urgent=asked["urgent"], threshold=threshold, note=note),
        "precision_recall": plot_precision_recall(table, classes, note=note),
        "reliability": plot_reliability(before, after, classes, note=note),
        "risk_coverage": plot_coverage_risk(table, note=note),
    }
    return [write.save(figure, folder / name) for name, figure in figures.items()]


def _printed(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """A row a metric with its name and, in a column for each class or point, its value and interval."""
    cells = [_estimate(r.value, r.low, r.high) for r in table.itertuples()]
    rows = table.assign(figure=[metric(m).name for m in table["metric"]], estimate=cells)
    if not by:
        return rows[["figure", "estimate"]]
    columns = rows[by].astype(str).replace(_POINTS)
    for more in ("unit", "section", "of", "by"):
        if more in rows:
            columns = rows[more].astype(str) + " " + columns
    order, names = list(dict.fromkeys(rows["figure"])), list(dict.fromkeys(columns))
    wide = rows.assign(column=columns).pivot_table(index="figure", columns="column", values="estimate", aggfunc="first")
    return wide.reindex(index=order, columns=names).fillna("").rename_axis(columns=None).reset_index()


def _estimate(value: float, low: float, high: float) -> str:
    if value != value:
        return "not defined"
    return f"{value:.3f}" if low != low or high != high else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _latex(table: pd.DataFrame, caption: str, label: str) -> str:
    style = table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    # pandas escapes cells and heads, and takes a caption as it is.
    said = re.sub(r"([&%$#_{}])", r"\\\1", re.sub(r"[\\~^]", " ", caption))
    text = style.to_latex(hrules=True, caption=said, label=label, position_float="centering")
    return re.sub(r"\binf\b", r"$\\infty$", text)
