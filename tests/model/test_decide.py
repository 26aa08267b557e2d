from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from octfast.errors import UsageError
from octfast.model.decide import Rule, decide, rule_of, urgent_classes

CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")
RULE = Rule(CLASSES, urgent=("CNV", "DME"), threshold=0.5, set_threshold=0.2)
THRESHOLDS = st.none() | st.floats(0, 1)
RULES = st.builds(
    Rule,
    classes=st.just(CLASSES),
    urgent=st.sampled_from([(), ("CNV",), ("CNV", "DME"), ("DME", "NORMAL")]),
    threshold=THRESHOLDS,
    set_threshold=THRESHOLDS,
    abstain_below=THRESHOLDS,
)


def probabilities(shape) -> st.SearchStrategy[np.ndarray]:
    """Rows of probabilities, ties among them."""
    counts = hnp.arrays(np.int64, shape, elements=st.integers(0, 5))
    return counts.map(lambda n: (n + (n.sum(1, keepdims=True) == 0)) / np.maximum(n.sum(1, keepdims=True), 4))


def decided_in_a_loop(row: list[float], rule: Rule) -> dict:
    """What `decide` says of one scan, a class at a time."""
    best = 0
    for i, p in enumerate(row):
        if p > row[best]:
            best = i
    answer = dict.fromkeys(("abstained", "urgent_score", "referred", "possible"))
    if rule.set_threshold is not None:
        answer["possible"] = [p >= rule.set_threshold or i == best for i, p in enumerate(row)]
        answer["abstained"] = sum(answer["possible"]) > 1
    if rule.abstain_below is not None:
        answer["abstained"] = row[best] < rule.abstain_below
    if rule.urgent:
        score = answer["urgent_score"] = sum(p for c, p in zip(rule.classes, row, strict=True) if c in rule.urgent)
        by_class = rule.threshold is None
        answer["referred"] = rule.classes[best] in rule.urgent if by_class else score >= rule.threshold
    return {"predicted": best, "probability": row[best], **answer}


@given(probabilities(st.tuples(st.integers(0, 6), st.just(4))), RULES)
@example(np.full((2, 4), 0.25), RULE)
def test_it_decides_as_a_loop_over_scans_and_classes_does(p, rule):
    found = decide(p, rule)
    for i, row in enumerate(p.tolist()):
        expected = decided_in_a_loop(row, rule)
        for name, wanted in expected.items():
            column = getattr(found, name)
            if wanted is None:
                assert column is None
            elif name == "urgent_score":
                assert math.isclose(column[i], wanted, abs_tol=1e-12)
            elif (
                name == "referred"
                and rule.threshold is not None
                and math.isclose(rule.threshold, expected["urgent_score"])
            ):
                continue  # the sum may be rounded to either side of the threshold
            else:
                assert column[i].tolist() == wanted


@given(probabilities(st.tuples(st.integers(1, 6), st.just(4))), RULES)
def test_a_set_of_classes_is_never_empty_and_holds_the_predicted_class(p, rule):
    found = decide(p, replace(rule, set_threshold=0.9))
    assert found.possible.any(1).all() and found.possible[np.arange(len(p)), found.predicted].all()


@given(probabilities(st.tuples(st.integers(1, 5), st.just(4))), RULES, st.integers(0, 4))
def test_a_scan_that_cannot_be_read_is_neither_abstained_from_nor_referred_and_moves_no_other(p, rule, at):
    at = min(at, len(p))
    spoilt, whole = decide(np.insert(p, at, np.nan, axis=0), rule), decide(p, rule)
    assert np.isnan(spoilt.probability[at])
    for name in ("abstained", "referred"):
        column = getattr(spoilt, name)
        if column is not None:
            assert not column[at]
            np.testing.assert_array_equal(np.delete(column, at), getattr(whole, name))
    if rule.urgent:
        assert np.isnan(spoilt.urgent_score[at])
    np.testing.assert_array_equal(np.delete(spoilt.predicted, at), whole.predicted)


def test_of_equally_probable_classes_the_first_is_predicted():
    assert list(decide([[0.3, 0.35, 0.35, 0.0], [0.25] * 4], RULE).predicted) == [1, 0]


def test_one_scan_and_none():
    one, none = decide([0.1, 0.2, 0.3, 0.4], RULE), decide(np.zeros((0, 4)), RULE)
    assert one.predicted.shape == (1,) and one.possible.shape == (1, 4)
    assert none.predicted.shape == none.abstained.shape == none.referred.shape == (0,)
    assert none.possible.shape == (0, 4)


def test_a_threshold_that_is_reached_refers_and_a_probability_that_is_reached_answers():
    found = decide([[0.5, 0.0, 0.5, 0.0]], replace(RULE, abstain_below=0.5))
    assert found.referred[0] and not found.abstained[0]


def test_the_rule_of_a_bundle():
    calibration = {"operating": {"urgent": ["DME"], "threshold": 0.3}, "conformal": {"threshold": 0.1}}
    assert rule_of(CLASSES, calibration) == Rule(CLASSES, ("DME",), 0.3, 0.1)
    assert rule_of(CLASSES, calibration, urgent=["DME"]).threshold == 0.3
    assert rule_of(CLASSES, calibration, urgent=["CNV"]) == Rule(CLASSES, ("CNV",), None, 0.1)
    assert rule_of(CLASSES, calibration, urgent=[]) == Rule(CLASSES, (), None, 0.1)
    assert rule_of(CLASSES, {}) == Rule(CLASSES, ("CNV", "DME")) and not rule_of(CLASSES, {}).abstains
    assert rule_of(["A", "B"], {}, abstain_below=0.8) == Rule(("A", "B"), abstain_below=0.8)
    assert rule_of(CLASSES, calibration).abstains


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(UsageError, match="not a probability"):
        rule_of(CLASSES, {}, abstain_below=wrong)


def test_the_urgent_classes():
    assert urgent_classes(CLASSES) == ("CNV", "DME") and urgent_classes(["DRUSEN", "DME"]) == ("DME",)
    assert urgent_classes(["CNV", "DME"]) == () == urgent_classes(["A", "B"]) == urgent_classes(CLASSES, [])
    assert urgent_classes(CLASSES, ["NORMAL", "DRUSEN"]) == ("DRUSEN", "NORMAL")
    with pytest.raises(UsageError, match="no class 'AMD'"):
        urgent_classes(CLASSES, ["AMD"])
    with pytest.raises(UsageError, match="all classes are urgent"):
        urgent_classes(CLASSES, CLASSES)
