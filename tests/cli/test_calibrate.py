from __future__ import annotations

import json

import pytest

from octfast.model.bundle.read import read_info
from tests.assess.simulated import simulated_run
from tests.cli.test_cli import error


def test_for_people(octfast, tmp_path):
    run = simulated_run(tmp_path / "run")
    ended = octfast("calibrate", run.path)
    assert ended.code == 0 and ended.err == ""
    info = read_info(run.bundle)
    assert f"temperature {info.temperature:.3g} (95% interval" in ended.out and "less confident" in ended.out
    assert "fitted on 1200 validation scans of 300 patients" in ended.out
    assert f"p(CNV) + p(DME) of {info.calibration['operating']['threshold']:.4g} or more" in ended.out
    assert "coverage (95% interval)" in ended.out and "Not a medical device." in ended.out
    assert "coverage of 0.9" in ended.out and "knows nothing of real eyes" in ended.out
    assert str(run.figures / "reliability.png") in ended.out and (run.figures / "reliability.png").exists()


def test_as_json_twice(octfast, tmp_path):
    run = simulated_run(tmp_path / "run")
    words = ["calibrate", run.path, "--coverage", 0.8, "--sensitivity", 0.9, "--urgent", "CNV, DRUSEN", "--json"]
    first, second = (octfast(*words).out for _ in range(2))
    assert first == second
    said = json.loads(first)
    info = read_info(run.bundle)
    assert said["temperature"] == info.temperature and said["calibration"] == info.calibration
    assert said["calibration"]["operating"]["urgent"] == ["CNV", "DRUSEN"]
    assert said["calibration"]["conformal"]["coverage"] == 0.8
    assert {(row["split"], row["temperature"] == 1) for row in said["scores"]} == {
        (split, raw) for split in ("valid", "test") for raw in (True, False)
    }
    assert all(row["sensitivity"] > 0.8 for row in said["referral"]) and said["synthetic"] is True


def test_a_small_validation_is_refused_in_a_line(octfast, own_run):
    before = read_info(own_run.bundle)
    ended = octfast("calibrate", own_run.path)
    said = error(ended, 1)
    assert "too few held-out scans to calibrate on" in said and "fewer than 200" in said
    # The run has no folds; with them all training scans would count.
    assert "--folds 5" in ended.lines[-1]
    assert read_info(own_run.bundle) == before and not (own_run.figures / "reliability.png").exists()


@pytest.mark.parametrize("words", [["--coverage", 1], ["--sensitivity", 0], ["--urgent", "nothing"]])
def test_what_cannot_be(octfast, tmp_path, words):
    run = simulated_run(tmp_path / "run")
    assert words[0].strip("-") in error(octfast("calibrate", run.path, *words), 2)
    assert read_info(run.bundle).calibration == {}


def test_no_run(octfast):
    assert "no finished run in" in error(octfast("calibrate"), 1)
