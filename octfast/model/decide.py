"""One decision, whichever door a scan comes in by: from probabilities to class, abstention and urgent referral."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octfast.errors import UsageError

URGENT = ("CNV", "DME")


@dataclass(frozen=True)
class Rule:
    """How probabilities become an answer: what the bundle keeps, and what the caller asked for instead.

    Attributes
    ----------
    classes : in the order of the probabilities.
    urgent : the urgent classes; empty where there is no referral to decide.
    threshold : of the urgent score, from which a scan is referred; None refers where the predicted class is urgent.
    set_threshold : probability from which a class belongs to the prediction set; None where there are no sets.
    abstain_below : least probability of the predicted class at which the model answers; it takes the place of the
        sets. None goes by the sets, where there are any.
    unlike : whether the model knows how far a scan is from its training scans.
    answer_anyway : whether a scan that is unlike them gets a class all the same.
    """

    classes: tuple[str, ...]
    urgent: tuple[str, ...] = ()
    threshold: float | None = None
    set_threshold: float | None = None
    abstain_below: float | None = None
    unlike: bool = False
    answer_anyway: bool = False

    def __post_init__(self) -> None:
        if self.abstain_below is not None and not 0 <= self.abstain_below <= 1:
            raise UsageError(f"--abstain-below {self.abstain_below:g}: not a probability", "give 0 to 1, such as 0.8")

    @property
    def abstains(self) -> bool:
        """Whether there is anything by which a scan can be abstained from."""
        return self.abstain_below is not None or self.set_threshold is not None


@dataclass(frozen=True)
class Decision:
    """What is answered for n scans.

    Attributes
    ----------
    predicted : index of the most probable class, of shape (n,); of equal ones the first.
    probability : of that class, of shape (n,).
    abstained : whether the model is too unsure to answer, of shape (n,); None where nothing was asked or fitted.
    urgent_score : the sum of the urgent classes' probabilities, of shape (n,); None without urgent classes.
    referred : whether to refer urgently, of shape (n,); None without urgent classes.
    possible : which classes are in the prediction set, of shape (n, classes); never empty; None without sets.
    unlike_training : whether a scan is unlike anything that the model was trained on, of shape (n,); None where the
        model does not know.
    withheld : whether no class is given, as the scan is unlike the training scans, of shape (n,); what is said above
        of such a scan is not to be shown.
    """

    predicted: np.ndarray
    probability: np.ndarray
    abstained: np.ndarray | None = None
    urgent_score: np.ndarray | None = None
    referred: np.ndarray | None = None
    possible: np.ndarray | None = None
    unlike_training: np.ndarray | None = None
    withheld: np.ndarray | None = None


def rule_of(
    classes: Sequence[str],
    calibration: dict[str, Any],
    urgent: Sequence[str] | None = None,
    abstain_below: float | None = None,
    *,
    unlike: bool = False,
    answer_anyway: bool = False,
) -> Rule:
    """The rule of a trained model.

    Parameters
    ----------
    classes, calibration : of its `BundleInfo`.
    urgent : classes to refer instead of the bundle's, by which its operating point no longer applies unless they are
        the same; None takes those of the operating point, else CNV and DME where the model has them.
    abstain_below, unlike, answer_anyway : see `Rule`.

    Raises
    ------
    UsageError : `urgent` names a class that the model has not, or all; `abstain_below` is no probability.
    """
    operating, sets = calibration.get("operating"), calibration.get("conformal")
    if operating is not None and urgent is not None and set(urgent) != set(operating["urgent"]):
        operating = None
    return Rule(
        tuple(classes),
        urgent_classes(classes, operating["urgent"] if operating else urgent),
        float(operating["threshold"]) if operating else None,
        float(sets["threshold"]) if sets else None,
        abstain_below,
        unlike,
        answer_anyway,
    )


def decide(probabilities: np.ndarray, rule: Rule, distances: np.ndarray | None = None) -> Decision:
    """Decide for each scan.

    Parameters
    ----------
    probabilities : calibrated, of shape (n, classes); a row of NaN is a scan that could not be read, for which every
        yes or no is no.
    rule : see `rule_of`.
    distances : of the scans to the training scans, of shape (n,): above 1 is unlike them (`octfast.model.unlike`).
        NaN where there is none. Needed where `rule.unlike` is true, and else left out of account.
    """
    p = np.asarray(probabilities, dtype=float).reshape(-1, len(rule.classes))
    predicted = np.where(np.isnan(p).any(1), 0, p.argmax(1))
    rows = np.arange(len(p))
    probability = p[rows, predicted]
    possible = abstained = score = referred = None
    if rule.set_threshold is not None:
        possible = p >= rule.set_threshold
        possible[rows, predicted] = True
        abstained = possible.sum(1) > 1
    if rule.abstain_below is not None:
        abstained = probability < rule.abstain_below
    if rule.urgent:
        urgent = np.isin(rule.classes, rule.urgent)
        score = p[:, urgent].sum(1)
        referred = score >= rule.threshold if rule.threshold is not None else urgent[predicted] & ~np.isnan(score)
    far = withheld = None
    if rule.unlike:
        if distances is None:
            raise ValueError("the rule asks for distances, and none were given")
        far = np.asarray(distances, dtype=float).reshape(-1) > 1
        withheld = far & (not rule.answer_anyway)
        if referred is not None:
            referred = referred & ~withheld
    return Decision(predicted, probability, abstained, score, referred, possible, far, withheld)


def unlike_words(distance: float, withheld: bool = True) -> str:
    """Why a scan is called unlike the training scans, in a sentence; `distance` as `decide` takes it."""
    times = f"{distance:.1f}" if distance < 9.95 else f"{min(distance, 9999):.0f}"
    ending = "; no class is given" if withheld else ""
    return f"unlike anything the model was trained on ({times} times the limit of distance){ending}"


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
    if urgent and set(urgent) == set(classes):
        raise UsageError("urgent: all classes are urgent, so there is nothing to tell apart", "name fewer")
    return tuple(c for c in classes if c in urgent)
