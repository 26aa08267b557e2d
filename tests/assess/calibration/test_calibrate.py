from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.assess.calibration.calibrate import calibrate_run
from octfast.assess.calibration.conformal import prediction_sets, rounded_down
from octfast.assess.metrics.referral import fix_operating_point
from octfast.assess.predictions import run_predictions
from octfast.data.scans import save_scans
from octfast.errors import DataError, UsageError
from octfast.model.bundle.read import read_info
from octfast.model.bundle.write import update_info
from octfast.model.temperature import rescale
from tests.assess.simulated import CLASSES, simulated, simulated_run


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
    table = simulated(50, 9.0, split="test", seed=77)
    other.save_predictions(table, "test")
    scans = pd.concat([run.predictions("valid"), table])
    save_scans(scans[["path", "label", "patient", "split"]], other.path / "scans.csv", "/scans")
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
    scans = pd.concat([table, run.predictions("test")])
    save_scans(scans[["path", "label", "patient", "split"]], run.path / "scans.csv", "/scans")
    found = calibrate_run(run)
    assert found.info.temperature == 1 and "temperature_interval" not in found.info.calibration
    assert "all of these scans are right" in found.notes[0] and "refused" in found.info.calibration
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
