from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from octfast.assess.metrics.intervals import resampled_weights
from octfast.assess.metrics.statistics import Question, Statistics
from tests.assess.tables import CLASSES, tables

URGENT = ["CNV", "DME"]
P = [f"p_{c}" for c in CLASSES]


def scikit_learns(table: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    """Every figure by another way: scikit-learn's functions on the table itself."""
    y, yhat = table["label"], table["predicted"]
    p = table[[f"p_{c}" for c in CLASSES]].to_numpy()
    codes = y.map(CLASSES.index)
    onehot = np.eye(4)[codes]
    out: dict[tuple[str, str, str], float] = {
        ("overall", "", "accuracy"): metrics.accuracy_score(y, yhat),
        ("overall", "", "balanced_accuracy"): metrics.balanced_accuracy_score(y, yhat),
        ("overall", "", "macro_f1"): metrics.f1_score(y, yhat, average="macro"),
        ("overall", "", "cohen_kappa"): metrics.cohen_kappa_score(y, yhat),
        ("overall", "", "matthews"): metrics.matthews_corrcoef(y, yhat),
        ("overall", "", "nll"): metrics.log_loss(codes, np.clip(p, 1e-15, None), labels=range(4)),
        ("overall", "", "brier"): ((p - onehot) ** 2).sum(1).mean(),
    }
    aucs = []
    for i, c in enumerate(CLASSES):
        is_c, called = y == c, yhat == c
        for name, score, positive in (
            ("sensitivity", metrics.recall_score, True),
            ("specificity", metrics.recall_score, False),
            ("ppv", metrics.precision_score, True),
            ("npv", metrics.precision_score, False),
            ("f1", metrics.f1_score, True),
        ):
            out["class", c, name] = score(is_c, called, pos_label=positive, zero_division=np.nan)
        both = 0 < is_c.sum() < len(y)
        out["class", c, "roc_auc"] = metrics.roc_auc_score(is_c, p[:, i]) if both else np.nan
        out["class", c, "average_precision"] = metrics.average_precision_score(is_c, p[:, i]) if both else np.nan
        aucs.append(out["class", c, "roc_auc"])
    out["overall", "", "macro_roc_auc"] = np.nanmean(aucs)
    is_urgent, score = y.isin(URGENT), p[:, :2].sum(1)
    for point, called in (("argmax", yhat.isin(URGENT)), ("operating", score >= 0.3)):
        for name, found, positive in (
            ("sensitivity", metrics.recall_score, True),
            ("specificity", metrics.recall_score, False),
            ("ppv", metrics.precision_score, True),
            ("npv", metrics.precision_score, False),
        ):
            out["referral", point, name] = found(is_urgent, called, pos_label=positive, zero_division=np.nan)
        ratios = metrics.class_likelihood_ratios(is_urgent, called, labels=[False, True])
        out["referral", point, "lr_positive"], out["referral", point, "lr_negative"] = ratios
    both = 0 < is_urgent.sum() < len(y)
    out["referral", "score", "roc_auc"] = metrics.roc_auc_score(is_urgent, score) if both else np.nan
    out["referral", "score", "average_precision"] = (
        metrics.average_precision_score(is_urgent, score) if both else np.nan
    )
    cost = {(a, b): 1.0 for a in CLASSES for b in CLASSES if a != b}
    cost |= {(a, "NORMAL"): 4.0 for a in URGENT} | {(a, "DRUSEN"): 2.0 for a in URGENT}
    out["overall", "", "weighted_error"] = np.mean([cost.get(pair, 0.0) for pair in zip(y, yhat, strict=True)])
    return out


def quiet(function, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args)


QUESTION = Question(
    tuple(CLASSES),
    tuple(URGENT),
    0.3,
    np.array([[0, 1, 2, 4], [1, 0, 2, 4], [1, 1, 0, 1], [1, 1, 1, 0]], dtype=float),
)


@given(tables())
@settings(max_examples=40)
def test_every_metric_agrees_with_scikit_learn(table):
    theirs = quiet(scikit_learns, table)
    statistics = Statistics(table, QUESTION)
    own = {key: v[0] for key, v in statistics.metrics(np.ones((statistics.patients, 1))).items()}
    told = statistics.values()
    assert set(theirs) | {k for k in own if k[2].startswith("top")} == set(own) == set(told)
    for key, value in theirs.items():
        if np.isfinite(own[key]):
            assert own[key] == pytest.approx(value, rel=1e-5, abs=1e-9), key
            assert told[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key
        else:
            # scikit-learn says 0 of a correlation that is undefined, and NaN of an infinite ratio.
            assert np.isnan(value) or (key[2] == "matthews" and value == 0), key


@given(tables(least=2), st.integers(0, 1000))
@settings(max_examples=10)
def test_a_resample_is_the_table_with_its_patients_repeated(table, seed):
    statistics = Statistics(table, QUESTION)
    drawn = statistics.resampled(100, seed)
    (weights, *_) = resampled_weights(statistics.patients, 100, seed, len(table))
    patients = pd.factorize(table["patient"])[1]
    for r in (0, 99):
        rows = [
            table[table["patient"] == who]
            for who, w in zip(patients, weights[:, r], strict=True)
            for _ in range(int(w))
        ]
        theirs = quiet(scikit_learns, pd.concat(rows, ignore_index=True))
        for key, value in theirs.items():
            if np.isfinite(drawn[key][r]):
                assert drawn[key][r] == pytest.approx(value, rel=1e-5, abs=1e-9), key
            else:
                assert np.isnan(value) or (key[2] == "matthews" and value == 0), key


@given(tables(least=1), st.integers(1, 4))
@settings(max_examples=30)
def test_top_k_accuracy(table, k):
    p = table[[f"p_{c}" for c in CLASSES]].to_numpy()
    found = Statistics(table, Question(tuple(CLASSES), top_k=k)).values()
    hit = []
    for label, row in zip(table["label"], p, strict=True):
        # Of equal probabilities the first class counts as the higher, as in the predicted class itself.
        order = sorted(range(4), key=lambda i, row=row: (-row[i], i))
        hit.append(CLASSES.index(label) in order[:k])
    assert found["overall", "", f"top{k}_accuracy"] == pytest.approx(np.mean(hit))
    if k == 1:
        assert found["overall", "", "top1_accuracy"] == found["overall", "", "accuracy"]
    for c in CLASSES:
        own = [h for h, label in zip(hit, table["label"], strict=True) if label == c]
        expected = np.mean(own) if own else np.nan
        assert found["class", c, f"top{k}_accuracy"] == pytest.approx(expected, nan_ok=True)
    if not any(len(set(row)) < 4 for row in p):
        theirs = (
            metrics.top_k_accuracy_score(table["label"].map(CLASSES.index), p, k=k, labels=range(4)) if k < 4 else 1
        )
        assert found["overall", "", f"top{k}_accuracy"] == pytest.approx(theirs)
