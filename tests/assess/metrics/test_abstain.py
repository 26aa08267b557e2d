from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from octfast.assess.metrics.abstain import abstain_metrics, abstain_summary, answered, coverage_risk, risk_area
from octfast.assess.metrics.metrics import evaluate_table
from octfast.errors import UsageError
from tests.assess.simulated import simulated, simulated_tables
from tests.assess.tables import CLASSES, clustered, tables


@settings(max_examples=25)
@given(tables(least=2))
def test_the_curve_counts_what_is_wrong_above_every_threshold(table):
    curve = coverage_risk(table)
    wrong = (table["label"] != table["predicted"]).to_numpy()
    for row in curve.itertuples():
        kept = (table["probability"] >= row.threshold).to_numpy()
        assert (row.scans, row.wrong) == (kept.sum(), wrong[kept].sum())
        assert row.coverage == kept.mean() and row.risk == pytest.approx(wrong[kept].mean())
    assert curve["threshold"].is_monotonic_decreasing and curve["coverage"].iloc[-1] == 1
    assert 0 <= risk_area(curve) <= 1


@settings(max_examples=25, deadline=None)
@given(tables(least=2))
def test_what_comes_of_abstaining_is_what_the_answered_scans_say(table):
    found = abstain_summary(table, 0.6)
    kept = table[table["probability"] >= 0.6]
    right = (kept["label"] == kept["predicted"]).sum()
    assert (found["answered"], found["right"]) == (len(kept), right)
    assert found["wrong_avoided"] + found["right_lost"] == found["abstained"] == len(table) - len(kept)
    figures = abstain_metrics(table, 0.6, resamples=200).set_index("metric")
    assert figures.loc["coverage", "value"] == pytest.approx(found["coverage"])
    if len(kept):
        assert figures.loc["accuracy", "value"] == pytest.approx(found["accuracy"])
    else:
        assert found["accuracy"] is None and np.isnan(figures.loc["accuracy", "value"])
    given_ends = figures.dropna()
    assert (given_ends["low"] <= given_ends["value"] + 1e-12).all() and (
        given_ends["high"] + 1e-12 >= given_ends["value"]
    ).all()


def test_intervals_are_over_patients_or_wilsons_where_each_scan_is_one():
    table = clustered(100)
    over = abstain_metrics(table, 0.5, resamples=500).set_index("metric")
    assert set(over["method"]) == {"bootstrap over patients"}
    # Nothing is left out below 0, so it is the accuracy of all, on the same resamples.
    alone = evaluate_table(table, CLASSES, resamples=500).overall.set_index("metric").loc["accuracy"]
    every = abstain_metrics(table, 0, resamples=500).set_index("metric").loc["accuracy"]
    assert list(every[["value", "low", "high"]]) == pytest.approx(list(alone[["value", "low", "high"]]))
    single = abstain_metrics(table.assign(patient=table["path"]), 0.5, resamples=200).set_index("metric")
    ends = binomtest(int((table["probability"] >= 0.5).sum()), len(table)).proportion_ci(method="wilson")
    assert list(single.loc["coverage", ["low", "high"]]) == pytest.approx([ends.low, ends.high])


def test_an_evaluation_has_it_where_it_is_asked():
    table = clustered(40)
    assert evaluate_table(table, CLASSES, resamples=100).to_dict()["abstain"] is None
    found = json.loads(json.dumps(evaluate_table(table, CLASSES, resamples=100, abstain_below=0.99999).to_dict()))
    assert found["abstain"]["below"] == 0.99999 and found["abstain"]["answered"] == 0
    assert [f["metric"] for f in found["abstain"]["figures"]] == ["coverage", "accuracy"]
    assert found["abstain"]["accuracy"] is None and found["abstain"]["figures"][1]["value"] is None
    for below in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="--abstain-below"):
            evaluate_table(table, CLASSES, abstain_below=below)


@given(simulated_tables())
@settings(max_examples=40)
def test_risk_by_coverage_is_that_of_a_plain_loop(table):
    table = table.assign(patient=range(len(table)))
    curve = coverage_risk(table)
    assert list(curve["threshold"]) == sorted(set(table["probability"]), reverse=True)
    for row in curve.to_dict("records"):
        kept = table[table["probability"] >= row["threshold"]]
        assert row["scans"] == len(kept) and row["coverage"] == len(kept) / len(table)
        assert row["wrong"] == (kept["label"] != kept["predicted"]).sum() and row["risk"] == row["wrong"] / len(kept)
        wanted = binomtest(int(row["wrong"]), len(kept)).proportion_ci(method="wilson")
        np.testing.assert_allclose([row["risk_low"], row["risk_high"]], wanted, atol=1e-9)
    by_scan = [curve.loc[curve["threshold"] == p, "risk"].item() for p in table["probability"]]
    assert risk_area(curve) == pytest.approx(np.mean(by_scan))
    pd.testing.assert_frame_equal(coverage_risk(table.sample(frac=1, random_state=0)), curve)


def test_the_area_of_useless_and_of_perfect_abstention():
    n = 2000
    table = simulated(n).assign(probability=np.linspace(0.9, 0.3, n), label="CNV", predicted="CNV")
    last = np.arange(n) >= 1600
    perfect = table.assign(predicted=np.where(last, "DME", "CNV"))
    # The mean over k of max(0, k - 1600) / k: .2 + .8 ln .8.
    assert risk_area(coverage_risk(perfect)) == pytest.approx(0.2 + 0.8 * np.log(0.8), abs=1e-3)
    assert risk_area(coverage_risk(perfect.assign(probability=0.5))) == pytest.approx(0.2)
    assert np.isnan(risk_area(coverage_risk(table.head(0))))


@given(simulated_tables(), st.floats(0, 1))
@settings(max_examples=40)
def test_what_abstaining_gains(table, below):
    found = abstain_summary(table, below)
    kept = answered(table, below)
    assert found["answered"] + found["abstained"] == found["scans"] == len(table) and found["answered"] == len(kept)
    assert found["right"] == (kept["label"] == kept["predicted"]).sum()
    assert found["accuracy"] == (found["right"] / len(kept) if len(kept) else None)
    lost = table[table["probability"] < below]
    assert found["wrong_avoided"] == (lost["label"] != lost["predicted"]).sum()
    assert found["right_lost"] == (lost["label"] == lost["predicted"]).sum()
    rights = [(rows["label"] == rows["predicted"]).mean() > 0.5 for _, rows in kept.groupby("patient")]
    assert found["patients_answered"] == len(rights) and found["patients_right"] == sum(rights)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("below", [-0.1, 1.1, float("nan")])
def test_abstaining_below_no_probability(below):
    with pytest.raises(UsageError, match="--abstain-below"):
        abstain_summary(simulated(4), below)
