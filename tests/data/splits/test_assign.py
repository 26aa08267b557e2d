from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.data.splits.assign import assign_groups


def misfit(counts: np.ndarray, split: np.ndarray, shares: np.ndarray) -> float:
    """The sum over splits and classes of (count - wanted)^2 / wanted, written anew."""
    wanted = shares[:, None] * counts.sum(0)
    have = np.stack([counts[split == i].sum(0) for i in range(len(shares))])
    return float((((have - wanted) ** 2) / wanted).sum())


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), min_size=3, max_size=60), st.integers(0, 99))
@settings(max_examples=40)
def test_no_count_is_off_by_more_than_the_largest_group_of_its_class(groups, seed):
    counts = np.zeros((len(groups), 3), dtype=int)
    for i, (label, scans) in enumerate(groups):
        counts[i, label] = scans
    counts = counts[:, counts.sum(0) > 0]
    split = assign_groups(counts, np.array([0.75, 0.25]), np.random.default_rng(seed), main=0)
    assert split.shape == (len(groups),) and set(split) <= {0, 1}
    off = np.abs(counts[split == 1].sum(0) - 0.25 * counts.sum(0))
    assert (off <= counts.max(0)).all()


@given(st.integers(0, 999))
@settings(max_examples=15)
def test_moving_a_single_group_makes_it_no_better(seed):
    counts = np.random.default_rng(seed).integers(1, 5, (12, 2))
    shares = np.array([0.5, 0.3, 0.2])
    split = assign_groups(counts, shares, np.random.default_rng(seed))
    reached = misfit(counts, split, shares)
    for group, other in product(range(len(counts)), range(3)):
        moved = split.copy()
        moved[group] = other
        assert misfit(counts, moved, shares) >= reached - 1e-6


def test_training_has_every_class_before_any_other_split():
    counts = np.array([[5, 0, 0], [0, 5, 0], [0, 0, 1], [4, 0, 0], [0, 4, 0]])
    for seed in range(10):
        split = assign_groups(counts, np.array([0.1, 0.9]), np.random.default_rng(seed), main=0)
        assert (counts[split == 0].sum(0) > 0).all()


def test_the_seed_alone_decides():
    counts = np.random.default_rng(0).integers(0, 5, (40, 3))
    shares = np.array([0.8, 0.1, 0.1])
    first, again, other = (assign_groups(counts, shares, np.random.default_rng(s)) for s in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
