"""Assigns whole groups to splits so that each split gets its share of every class: greedily, then by single moves.

scikit-learn's splitters cannot serve here: StratifiedGroupKFold makes parts of equal size alone, GroupShuffleSplit does
not look at classes, and neither keeps every class in training or every share to within the largest group.
"""

from __future__ import annotations

import numpy as np

# More than any misfit of counts can cost, so that a missing class is mended first, and in training before all.
_EMPTY = 1e7
# Equal costs must tie on every machine and in every run, whatever the last bit of a sum.
_DIGITS = 9
_MOVES = 2000


def assign_groups(
    counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator, main: int | None = None
) -> np.ndarray:
    """Give every group its split: the best assignment of several shuffles.

    Groups are taken from the largest to the smallest, each to the split where it costs least; then single groups are
    moved for as long as that lowers the cost, which is the sum over splits and classes of (count - wanted)^2 / wanted,
    plus a penalty where a split has none of a class. At such an optimum, if every group is of one class, no count of 2
    or 3 splits, or of equal splits, is off by more than the largest group of its class.

    Parameters
    ----------
    counts : scans a group and class, of shape (groups, classes).
    shares : of each split, summing to 1, all above 0.
    rng : of the shuffles.
    main : the split that must have every class, as it is trained on.

    Returns
    -------
    The index of each group's split, of shape (groups,).
    """
    counts = counts.astype(float)
    wanted = np.maximum(shares[:, None] * counts.sum(0), 1e-9)
    weight = np.full(len(shares), _EMPTY)
    if main is not None:
        weight[main] *= 1e3
    # Large sets come close to what is wanted in one go, and each shuffle takes its time.
    tries = int(np.clip(20_000 // max(1, len(counts)), 1, 12))
    found = (_moved(counts, _greedy(counts, wanted, rng), wanted, weight) for _ in range(tries))
    return min(found, key=lambda pair: pair[1])[0]


def _greedy(counts: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shuffled = rng.permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled].sum(1), kind="stable")]
    split = np.empty(len(counts), dtype=int)
    left = wanted.copy()
    for group in order:
        # The rise of (count - wanted)^2 / wanted when the group is added.
        rise = ((counts[group] * (counts[group] - 2 * left)) / wanted).sum(1)
        split[group] = rise.round(_DIGITS).argmin()
        left[split[group]] -= counts[group]
    return split


def _cost(have: np.ndarray, wanted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The cost of each split, from counts of shape (..., splits, classes): shape (..., splits)."""
    absent = (have < 0.5).sum(-1)
    # An empty split is worse than one that has a single class.
    return (((have - wanted) ** 2) / wanted).sum(-1) + weight * (absent + 10 * (absent == have.shape[-1]))


def _moved(counts: np.ndarray, split: np.ndarray, wanted: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
    have = np.zeros_like(wanted)
    np.add.at(have, split, counts)
    # Groups with the same counts in the same split are one kind of move: 100,000 single scans make a handful of kinds.
    kinds, kind = np.unique(counts, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    held = np.zeros((len(kinds), len(wanted)), dtype=int)
    np.add.at(held, (kind, split), 1)
    for _ in range(_MOVES):
        now = _cost(have, wanted, weight)
        plus = _cost(have + kinds[:, None], wanted, weight) - now
        minus = _cost(have - kinds[:, None], wanted, weight) - now
        minus[held == 0] = np.inf
        change = minus[:, :, None] + plus[:, None, :]
        change[:, np.arange(len(wanted)), np.arange(len(wanted))] = np.inf
        change = change.round(_DIGITS)
        best = np.unravel_index(change.argmin(), change.shape)
        if not change[best] < -1e-9:
            break
        which, old, new = (int(i) for i in best)
        group = np.flatnonzero((kind == which) & (split == old))[0]
        split[group] = new
        held[which, old] -= 1
        held[which, new] += 1
        have[old] -= kinds[which]
        have[new] += kinds[which]
    return split, round(float(_cost(have, wanted, weight).sum()), _DIGITS)
