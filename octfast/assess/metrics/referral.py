"""Urgent referral: a scan's score, who is referred and who should be, and the operating point fixed on validation."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from octfast.assess.metrics.definitions import TwoByTwo, ratio
from octfast.errors import UsageError
from octfast.model.decide import Rule, decide

log = logging.getLogger("octfast")

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


def urgent_score(table: pd.DataFrame, urgent: Sequence[str]) -> np.ndarray:
    """The score of each scan: the probability that it is of an urgent class, the sum of theirs; of shape (n,)."""
    return _decide(table, urgent).urgent_score


def is_referred(table: pd.DataFrame, urgent: Sequence[str], threshold: float | None = None) -> np.ndarray:
    """Whether each scan is referred, as `octfast.model.decide.decide` has it; bool of shape (n,).

    Parameters
    ----------
    threshold : of the urgent score; None refers where the predicted class is urgent.
    """
    if threshold is None:
        return table["predicted"].isin(list(urgent)).to_numpy()
    return _decide(table, urgent, threshold).referred


def referral_table(table: pd.DataFrame, urgent: Sequence[str], threshold: float | None = None) -> TwoByTwo:
    """How many scans are urgent and referred, urgent and missed, referred needlessly, and rightly not referred."""
    actual = table["label"].isin(list(urgent)).to_numpy()
    return TwoByTwo.of(actual, is_referred(table, urgent, threshold)).total()


def referral_at(table: pd.DataFrame, urgent: Sequence[str], threshold: float) -> dict[str, Any]:
    """Urgent referral at a threshold: how many of the urgent are caught and of the others spared.

    Returns
    -------
    `urgent`, `caught`, `sensitivity`, `others`, `spared`, `specificity`; a share of nothing is NaN.
    """
    n = referral_table(table, urgent, threshold)
    yes, no = n.tp + n.fn, n.fp + n.tn
    return {
        "urgent": yes,
        "caught": n.tp,
        "sensitivity": float(ratio(n.tp, yes)),
        "others": no,
        "spared": n.tn,
        "specificity": float(ratio(n.tn, no)),
    }


def _decide(table: pd.DataFrame, urgent: Sequence[str], threshold: float | None = None) -> Any:
    """The decision on each scan by its urgent classes alone, which is all that a threshold of their sum asks for."""
    p = table[[f"p_{c}" for c in urgent]].to_numpy(dtype=float)
    return decide(p, Rule(tuple(urgent), tuple(urgent), threshold))


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
    positive = table["label"].isin(list(urgent)).to_numpy()
    n = int(positive.sum())
    if n == 0 or n == len(table):
        return None
    if n < _FEW:
        log.warning(
            "the threshold rests on only %d urgent %s scan%s; sensitivity elsewhere may differ",
            *(n, fixed_on.removesuffix(" predictions"), "" if n == 1 else "s"),
        )
    # The small allowance keeps 0.95 x 20 at 19, whatever its last bit.
    most = np.sort(urgent_score(table, urgent)[positive])[::-1]
    threshold = float(most[min(n, max(1, math.ceil(sensitivity * n - 1e-9))) - 1])
    found = referral_at(table, urgent, threshold)
    return OperatingPoint(threshold, sensitivity, fixed_on, len(table), n, found["sensitivity"], found["specificity"])


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
    return OperatingPoint(threshold, wanted, "held-out scans, kept in the model")


def check_sensitivity(sensitivity: float) -> float:
    """The same number, if it is one that can be asked for.

    Raises
    ------
    UsageError : not above 0 and at most 1.
    """
    if not 0 < sensitivity <= 1:
        raise UsageError(f"--sensitivity {sensitivity:g} is not above 0 and at most 1", "for example 0.95")
    return sensitivity
