from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from octfast.assess import predictions
from octfast.assess.interpret.interpret import interpret_run
from octfast.assess.interpret.interpretation import ClassificationInterpretation
from octfast.assess.predictions import out_of_fold, run_predictions
from octfast.errors import BundleError, DataError, UsageError
from octfast.model.bundle.read import load_bundle
from octfast.model.bundle.write import update_info
from octfast.model.forward import predict_scans
from octfast.model.temperature import rescale, table_temperature
from octfast.run.folder import open_run


def test_a_table_is_read_at_the_temperature_of_the_bundle(own_run):
    before, info = run_predictions(own_run)
    assert table_temperature(before) == info.temperature == 1
    file = own_run.predictions_file("valid").read_bytes()
    update_info(own_run.bundle, temperature=2.0)
    after, info = run_predictions(own_run)
    assert info.temperature == table_temperature(after) == 2 and (after["temperature"] == 2).all()
    pd.testing.assert_frame_equal(after, rescale(before, info.classes, 2.0))
    pd.testing.assert_frame_equal(run_predictions(own_run, temperature=1.0)[0], before, check_exact=True)
    assert own_run.predictions_file("valid").read_bytes() == file
    # It is the table that the calibrated model would make.
    model, info = load_bundle(own_run.bundle)
    made = predict_scans(model, info, own_run.scans.query("split == 'valid'"), precision="fp32")
    pd.testing.assert_frame_equal(after, made, atol=1e-3)


def test_a_table_made_after_calibration_says_so_and_is_not_rescaled_again(own_run, monkeypatch):
    runs = []
    predict = predictions.predict_scans
    monkeypatch.setattr(predictions, "predict_scans", lambda *a, **k: runs.append(1) or predict(*a, **k))
    update_info(own_run.bundle, temperature=2.0)
    own_run.predictions_file("valid").unlink()
    made, _ = run_predictions(own_run)
    read, _ = run_predictions(own_run)
    assert len(runs) == 1 and table_temperature(made) == 2
    pd.testing.assert_frame_equal(read, made, check_exact=False, rtol=1e-12)
    update_info(own_run.bundle, temperature=1.0)
    back, _ = run_predictions(own_run)
    assert "temperature" not in back and len(runs) == 1
    update_info(own_run.bundle, temperature=2.0)
    there, _ = run_predictions(own_run)
    np.testing.assert_allclose(there["loss"], made["loss"])


def test_what_reads_a_calibrated_table_goes_on_working(own_run):
    update_info(own_run.bundle, temperature=1.7)
    table, info = run_predictions(own_run, "test")
    interp = ClassificationInterpretation.from_run(own_run, "test")
    pd.testing.assert_frame_equal(interp.table, table)
    assert interp.confusion_matrix().sum() == len(table)
    np.testing.assert_allclose(interp.top_losses()[0][0], table["loss"].max())
    found = interpret_run(own_run, "test", 3)
    assert found.headline["loss"] == pytest.approx(table["loss"].mean())
    np.testing.assert_allclose(table[[f"p_{c}" for c in info.classes]].sum(axis=1), 1)


def test_a_table_of_several_temperatures_is_damaged(own_run):
    table = own_run.predictions("valid")
    own_run.save_predictions(table.assign(temperature=np.arange(len(table)) + 1.0), "valid")
    with pytest.raises(BundleError, match=r"predictions-valid\.csv.* does not hold one positive number"):
        run_predictions(own_run)


@pytest.fixture
def folds(trained, tmp_path):
    """Two runs that hold out one half of the validation patients each, as two folds would."""
    table = trained.predictions("valid")
    patients = sorted(table["patient"].unique())
    runs = []
    for i in range(2):
        run = open_run(shutil.copytree(trained.path, tmp_path / "folds" / f"fold{i}"))
        run.save_predictions(table[table["patient"].isin(patients[i::2])], "valid")
        runs.append(run)
    return runs


def test_out_of_fold_predictions_are_those_of_the_runs_together(folds, trained, tmp_path):
    table, classes, n = out_of_fold(folds)
    assert n == 2 and list(classes) == list(trained.config["classes"])
    assert set(table["path"]) == set(trained.predictions("valid")["path"]) and table["path"].is_unique
    for given_ones in ([r.path for r in folds], [tmp_path / "folds"], [folds[0], tmp_path / "folds"]):
        again, _, n = out_of_fold(given_ones)
        assert n == 2 and set(again["path"]) == set(table["path"])


def test_a_run_whose_training_has_not_ended_is_passed_over_with_a_word(folds, trained, tmp_path, said):
    unfinished = shutil.copytree(trained.path, tmp_path / "folds" / "unfinished")
    shutil.rmtree(unfinished / "model")
    assert out_of_fold([tmp_path / "folds"])[2] == 2
    assert [line for line in said() if "unfinished has no trained model" in line]
    with pytest.raises(BundleError, match="training has not ended"):
        out_of_fold([folds[0], unfinished])


def test_runs_that_are_no_folds(folds, trained, tmp_path):
    with pytest.raises(DataError, match=r"not the folds of one cross-validation: .* is held out by 2"):
        out_of_fold([*folds, trained])
    with pytest.raises(UsageError, match="two folds"):
        out_of_fold([folds[0]])
    with pytest.raises(UsageError, match="two folds"):
        out_of_fold([folds[0], folds[0].path])
    with pytest.raises(BundleError, match="not a run folder"):
        out_of_fold([folds[0], tmp_path / "nowhere"])


def test_a_scan_that_is_damaged_is_left_out_and_the_table_is_not_kept(own_run, phantoms, tmp_path, said):
    moved = Path(shutil.copytree(phantoms, tmp_path / "moved"))
    run = open_run(own_run.path, moved)
    (run.path / "predictions-test.csv").unlink()
    damaged = Path(run.scans.query("split == 'test'")["path"].iloc[3])
    damaged.write_bytes(damaged.read_bytes()[:200])
    found = interpret_run(run, "test", k=3, heatmaps=False)
    assert found.headline["scans"] == (run.scans["split"] == "test").sum() - 1
    assert any("left out, unreadable" in line and damaged.name in line for line in said())
    assert any("1 of 16 test scans are left out; the predictions are not kept" in line for line in said())
    assert not (run.path / "predictions-test.csv").exists()
