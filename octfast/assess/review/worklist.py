"""The scans of a run that deserve a look, the likeliest errors first, and why each is among them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from octfast.assess.interpret.label_errors import find_label_errors
from octfast.assess.interpret.rows import missed_urgent, top_losses, with_p_actual
from octfast.assess.predictions import held_out_predictions
from octfast.assess.review.kept import audit_findings
from octfast.assess.review.units import scans_of_units
from octfast.errors import DataError, UsageError
from octfast.model.bundle.read import read_info
from octfast.model.decide import urgent_classes
from octfast.run.folder import FOLD, Run

log = logging.getLogger("octfast")

# Kinds of reasons, the likeliest error first: two labels of one picture cannot both be right.
KINDS = {
    "duplicate-across-classes": "the same picture has another label",
    "label-error": "the label is suspected",
    "missed-urgent": "urgent, but predicted as not urgent",
    "near-duplicate-across-classes": "almost the same picture has another label",
    "duplicate": "the same picture stands under another patient",
    "near-duplicate": "almost the same picture stands under another patient",
    "loss": "among the largest losses",
    "odd": "an odd picture",
}
_ODD = ("blank", "dark", "odd-size", "burnt-in", "white-border")
# Of the scans, those with the largest loss.
_SHARE = 0.02


def review_list(run: Run, *, pictures: bool = True, kinds: tuple[str, ...] | None = None) -> pd.DataFrame:
    """The scans of a run's training and validation that deserve a look, or its volumes, eyes or patients.

    A run with out-of-fold predictions is looked through whole, as each scan is judged by a head that never saw its
    patient; of another run only validation is. Test scans are never listed: a model is judged by them as they are.

    Parameters
    ----------
    pictures : whether every file is read, to find copies and odd pictures; this takes a while.
    kinds : the reasons wanted, of `KINDS`; None takes all.

    Returns
    -------
    A row a scan or unit, the likeliest error first: the Predictions columns with `p_actual` (that of its label),
    `suggested` (the most probable other class), `kind` (the first reason), `reasons` (all of them in words, joined
    by "; ") and `related` (the file that it is a copy of, or "").

    Raises
    ------
    UsageError : an unknown kind.
    OctfastError : see `octfast.assess.predictions.held_out_predictions`.
    """
    if strange := set(kinds or ()) - set(KINDS):
        raise UsageError(f"no reason named {min(strange)!r}", f"one of {', '.join(KINDS)}")
    table, classes = _judged(run)
    found: dict[str, list[tuple[str, str, str]]] = {}
    for kind, path, words, related in _reasons(run, table, classes, pictures):
        if kinds is None or kind in kinds:
            # What separates the reasons must not stand in one.
            found.setdefault(path, []).append((kind, words.replace("; ", ", "), related))
    order = {kind: n for n, kind in enumerate(KINDS)}
    rows = table[table["path"].isin(list(found))].copy()
    each = {path: sorted(reasons, key=lambda r: order[r[0]]) for path, reasons in found.items()}
    rows["kind"] = [each[path][0][0] for path in rows["path"]]
    rows["reasons"] = ["; ".join(dict.fromkeys(words for _, words, _ in each[path])) for path in rows["path"]]
    rows["related"] = [next((r for _, _, r in each[path] if r), "") for path in rows["path"]]
    rows = rows.assign(_rank=rows["kind"].map(order)).sort_values(["_rank", "p_actual", "path"])
    return rows.drop(columns="_rank").reset_index(drop=True)


def second_list(run: Run, paths: Sequence[str]) -> pd.DataFrame:
    """These scans as `review_list` gives them, without reasons, in an order that tells nothing.

    Raises
    ------
    DataError : none of them is among the run's training and validation scans.
    """
    table, _ = _judged(run)
    rows = table[table["path"].isin(list(paths))].sample(frac=1, random_state=0)
    if rows.empty:
        raise DataError(f"none of these scans is in {run.path.name}", "give the corrections of this run")
    return rows.assign(kind="", reasons="", related="").reset_index(drop=True)


def _judged(run: Run) -> tuple[pd.DataFrame, list[str]]:
    """The Predictions of the scans that were judged without their patient, with `p_actual` and `suggested`."""
    table, info = held_out_predictions(run)
    if FOLD not in table:
        log.warning("%s was not cross-validated: only its validation scans are looked through", run.path.name)
    table = with_p_actual(table.drop_duplicates("path")).reset_index(drop=True)
    classes = list(info.classes)
    p = table[[f"p_{c}" for c in classes]].to_numpy(dtype=float).copy()
    p[np.arange(len(p)), [classes.index(label) for label in table["label"]]] = -1
    table["suggested"] = np.asarray(classes, dtype=object)[p.argmax(1)]
    return table, classes


def _reasons(run: Run, table: pd.DataFrame, classes: list[str], pictures: bool) -> Iterator[tuple[str, str, str, str]]:
    """(kind, path, words, related file) of every reason to look at a scan."""
    suspected = find_label_errors(table, classes)
    for row in suspected.itertuples():
        yield "label-error", row.path, f"the label is suspected: {row.suggested} is {row.p_suggested:.0%} likely", ""
    urgent = urgent_classes(classes)
    if urgent:
        for row in missed_urgent(table, urgent).itertuples():
            yield "missed-urgent", row.path, f"{KINDS['missed-urgent']} ({row.predicted})", ""
    for row in top_losses(table, max(9, round(_SHARE * len(table)))).itertuples():
        yield "loss", row.path, f"{KINDS['loss']} ({row.loss:.2f})", ""
    if pictures:
        level = read_info(run.bundle).level
        yield from _of_pictures(run, table) if level == "scan" else _of_units(run, table, level)


def _of_units(run: Run, table: pd.DataFrame, level: str) -> Iterator[tuple[str, str, str, str]]:
    """As `_of_pictures`, of the scans of units: each reason once a unit, with the first scan that it is true of."""
    scans = scans_of_units(run, table, level)
    unit, size = dict(zip(scans["path"], scans["unit"], strict=True)), scans["unit"].value_counts()
    found: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for kind, path, words, related in _of_pictures(run, scans):
        # What is true of a whole class or set names no scan.
        if path in unit and unit[path] != unit.get(related):
            found.setdefault((kind, unit[path]), []).append((path, words, related))
    for (kind, whole), rows in found.items():
        path, words, related = rows[0]
        of = f"{len({p for p, *_ in rows})} of its {size[whole]} scans, such as {Path(path).name}: {words}"
        yield kind, whole, of, related


def _of_pictures(run: Run, table: pd.DataFrame) -> Iterator[tuple[str, str, str, str]]:
    findings = audit_findings(run, table[["path", "label", "patient", "split"]])

    def say(kind: str, detail: str) -> str:
        return f"{KINDS[kind]} ({detail})"

    for row in findings.itertuples():
        if row.check in _ODD:
            yield "odd", row.path, row.detail or row.check.replace("-", " "), ""
        elif row.check in ("duplicate-across-classes", "near-duplicate-across-classes"):
            yield row.check, row.path, say(row.check, row.detail), row.related
            yield row.check, row.related, say(row.check, row.detail), row.path
        elif row.check in ("duplicate", "near-duplicate") and "under the patients" in row.detail:
            yield row.check, row.path, say(row.check, row.detail), row.related
