from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import log_loss

from octfast.assess.calibration.calibrate import calibrate_run
from octfast.assess.calibration.conformal import prediction_sets, rounded_down
from octfast.assess.metrics.abstain import abstain_summary, answered, coverage_risk, risk_area
from octfast.assess.metrics.referral import fix_operating_point, referral_at
from octfast.assess.metrics.reliability import (
    calibration_scores,
    ece,
    ece_by_chance,
    reliability,
)
from octfast.assess.predictions import run_predictions
from octfast.errors import DataError, UsageError
from octfast.model.bundle.read import read_info
from octfast.model.bundle.write import update_info
from octfast.model.temperature import rescale
from tests.assess.simulated import CLASSES, simulated, simulated_run

P = [f"p_{c}" for c in CLASSES]


@st.composite
def tables(draw, most: int = 60):
    """Tables of any size with ties: probabilities are rounded to eighths, fifteenths, or not at all."""
    table = simulated(draw(st.integers(1, most)), draw(st.floats(0.3, 5)), seed=draw(st.integers(0, 2**16)))
    steps = draw(st.sampled_from([8, 15, 0]))
    if steps:
        table[P] = np.round(table[P] * steps) / steps
        table["probability"] = table[P].max(axis=1)
        table["predicted"] = np.asarray(CLASSES, dtype=object)[table[P].to_numpy().argmax(1)]
    return table


def naive_ece(table: pd.DataFrame, bins: int) -> float:
    total = 0.0
    for b in range(bins):
        low, high = np.linspace(0, 1, bins + 1)[[b, b + 1]]
        rows = [
            (max(row[p] for p in P), row["label"] == row["predicted"])
            for row in table.to_dict("records")
            if low < max(row[p] for p in P) <= high or (b == 0 and max(row[p] for p in P) == 0)
        ]
        if rows:
            gap = sum(right for _, right in rows) / len(rows) - sum(c for c, _ in rows) / len(rows)
            total += abs(gap) * len(rows) / len(table)
    return total


@given(tables(), st.sampled_from([1, 2, 10, 15]))
@settings(max_examples=40)
def test_ece_is_that_of_a_plain_loop(table, bins):
    assert ece(table, CLASSES, bins) == pytest.approx(naive_ece(table, bins), abs=1e-12)


def test_ece_by_hand():
    table = simulated(4).assign(label="CNV", predicted=["CNV", "CNV", "DME", "CNV"])
    table[P] = [[0.9, 0.1, 0, 0], [0.92, 0.08, 0, 0], [0.3, 0.4, 0.3, 0], [1.0, 0, 0, 0]]
    # Bins of a fifteenth: (.867, .933] holds .9 and .92, (.4 - .067, .4] holds .4, the last one 1.
    assert ece(table, CLASSES) == pytest.approx((2 * (1 - 0.91) + 0.4 + 0) / 4)


@given(tables())
@settings(max_examples=40)
def test_the_reliability_table_adds_up_to_the_ece(table):
    rows = reliability(table, CLASSES)
    assert len(rows) == 15 and rows["count"].sum() == len(table)
    full = rows[rows["count"] > 0]
    assert rows.drop(full.index)[["confidence", "accuracy", "accuracy_low"]].isna().all(axis=None)
    gap = (full["count"] / len(table) * (full["accuracy"] - full["confidence"]).abs()).sum()
    assert gap == pytest.approx(ece(table, CLASSES), abs=1e-12)
    assert (full["confidence"] <= full["high"] + 1e-12).all() and (full["confidence"] >= full["low"] - 1e-12).all()
    for row in full.rename(columns={"count": "n"}).itertuples():
        wanted = binomtest(round(row.n * row.accuracy), row.n).proportion_ci(method="wilson")
        np.testing.assert_allclose([row.accuracy_low, row.accuracy_high], wanted, atol=1e-9)


def test_honest_probabilities_have_the_ece_of_chance():
    honest, sure = simulated(600, 1.0, seed=1), simulated(600, 3.0, seed=1)
    for table, near in ((honest, True), (sure, False)):
        assert (ece(table, CLASSES) < 1.5 * ece_by_chance(table, CLASSES)) == near
    assert ece_by_chance(honest, CLASSES) == ece_by_chance(honest, CLASSES) > 0.005
    # It falls with the root of the number of scans.
    assert ece_by_chance(simulated(9600), CLASSES) == pytest.approx(ece_by_chance(honest, CLASSES) / 4, rel=0.15)


@given(st.integers(5, 60), st.floats(0.3, 5), st.integers(0, 2**16))
@settings(max_examples=20)
def test_nll_is_scikit_learns_and_brier_that_of_a_plain_loop(n, temperature, seed):
    table = simulated(n, temperature, seed=seed)
    found = calibration_scores(table, CLASSES)
    assert found["nll"] == pytest.approx(log_loss(table["label"], table[P], labels=list(CLASSES)))
    squares = [(row[f"p_{c}"] - (row["label"] == c)) ** 2 for row in table.to_dict("records") for c in CLASSES]
    assert found["brier"] == pytest.approx(sum(squares) / n)


@given(tables(), st.floats(0, 1))
@settings(max_examples=40)
def test_referral_at_a_threshold_is_that_of_a_plain_loop(table, threshold):
    found = referral_at(table, ["CNV", "DME"], threshold)
    refer = [row.p_CNV + row.p_DME >= threshold for row in table.itertuples()]
    urgent = [row.label in ("CNV", "DME") for row in table.itertuples()]
    assert found["urgent"] == sum(urgent) and found["others"] == len(table) - sum(urgent)
    assert found["caught"] == sum(r and u for r, u in zip(refer, urgent, strict=True))
    assert found["spared"] == sum(not r and not u for r, u in zip(refer, urgent, strict=True))
    shares = (found["caught"] / max(1, found["urgent"]), found["spared"] / max(1, found["others"]))
    np.testing.assert_allclose(np.nan_to_num([found["sensitivity"], found["specificity"]]), shares)


@given(tables())
@settings(max_examples=40)
def test_risk_by_coverage_is_that_of_a_plain_loop(table):
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


@given(tables(), st.floats(0, 1))
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


def test_a_run_is_calibrated(tmp_path):
    run = simulated_run(tmp_path / "run", 2.5)
    tensors = (run.bundle / "model.safetensors").read_bytes()
    raw = run.predictions("valid")
    found = calibrate_run(run)
    info = read_info(run.bundle)
    assert info == found.info and info.temperature == pytest.approx(2.5, rel=0.1)
    assert (run.bundle / "model.safetensors").read_bytes() == tensors
    scores = found.scores.set_index(["split", "temperature"])
    assert len(scores) == 4
    for split in ("valid", "test"):
        before, after = scores.loc[(split, 1.0)], scores.loc[(split, info.temperature)]
        assert after["nll"] < before["nll"] and after["brier"] < before["brier"] and after["ece"] < before["ece"] / 2
        assert after["ece"] < 2 * after["ece_by_chance"]
    said = info.calibration
    assert said["nll_before"] == pytest.approx(scores.loc[("valid", 1.0), "nll"], rel=1e-5)
    assert said["ece_after"] == pytest.approx(scores.loc[("valid", info.temperature), "ece"], rel=1e-5)
    # The thresholds are those of calibrated probabilities.
    valid = rescale(raw, CLASSES, info.temperature)
    point = said["operating"]
    assert point["urgent"] == ["CNV", "DME"] and point["sensitivity"] == 0.95
    assert point["threshold"] == rounded_down(fix_operating_point(valid, ["CNV", "DME"]).threshold)
    rows = found.referral.set_index("split")
    assert 0.95 <= rows.loc["valid", "sensitivity"] < 0.96 and 0.9 < rows.loc["test", "sensitivity"] <= 1
    sets = found.sets.set_index("split")
    assert abs(sets.loc["test", "coverage"] - 0.9) < 0.03 and 1 <= sets.loc["test", "mean_size"] < 4
    held = prediction_sets(run_predictions(run, "test")[0], CLASSES, said["conformal"]["threshold"])
    assert held.to_numpy().sum(1).mean() == pytest.approx(sets.loc["test", "mean_size"])
    for file in found.files[1:]:
        with Image.open(file) as figure:
            assert min(figure.size) > 300
    assert [f.name for f in found.files] == ["octfast.json", "reliability.png", "reliability-test.png"]
    json.dumps(found.to_dict(), default=float)


def test_calibrating_again_gives_the_same(tmp_path):
    run = simulated_run(tmp_path / "run", 0.6)
    first = calibrate_run(run)
    written = (run.bundle / "octfast.json").read_bytes()
    second = calibrate_run(run)
    assert (run.bundle / "octfast.json").read_bytes() == written
    pd.testing.assert_frame_equal(first.scores, second.scores, check_exact=True)
    # So it does from tables that were written at the temperature, as training writes them, or at another one.
    for temperature in (first.info.temperature, 4.0):
        update_info(run.bundle, temperature=temperature, calibration={})
        for split in ("valid", "test"):
            run.save_predictions(rescale(run.predictions(split), CLASSES, temperature), split)
        calibrate_run(run)
        assert (run.bundle / "octfast.json").read_bytes() == written


def test_test_scans_play_no_part(tmp_path):
    run = simulated_run(tmp_path / "run")
    calibrate_run(run)
    other = simulated_run(tmp_path / "other")
    other.save_predictions(simulated(50, 9.0, split="test", seed=77), "test")
    calibrate_run(other)
    assert read_info(run.bundle) == read_info(other.bundle)


def test_without_test_scans(tmp_path):
    found = calibrate_run(simulated_run(tmp_path / "run", n_test=0))
    assert set(found.scores["split"]) == {"valid"} and any("no test scans" in note for note in found.notes)


def test_where_the_test_scans_are_gone_the_run_is_calibrated_all_the_same(tmp_path, said):
    run = simulated_run(tmp_path / "run")
    run.predictions_file("test").unlink()
    found = calibrate_run(run)
    assert read_info(run.bundle).temperature > 2 and set(found.sets["split"]) == {"valid"}
    assert any("not measured on the test scans" in line for line in said())


def test_a_small_validation_is_refused_and_nothing_changes(tmp_path):
    run = simulated_run(tmp_path / "run", n=120)
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    with pytest.raises(DataError, match="120 scans, fewer than 200"):
        calibrate_run(run)
    with pytest.raises(DataError, match="validation patients are too few"):
        calibrate_run(simulated_run(tmp_path / "more"), coverage=0.9999)
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before
    assert read_info(tmp_path / "more" / "model").calibration == {}


def test_a_validation_without_a_mistake_keeps_the_temperature_and_says_why(tmp_path):
    run = simulated_run(tmp_path / "run")
    table = run.predictions("valid")
    table["label"] = table["predicted"]
    table["loss"] = -np.log(table["probability"])
    run.save_predictions(table, "valid")
    found = calibrate_run(run)
    assert found.info.temperature == 1 and "temperature_interval" not in found.info.calibration
    assert "all validation scans are right" in found.notes[0] and "refused" in found.info.calibration
    assert len(found.scores) == 2 and found.info.calibration["operating"]["threshold"] > 0


def test_classes_none_of_which_is_urgent(tmp_path):
    run = simulated_run(tmp_path / "run", classes=("dark", "light"), spread=2)
    found = calibrate_run(run)
    assert found.referral.empty and "operating" not in found.info.calibration
    assert any("no class is urgent" in note for note in found.notes)
    point = calibrate_run(run, urgent=["dark"], sensitivity=0.8).info.calibration["operating"]
    assert point["urgent"] == ["dark"] and point["sensitivity"] == 0.8


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"coverage": 1.0}, "--coverage 1"),
        ({"sensitivity": 0}, "--sensitivity 0"),
        ({"urgent": ["nothing"]}, "no class 'nothing'"),
    ],
)
def test_what_cannot_be_asked(tmp_path, fields, said):
    run = simulated_run(tmp_path / "run")
    with pytest.raises(UsageError, match=said):
        calibrate_run(run, **fields)


def test_a_calibrated_run_can_be_copied(tmp_path):
    run = simulated_run(tmp_path / "run")
    calibrate_run(run)
    moved = type(run)(shutil.copytree(run.path, tmp_path / "moved"))
    pd.testing.assert_frame_equal(run_predictions(run, "test")[0], run_predictions(moved, "test")[0])
