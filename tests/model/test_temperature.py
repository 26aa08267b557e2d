from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from octfast.data.scans import load_scans, save_scans
from octfast.errors import BundleError, DataError
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.read import read_info
from octfast.model.bundle.write import save_bundle
from octfast.model.forward import predictions_table
from octfast.model.temperature import (
    calibrate_bundle,
    calibration_error,
    fit_table,
    fit_temperature,
    raw_logits,
    rescale,
    table_temperature,
    temperature_interval,
    too_small,
)
from tests.assess.simulated import CLASSES, simulated


def logits_of(table: pd.DataFrame, classes=CLASSES) -> tuple[np.ndarray, np.ndarray]:
    return raw_logits(table, classes), np.array([list(classes).index(c) for c in table["label"]])


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5, 8.0])
def test_the_true_temperature_is_found(true):
    assert fit_temperature(*logits_of(simulated(20_000, true))) == pytest.approx(true, rel=0.03)


@given(st.integers(0, 2**16), st.integers(2, 6), st.floats(0.3, 6))
@settings(max_examples=30)
def test_it_is_the_optimum_that_torch_finds(seed, k, true):
    logits, labels = logits_of(simulated(300, true, classes=list("abcdef")[:k], spread=2, seed=seed), "abcdef"[:k])
    z, y = torch.tensor(logits), torch.tensor(labels)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([log_t], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        value = torch.nn.functional.cross_entropy(z / log_t.exp(), y)
        value.backward()
        return value

    search.step(loss)
    assert fit_temperature(logits, labels) == pytest.approx(float(log_t.exp().detach()), rel=1e-4)


def test_a_constant_for_each_scan_changes_nothing():
    logits, labels = logits_of(simulated(300, 2.0))
    shifted = logits + np.random.default_rng(0).normal(0, 50, (len(logits), 1))
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-5)


def test_labels_foretold_without_a_mistake_have_no_temperature():
    logits, _ = logits_of(simulated(400))
    with pytest.raises(DataError, match="all of these scans are right"):
        fit_temperature(logits, logits.argmax(1))
    # One mistake in ten thousand, by a hair: the best temperature is lower than any that is taken.
    sure = np.tile([[0.2, 0.0]], (10_000, 1))
    sure[0] = [0.0, 1e-6]
    with pytest.raises(DataError, match="only 1 of these 10000 scans are wrong"):
        fit_temperature(sure, np.zeros(10_000, dtype=int))


def test_answers_no_better_than_even_ones_have_no_temperature():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 4))
    for labels in (logits.argmin(1), np.where(np.arange(400) % 8, logits.argmin(1), logits.argmax(1))):
        with pytest.raises(DataError, match="no better than chance"):
            fit_temperature(logits, labels)
    with pytest.raises(DataError, match="no better than chance"):
        fit_temperature(np.zeros((400, 4)), rng.integers(0, 4, 400))


@pytest.mark.parametrize("alike, least, most", [(0.0, 90, 99), (0.7, 88, 99)])
def test_the_interval_covers_the_truth(alike, least, most):
    hits = 0
    for seed in range(120):
        table = simulated(400, 2.0, a_patient=8, alike=alike, spread=2, seed=seed)
        logits, labels = logits_of(table)
        low, high = temperature_interval(logits, labels, table["patient"], fit_temperature(logits, labels))
        hits += low <= 2.0 <= high
    assert least <= 100 * hits / 120 <= most


tables = st.builds(
    simulated, st.integers(1, 40), st.floats(0.2, 8), spread=st.floats(0.1, 12), seed=st.integers(0, 2**16)
)


@given(tables, st.floats(0.2, 10), st.floats(0.2, 10))
@settings(max_examples=40)
def test_rescaling_there_and_back(table, first, second):
    there = rescale(table, CLASSES, first)
    assert table_temperature(there) == first and ("temperature" in there) == (first != 1)
    # A probability that became 0 does not come back: `raw_logits` says what is taken for its logarithm.
    assume((there[[f"p_{c}" for c in CLASSES]] > 0).all(axis=None))
    direct, detour = rescale(table, CLASSES, second), rescale(there, CLASSES, second)
    back = rescale(detour, CLASSES, 1.0)
    pd.testing.assert_frame_equal(direct, detour, rtol=1e-6, atol=1e-9)
    pd.testing.assert_frame_equal(back, table, rtol=1e-6, atol=1e-9)


@given(tables, st.floats(0.2, 10))
@settings(max_examples=40)
def test_a_rescaled_table_is_the_one_made_at_that_temperature(table, temperature):
    scans = table[["path", "label", "patient", "split"]]
    found = rescale(table, CLASSES, temperature)
    wanted = predictions_table(scans, raw_logits(table, CLASSES), CLASSES, temperature)
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-9, atol=1e-12)
    wanted_p = softmax(raw_logits(table, CLASSES) / temperature, axis=1)
    np.testing.assert_allclose(found[[f"p_{c}" for c in CLASSES]], wanted_p, rtol=1e-9)
    assert list(found["predicted"]) == list(table["predicted"])


def test_rescaling_what_a_file_has_kept(tmp_path):
    table = rescale(simulated(200, 3.0, spread=20), CLASSES, 0.5)
    save_scans(table, tmp_path / "t.csv", "/scans")
    read = load_scans(tmp_path / "t.csv", "/scans")
    assert table_temperature(read) == 0.5
    pd.testing.assert_frame_equal(
        rescale(read, CLASSES, 1.0), rescale(table, CLASSES, 1.0), rtol=1e-6, atol=1e-9, check_dtype=False
    )


def test_a_probability_too_small_for_a_float_comes_from_the_loss():
    scans = simulated(2)[["path", "label", "patient", "split"]].assign(label=["CNV", "DME"])
    logits = np.array([[-900.0, 0, -30, -40], [0.0, -1000, -20, -900]])
    table = predictions_table(scans, logits, CLASSES)
    assert (table[["p_CNV", "p_DME"]].to_numpy().diagonal() == 0).all()
    found = rescale(table, CLASSES, 10.0)
    np.testing.assert_allclose(found["loss"], predictions_table(scans, logits, CLASSES, 10.0)["loss"], rtol=1e-9)


@pytest.mark.parametrize("held", [[1.0, 2.0], [0.0, 0.0], [-1.0, -1.0], ["a", "a"], [np.nan, np.nan], [np.inf, np.inf]])
def test_a_temperature_that_cannot_be(held):
    table = simulated(2).assign(temperature=held)
    with pytest.raises(BundleError, match="one positive number"):
        table_temperature(table)


def test_a_column_of_the_users_is_not_taken_for_the_temperature():
    scans = simulated(3)[["path", "label", "patient", "split"]].assign(temperature=37.2)
    for t in (1.0, 2.0):
        assert table_temperature(predictions_table(scans, np.eye(3, 4), CLASSES, t)) == t


def test_no_rows():
    empty = simulated(4).head(0)
    assert len(rescale(empty, CLASSES, 2.0)) == 0 and table_temperature(empty) == 1
    assert np.isnan(calibration_error(np.zeros(0), np.zeros(0)))


@pytest.mark.parametrize(
    "table, reason",
    [
        (simulated(199, a_patient=1), "199 scans, fewer than 200"),
        (simulated(290, a_patient=10), "29 patients, fewer than 30"),
        (simulated(800).query("label != 'DME'"), "0 of DME, fewer than 10"),
        (simulated(20, a_patient=1), "20 scans, fewer than 200; 20 patients, fewer than 30; "),
    ],
)
def test_too_small(table, reason):
    assert reason in too_small(table, CLASSES)
    with pytest.raises(DataError, match="too few held-out scans to calibrate on"):
        fit_table(table, CLASSES)


def test_large_enough():
    assert too_small(simulated(300, a_patient=10), CLASSES) == ""


def test_what_a_fit_says():
    table = simulated(2000, 2.5)
    fit = fit_table(table, CLASSES)
    after = rescale(table, CLASSES, fit.temperature)
    assert fit.low < 2.5 < fit.high and fit.scans == 2000 and fit.patients == 500
    assert fit.nll_before == pytest.approx(table["loss"].mean())
    assert fit.nll_after == pytest.approx(after["loss"].mean()) and fit.nll_after < fit.nll_before
    assert fit.ece_after < 0.03 < fit.ece_before
    # Whatever temperature the table is at, the fit is the same to the last digit that is kept.
    for t in (0.5, fit.temperature, 7.0):
        assert fit_table(rescale(table, CLASSES, t), CLASSES).to_dict() == fit.to_dict()


def test_a_rough_temperature_is_said_to_be(said):
    table = simulated(200, 1.0, a_patient=5, spread=12, seed=1)
    fit = fit_table(table, CLASSES)
    assert any("rough" in line for line in said()) == (fit.high > 4 * fit.low)


@pytest.fixture
def bundle(tmp_path):
    info = BundleInfo("resnet18", "octfast", CLASSES, 64, (0.5,) * 3, (0.2,) * 3, calibration={"kept": 1})
    return save_bundle(tmp_path / "model", torch.nn.Linear(2, 2), info)


def test_a_bundle_keeps_what_was_fitted(bundle, said):
    tensors = (bundle / "model.safetensors").read_bytes()
    info = calibrate_bundle(bundle, simulated(2000, 2.5))
    assert info == read_info(bundle) and info.temperature == pytest.approx(2.5, rel=0.1)
    assert info.calibration["scans"] == 2000 and info.calibration["split"] == "valid" and info.calibration["kept"] == 1
    assert (bundle / "model.safetensors").read_bytes() == tensors
    assert [line for line in said() if line.startswith("temperature ")]
    again = (bundle / "octfast.json").read_bytes()
    calibrate_bundle(bundle, rescale(simulated(2000, 2.5), CLASSES, info.temperature))
    assert (bundle / "octfast.json").read_bytes() == again


def test_a_bundle_stays_as_it_was_where_nothing_can_be_fitted(bundle, said, caplog):
    before = (bundle / "octfast.json").read_bytes()
    assert calibrate_bundle(bundle, simulated(40)).temperature == 1
    assert (bundle / "octfast.json").read_bytes() == before
    (line,) = said()
    assert "not calibrated: too few held-out scans" in line and "40 scans, fewer than 200" in line
    assert caplog.records[-1].levelno == logging.INFO
