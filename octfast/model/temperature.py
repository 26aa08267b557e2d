"""Temperature scaling: one number, fitted on validation, that calibrates a Predictions table's probabilities."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

from octfast.errors import BundleError, DataError
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.read import read_info
from octfast.model.bundle.write import update_info

log = logging.getLogger("octfast")

# With this many scans (four classes, seven scans a patient, an accuracy of 80%) the standard error of the temperature
# is about a tenth of it; with half as many, a sixth. A handful of scans of a class would say nothing about that class.
MIN_SCANS, MIN_PATIENTS, MIN_A_CLASS = 200, 30, 10
LOWEST, HIGHEST = 0.05, 20.0

_SMALLEST = np.nextafter(0, 1)
_LARGER = "hold more out and train again, such as --valid 0.2; or judge the model by its uncalibrated probabilities"


@dataclass(frozen=True)
class TemperatureFit:
    """A temperature fitted on validation.

    Attributes
    ----------
    temperature : divides the logits before the softmax; above 1 where the model was overconfident.
    low, high : its 95% interval, which takes patients as independent but not the scans of one patient.
    scans, patients : how many it was fitted on.
    nll_before, nll_after : mean negative log-likelihood in nats, uncalibrated and at the temperature.
    ece_before, ece_after : expected calibration error, see `calibration_error`.
    """

    temperature: float
    low: float
    high: float
    scans: int
    patients: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float

    def to_dict(self) -> dict[str, Any]:
        """The part of `BundleInfo.calibration` that is about the temperature."""
        return {
            "split": "valid",
            "scans": self.scans,
            "patients": self.patients,
            "temperature_interval": [_six_digits(self.low), _six_digits(self.high)],
            "nll_before": _six_digits(self.nll_before),
            "nll_after": _six_digits(self.nll_after),
            "ece_before": _six_digits(self.ece_before),
            "ece_after": _six_digits(self.ece_after),
        }


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the lowest negative log-likelihood (Guo et al., On Calibration of Modern Neural Networks).

    The negative log-likelihood is convex in the inverse temperature, so its minimum is where its slope is zero.

    Parameters
    ----------
    logits : of shape (n, classes); log-probabilities will do.
    labels : of shape (n,), the index of each scan's class.

    Returns
    -------
    The temperature, to six significant digits, between `LOWEST` and `HIGHEST`.

    Raises
    ------
    DataError : no temperature within these limits is best: every label is predicted correctly, or the predictions are
        no better than chance.
    """
    z = np.asarray(logits, dtype=float)
    z = z - z.max(1, keepdims=True)
    actual = z[np.arange(len(z)), labels]

    def slope(inverse: float) -> float:
        return float(((softmax(z * inverse, axis=1) * z).sum(1) - actual).mean())

    if slope(1 / HIGHEST) >= 0:
        raise DataError(
            "no temperature can be fitted: on these scans the model's probabilities are no better than chance",
            "train longer, or look at the labels; the temperature stays 1",
        )
    wrong = int((z.argmax(1) != labels).sum())
    if slope(1 / LOWEST) <= 0:
        why = "all of these scans are right" if not wrong else f"only {wrong} of these {len(z)} scans are wrong"
        raise DataError(
            f"no temperature fits: {why}, so that ever surer probabilities would be better",
            "hold more scans out, in which the model is mistaken about some; the temperature stays 1",
        )
    return _six_digits(1 / brentq(slope, 1 / HIGHEST, 1 / LOWEST, xtol=1e-12, rtol=1e-12))


def temperature_interval(
    logits: np.ndarray, labels: np.ndarray, patients: Sequence, temperature: float, z_score: float = 1.959964
) -> tuple[float, float]:
    """The interval of a fitted temperature, at 95% by default, where a patient's scans are not independent.

    A Wald interval of the temperature's logarithm. Its variance is the cluster-robust (sandwich) estimate: the scores
    summed by patient over the curvature (Liang and Zeger, Longitudinal data analysis using generalized linear models).
    """
    z = np.asarray(logits, dtype=float)
    z = z - z.max(1, keepdims=True)
    p = softmax(z / temperature, axis=1)
    mean = (p * z).sum(1)
    slopes = pd.Series(mean - z[np.arange(len(z)), labels]).groupby(np.asarray(patients)).sum().to_numpy()
    curvature = ((p * z**2).sum(1) - mean**2).sum()
    groups = len(slopes)
    error = np.sqrt((slopes**2).sum() * groups / max(1, groups - 1)) / curvature * temperature
    return float(temperature * np.exp(-z_score * error)), float(temperature * np.exp(z_score * error))


def fit_table(table: pd.DataFrame, classes: Sequence[str], level: str = "scan") -> TemperatureFit:
    """Fit the temperature on a Predictions table of validation scans, or whole units, whatever temperature it is at.

    Raises
    ------
    DataError : too few scans, see `too_small`, or no temperature fits, see `fit_temperature`.
    """
    reason = too_small(table, classes, level)
    if reason:
        raise DataError(reason, _LARGER)
    logits, labels = raw_logits(table, classes), _indices(table["label"], classes)
    temperature = fit_temperature(logits, labels)
    low, high = temperature_interval(logits, labels, list(table["patient"]), temperature)
    if high > 4 * low:
        log.warning("the temperature %.3g is imprecise: its 95%% interval is %.2g to %.2g", temperature, low, high)
    before, after = (log_softmax(logits / t, axis=1) for t in (1.0, temperature))
    right = (table["label"] == table["predicted"]).to_numpy()
    rows = np.arange(len(table))
    return TemperatureFit(
        temperature,
        low,
        high,
        scans=len(table),
        patients=table["patient"].nunique(),
        nll_before=float(-before[rows, labels].mean()),
        nll_after=float(-after[rows, labels].mean()),
        ece_before=calibration_error(np.exp(before.max(1)), right),
        ece_after=calibration_error(np.exp(after.max(1)), right),
    )


def too_small(table: pd.DataFrame, classes: Sequence[str], level: str = "scan") -> str:
    """Why a table of validation scans, or units of a level, is too small to calibrate on; "" where it is not."""
    counts = table["label"].value_counts().reindex(list(classes), fill_value=0)
    patients = table["patient"].nunique()
    few = ", ".join(f"{n} of {_plain(c)}" for c, n in counts[counts < MIN_A_CLASS].head(3).items())
    reasons = [
        f"{len(table)} {level}s, fewer than {MIN_SCANS}" if len(table) < MIN_SCANS else "",
        f"{patients} patients, fewer than {MIN_PATIENTS}" if patients < MIN_PATIENTS else "",
        f"{few}, fewer than {MIN_A_CLASS}" if few else "",
    ]
    joined = "; ".join(filter(None, reasons))
    return f"too few held-out {level}s to calibrate on: {joined}" if joined else ""


def calibrate_bundle(folder: str | Path, table: pd.DataFrame) -> BundleInfo:
    """Fit the temperature on a table of validation scans and keep it in a bundle; where that fails, log why.

    Returns
    -------
    The bundle's info as it is now.
    """
    info = read_info(folder)
    try:
        fit = fit_table(table, info.classes, info.level)
    except DataError as e:
        log.info("probabilities are not calibrated: %s", e.message)
        return info
    log.info(
        "temperature %.3g, fitted on %d held-out %ss of %d patients: loss %.3f before, %.3f after",
        *(fit.temperature, fit.scans, info.level, fit.patients, fit.nll_before, fit.nll_after),
    )
    return update_info(folder, temperature=fit.temperature, calibration={**info.calibration, **fit.to_dict()})


def raw_logits(table: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """Log-probabilities up to a constant a scan, of shape (n, classes), as they were before any temperature.

    Exact to the precision of the table's probabilities. Where one is 0, its logarithm was below -744: that of the label
    is taken from the loss, and any other is set to -744.
    """
    p = table[[f"p_{c}" for c in classes]].to_numpy(dtype=float)
    logp = np.log(np.maximum(p, _SMALLEST))
    if len(table) and "loss" in table:
        rows, labels = np.arange(len(table)), _indices(table["label"], classes)
        lost = p[rows, labels] <= 0
        logp[rows[lost], labels[lost]] = -table["loss"].to_numpy(dtype=float)[lost]
    return logp * table_temperature(table)


def rescale(table: pd.DataFrame, classes: Sequence[str], temperature: float) -> pd.DataFrame:
    """The Predictions table that the model gives at another temperature; the predicted classes stay the same.

    Returns
    -------
    A new table, with a column `temperature` where it is not 1.
    """
    if temperature == table_temperature(table):
        return table
    logp = log_softmax(raw_logits(table, classes) / temperature, axis=1)
    rows, out = np.arange(len(table)), table.copy()
    out["probability"] = np.exp(logp[rows, _indices(table["predicted"], classes)])
    out["loss"] = -logp[rows, _indices(table["label"], classes)]
    for i, c in enumerate(classes):
        out[f"p_{c}"] = np.exp(logp[:, i])
    return with_temperature(out, temperature)


def with_temperature(table: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """The table with the column `temperature`, or without it where the temperature is 1."""
    if temperature == 1:
        return table.drop(columns="temperature", errors="ignore")
    return table.assign(temperature=float(temperature))


def table_temperature(table: pd.DataFrame) -> float:
    """The temperature that a Predictions table is at: its column `temperature`, or 1 where it has none.

    Raises
    ------
    BundleError : the column does not hold one positive number.
    """
    if "temperature" not in table or table.empty:
        return 1.0
    values = pd.to_numeric(table["temperature"], errors="coerce").unique()
    if len(values) != 1 or not 0 < values[0] < np.inf:
        raise BundleError(
            "the column temperature does not hold one positive number",
            "delete the table of predictions, and it is made again",
        )
    return float(values[0])


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: in bins of equal width, the mean gap of confidence to accuracy, weighted by scans.

    Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning; Guo et al. take
    15 bins.

    Parameters
    ----------
    confidence : of shape (n,), the probability of the predicted class.
    right : of shape (n,), whether that is the label.
    """
    confidence = np.asarray(confidence, dtype=float)
    if not len(confidence):
        return float("nan")
    gaps = np.bincount(bin_of(confidence, bins), np.asarray(right, dtype=float) - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each confidence; a bin holds its upper edge."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


def _indices(names: pd.Series, classes: Sequence[str]) -> np.ndarray:
    return pd.Index(list(classes)).get_indexer(pd.Index(names.astype(object)))


def _six_digits(value: float) -> float:
    """To six significant digits, so that calibrating again gives the same file."""
    return float(f"{value:.6g}")


def _plain(name: object, most: int = 24) -> str:
    text = " ".join(str(name).split())
    return text if len(text) <= most else text[: most - 1] + "…"
