"""Wilson's interval for shares of scans of which patients have several: on so many independent ones as vary as much.

The number is Kish's effective one, the variance that of a ratio of sums over patients: Franco, Little, Louis and Slud,
Comparative study of confidence intervals for proportions in complex sample surveys, J. Surv. Stat. Methodol. 7 (2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octfast.assess.metrics.intervals import wilson


def wilson_of_groups(
    hits: np.ndarray, patient: np.ndarray, group: np.ndarray, groups: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """The interval of the share of hits in each group of scans; NaN in an empty one.

    Parameters
    ----------
    hits : bool, of shape (n,).
    patient, group : which patient each scan is of, and which group, whole numbers from 0, of shape (n,).
    groups : how many there are.

    Returns
    -------
    Low and high, of shape (groups,) each.
    """
    pairs, place = np.unique(patient.astype(np.int64) * groups + group, return_inverse=True)
    scans = np.bincount(place, minlength=len(pairs)).astype(float)
    right = np.bincount(place, hits, len(pairs))

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(pairs % groups, values, groups)

    sums = (scans, right, scans**2, right * scans, right**2, np.ones(len(pairs)))
    return _wilson([total(values) for values in sums], level)


def wilson_of_firsts(hits: np.ndarray, patient: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The interval of the share of hits in the first scan, the first two, and so on.

    Parameters
    ----------
    hits : bool, of shape (n,).
    patient : which patient each scan is of, whole numbers, of shape (n,).

    Returns
    -------
    Low and high, of shape (n,) each.
    """
    order = np.argsort(patient, kind="stable")
    own = patient[order]
    start = np.flatnonzero(np.diff(own, prepend=own[0] - 1 if len(own) else 0))
    first = np.repeat(start, np.diff(start, append=len(own)))
    hit = hits[order].astype(float)
    up_to = np.cumsum(hit)
    # Of a scan's patient the scans and hits that come before it.
    scans, right = np.empty(len(own)), np.empty(len(own))
    scans[order] = np.arange(len(own)) - first
    right[order] = up_to - hit - (up_to - hit)[first]
    hit = hits.astype(float)
    each = (np.ones(len(own)), hit, 2 * scans + 1, right + hit * (scans + 1), hit * (2 * right + 1), scans == 0)
    return _wilson([np.cumsum(values) for values in each], level)


def _wilson(sums: Sequence[np.ndarray], level: float) -> tuple[np.ndarray, np.ndarray]:
    """Of k hits of n scans; nn, kn and kk are the sums over patients of n * n, k * n and k * k of their own."""
    n, k, nn, kn, kk, patients = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        share = k / n
        variance = patients / (patients - 1) * (kk - 2 * share * kn + share**2 * nn) / n**2
        # Where patients are all right or all wrong they count once; a share of 0 or 1 says nothing of that.
        least = n**2 / nn
        found = np.where((k == 0) | (k == n) | (patients < 2), least, share * (1 - share) / variance)
        trials = np.where(n > 0, np.clip(found, least, n), 0)
        hits = np.where(n > 0, share * trials, 0)
    return wilson(hits, trials, level)
