"""Training ends with the temperature fitted on its validation scans, where these are enough."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from octfast.assess.predictions import run_predictions
from octfast.model import temperature
from octfast.model.bundle.read import load_bundle, read_info
from octfast.model.forward import predict_scans
from octfast.model.temperature import fit_table, rescale, table_temperature
from octfast.train.job import train_classifier
from tests.conftest import quick


def test_too_few_validation_scans_are_said_once_and_the_probabilities_stay(trained):
    assert read_info(trained.bundle).temperature == 1 and set(read_info(trained.bundle).calibration) == {"quality"}
    assert "temperature" not in trained.predictions("valid") and "temperature" not in trained.predictions("test")
    lines = (trained.path / "log.txt").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if "not calibrated" in line]
    assert "too few held-out scans to calibrate on" in line and "fewer than 200" in line
    assert not any("not calibrated" in note.text for note in trained.notes)


@pytest.fixture(scope="module")
def calibrated(phantoms, tmp_path_factory):
    """A run whose few validation scans count as enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("calibrated"))
        for name in ("MIN_SCANS", "MIN_PATIENTS", "MIN_A_CLASS"):
            patch.setattr(temperature, name, 1)
        return train_classifier(**quick(phantoms, epochs=4, lr=0.01, valid="0.4"))


def test_the_bundle_and_both_tables_are_at_the_fitted_temperature(calibrated):
    info = read_info(calibrated.bundle)
    assert info.temperature != 1 and info.calibration["scans"] == len(calibrated.predictions("valid"))
    assert info.calibration["nll_after"] < info.calibration["nll_before"]
    model, info = load_bundle(calibrated.bundle)
    for split in ("valid", "test"):
        found = calibrated.predictions(split)
        assert table_temperature(found) == info.temperature
        made = predict_scans(model, info, calibrated.scans.query("split == @split"), precision="fp32")
        np.testing.assert_allclose(found["loss"], made["loss"], atol=5e-3)
        said = json.loads((calibrated.path / f"metrics-{split}.json").read_text())
        assert said["loss"] == pytest.approx(found["loss"].mean())
        pd.testing.assert_frame_equal(run_predictions(calibrated, split)[0], found)


def test_it_is_the_temperature_that_validation_alone_asks_for(calibrated, monkeypatch):
    for name in ("MIN_SCANS", "MIN_PATIENTS", "MIN_A_CLASS"):
        monkeypatch.setattr(temperature, name, 1)
    info = read_info(calibrated.bundle)
    raw = rescale(calibrated.predictions("valid"), info.classes, 1.0)
    assert fit_table(raw, info.classes).temperature == pytest.approx(info.temperature, rel=1e-5)
