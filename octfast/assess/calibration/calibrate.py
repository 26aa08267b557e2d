"""Calibrates a run on its validation scans: temperature, operating point of urgent referral, prediction sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.assess.calibration.conformal import (
    check_coverage,
    conformal_threshold,
    coverage_intervals,
    coverage_of_sets,
    prediction_sets,
    rounded_down,
)
from octfast.assess.curves import plot_reliability
from octfast.assess.metrics.referral import OperatingPoint, check_sensitivity, fix_operating_point, referral_at
from octfast.assess.metrics.reliability import calibration_scores
from octfast.assess.predictions import held_out_predictions, run_predictions
from octfast.errors import DataError, OctfastError
from octfast.figure import Files
from octfast.model.aggregation import aggregation_of
from octfast.model.bundle.info import INFO_FILE, BundleInfo
from octfast.model.bundle.write import update_info
from octfast.model.decide import urgent_classes
from octfast.model.fit_aggregation import fit_aggregations, in_words
from octfast.model.temperature import fit_table, rescale, too_small
from octfast.model.units import aggregated_tables
from octfast.notices import SYNTHETIC_NOTE
from octfast.run.folder import FOLD, Run, open_run

log = logging.getLogger("octfast")

_TITLES = {"valid": "validation", "folds": "out-of-fold predictions"}
_OPTIMISTIC = (
    "The temperature and the thresholds were chosen on the {}: figures on these scans are slightly too good, figures "
    "on test scans are not."
)
_SETS_HOLD = (
    "Prediction sets hold the true class as often as wanted, approximately, for new patients from the same devices "
    "with the same mix of classes."
)


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate_run` found.

    Attributes
    ----------
    info : what the bundle says now: its `temperature` and `calibration`.
    scores : a row a split and temperature, see `calibration_scores`; a temperature of 1 is uncalibrated.
    referral : a row a split, see `referral_at`; empty where there is no urgent class.
    sets : a row a split, see `coverage_of_sets`, with their `intervals`, see `coverage_intervals`.
    notes : what a reader has to know.
    files : that were written.
    basis : on which predictions it was fitted, in words.
    """

    info: BundleInfo
    scores: pd.DataFrame
    referral: pd.DataFrame
    sets: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    basis: str = "validation scans"

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "temperature": self.info.temperature,
            "calibration": self.info.calibration,
            "scores": self.scores.to_dict("records"),
            "referral": self.referral.to_dict("records"),
            "sets": self.sets.to_dict("records"),
            "notes": self.notes,
            "synthetic": self.info.synthetic,
            "files": [str(f) for f in self.files],
        }


def calibrate_run(
    run: Run | str | Path | None = None,
    *,
    coverage: float = 0.9,
    sensitivity: float = 0.95,
    urgent: Sequence[str] | None = None,
    files: Files | None = None,
) -> Calibrated:
    """Fit a run's temperature, operating point and prediction sets on validation, and keep them in its bundle.

    All is fitted on the uncalibrated probabilities, so that calibrating twice gives the same. Test scans play no part
    in it; where there are any, what was fitted is measured on them.

    Parameters
    ----------
    run : a run or its folder; None takes the newest.
    coverage : of the prediction sets.
    sensitivity : of urgent referral, wanted on validation.
    urgent : classes that are referred urgently; None takes those of CNV and DME that there are.
    files : how to write the figures; None writes PNG.

    Raises
    ------
    DataError : validation is too small to calibrate on; nothing is changed then.
    UsageError : a share or a class that cannot be.
    """
    run = run if isinstance(run, Run) else open_run(run)
    raw, info = held_out_predictions(run, temperature=1.0)
    classes = info.classes
    referred = list(urgent_classes(classes, urgent))
    check_sensitivity(sensitivity)
    check_coverage(coverage)
    reason = too_small(raw, classes, info.level)
    if reason:
        raise DataError(f"{run.path.name}: {reason}", _what_to_do(run))
    folds = FOLD in raw and bool((raw["split"] == "train").any())
    basis = "out-of-fold predictions" if folds else "validation scans"
    notes = [_OPTIMISTIC.format(basis), _SETS_HOLD]
    found: dict[str, Any] = {"split": "valid", "scans": len(raw), "patients": int(raw["patient"].nunique())}
    temperature = 1.0
    try:
        fit = fit_table(raw, classes, info.level)
        temperature, found = fit.temperature, fit.to_dict()
    except DataError as e:
        notes.insert(0, f"{e.message[0].upper()}{e.message[1:]}. The temperature is 1.")
        found["refused"] = e.message
    valid = rescale(raw, classes, temperature)
    point = fix_operating_point(valid, referred, sensitivity) if referred else None
    if not point:
        notes.append("No operating point of urgent referral: no class is urgent; name some with --urgent.")
    found |= _thresholds(valid, point, referred, coverage)
    if info.level == "scan":
        units, said = _of_units(valid, classes, referred, sensitivity, coverage)
        notes += said
        found |= {"units": units} if units else {}
    # What was fixed on the scans themselves, whatever the probabilities are.
    found |= {key: info.calibration[key] for key in ("unlike", "quality") if key in info.calibration}
    info = update_info(run.bundle, temperature=temperature, calibration=found)
    tables = {"folds" if folds else "valid": raw, **_test_table(run, notes)}
    return replace(_measured(run, tables, info, notes, files or Files()), basis=basis)


def _thresholds(
    table: pd.DataFrame, point: OperatingPoint | None, urgent: list[str], coverage: float
) -> dict[str, Any]:
    """The operating point, where there is one, and the threshold of prediction sets, as a bundle keeps them."""
    found: dict[str, Any] = {}
    if point:
        least = rounded_down(point.threshold)
        found["operating"] = {"urgent": urgent, "sensitivity": point.wanted, "threshold": least}
    threshold = conformal_threshold(table, coverage)
    found["conformal"] = {"method": "least ambiguous sets", "coverage": coverage, "threshold": threshold}
    return found


def _of_units(
    valid: pd.DataFrame, classes: Sequence[str], urgent: list[str], sensitivity: float, coverage: float
) -> tuple[dict[str, Any], list[str]]:
    """How scans are put together for volumes, eyes and patients, with thresholds of these; and a sentence for each."""
    found, notes = fit_aggregations(valid, classes, urgent)
    for level, kept in found.items():
        table, _ = aggregated_tables(valid, aggregation_of({"units": found}, level, classes), classes)
        point = fix_operating_point(table, urgent, sensitivity) if urgent else None
        try:
            kept |= _thresholds(table, point, urgent, coverage)
        except DataError as e:
            notes.append(f"{level}s: no prediction sets: {e.message}")
    notes = [*(in_words(level, kept) for level, kept in found.items()), *notes]
    return found, [f"{note[0].upper()}{note[1:]}." for note in notes]


def _what_to_do(run: Run) -> str:
    """What to do where the scans to calibrate on are too few."""
    if run.config.get("chosen", {}).get("folds"):
        return "collect more scans, or go on with the probabilities as they are"
    return "train again with --folds 5, so that all training scans count too, or hold more out: --valid 0.3"


def _measured(
    run: Run, tables: dict[str, pd.DataFrame], info: BundleInfo, notes: list[str], write: Files
) -> Calibrated:
    """What the calibration comes to on each of the uncalibrated tables, and its figure."""
    classes, temperature = info.classes, info.temperature
    operating, conformal = info.calibration.get("operating"), info.calibration["conformal"]
    scores, referral, sets, files = [], [], [], [run.bundle / INFO_FILE]
    for split, before in tables.items():
        after = rescale(before, classes, temperature) if temperature != 1 else None
        table = before if after is None else after
        for t, at in ((before, 1.0), (after, temperature)):
            if t is not None:
                about = {"split": split, "scans": len(t), "temperature": at}
                scores.append({**about, **calibration_scores(t, classes)})
        if operating:
            referral.append({"split": split, **referral_at(table, operating["urgent"], operating["threshold"])})
        held = prediction_sets(table, classes, conformal["threshold"])
        sets.append({"split": split, **coverage_of_sets(table, held), "intervals": coverage_intervals(table, held)})
        title = f"Reliability, {_TITLES.get(split, split)}"
        figure = plot_reliability(before, after, classes, title=title, note=SYNTHETIC_NOTE if info.synthetic else "")
        name = "reliability" if split in _TITLES else f"reliability-{split}"
        files.append(write.save(figure, run.figures / name))
    return Calibrated(info, pd.DataFrame(scores), pd.DataFrame(referral), pd.DataFrame(sets), notes, files)


def _test_table(run: Run, notes: list[str]) -> dict[str, pd.DataFrame]:
    if not (run.scans["split"] == "test").any():
        notes.append("There are no test scans: nothing is measured on scans that played no part.")
        return {}
    try:
        return {"test": run_predictions(run, "test", temperature=1.0)[0]}
    except OctfastError as e:
        log.warning("not measured on the test scans: %s", e.message)
        notes.append(f"Not measured on the test scans: {e.message}.")
        return {}
