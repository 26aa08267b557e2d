"""Scans whose label is suspected to be wrong, by confident learning; a list to look at, never a change."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from octfast.assess.predictions import run_predictions
from octfast.errors import DataError, UsageError
from octfast.run.folder import Run, open_run

log = logging.getLogger("octfast")

# Confident learning compares with a class's own mean probability, which so few scans do not give.
_FEW = 10


def find_label_errors(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Scans whose label cleanlab suspects (confident learning; Northcutt, Jiang and Chuang, JAIR 2021).

    A scan is suspected where the model is surer of another class than it is, on average, of that class's own scans.
    The probabilities should come from a model that was not trained on these labels, else it has learned the errors.

    Parameters
    ----------
    table : a Predictions table.
    classes : in the order of their index.

    Returns
    -------
    The table's rows that are suspected, the least likely label first, with `suggested` (the most probable other class),
    `p_suggested` and `p_actual`, the probability of the label they have.

    Raises
    ------
    UsageError : cleanlab is not installed.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as e:
        raise UsageError(f"label errors need cleanlab, which cannot be imported: {e}", "pip install cleanlab") from None
    index = {c: i for i, c in enumerate(classes)}
    table = table.drop_duplicates("path").reset_index(drop=True)
    labels = np.array([index[label] for label in table["label"]], dtype=int)
    p = table[[f"p_{c}" for c in classes]].to_numpy(dtype=float)
    p = p / p.sum(axis=1, keepdims=True)
    found = np.zeros(0, dtype=int)
    # Without a second class among the labels there is nothing to confuse.
    if len(np.unique(labels)) > 1:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "May not flag all label issues")
            ranked = find_label_issues(labels, p, return_indices_ranked_by="self_confidence", n_jobs=1)
        found = np.asarray(ranked, dtype=int)
    few = [c for c, n in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True) if n < _FEW]
    if few:
        log.info("label errors among fewer than %d scans are hard to tell: %s", _FEW, ", ".join(few))
    others = p[found].copy()
    others[np.arange(len(found)), labels[found]] = -1
    best = others.argmax(axis=1)
    rows = table.iloc[found].reset_index(drop=True)
    rows = rows.assign(
        suggested=np.asarray(list(classes), dtype=object)[best],
        p_suggested=others[np.arange(len(found)), best],
        p_actual=p[found, labels[found]],
    )
    return rows.sort_values(["p_actual", "path"], ignore_index=True)


def out_of_fold(runs: Sequence[Run | str | Path]) -> tuple[pd.DataFrame, tuple[str, ...], int]:
    """The validation predictions of the runs of a cross-validation, one below the other.

    Parameters
    ----------
    runs : the runs, their folders, or folders of such folders.

    Returns
    -------
    (the Predictions table, every scan predicted by a model that was not trained on its patient; the classes; the
    number of runs).

    Raises
    ------
    UsageError : fewer than two runs.
    DataError : they differ in their classes, or two hold the same patient or scan out, so that they are no folds.
    BundleError : a folder is no run, or the run is damaged.
    """
    opened = _open_all(runs)
    if len(opened) < 2:
        raise UsageError(
            "out-of-fold predictions need the runs of two folds or more", "name each: --folds RUN --folds RUN"
        )
    tables, classes = [], None
    for run in opened:
        table, info = run_predictions(run, "valid")
        if classes is None:
            classes = info.classes
        elif classes != info.classes:
            raise DataError(
                f"{run.path.name} has other classes ({', '.join(info.classes)}) than {opened[0].path.name}",
                "give the runs of one data set",
            )
        tables.append(table.assign(fold=run.path.name))
    together = pd.concat(tables, ignore_index=True)
    for what in ("path", "patient"):
        folds = together.groupby(what)["fold"].nunique()
        if (folds > 1).any():
            twice = folds.index[folds > 1][0]
            raise DataError(
                f"these runs are no folds: {what} {twice} is held out by {folds[twice]} of them",
                "train each with --splits FILE --fold N of one octfast data split --folds",
            )
    return together, classes or (), len(opened)


def _open_all(runs: Sequence[Run | str | Path]) -> list[Run]:
    opened: dict[Path, Run] = {}
    for given in runs:
        if isinstance(given, Run):
            opened[given.path] = given
            continue
        folder = Path(given).expanduser()
        inner = [f for f in sorted(folder.iterdir()) if _is_run(f)] if folder.is_dir() and not _is_run(folder) else []
        for path in inner or [folder]:
            run = open_run(path)
            opened[run.path] = run
    return list(opened.values())


def _is_run(folder: Path) -> bool:
    file = folder / "config.json"
    try:
        return file.is_file() and isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        return False
