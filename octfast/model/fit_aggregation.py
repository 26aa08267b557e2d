"""Fits on held-out scans how the scans of a volume, an eye or a patient become its answer, and at which temperature."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from octfast.data.units import LEVELS, Units, units_of
from octfast.errors import DataError, UsageError
from octfast.model.aggregation import MEAN, TOP, URGENT, candidates, rule_words, scores
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import update_info
from octfast.model.decide import urgent_classes
from octfast.model.temperature import fit_temperature

log = logging.getLogger("octfast")

# A unit weighs as a patient nearly does, so that fewer will do than of scans. A rule and one number are fitted.
MIN_UNITS, MIN_PATIENTS, MIN_A_CLASS = 60, 30, 5
# Of the units those that may have scans of several labels: with more of them, labels are those of scans.
_MIXED = 0.2
_FOLDS = 5


def fit_aggregations(
    table: pd.DataFrame, classes: Sequence[str], urgent: Sequence[str] | None = None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Choose for volumes, eyes and patients, where units of these have several scans, how they are answered for.

    Of the rules of `octfast.model.aggregation` that with the least log-loss is taken, each at a temperature that was
    fitted on other patients than those it is judged on; the one that is kept is fitted on all.

    Parameters
    ----------
    table : the Predictions table of scans by heads that never saw their patients, as the model's temperature has it.
    urgent : see `octfast.model.decide.urgent_classes`.

    Returns
    -------
    ({level: `rule`, `k`, `temperature`, `urgent`, `units`, `scans`, `patients`, `log_loss` (of each rule, out of
    fold)}, as the calibration of a bundle keeps it under `units`; for other levels where units have several scans, why
    none was fitted, a sentence each).
    """
    found: dict[str, dict[str, Any]] = {}
    notes = []
    referred = urgent_classes(classes, urgent)
    for level in LEVELS[1:]:
        units = _of_one_label(table, level)
        if units is None:
            continue
        own, kept, total = units
        if not (own.table["scans"] > 1).any():
            continue
        if reason := _too_few(own, total, classes):
            default = rule_words(URGENT if referred else MEAN)
            notes.append(f"{level}s: {reason}; the answer of one is {default}, which was not fitted")
            continue
        found[level] = _fitted(table[kept], own, classes, referred)
    return found, notes


def keep_aggregations(
    folder: str | Path, table: pd.DataFrame, info: BundleInfo, urgent: Sequence[str] | None = None
) -> BundleInfo:
    """Fit on held-out predictions of scans, keep what was found in a bundle, and say so; gives its info as is."""
    found, notes = fit_aggregations(table, info.classes, urgent)
    for words in [*map(in_words, found, found.values()), *notes]:
        log.info("%s", words)
    if not found:
        return info
    return update_info(folder, calibration={**info.calibration, "units": found})


def in_words(level: str, kept: dict[str, Any]) -> str:
    """What was fitted for a level, in a sentence."""
    losses = kept["log_loss"]
    own = losses[_name(kept["rule"], kept["k"])]
    others = {rule: losses[rule] for rule in (MEAN, URGENT) if rule in losses and rule != kept["rule"]}
    held = "".join(f", {rule_words(rule)} {loss:.3f}" for rule, loss in others.items())
    return (
        f"{level}s: the answer of one is {rule_words(kept['rule'], kept['k'])}, fitted on {kept['units']:,} of "
        f"{kept['patients']:,} patients: log-loss out of fold {own:.3f}{held}"
    )


def _of_one_label(table: pd.DataFrame, level: str) -> tuple[Units, np.ndarray, int] | None:
    """The units with one label, which scans are of these, and how many units there are; None without such units."""
    try:
        number = units_of(table, level).number
    except UsageError:
        return None
    kept = table["label"].groupby(number).transform("nunique").to_numpy() == 1
    if not kept.any():
        return None
    return units_of(table[kept], level), kept, int(number.max()) + 1


def _too_few(units: Units, total: int, classes: Sequence[str]) -> str:
    """Why there is nothing to be fitted on; empty where there is."""
    table = units.table
    mixed = total - len(units)
    counts = table["label"].value_counts().reindex(list(classes), fill_value=0)
    several, patients = int((table["scans"] > 1).sum()), table["patient"].nunique()
    reasons = [
        (mixed > _MIXED * total, f"{mixed:,} of {total:,} have scans of several labels"),
        (len(units) < MIN_UNITS, f"{len(units)} held out, fewer than {MIN_UNITS}"),
        (patients < MIN_PATIENTS, f"{patients} patients held out, fewer than {MIN_PATIENTS}"),
        (several < MIN_PATIENTS, f"{several} with several scans held out, fewer than {MIN_PATIENTS}"),
        (counts.min() < MIN_A_CLASS, f"{counts.min()} held out of {counts.idxmin()}, fewer than {MIN_A_CLASS}"),
    ]
    return next((why for wrong, why in reasons if wrong), "")


def _fitted(scans: pd.DataFrame, units: Units, classes: Sequence[str], urgent: tuple[str, ...]) -> dict[str, Any]:
    p = scans[[f"p_{c}" for c in classes]].to_numpy(dtype=float)
    y = pd.Index(list(classes)).get_indexer(pd.Index(units.table["label"].astype(object)))
    fold = _folds(units.table["patient"])
    losses: dict[str, float] = {}
    at: dict[str, tuple[str, int | None, np.ndarray]] = {}
    for rule, k in candidates(urgent, int(units.table["scans"].max())):
        z = scores(rule, k, p, units.number, len(units), classes, urgent)
        loss = np.zeros(len(units))
        for f in range(_FOLDS):
            held = fold == f
            loss[held] = _losses(z[held], y[held], _temperature(z[~held], y[~held]))
        name = _name(rule, k)
        losses[name], at[name] = float(f"{loss.mean():.6g}"), (rule, k, z)
    best = min(losses, key=lambda name: losses[name])
    rule, k, z = at[best]
    return {
        "rule": rule,
        "k": k,
        "temperature": _temperature(z, y),
        "urgent": list(urgent),
        "units": len(units),
        "scans": len(scans),
        "patients": int(units.table["patient"].nunique()),
        "log_loss": losses,
    }


def _name(rule: str, k: int | None) -> str:
    return f"top_{k}" if rule == TOP else rule


def _folds(patients: pd.Series) -> np.ndarray:
    """The fold of each unit, by its patient, the same each time."""
    number = pd.factorize(patients.astype(str), sort=True)[0]
    order = np.random.default_rng(0).permutation(int(number.max()) + 1)
    return order[number] % _FOLDS


def _temperature(z: np.ndarray, y: np.ndarray) -> float:
    """The best one; 1 where none is, as all units are right or all answers no better than chance."""
    try:
        return fit_temperature(z, y)
    except DataError:
        return 1.0


def _losses(z: np.ndarray, y: np.ndarray, temperature: float) -> np.ndarray:
    return -log_softmax(z / temperature, axis=1)[np.arange(len(z)), y]
