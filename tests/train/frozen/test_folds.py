"""Cross-validation on stored activations: no head learns from its fold; every scan is judged by one that did not."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from octfast.assess.predictions import held_out_predictions, run_predictions
from octfast.errors import DataError
from octfast.model.bundle.read import load_bundle
from octfast.model.forward import predict_scans
from octfast.run.folder import FOLD, open_run
from octfast.train.frozen.folds import IGNORED, FoldHeads, accuracy, draw_folds
from octfast.train.job import train_classifier
from tests.conftest import quick


def test_a_head_learns_as_it_would_alone_from_the_scans_outside_of_its_fold():
    torch.manual_seed(0)
    x, fold, y = torch.randn(24, 5), torch.arange(24) % 3, torch.randint(0, 4, (24,))
    head = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4))
    model = FoldHeads(nn.Identity(), head, 3).train()
    targets = torch.where(fold[:, None] == torch.arange(4), IGNORED, y[:, None])
    nn.functional.cross_entropy(model(x, fold).flatten(0, 1), targets.flatten()).backward()
    for k, trained in enumerate(model.heads):
        alone = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4))
        alone.load_state_dict({n: v for n, v in head.state_dict().items() if "running" not in n}, strict=False)
        outside = fold != k
        nn.functional.cross_entropy(alone(x[outside]), y[outside]).backward()
        # The loss is over heads that learn from 16 scans each and one from 24.
        share = 4 * int(outside.sum()) / (3 * 16 + 24)
        for mine, its in zip(trained.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, its.grad * share, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(trained[0].running_mean, alone[0].running_mean)


def test_accuracy_is_that_of_the_head_that_is_asked():
    logits = torch.zeros(2, 3, 4)
    logits[0, 1, 2] = logits[1, 0, 3] = 1
    targets = torch.full((2, 3), IGNORED)
    targets[0, 1], targets[1, 0] = 2, 0
    assert accuracy(logits, targets) == 0.5


def table_of(patients: dict[str, int]) -> pd.DataFrame:
    rows = [(f"{c}{i}.png", c, f"{c}{i // 2}", "train") for c, n in patients.items() for i in range(2 * n)]
    return pd.DataFrame(rows, columns=["path", "label", "patient", "split"])


def test_folds_hold_whole_patients_out(tmp_path, monkeypatch):
    scans = table_of({"A": 12, "B": 7})
    for name in scans["path"]:
        (tmp_path / name).write_text(name)
    scans["path"] = [str(tmp_path / p) for p in scans["path"]]
    scans = scans.sample(frac=1, random_state=0)
    folds = draw_folds(scans, 5, 0)
    assert set(folds) == set(range(5))
    assert (pd.Series(folds, scans.index).groupby(scans["patient"]).nunique() == 1).all()
    assert (scans.assign(fold=folds).groupby("fold")["label"].nunique() == 2).all()


def test_fewer_folds_or_none_where_a_class_has_few_patients(tmp_path, said):
    scans = table_of({"A": 12, "B": 3})
    for name in scans["path"]:
        (tmp_path / name).write_text(name)
    scans["path"] = [str(tmp_path / p) for p in scans["path"]]
    assert set(draw_folds(scans, 5, 0)) == {0, 1, 2}
    assert any("3 folds instead of 5" in line for line in said())
    assert draw_folds(scans[scans["patient"].isin(["B0"]) | (scans["label"] == "A")], 5, 0) is None
    assert any("no cross-validation" in line for line in said())


@pytest.fixture(scope="module")
def validated(phantoms, tmp_path_factory):
    """A run whose head was cross-validated in three folds. Nobody writes into it."""
    out = tmp_path_factory.mktemp("folds") / "run"
    return train_classifier(**quick(phantoms, views=1, folds=3, epochs=2, out=str(out)))


def test_every_training_and_validation_scan_is_judged_by_a_head_that_never_saw_its_patient(validated):
    table, _ = held_out_predictions(validated, temperature=1.0)
    scans = validated.scans.query("split != 'test'")
    assert sorted(table["path"]) == sorted(scans["path"])
    assert set(table[FOLD]) == {0, 1, 2}
    assert (table.groupby("patient")[FOLD].nunique() == 1).all()
    best = validated.history.loc[validated.history["valid_loss"].idxmin()]
    assert table["loss"].mean() == pytest.approx(best["valid_loss"], rel=1e-4)
    assert (table["label"] == table["predicted"]).mean() == pytest.approx(best["accuracy"], abs=1e-5)
    kept = json.loads((validated.path / "metrics-folds.json").read_text())
    assert kept["scans"] == len(scans) and validated.config["chosen"]["folds"] == 3


def test_the_model_is_the_head_of_all_scans_and_not_of_a_fold(validated):
    model, info = load_bundle(validated.bundle)
    test = validated.scans.query("split == 'test'")
    found = predict_scans(model, info, test, precision="fp32")
    np.testing.assert_allclose(validated.predictions("test")["loss"], found["loss"], atol=1e-5)
    # It has learned from the scans that the table holds out.
    table, _ = held_out_predictions(validated, temperature=1.0)
    own = predict_scans(model, info, table[["path", "label", "patient", "split"]], precision="fp32")
    assert own["loss"].mean() < table["loss"].mean()


def test_lost_predictions_of_scans_that_the_model_has_learned_from_are_not_made_anew(validated, tmp_path):
    own = open_run(shutil.copytree(validated.path, tmp_path / "own"))
    for split in ("valid", "train"):
        own.predictions_file(split).unlink()
        with pytest.raises(DataError, match=f"predictions-{split}.csv.*has learned from"):
            run_predictions(own, split)
    assert len(run_predictions(own, "test")[0]) == 16


def test_the_command_says_what_the_folds_gave(octfast_train, phantoms):
    ended = octfast_train(phantoms, "--folds", 3)
    assert ended.code == 0
    assert "folds" in ended.out and "folds by patient" in ended.err


def test_one_fold_is_refused(octfast_train, phantoms):
    assert octfast_train(phantoms, "--folds", 1).code == 2
