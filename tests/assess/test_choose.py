"""Which scans are to be labelled next: doubtful ones far from what is labelled, each patient in turn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.assess.choose import STRATEGIES, choose, entropy, nearest
from octfast.errors import UsageError


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    scans=st.integers(1, 30),
    patients=st.integers(1, 8),
    n=st.integers(1, 40),
    by=st.sampled_from(STRATEGIES),
)
def test_every_patient_has_one_scan_before_any_has_a_second(seed, scans, patients, n, by):
    rng = np.random.default_rng(seed)
    whose = rng.integers(0, patients, scans)
    p = rng.dirichlet(np.ones(3), scans)
    chosen = choose(rng.normal(size=(scans, 5)), p, whose, n, rng.normal(size=(4, 5)), by=by, seed=seed)
    assert len(set(chosen.rows)) == len(chosen.rows) == min(n, scans)
    assert chosen.uncertainty.shape == chosen.novelty.shape == (scans,)
    first = whose[chosen.rows[: len(set(whose))]]
    assert len(set(first)) == len(first)


def test_centre_takes_what_is_doubtful_and_new_and_not_its_like_again():
    labelled = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0, 0.1]])
    #            like a labelled one, new and doubtful, the same again, new and sure
    pool = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0.99, 0], [0, -1, 0]])
    p = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.9, 0.1]])
    chosen = choose(pool, p, np.arange(4), 2, labelled, by="centre")
    assert chosen.rows.tolist() == [1, 3]
    assert chosen.novelty[0] == pytest.approx(0, abs=1e-6) and chosen.novelty[1] > 0.5
    assert choose(pool, p, np.arange(4), 1, labelled, by="doubt").uncertainty.tolist() == pytest.approx(
        [1, 1, 1, entropy(p[3:])[0]]
    )


def test_badge_does_not_choose_the_same_gradient_twice():
    pool = np.repeat(np.eye(3), 5, axis=0)
    p = np.full((15, 3), 1 / 3)
    for seed in range(5):
        chosen = choose(pool, p, np.arange(15), 3, np.random.default_rng(0).normal(size=(9, 3)), by="badge", seed=seed)
        assert sorted(chosen.rows // 5) == [0, 1, 2]


def test_the_same_seed_draws_the_same_and_what_cannot_be_is_said():
    rng = np.random.default_rng(0)
    given = rng.normal(size=(20, 4)), rng.dirichlet(np.ones(3), 20), np.arange(20), 5, rng.normal(size=(6, 4))
    for by in STRATEGIES:
        assert choose(*given, by=by, seed=3).rows.tolist() == choose(*given, by=by, seed=3).rows.tolist()
    with pytest.raises(UsageError, match="no way to choose"):
        choose(*given, by="best")
    with pytest.raises(UsageError, match="at least one"):
        choose(*given[:3], 0, given[4])


def test_entropy_is_a_share():
    assert entropy(np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]])).tolist() == pytest.approx(
        [0, 1, np.log(2) / np.log(3)]
    )


def test_the_nearest_of_many_labelled_scans_is_found_whichever_part_it_is_in():
    rng = np.random.default_rng(0)
    x, known = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(2, 9000, 3)))
    assert nearest(x[:1100], known) == pytest.approx((1 - x[:1100] @ known.T).min(1).clip(0), abs=1e-9)
    assert nearest(known[[3, 8999]], known) == pytest.approx([0, 0], abs=1e-9)
