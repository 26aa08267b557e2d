from __future__ import annotations

import numpy as np
import pytest

from octfast.assess.metrics.definitions import METRICS, TwoByTwo, binary_metrics, metric, order
from octfast.assess.metrics.statistics import Question, Statistics
from tests.assess.tables import CLASSES, clustered

COSTS = 1.0 - np.eye(4)


def test_every_metric_has_a_name_and_a_meaning_and_is_reported():
    found = Statistics(clustered(), Question(tuple(CLASSES), ("CNV", "DME"), 0.3, COSTS)).values()
    assert {key[2] for key in found} == {*METRICS, "top2_accuracy"}
    assert all(m.name and m.meaning and m.key == key for key, m in METRICS.items())


def test_a_better_model_is_better_in_the_direction_of_each_metric():
    table = clustered()
    p = table[[f"p_{c}" for c in CLASSES]].to_numpy()
    right = np.eye(4)[table["label"].map(CLASSES.index)]
    values = []
    for share in (0, 1):
        mixed = (1 - share) * p + share * (0.05 + 0.8 * right)
        predicted = np.asarray(CLASSES, dtype=object)[mixed.argmax(1)]
        loss = -np.log(mixed[right == 1])
        better = table.assign(predicted=predicted, loss=loss, **{f"p_{c}": mixed[:, i] for i, c in enumerate(CLASSES)})
        values.append(Statistics(better, Question(tuple(CLASSES), ("CNV", "DME"), 0.5, COSTS)).values())
    for key, before in values[0].items():
        gain = values[1][key] - before
        assert np.isnan(gain) or (gain >= 0 if metric(key[2]).higher_is_better else gain <= 0), key


def test_a_metric_derived_from_another_is_called_after_it():
    assert metric("ppv_at_prevalence").name == "PPV at that prevalence" and metric("ppv_at_prevalence").percent
    assert (
        metric("urgent_sensitivity").name == "sensitivity, urgent" and metric("top3_accuracy").name == "top-3 accuracy"
    )
    assert metric("of_ours").name == "of ours" and not metric("of_ours").unit
    assert order("npv") < order("ppv_at_prevalence") < order("npv_at_prevalence") < order("f1") < order("top2_accuracy")


def test_a_share_and_its_scans_are_one_thing():
    table = TwoByTwo.of(np.array([True, True, False, False]), np.array([True, False, False, False]))
    assert tuple(table.total()) == (1, 1, 0, 2)
    assert binary_metrics(table.total(), "referral")["sensitivity"] == pytest.approx(0.5)
