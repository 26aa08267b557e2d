from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from octfast.assess.metrics.bootstrap import Ranked
from octfast.assess.metrics.definitions import Sums, TwoByTwo, binary_metrics, one_versus_rest, overall_metrics

BLOCK = 3


@st.composite
def weighted_scores(draw):
    n = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.random(n).round(draw(st.sampled_from([0, 1, 2, 16])))
    owners = draw(st.integers(1, n))
    owner = np.concatenate([np.arange(owners), rng.integers(0, owners, n - owners)])
    positive = rng.random(n) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return scores, positive, owner, rng.integers(0, 4, (owners, BLOCK)).astype(float)


@given(weighted_scores())
@settings(max_examples=150)
def test_areas_are_scikit_learns_with_the_same_weights(drawn):
    scores, positive, owner, weights = drawn
    auc, precision = Ranked(scores, positive, owner).areas(weights)
    for b in range(BLOCK):
        w = weights[owner, b]
        if not (w[positive].sum() and w[~positive].sum()):
            assert np.isnan(auc[b]) and np.isnan(precision[b])
            continue
        # scikit-learn's roc_curve divides by zero where a weight of 0 stands first, so those rows go.
        kept = w > 0
        assert auc[b] == pytest.approx(metrics.roc_auc_score(positive[kept], scores[kept], sample_weight=w[kept]))
        theirs = metrics.average_precision_score(positive[kept], scores[kept], sample_weight=w[kept])
        assert precision[b] == pytest.approx(theirs, rel=1e-5)


def test_areas_of_a_golden_example():
    # From scikit-learn's documentation of roc_auc_score and average_precision_score.
    auc, precision = Ranked(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1], bool), np.arange(4)).areas(
        np.ones((4, 1))
    )
    assert auc[0] == 0.75 and precision[0] == pytest.approx(0.8333, abs=1e-4)


@st.composite
def answers(draw):
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    k = draw(st.integers(2, 5))
    actual = rng.choice(draw(st.lists(st.integers(0, k - 1), min_size=1, unique=True)), n)
    predicted = np.where(rng.random(n) < draw(st.sampled_from([0.0, 0.5, 1.0])), actual, rng.integers(0, k, n))
    return actual, predicted, rng.integers(1, 4, (n, BLOCK)), k


@given(answers())
@settings(max_examples=60)
def test_figures_of_confusion_matrices_are_scikit_learns(drawn):
    actual, predicted, weights, k = drawn
    counts = np.zeros((k, k, BLOCK))
    np.add.at(counts, (actual, predicted), weights)
    ours = overall_metrics(Sums(counts))
    for b in range(BLOCK):
        args, w = (actual, predicted), weights[:, b]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = {
                "accuracy": metrics.accuracy_score(*args, sample_weight=w),
                "balanced_accuracy": metrics.balanced_accuracy_score(*args, sample_weight=w),
                "macro_f1": metrics.f1_score(*args, sample_weight=w, average="macro"),
                "cohen_kappa": metrics.cohen_kappa_score(*args, sample_weight=w),
                "matthews": metrics.matthews_corrcoef(*args, sample_weight=w),
            }
        for name, value in theirs.items():
            # Where every answer or every label is the same, scikit-learn calls the correlation 0; it is undefined.
            if np.isnan(ours[name][b]):
                assert (name == "cohen_kappa" and np.isnan(value)) or (name == "matthews" and value == 0)
            else:
                assert ours[name][b] == pytest.approx(value, abs=1e-12), name


@given(answers())
@settings(max_examples=60)
def test_one_against_the_rest_is_scikit_learns(drawn):
    actual, predicted, weights, k = drawn
    counts = np.zeros((k, k, BLOCK))
    np.add.at(counts, (actual, predicted), weights)
    ours = binary_metrics(one_versus_rest(counts))
    w = weights[:, 0]
    for c in range(k):
        args = (actual == c, predicted == c)
        for name, score, positive in (
            ("sensitivity", metrics.recall_score, True),
            ("specificity", metrics.recall_score, False),
            ("ppv", metrics.precision_score, True),
            ("npv", metrics.precision_score, False),
            ("f1", metrics.f1_score, True),
        ):
            theirs = score(*args, sample_weight=w, pos_label=positive, zero_division=np.nan)
            assert ours[name][c, 0] == pytest.approx(theirs, nan_ok=True), name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ratios = metrics.class_likelihood_ratios(*args, labels=[False, True], sample_weight=w)
        for name, theirs in zip(("lr_positive", "lr_negative"), ratios, strict=True):
            # scikit-learn gives NaN where the denominator is 0; an infinite ratio says which way.
            if np.isfinite(ours[name][c, 0]):
                assert ours[name][c, 0] == pytest.approx(theirs), name
            else:
                assert np.isnan(theirs)


def test_nothing_warns_of_what_is_undefined():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = binary_metrics(TwoByTwo(*np.zeros((4, 2))))
        overall_metrics(Sums(np.zeros((3, 3, 2)))), binary_metrics(one_versus_rest(np.zeros((3, 3, 2))))
        Ranked(np.zeros(2), np.zeros(2, bool), np.arange(2)).areas(np.zeros((2, 1)))
    assert all(np.isnan(v).all() for v in found.values())
    found = binary_metrics(TwoByTwo(*np.array([[3.0], [1.0], [0.0], [5.0]])))
    assert found["lr_positive"][0] == np.inf and found["lr_negative"][0] == 0.25
