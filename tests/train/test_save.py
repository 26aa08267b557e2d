"""A Learner of a notebook becomes a run folder, and everything that takes a run takes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import resnet18, vision_learner
from fastcore.basics import noop
from torch import nn

from octfast.assess.calibration.calibrate import calibrate_run
from octfast.assess.evaluate import evaluate_run
from octfast.assess.interpret.interpret import interpret_run
from octfast.assess.interpret.show import show_scan
from octfast.assess.predictions import run_predictions, scan_answers
from octfast.assess.report.report import write_report
from octfast.data.loaders import oct_dataloaders
from octfast.deploy.app.answers import Answers
from octfast.deploy.predictor import load
from octfast.errors import BundleError, DataError, UsageError
from octfast.run.folder import open_run
from octfast.train.frozen.folds import draw_folds
from octfast.train.frozen.frozen import frozen_learner
from octfast.train.job import train_classifier
from octfast.train.learner import oct_learner
from octfast.train.save import save_run
from octfast.train.unit_learner import unit_learner
from tests.bags import bag_table
from tests.conftest import quick


def quiet(learn):
    learn.remove_cb(learn.progress)
    learn.logger = noop
    return learn


@pytest.fixture(scope="module")
def dls(phantoms):
    return oct_dataloaders(phantoms, size=64, valid=0.25, num_workers=0, device="cpu", bs=8)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def frozen(dls, tmp_path_factory):
    learn = quiet(oct_learner(dls, "test_resnet", weights="none"))
    fast = quiet(frozen_learner(learn, precision="fp32", cache=tmp_path_factory.mktemp("cache")))
    fast.fit_one_cycle(2, 1e-2)
    return learn, fast


def same_answers(run, learn, files):
    found = load(run.path, precision="fp32")
    table = run.predictions("test")
    expected = torch.stack([learn.predict(f)[2] for f in files])
    raw = torch.softmax(torch.log(torch.from_numpy(found.probabilities(files))) * found.info.temperature, 1)
    np.testing.assert_allclose(raw, expected, atol=1e-3)
    assert sorted(table["path"]) == sorted(run.scans.query("split == 'test'")["path"])


@pytest.mark.parametrize("kind", ["plain", "frozen"])
def test_a_run_of_a_notebook_is_taken_by_everything(frozen, kind, octfast):
    learn, fast = frozen
    run = save_run(fast if kind == "frozen" else learn, "runs/mine")
    files = list(run.scans.query("split == 'test'")["path"].head(4))
    same_answers(run, learn, files)
    assert list(run.history["epoch"]) == [1, 2] and {"accuracy", "train_accuracy"} <= set(run.history)
    assert open_run().path == run.path
    assert (run.path / "figures" / "history.png").is_file() and "test_resnet" in run._repr_html_()
    assert run.predictions("valid")["loss"].mean() == pytest.approx(float(fast.validate()[0]), rel=5e-2)
    assert evaluate_run(run, "test").overall["value"].notna().any()
    assert len(interpret_run(run, "test", k=2).top) == 2
    assert show_scan(run, seed=1).figure is not None
    page = write_report(run, split="test").read_text()
    assert "no command makes it again" in page and ">None<" not in page
    with pytest.raises(DataError, match="to calibrate on"):
        calibrate_run(run)
    answered = octfast("predict", run.path, *files[:2], "--quiet")
    assert answered.code == 0
    page = Answers(load(run.path)).answer(Path(files[0]).read_bytes(), heat_map=True)
    assert page["predicted"] in learn.dls.vocab and page["picture"].startswith("data:image/")
    exported = octfast("export", run.path, "--format", "torch", "--scans", 4, "--json")
    assert exported.code == 0 and Path(json.loads(exported.out)["file"]).is_file(), exported.err


def test_a_run_of_a_notebook_is_exported_to_onnx(frozen, octfast):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    run = save_run(frozen[0], "runs/mine")
    ended = octfast("export", run.path, "--scans", 4, "--json")
    assert ended.code == 0 and Path(json.loads(ended.out)["file"]).is_file(), ended.err


def test_plain_and_frozen_learners_leave_the_same_run(frozen):
    learn, fast = frozen
    one, other = save_run(learn, "plain"), save_run(fast, "fast")
    np.testing.assert_allclose(one.predictions("valid")["loss"], other.predictions("valid")["loss"], atol=6e-2)
    assert one.history.equals(other.history)
    kept = json.loads((one.path / "config.json").read_text())
    assert kept["made_by"] == "save_run" and kept["state"] == "finished" and kept["epochs"] == 2
    assert any("untrained" in note["text"] for note in kept["notes"])


def test_the_whole_network_trained(dls):
    learn = quiet(oct_learner(dls, "test_resnet", weights="none", unfreeze="all"))
    learn.fit(1, 1e-3)
    run = save_run(learn, "whole")
    same_answers(run, learn, list(run.scans.query("split == 'test'")["path"].head(2)))
    assert run.config["unfreeze"] == "all"


def test_fastais_own_vision_learner(dls):
    learn = quiet(vision_learner(dls, resnet18, pretrained=False))
    learn.fit(1, 1e-3)
    run = save_run(learn, "stock")
    same_answers(run, learn, list(run.scans.query("split == 'test'")["path"].head(2)))
    assert load(run.path).info.head == "fastai" and len(run.history) == 1


def test_a_head_of_ones_own_where_a_bundle_can_hold_it(frozen, dls):
    learn = quiet(oct_learner(dls, "test_resnet", weights="none", head="fastai"))
    width = next(m for m in frozen[0].model[1] if isinstance(m, nn.Linear)).in_features
    learn.model = nn.Sequential(frozen[0].model[0], nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, 4)))
    run = save_run(learn, "own")
    assert load(run.path).info.head == "linear"
    assert run.history.empty and any("no history" in str(note) for note in run.notes)
    for head in (
        nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, 4), nn.Tanh()),
        nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 4)),
    ):
        nn.init.normal_(head[-2].weight if isinstance(head[-1], nn.Tanh) else head[-1].weight)
        learn.model = nn.Sequential(frozen[0].model[0], head)
        with pytest.raises(UsageError, match=r"a bundle cannot hold this model[\s\S]*learn\.export"):
            save_run(learn, "never")
    assert not list(run.path.parent.glob("never*"))


def test_what_cannot_be_a_run_is_refused_and_leaves_nothing(frozen, tmp_path):
    learn, _ = frozen
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"taken exists and is not empty\ngive another folder"):
        save_run(learn, tmp_path / "taken")
    run = save_run(learn, "first")
    with pytest.raises(UsageError, match=r"not of oct_dataloaders\nlearn\.dls = oct_dataloaders"):
        save_run(load(run.path).to_learner(), "second")
    assert (tmp_path / "taken" / "mine.txt").read_text() == "mine" and not (tmp_path / "second").exists()


def test_a_pickle_of_fastai_is_not_opened_and_it_is_said_what_to_call(frozen, tmp_path):
    learn, _ = frozen
    learn.path = tmp_path
    learn.export("mine.pkl")
    with pytest.raises(BundleError, match=r"mine\.pkl is a pickle[\s\S]*octfast\.save_run\(learn"):
        load(tmp_path / "mine.pkl")


def test_a_model_that_learned_from_validation_is_judged_by_the_heads_of_folds_or_not_at_all(phantoms, tmp_path):
    """Beside folds the model's own head learns from every scan, so that it would be judged by what it was taught."""
    dls = oct_dataloaders(phantoms, size=64, valid=0.25, num_workers=0, device="cpu", bs=8)
    learn = quiet(oct_learner(dls, "test_resnet", weights="none"))
    scans = pd.concat([pd.DataFrame(dl.items) for dl in dls.loaders], ignore_index=True)
    fast = quiet(frozen_learner(learn, folds=draw_folds(scans, 2, 0), precision="fp32", cache=tmp_path / "cache"))
    fast.fit_one_cycle(1, 2e-3)
    with pytest.raises(UsageError, match="has learned from its validation scans"):
        save_run(learn, "plain")
    run = save_run(fast, "judged")
    held_out = pd.concat([run_predictions(run, split)[0] for split in ("train", "valid")])
    assert held_out["loss"].mean() == pytest.approx(float(fast.validate()[0]), rel=1e-3)
    with torch.no_grad():
        next(learn.model[0].parameters()).mul_(2)
    with pytest.raises(UsageError, match="frozen part has changed"):
        save_run(fast, "changed")
    assert sorted(p.name for p in Path().iterdir()) == ["cache", "judged", "runs"]


@pytest.fixture(scope="module")
def of_volumes(phantoms, tmp_path_factory):
    table = bag_table(phantoms, tmp_path_factory.mktemp("table") / "scans.csv")
    return table, oct_dataloaders(table, size=64, num_workers=0, device="cpu")


@pytest.mark.parametrize("pooling", ["attention", "topk"])
def test_a_learner_of_volumes_leaves_what_the_command_does(of_volumes, tmp_path, pooling):
    table, dls = of_volumes
    learn = quiet(oct_learner(dls, "test_resnet", weights="none"))
    fast = quiet(unit_learner(learn, "volume", pooling=pooling, folds=2, precision="fp32"))
    fast.fit_one_cycle(1, 2e-3)
    judged = float(fast.validate()[0])
    with pytest.raises(UsageError, match="heads that judge it are not here"):
        save_run(learn, "other")
    run = save_run(fast, "mine")
    given = {"views": 1, "folds": 2, "level": "volume", "pooling": pooling, "out": str(tmp_path / "run")}
    made = train_classifier(**quick(table, epochs=1, **given))
    files = {p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file()}
    of_made = {p.relative_to(made.path).as_posix() for p in made.path.rglob("*") if p.is_file()}
    # Beside those of the search for a rate, and the epoch that it kept.
    assert of_made - files == {f for f in of_made if "lr_find" in f or f.startswith("checkpoints/")}
    held_out = [run_predictions(run, split)[0] for split in ("train", "valid")]
    assert sum(t["loss"].sum() for t in held_out) / sum(map(len, held_out)) == pytest.approx(judged, rel=1e-3)
    answers, info = run_predictions(run, "test")
    assert (info.level, info.pooling["kind"]) == ("volume", pooling)
    own = scan_answers(run, "test").query(f"volume == {answers['volume'].iloc[0]!r}")
    found = load(run.path, precision="fp32").answer_unit(own["path"].tolist())
    # What was written is of half precision where the processor multiplies it.
    np.testing.assert_allclose(found.probabilities, [answers[f"p_{c}"].iloc[0] for c in info.classes], atol=5e-3)
    np.testing.assert_allclose(found.attention.sum(), own["attention"].sum(), atol=1e-6)
    assert evaluate_run(run, "test", resamples=100).source["level"] == "volume"


def test_what_cannot_answer_for_units_is_refused(of_volumes, phantoms, dls):
    table, own = of_volumes
    learn = quiet(oct_learner(own, "test_resnet", weights="none"))
    for wrong, error, words in (
        (lambda: unit_learner(learn, "organ"), UsageError, "organ"),
        (lambda: unit_learner(learn, "scan"), UsageError, "answers for scans as it is"),
        (lambda: unit_learner(learn, "volume", pooling="median"), UsageError, "no pooling"),
        (lambda: unit_learner(quiet(oct_learner(dls, "test_resnet", weights="none")), "eye"), UsageError, "column eye"),
        (lambda: unit_learner(learn, "eye", folds=2, k=3), UsageError, "no k"),
    ):
        with pytest.raises(error, match=words):
            wrong()
    mixed = pd.read_csv(table).assign(patient=lambda t: t["split"].str[:2] + (t.index % 7).astype(str))
    some = oct_dataloaders(mixed, size=64, num_workers=0, device="cpu")
    with pytest.raises(DataError, match="patients have scans of several labels"):
        unit_learner(quiet(oct_learner(some, "test_resnet", weights="none")), "patient")
