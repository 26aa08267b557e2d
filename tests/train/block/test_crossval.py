"""Cross-validation of the last block: no training sees its fold, and the model learns from all scans."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from fastai.torch_core import set_seed

from octfast.assess.predictions import held_out_predictions
from octfast.data.loaders import oct_dataloaders
from octfast.errors import UsageError
from octfast.model.bundle.read import load_bundle
from octfast.model.forward import predict_scans
from octfast.run.folder import FOLD
from octfast.train.block.crossval import cross_validate
from octfast.train.block.trainings import Recipe
from octfast.train.config import TrainConfig
from octfast.train.frozen.frozen import frozen_learner
from octfast.train.job import train_classifier
from octfast.train.learner import oct_learner
from tests.conftest import quick


@pytest.fixture(scope="module")
def validated(phantoms, tmp_path_factory):
    """A run whose last block was cross-validated in two folds. Nobody writes into it."""
    out = tmp_path_factory.mktemp("block") / "run"
    how = {"unfreeze": "block5", "arch": "vgg11_bn", "bs": 16, "views": 1, "folds": 2, "epochs": 2}
    return train_classifier(**quick(phantoms, out=str(out), **how))


def test_every_training_and_validation_scan_is_judged_out_of_fold(validated):
    table, _ = held_out_predictions(validated, temperature=1.0)
    scans = validated.scans.query("split != 'test'")
    assert sorted(table["path"]) == sorted(scans["path"]) and set(table[FOLD]) == {0, 1}
    assert (table.groupby("patient")[FOLD].nunique() == 1).all()
    last = validated.history.iloc[-1]
    assert len(validated.history) == validated.config["chosen"]["best_epoch"] == 1
    assert table["loss"].mean() == pytest.approx(last["valid_loss"], rel=1e-3)
    assert (table["label"] == table["predicted"]).mean() == pytest.approx(last["accuracy"], abs=1e-5)
    kept = json.loads((validated.path / "metrics-folds.json").read_text())
    assert kept["scans"] == len(scans) and validated.config["chosen"]["folds"] == 2


def test_the_model_is_trained_on_all_of_them(validated):
    model, info = load_bundle(validated.bundle)
    test = predict_scans(model, info, validated.scans.query("split == 'test'"), precision="fp32")
    np.testing.assert_allclose(validated.predictions("test")["loss"], test["loss"], atol=1e-4)
    table, _ = held_out_predictions(validated, temperature=1.0)
    own = predict_scans(model, info, table[["path", "label", "patient", "split"]], precision="fp32")
    assert own["loss"].mean() < table["loss"].mean()
    notes = (validated.path / "log.txt").read_text()
    assert "2 trainings beside the model's own, about" in notes and "the last epoch" in notes


def test_what_a_fold_is_given_changes_the_answers_of_the_others_alone(phantoms, tmp_path):
    dls = oct_dataloaders(phantoms, size=64, bs=16, num_workers=0, device="cpu", valid=0.25)
    learn = oct_learner(dls, "vgg11_bn", weights="none", unfreeze="block5")
    start = copy.deepcopy(learn.model.state_dict())
    folds = np.arange(len(dls.train_ds) + len(dls.valid_ds)) % 2

    def judged(wrong_in=None):
        learn.model.load_state_dict(start)
        fast = frozen_learner(learn, precision="fp32", cache=tmp_path / "cache")
        for dl, mine in zip(fast.stored.loaders, np.split(folds, [len(dls.train_ds)]), strict=True):
            dl.targets[mine == wrong_in] = (dl.targets[mine == wrong_in] + 1) % 4
        set_seed(0)
        folder = tmp_path / f"run-{wrong_in}"
        (folder / "checkpoints").mkdir(parents=True)
        cross_validate(fast, folds, Recipe(1, 1, 3e-4), folder)
        fast.close()
        return fast.out_of_fold()

    before, after = judged(), judged(wrong_in=1)
    assert np.array_equal(before[folds == 1], after[folds == 1])
    assert not np.allclose(before[folds == 0], after[folds == 0], atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"unfreeze": "all"}, "trains the whole network"),
        ({"unfreeze": "block5", "views": 0}, "augments anew"),
        ({"views": 0}, "augments anew"),
        ({"head": "article"}, "another loss"),
    ],
    ids=str,
)
def test_folds_of_what_is_not_trained_from_a_store_are_refused_with_the_way_to_have_them(fields, why):
    with pytest.raises(UsageError, match=why) as e:
        TrainConfig(folds=4, **fields)
    assert "octfast data split DATA --folds 4" in e.value.hint and "interpret --folds" in e.value.hint
    assert TrainConfig(**fields).chosen_folds == TrainConfig(folds=0, **fields).chosen_folds == 0


def test_folds_are_the_default_of_a_head_alone():
    assert TrainConfig().chosen_folds == 5 and TrainConfig(folds=3).chosen_folds == 3
    assert TrainConfig(unfreeze="block5").chosen_folds == 0
    assert TrainConfig(unfreeze="block5", folds=3).chosen_folds == 3
