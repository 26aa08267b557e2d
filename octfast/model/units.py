"""Answers for volumes, eyes or patients: their Predictions table, and beside it how each of their scans counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from octfast.data.units import Units, one, unit_columns, units_of
from octfast.errors import DataError
from octfast.model.aggregation import Aggregation
from octfast.model.bundle.info import BundleInfo
from octfast.model.forward import predictions_table, run_scans
from octfast.model.pooling import pool, scan_head

if TYPE_CHECKING:
    import pandas as pd

    from octfast.model.unlike import Unlike


def unit_tables(
    scans: pd.DataFrame,
    units: Units,
    outputs: np.ndarray,
    classes: Sequence[str],
    pooling: Mapping[str, Any],
    temperature: float = 1.0,
    distances: np.ndarray | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The Predictions table of units, and the table of their scans.

    Parameters
    ----------
    scans : a Scans table.
    units : of the same scans.
    outputs : what a `BagHead` gives of the scans, of shape (n, classes + 1).
    pooling : of the head, see `octfast.model.pooling.pooling_of`.
    distances : of the scans to the training scans, see `octfast.model.unlike`.

    Returns
    -------
    Of units: see `predictions_table`; `path` is that of the scan that counted most, of several the first, `scans`
    how many there are. With distances a column `distance`, their median weighed by that: above 1, what decided is
    unlike the training scans. Of scans: the columns of `scans`, `attention`, how much each counts (see
    `octfast.model.pooling.pool`), which sums to 1 over a unit, `alone_<class>`, what the scan says alone, and
    `distance`.
    """
    given = torch.as_tensor(np.asarray(outputs, dtype=np.float64)).reshape(len(scans), len(classes) + 1)
    logits, attention = pool(given, torch.tensor(units.number), len(units), pooling)
    weight = attention.numpy()
    most = _last_of(np.lexsort((-np.arange(len(weight)), weight, units.number)), units.number)
    table = units.table.assign(path=scans["path"].to_numpy()[most])
    first = ["path", "label", "patient", "split"]
    table = table[[*first, *(c for c in table if c not in first)]]
    found = predictions_table(table, logits.numpy(), classes, temperature)
    alone = torch.softmax(given[:, :-1] / temperature, 1).numpy()
    each = scans.reset_index(drop=True).assign(attention=weight)
    each = each.assign(**{f"alone_{c}": alone[:, i] for i, c in enumerate(classes)})
    if distances is not None:
        found = found.assign(distance=weighted_medians(distances, weight, units.number, len(units)))
        each = each.assign(distance=np.asarray(distances, dtype=float))
    return found, each


def aggregated_tables(
    table: pd.DataFrame, aggregation: Aggregation, classes: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of units of a Predictions table of scans, which is at the temperature of its model.

    Units whose scans have several labels are left out, as no one answer would be right for them.

    Returns
    -------
    See `unit_tables`; `alone_<class>` is what the scan is answered for itself.

    Raises
    ------
    UsageError : the scans do not say which unit they are of.
    DataError : no unit has one label.
    """
    level = aggregation.level
    number = units_of(table, level).number
    one = table["label"].groupby(number).transform("nunique").to_numpy() == 1
    if not one.any():
        raise DataError(f"every {level} has scans of several labels", "labels are those of scans: --level scan")
    scans = table[one].reset_index(drop=True)
    units = units_of(scans, level)
    p = scans[[f"p_{c}" for c in classes]].to_numpy(dtype=float)
    found = aggregation.probabilities(p, units.number, len(units), classes)
    weight = aggregation.weights(p, units.number, found.argmax(1), classes)
    most = _last_of(np.lexsort((-np.arange(len(weight)), weight, units.number)), units.number)
    about = units.table.assign(path=scans["path"].to_numpy()[most])
    first = ["path", "label", "patient", "split"]
    about = about[[*first, *(c for c in about if c not in first)]]
    made = predictions_table(about, np.log(np.maximum(found, np.finfo(float).tiny)), classes)
    own = ["predicted", "probability", "loss", "temperature", *(f"p_{c}" for c in classes)]
    each = scans.drop(columns=own, errors="ignore").assign(attention=weight)
    each = each.assign(**{f"alone_{c}": p[:, i] for i, c in enumerate(classes)})
    if "distance" in scans:
        made = made.assign(
            distance=weighted_medians(scans["distance"].to_numpy(dtype=float), weight, units.number, len(units))
        )
    return made, each


def predict_units(
    model: nn.Sequential, info: BundleInfo, scans: pd.DataFrame, unlike: Unlike | None = None, **kwargs: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run a model that answers for units once over the scans; `kwargs` and what is raised as of `predict_scans`.

    Parameters
    ----------
    scans : a Scans table with the columns of `octfast.data.units.unit_columns`; the scans of a unit have one label.

    Returns
    -------
    See `unit_tables`.
    """
    outputs, distances = run_scans(model, info, scans, unlike=unlike, **kwargs)
    units = units_of(scans, info.level)
    return unit_tables(scans, units, outputs, info.classes, _pooling(info), info.temperature, distances)


def scan_view(model: nn.Sequential, info: BundleInfo) -> tuple[nn.Sequential, BundleInfo]:
    """A network that gives the logits of single scans alone, and what it is: for heat maps, which are of one scan."""
    if info.level == "scan":
        return model, info
    return nn.Sequential(model[0], scan_head(model[1])).eval(), replace(info, level="scan", pooling=None)


def level_note(table: pd.DataFrame, level: str, aggregation: Aggregation | None = None) -> str:
    """What a reader of figures of units has to know, in a sentence; empty at the level of scans.

    Parameters
    ----------
    aggregation : of a model of single scans, by which these were put together.
    """
    if level == "scan":
        return ""
    scans = table["scans"]
    how = f"The model answers for whole {level}s"
    if aggregation is not None:
        fitted = "as fitted on held-out scans" if aggregation.fitted else "which was not fitted"
        how = f"The answer for {one(level)} is {aggregation.words}, {fitted}"
        how += f", at a temperature of {aggregation.temperature:.3g}" if aggregation.temperature != 1 else ""
    return (
        f"{how}: every figure counts {level}s ({len(table):,} of {scans.sum():,} scans, {scans.median():g} each in the "
        "middle)."
    )


def unit_names(table: pd.DataFrame, level: str) -> list[str]:
    """What each unit of a table is called: its patient, eye and volume."""
    keys = unit_columns(list(table.columns), level)
    return [" / ".join(map(str, row)) for row in table[keys].itertuples(index=False)]


def _pooling(info: BundleInfo) -> dict[str, Any]:
    assert info.pooling is not None  # as of every model that answers for units
    return info.pooling


def _last_of(order: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Of places that are in the order of their units, the last of each unit."""
    ordered = number[order]
    return order[np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))]


def weighted_medians(values: np.ndarray, weights: np.ndarray, number: np.ndarray, units: int) -> np.ndarray:
    """Of each unit the value that half of its weight lies at or below."""
    out = np.full(units, np.nan)
    order = np.lexsort((values, number))
    for own in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
        reached = np.cumsum(weights[own])
        out[number[own[0]]] = values[own[np.searchsorted(reached, reached[-1] / 2)]]
    return out
