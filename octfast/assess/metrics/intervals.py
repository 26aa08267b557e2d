"""Confidence intervals: the bootstrap over patients, and Wilson's for a proportion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

OVER_PATIENTS = "bootstrap over patients"
OVER_SCANS = "bootstrap over scans"
WILSON = "Wilson over scans"
WILSON_PATIENTS = "Wilson over patients (resamples all equal)"
ALL_EQUAL = "none (resamples all equal)"
UNDEFINED = "none (undefined)"


class Interval(NamedTuple):
    """The ends of an interval, NaN where there is none, and the method that gave it."""

    low: float
    high: float
    method: str


class Proportion(NamedTuple):
    """So many of so many scans, of so many patients."""

    successes: int
    trials: int
    patients: int


def wilson(successes: Any, trials: Any, level: float = 0.95) -> tuple[Any, Any]:
    """Wilson's score interval of a proportion (Wilson 1927), low and high; NaN without trials.

    scipy's `binomtest` gives the same for one proportion at a time, which is too slow for the curves of large tables.

    Parameters
    ----------
    successes, trials : numbers, or arrays of them of one shape.
    """
    k, n = np.asarray(successes, dtype=float), np.asarray(trials, dtype=float)
    z = ndtri(0.5 + 0.5 * level)
    with np.errstate(invalid="ignore"):
        p = np.where(n > 0, k / n, np.nan)
    centre, half = (2 * n * p + z**2) / (2 * (n + z**2)), z / (2 * (n + z**2)) * np.sqrt(4 * n * p * (1 - p) + z**2)
    low, high = np.where(k == 0, 0 * p, centre - half), np.where(k == n, 0 * p + 1, centre + half)
    return (low, high) if low.ndim else (float(low), float(high))


def resampled_weights(patients: int, resamples: int, seed: int, rows: int) -> Iterator[np.ndarray]:
    """Bootstrap weights: how often each patient is drawn when as many as there are are drawn with replacement.

    Each resample has a seed of its own, so that the numbers do not depend on the blocks they come in.

    Parameters
    ----------
    rows : how many scans the weights will be spread over; the blocks are the smaller, the more.

    Yields
    ------
    float32 of shape (patients, b), b resamples a block.
    """
    block = int(np.clip(8_000_000 // max(rows, patients, 1), 8, 256))
    for first in range(0, resamples, block):
        drawn = np.empty((patients, min(block, resamples - first)), dtype=np.float32)
        for i in range(drawn.shape[1]):
            rng = np.random.default_rng((seed, first + i))
            drawn[:, i] = np.bincount(rng.integers(0, patients, patients, dtype=np.uint32), minlength=patients)
        yield drawn


def choose_interval(
    value: float,
    resampled: np.ndarray,
    *,
    level: float = 0.95,
    single: bool = False,
    proportion: Proportion | None = None,
) -> Interval:
    """The interval of a metric and the method that suits it.

    A proportion of independent scans gets Wilson's. Anything else gets the percentile interval of the bootstrap
    (Efron 1979), without the resamples in which the metric is undefined. Where all resamples are equal, as where
    every scan is right, the bootstrap knows nothing: a proportion of 0 or 1 then gets Wilson's on the number of
    patients, which is the widest that the scans allow, and other metrics get none.

    Parameters
    ----------
    value : the metric itself.
    resampled : the metric in each resample, of shape (resamples,).
    single : whether each scan is a patient of its own.
    proportion : what the metric counts, where it is a proportion of scans.
    """
    nothing = float("nan")
    if np.isnan(value):
        return Interval(nothing, nothing, UNDEFINED)
    if single and proportion:
        return Interval(*wilson(proportion.successes, proportion.trials, level), WILSON)
    kept = resampled[~np.isnan(resampled)]
    if 2 * len(kept) < len(resampled):
        return Interval(nothing, nothing, UNDEFINED)
    if kept.min() == kept.max() or (np.isfinite(kept).all() and np.ptp(kept) < 1e-12):
        if proportion and value in (0, 1):
            ends = wilson(round(value) * proportion.patients, proportion.patients, level)
            return Interval(*ends, WILSON_PATIENTS)
        return Interval(nothing, nothing, ALL_EQUAL)
    low, high = percentiles(kept, level)
    return Interval(low, high, OVER_SCANS if single else OVER_PATIENTS)


def paired_interval(value: float, spread: np.ndarray, level: float, single: bool) -> tuple[float, float, float, str]:
    """A difference of two models on the same scans, the ends of its interval and the method.

    Parameters
    ----------
    value : the difference.
    spread : that in each resample of patients, which is the same for both, of shape (resamples,).
    single : whether each scan is a patient of its own.
    """
    kept = spread[~np.isnan(spread)]
    nothing = float("nan")
    if not np.isfinite(value) or 2 * len(kept) < len(spread):
        return (value if np.isfinite(value) else nothing), nothing, nothing, UNDEFINED
    if np.isfinite(kept).all() and np.ptp(kept) < 1e-12:
        return value, nothing, nothing, ALL_EQUAL
    low, high = percentiles(kept, level)
    return value, low, high, f"paired {OVER_SCANS if single else OVER_PATIENTS}"


def percentiles(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of the values; order statistics, since interpolation fails beside an infinite one."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)
