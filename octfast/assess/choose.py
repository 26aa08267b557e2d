"""Chooses which scans to label next: by doubt, by novelty, or by both, a patient at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from octfast.assess.directions import Directions
from octfast.errors import UsageError

# How scans are chosen. The first is the default, by what benchmarks/suggest.py measured.
STRATEGIES = ("badge", "centre", "doubt", "random")
# Scans of a pool and labelled ones whose distances are held at once.
_BLOCK, _LABELLED = 1024, 8192


@dataclass(frozen=True)
class Chosen:
    """Scans in the order in which they are to be labelled.

    Attributes
    ----------
    rows : of the pool.
    uncertainty : of every scan of the pool: the entropy of its probabilities, 0 where one is 1 and 1 where all are
        alike.
    novelty : of every scan of the pool: its distance to the nearest labelled scan, 0 for the same picture and 1 for
        nothing in common (one minus the cosine of the standardised features).
    """

    rows: np.ndarray
    uncertainty: np.ndarray
    novelty: np.ndarray


def choose(
    features: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray,
    n: int,
    known: np.ndarray,
    *,
    by: str = STRATEGIES[0],
    seed: int = 0,
) -> Chosen:
    """Choose scans of a pool, of each patient one before any patient has a second.

    Parameters
    ----------
    features : of the pool, of shape (scans, dim).
    probabilities : of the pool, of shape (scans, classes).
    patients : of the pool.
    n : how many; fewer are given where the pool has no more.
    known : features of the labelled scans, of shape (labelled, dim).
    by : `badge` draws scans far apart in what they would teach the head (the gradient of its last layer, by k-means++);
        `centre` takes again and again the scan with the largest product of its uncertainty and its distance to all that
        is labelled or chosen; `doubt` takes the most uncertain; `random` draws them.
    seed : of what is drawn.

    Raises
    ------
    UsageError : n below 1, or no such strategy.

    Sources: O. Sener and S. Savarese, 'Active learning for convolutional neural networks: a core-set approach', ICLR
    2018 (the distance to all that is chosen); J. T. Ash, C. Zhang, A. Krishnamurthy, J. Langford and A. Agarwal, 'Deep
    batch active learning by diverse, uncertain gradient lower bounds', ICLR 2020 (`badge`).
    """
    if n < 1:
        raise UsageError(f"n is {n}: at least one scan", "such as 50")
    if by not in STRATEGIES:
        raise UsageError(f"no way to choose named {by!r}", f"one of {', '.join(STRATEGIES)}")
    directions = Directions(known)
    x, labelled = directions.of(features), directions.of(known)
    uncertainty = entropy(probabilities)
    novelty = nearest(x, labelled)
    rng = np.random.default_rng(seed)
    turns = _Turns(patients)
    rows: list[int] = []
    # Both shrink as scans are chosen.
    near = novelty.copy()
    gradients = _Gradients(x, probabilities)
    fixed = {"random": rng.random(len(x)), "doubt": uncertainty}.get(by)
    while len(rows) < min(n, len(x)):
        free = turns.free()
        score = fixed
        if score is None:
            score = uncertainty * near if by == "centre" else gradients.away
        if by == "badge" and rows:
            row = _drawn(np.where(free, score, 0), free, rng)
        else:
            row = int(np.argmax(np.where(free, score, -np.inf)))
        rows.append(row)
        turns.take(row)
        if by == "centre":
            near = np.minimum(near, 1 - x @ x[row])
        if by == "badge":
            gradients.take(row)
    return Chosen(np.array(rows, dtype=int), uncertainty, novelty)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """The entropy of each row of probabilities as a share of the largest that there can be."""
    from scipy.stats import entropy as scipy_entropy

    return np.clip(scipy_entropy(probabilities, axis=1) / np.log(probabilities.shape[1]), 0, 1)


def nearest(x: np.ndarray, known: np.ndarray) -> np.ndarray:
    """One minus the cosine to the nearest of `known`, of rows of length one."""
    closest = np.full(len(x), -np.inf, dtype=x.dtype)
    for i in range(0, len(x), _BLOCK):
        for j in range(0, len(known), _LABELLED):
            cosines = x[i : i + _BLOCK] @ known[j : j + _LABELLED].T
            closest[i : i + _BLOCK] = np.maximum(closest[i : i + _BLOCK], cosines.max(1))
    return np.clip(1 - closest, 0, None)


class _Turns:
    """Whose turn it is: patients of whom the fewest scans were chosen."""

    def __init__(self, patients: np.ndarray):
        _, self.codes = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
        self.taken = np.zeros(self.codes.max() + 1 if len(self.codes) else 0, dtype=int)
        self.left = np.ones(len(self.codes), dtype=bool)

    def free(self) -> np.ndarray:
        """Which scans may be chosen now."""
        taken = self.taken[self.codes]
        return self.left & (taken == taken[self.left].min())

    def take(self, row: int) -> None:
        self.left[row] = False
        self.taken[self.codes[row]] += 1


class _Gradients:
    """Of the head's last layer: the outer product of (p - the predicted class) and the features, never written out."""

    def __init__(self, x: np.ndarray, probabilities: np.ndarray):
        self.x = x
        self.error = probabilities - (probabilities == probabilities.max(1, keepdims=True))
        # Squared distances to what is chosen; before anything is, to 0.
        self.size = (self.error**2).sum(1) * np.einsum("ij,ij->i", x, x)
        self.away = self.size

    def take(self, row: int) -> None:
        both = (self.error @ self.error[row]) * (self.x @ self.x[row])
        away = np.clip(self.size + self.size[row] - 2 * both, 0, None)
        self.away = away if self.away is self.size else np.minimum(self.away, away)


def _drawn(score: np.ndarray, free: np.ndarray, rng: np.random.Generator) -> int:
    """A row with a probability in proportion to its score; of no score at all any that is free."""
    weight = score if score.sum() > 0 else free.astype(float)
    return int(rng.choice(len(weight), p=weight / weight.sum()))
