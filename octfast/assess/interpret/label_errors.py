"""Scans whose label is suspected to be wrong, by confident learning; a list to look at, never a change."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from octfast.errors import UsageError

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
    suspected = np.zeros(0, dtype=int)
    # Without a second class among the labels there is nothing to confuse.
    if len(np.unique(labels)) > 1:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "May not flag all label issues")
            suspected = np.asarray(find_label_issues(labels, p, return_indices_ranked_by="self_confidence", n_jobs=1))
    few = [c for c, n in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True) if n < _FEW]
    if few:
        log.info("label errors among fewer than %d scans are hard to tell: %s", _FEW, ", ".join(few))
    scans = np.arange(len(table))
    others = p.copy()
    others[scans, labels] = -1
    table = table.assign(
        suggested=np.asarray(classes, dtype=object)[others.argmax(1)],
        p_suggested=others.max(1),
        p_actual=p[scans, labels],
    )
    return table.iloc[suspected].sort_values(["p_actual", "path"], ignore_index=True)
