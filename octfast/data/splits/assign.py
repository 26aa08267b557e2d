"""Shares groups out over sides so that each side gets its part of every class: greedily, then by single moves."""

from __future__ import annotations

import numpy as np

# More than any misfit of counts can cost, so that an emptied class is mended first; of the training side, before all.
_EMPTY = 1e7
# Equal costs must tie on every machine and in every run, whatever the last bit of a sum.
_DIGITS = 9
_MOVES = 2000


def share_out(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator, main: int | None = None) -> np.ndarray:
    """Give every group a side, the best of several shuffles.

    Groups are taken by falling size and given to the side where they cost least; then single groups are moved for as
    long as that lowers the cost, which is the sum over sides and classes of (count - wanted)^2 / wanted, plus a
    penalty where a side has none of a class. At such an optimum, if every group is of one class, no count of 2 or 3
    sides, or of equal sides, is off by more than the largest group of its class.

    Parameters
    ----------
    counts : scans a group and class, of shape (groups, classes).
    shares : of each side, summing to 1, all above 0.
    rng : of the shuffles.
    main : the side that must have every class, as it is trained on.

    Returns
    -------
    The side of each group, of shape (groups,).
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
    side = np.empty(len(counts), dtype=int)
    left = wanted.copy()
    for group in order:
        # The rise of (count - wanted)^2 / wanted when the group is added.
        rise = ((counts[group] * (counts[group] - 2 * left)) / wanted).sum(1)
        side[group] = rise.round(_DIGITS).argmin()
        left[side[group]] -= counts[group]
    return side


def _cost(have: np.ndarray, wanted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The cost of each side, from counts of shape (..., sides, classes): shape (..., sides)."""
    absent = (have < 0.5).sum(-1)
    # A side with nothing at all is worse than one that lacks each class but another.
    return (((have - wanted) ** 2) / wanted).sum(-1) + weight * (absent + 10 * (absent == have.shape[-1]))


def _moved(counts: np.ndarray, side: np.ndarray, wanted: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
    have = np.zeros_like(wanted)
    np.add.at(have, side, counts)
    # Groups of the same counts on the same side are the same move, which makes 100,000 single scans a handful.
    kinds, kind = np.unique(counts, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    held = np.zeros((len(kinds), len(wanted)), dtype=int)
    np.add.at(held, (kind, side), 1)
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
        group = np.flatnonzero((kind == which) & (side == old))[0]
        side[group] = new
        held[which, old] -= 1
        held[which, new] += 1
        have[old] -= kinds[which]
        have[new] += kinds[which]
    return side, round(float(_cost(have, wanted, weight).sum()), _DIGITS)
