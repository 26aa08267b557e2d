"""Urgent referral: which classes are urgent, a scan's score, and the operating point fixed on validation."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from octfast.errors import UsageError

log = logging.getLogger("octfast")

URGENT = ("CNV", "DME")
SENSITIVITY = 0.95
# With fewer urgent scans than this, one scan moves the sensitivity that was asked for by more than two points.
_FEW = 50


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold of the urgent score.

    Attributes
    ----------
    threshold : a scan is referred where its score is this or more.
    wanted : the sensitivity that was asked for.
    fixed_on : what it was fixed on, such as "validation".
    scans, urgent_scans : how many scans it was fixed on, and how many of them are urgent; None where not known.
    sensitivity, specificity : of those scans; None where not known.
    """

    threshold: float
    wanted: float
    fixed_on: str
    scans: int | None = None
    urgent_scans: int | None = None
    sensitivity: float | None = None
    specificity: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def urgent_classes(classes: Sequence[str], urgent: Sequence[str] | None = None) -> tuple[str, ...]:
    """The urgent classes in the order of `classes`: those given, else CNV and DME where they exist.

    Returns
    -------
    Empty where there is no referral to judge: none is urgent, or by default all are.

    Raises
    ------
    UsageError : a class that the model has not, or all of its classes.
    """
    if urgent is None:
        found = tuple(c for c in classes if c in URGENT)
        return found if len(found) < len(classes) else ()
    unknown = [c for c in urgent if c not in classes]
    if unknown:
        raise UsageError(f"urgent: no class {unknown[0]!r}", f"the model has {', '.join(classes)}")
    if set(urgent) == set(classes):
        raise UsageError("urgent: all classes are urgent, so there is nothing to tell apart", "name fewer")
    return tuple(c for c in classes if c in urgent)


def urgent_score(table: pd.DataFrame, urgent: Sequence[str]) -> np.ndarray:
    """The score of each scan: the probability that it is of an urgent class, the sum of theirs; of shape (n,)."""
    return table[[f"p_{c}" for c in urgent]].to_numpy(dtype=float).sum(1)


def fix_operating_point(
    table: pd.DataFrame, urgent: Sequence[str], sensitivity: float = SENSITIVITY, fixed_on: str = "validation"
) -> OperatingPoint | None:
    """The highest threshold at which the wanted share of urgent scans is referred; None without any or no others.

    Parameters
    ----------
    table : the Predictions table of the validation scans, never of those it will be judged on.
    sensitivity : between 0 and 1.
    """
    sensitivity = check_sensitivity(sensitivity)
    score = urgent_score(table, urgent)
    positive = table["label"].isin(list(urgent)).to_numpy()
    n = int(positive.sum())
    if n == 0 or n == len(table):
        return None
    if n < _FEW:
        log.warning(
            "the operating point hangs on %d urgent scans of %s: the sensitivity elsewhere may be another", n, fixed_on
        )
    # The small allowance keeps 0.95 x 20 at 19, whatever its last bit.
    most = np.sort(score[positive])[::-1]
    threshold = float(most[min(n, max(1, math.ceil(sensitivity * n - 1e-9))) - 1])
    referred = score >= threshold
    return OperatingPoint(
        threshold,
        sensitivity,
        fixed_on,
        len(table),
        n,
        float(referred[positive].mean()),
        float((~referred[~positive]).mean()),
    )


def recorded_operating_point(
    calibration: dict[str, Any], urgent: Sequence[str], sensitivity: float | None = None
) -> OperatingPoint | None:
    """The operating point that a bundle keeps, where it is of these urgent classes and of the wanted sensitivity.

    Parameters
    ----------
    calibration : `BundleInfo.calibration`.
    sensitivity : None takes any.
    """
    kept: Any = calibration.get("operating")
    try:
        threshold, wanted = float(kept["threshold"]), float(kept["sensitivity"])
        same = set(kept["urgent"]) == set(urgent)
    except (KeyError, TypeError, ValueError):
        return None
    if not same or not math.isfinite(threshold) or (sensitivity is not None and abs(wanted - sensitivity) > 1e-9):
        return None
    # What is fixed by octfast calibrate is fixed on validation.
    return OperatingPoint(threshold, wanted, "validation, kept in the model")


def check_sensitivity(sensitivity: float) -> float:
    """The same number, if it is one that can be asked for.

    Raises
    ------
    UsageError : not above 0 and at most 1.
    """
    if not 0 < sensitivity <= 1:
        raise UsageError(f"--sensitivity {sensitivity:g} is not above 0 and at most 1", "for example 0.95")
    return sensitivity
