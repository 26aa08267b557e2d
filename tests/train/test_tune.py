"""A search for a recipe: what it never sees, what it keeps, how it goes on, and what a winner's lead is worth."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from octfast.errors import UsageError, WeightsError
from octfast.run.folder import open_run

optuna = pytest.importorskip("optuna")

from octfast.train.tune.features import weights_at_hand  # noqa: E402
from octfast.train.tune.result import ByPatient, log_losses  # noqa: E402
from octfast.train.tune.search import tune  # noqa: E402
from octfast.train.tune.trials import Search  # noqa: E402

SMALL = {"size": 64, "valid": "0.25", "folds": 2, "epochs": 1, "precision": "fp32", "workers": 0}


@pytest.fixture(scope="module")
def tuned(phantoms, tmp_path_factory):
    """A search of three trials on the phantoms, and the run of its best. Nobody writes into it."""
    out = tmp_path_factory.mktemp("tune") / "search"
    return tune(phantoms, arch=["test_resnet"], weights=["none"], trials=3, out=out, **SMALL)


def test_the_default_recipe_is_tried_first_and_all_others_are_compared_with_it(tuned):
    table = tuned.trials.set_index("number")
    assert tuned.default == 0 and table.loc[0, ["head", "dropout", "wd", "lr"]].tolist() == [
        "linear",
        0.25,
        0.1,
        0.0025,
    ]
    whole = table[table["state"] == "complete"]
    assert table.loc[0, "minus_default"] == 0
    np.testing.assert_allclose(whole["minus_default"], whole["log_loss"] - table.loc[0, "log_loss"], atol=1e-6)
    assert (whole["low"] < whole["log_loss"]).all() and (whole["log_loss"] < whole["high"]).all()
    assert tuned.best == whole["log_loss"].idxmin()


def test_neither_test_scans_nor_those_held_back_are_searched_on(tuned, phantoms):
    scans = open_run(tuned.run).scans
    wanted = scans[scans["split"] != "test"]
    logits = np.load(tuned.folder / "trials" / "0000.npy", allow_pickle=False)
    held = tuned.held_back["scans"]
    assert 0 < held < len(wanted) / 2
    assert len(logits) + held == len(wanted)
    assert tuned.held_back["log_loss"][1] < tuned.held_back["log_loss"][2]


def test_the_best_is_trained_as_a_usual_run(tuned):
    run, best = open_run(tuned.run), tuned.trials.iloc[0]
    config = run.config
    assert {n: config[n] for n in ("arch", "head", "dropout", "wd", "lr", "views")} == {
        n: pytest.approx(best[n]) if n in ("dropout", "wd", "lr") else best[n]
        for n in ("arch", "head", "dropout", "wd", "lr", "views")
    }
    kept = json.loads((tuned.run / "tune.json").read_text())
    assert kept["best"]["number"] == tuned.best and len(kept["trials"]) == 3
    assert run.predictions("test") is not None and (tuned.folder / "search.png").stat().st_size > 10_000


def test_a_search_goes_on_and_another_is_refused(tuned, phantoms, octfast, tmp_path):
    own = shutil.copytree(tuned.folder, tmp_path / "own")
    words = [phantoms, "--arch", "test_resnet", "--weights", "none", "--out", own]
    small = [w for name, value in SMALL.items() for w in (f"--{name}", value)]
    ended = octfast("tune", *words, *small, "--trials", 4, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert "going on with 3 trials" in ended.err and len(found["trials"]) == 4
    before = tuned.trials.set_index("number")["log_loss"]
    after = pd.DataFrame(found["trials"]).set_index("number")["log_loss"]
    pd.testing.assert_series_equal(after.loc[before.index], before, atol=1e-6)
    assert open_run(found["run"]).path.parent == own
    other = octfast("tune", *words, *small, "--trials", 4, "--epochs", 2)
    assert other.code == 2 and "has a search of other epochs" in other.err
    (own / "journal.log").write_text("no journal\n")
    assert octfast("tune", *words, *small).code == 2


def test_a_search_that_is_stopped_keeps_what_it_found(phantoms, tmp_path, monkeypatch, said):
    real = Search._try

    def one_and_stop(self, most):
        if self.count:
            raise KeyboardInterrupt
        real(self, most)

    monkeypatch.setattr(Search, "_try", one_and_stop)
    with pytest.raises(KeyboardInterrupt):
        tune(phantoms, arch=["test_resnet"], weights=["none"], out=tmp_path / "search", **SMALL)
    assert len(pd.read_csv(tmp_path / "search" / "trials.csv")) == 1
    assert any("1 trials are kept" in line and "--out" in line for line in said())


def test_only_bodies_with_weights_at_hand_are_searched(tmp_path, said):
    assert weights_at_hand(["resnet18"], ["auto"], synthetic=True) == {"resnet18": "none"}
    with pytest.raises(WeightsError):
        weights_at_hand(["resnet18"], ["auto"], synthetic=False)
    found = weights_at_hand(["resnet18", "resnet34"], ["resnet34=w.pth"], synthetic=False)
    assert found == {"resnet34": "w.pth"} and any("left out" in line and "resnet18" in line for line in said())
    with pytest.raises(UsageError, match="of which body"):
        weights_at_hand(["resnet18", "resnet34"], ["w.pth"], synthetic=False)


@pytest.mark.parametrize("wrong", [{"minutes": 0}, {"trials": 0}, {"views": [0]}, {"arch": []}, {"folds": 0}], ids=str)
def test_what_cannot_be_searched_is_refused(phantoms, wrong):
    with pytest.raises(UsageError):
        tune(phantoms, **{"weights": ["none"], **wrong})


def test_what_is_not_a_search_is_left_alone(phantoms, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="no search to go on with"):
        tune(phantoms, weights=["none"], out=tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_the_lead_of_a_winner_by_chance_is_taken_away():
    rng = np.random.default_rng(0)
    patients = pd.Series(np.repeat(np.arange(80), 3))
    # Sixty recipes that are all alike, seen through the noise of 80 patients.
    losses = 0.5 + rng.normal(0, 0.3, (60, 80)).repeat(3, axis=1)
    by = ByPatient(patients)
    apparent = losses.mean(1).min() - losses[0].mean()
    _, low, high = by.of_chosen(losses, 0)["minus_default"]
    assert apparent < -0.05 and low < 0 < high
    assert abs(by.of_chosen(losses, 0)["log_loss"][0] - 0.5) < 0.03
    # One that is better stays so.
    losses[7] -= 0.4
    assert by.of_chosen(losses, 0)["minus_default"][2] < 0


def test_intervals_are_by_patient_and_losses_are_those_of_torch():
    scans = pd.Series(np.repeat(np.arange(20), 10))
    values = np.random.default_rng(1).normal(size=20).repeat(10)
    mean, low, high = ByPatient(scans).mean(values)
    alone = ByPatient(pd.Series(np.arange(200))).mean(values)
    assert mean == pytest.approx(alone[0]) and (high - low) > 2 * (alone[2] - alone[1])
    logits, y = torch.randn(6, 4) * 30, torch.tensor([0, 1, 2, 3, 0, 1])
    wanted = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    np.testing.assert_allclose(log_losses(logits.numpy(), y.numpy()), wanted, rtol=1e-5, atol=1e-5)
