"""Learning from bags: whole units in a batch, folds held out, what decides is found, and a run at that level."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastcore.basics import noop
from torch import nn

from octfast.assess.compare import compare_runs
from octfast.assess.evaluate import evaluate_data, evaluate_run
from octfast.assess.interpret.interpret import interpret_run
from octfast.assess.predictions import held_out_predictions, run_predictions, scan_answers
from octfast.assess.report.report import write_report
from octfast.data.units import Units, units_of
from octfast.deploy.predictor import load
from octfast.errors import BundleError, DataError, UsageError
from octfast.model.bundle.info import INFO_FILE, MODEL_FILE, parse_info
from octfast.model.bundle.read import load_bundle, read_info
from octfast.model.bundle.show import describe_bundle
from octfast.model.heads import pooled_head
from octfast.model.pooling import POOLINGS, BagHead, pool, pooling_of
from octfast.model.units import predict_units
from octfast.run.folder import FOLD, open_run
from octfast.train.again.again import stored_features
from octfast.train.config import TrainConfig
from octfast.train.frozen.bags import BagHeads, BagLoader, units_a_batch
from octfast.train.frozen.folds import IGNORED
from octfast.train.job import train_classifier
from octfast.train.resume import repeat_training
from octfast.train.store.rows import Values
from tests.bags import bag_table
from tests.conftest import quick


def bags(sizes, labels="", seed=0) -> tuple[np.ndarray, Units]:
    """Features of eight numbers, and units of so many scans each, mixed."""
    rng = np.random.default_rng(seed)
    number = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    scans = pd.DataFrame({"path": "", "label": "A", "patient": number.astype(str), "split": "train"})
    return rng.normal(size=(len(number), 8)).astype(np.float32), units_of(scans, "patient")


def test_a_batch_holds_whole_units():
    x, units = bags([3, 1, 4, 2, 5])
    folds, y = np.array([0, 1, 0, 1, 2]), torch.tensor([0, 1, 0, 1, 0])
    loader = BagLoader(Values(x), units, y, folds, True, bs=2, device="cpu")
    seen = []
    for rows, unit, fold, targets in loader:
        for u in range(len(fold)):
            own = rows[unit == u].numpy()
            which = next(n for n in range(5) if (x[units.number == n][0] == own[0]).all())
            np.testing.assert_array_equal(own, x[units.number == which])
            assert fold[u] == folds[which]
            assert [int(t) for t in targets[u]] == [IGNORED if k == folds[which] else int(y[which]) for k in range(4)]
            seen.append(which)
    assert sorted(seen) == list(range(5))
    of_folds = next(iter(BagLoader(Values(x), units, y, folds, False, bs=5, device="cpu")))[3]
    assert (of_folds != IGNORED).sum(1).tolist() == [1] * 5


def test_a_head_learns_as_it_would_alone_from_the_units_outside_of_its_fold():
    torch.manual_seed(0)
    x, units = bags([3, 2, 4, 2, 3, 1])
    fold, y = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 2, 2, 1, 0])
    head = BagHead(nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3)))
    nn.init.normal_(head.attention.score.weight)
    head.attention.drop.p = 0
    model, unit = BagHeads(nn.Identity(), head, 3).train(), torch.tensor(units.number)
    targets = torch.where(fold[:, None] == torch.arange(4), IGNORED, y[:, None])
    rows = torch.tensor(x)
    nn.functional.cross_entropy(model(rows, unit, fold).flatten(0, 1), targets.flatten()).backward()
    for k, trained in enumerate(model.heads):
        alone = BagHead(nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3)))
        alone.load_state_dict({n: v for n, v in head.state_dict().items() if "running" not in n}, strict=False)
        alone.attention.drop.p = 0
        outside = fold != k
        own = outside[unit]
        logits, _ = pool(alone(rows[own]), unit[own], 6, pooling_of())
        nn.functional.cross_entropy(logits[outside], y[outside]).backward()
        share = 4 * int(outside.sum()) / (3 * 4 + 6)
        for mine, its in zip(trained.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, its.grad * share, rtol=1e-3, atol=1e-6)


def test_it_finds_the_one_scan_that_decides():
    rng = np.random.default_rng(1)
    n, size = 120, 9
    x = rng.normal(size=(n, size, 8)).astype(np.float32)
    y, which = np.arange(n) % 3, rng.integers(0, size, n)
    # A scan of a class is told by one of the first two numbers; those of the third class have none of them.
    for unit in np.flatnonzero(y < 2):
        x[unit, which[unit], y[unit]] += 6
    units = Units("volume", np.repeat(np.arange(n), size), pd.DataFrame({"scans": [size] * n}))
    folds, targets = np.arange(n) % 4, torch.tensor(y)
    torch.manual_seed(0)
    model = BagHeads(nn.Identity(), BagHead(pooled_head("linear", 8, 3)), 4)
    given = (Values(x.reshape(-1, 8)), units, targets, folds)
    loaders = [
        BagLoader(*given, True, bs=4, shuffle=True, drop_last=True, device="cpu"),
        BagLoader(*given, False, bs=16, device="cpu"),
    ]
    learn = Learner(DataLoaders(*loaders, device="cpu"), model, CrossEntropyLossFlat(), wd=0.01)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(20, 1e-2)
        outputs, _ = learn.get_preds(act=noop)
    held_out = outputs[torch.arange(n), torch.tensor(folds)].argmax(1).numpy()
    assert (held_out == y).mean() > 0.9
    scans = model.of_scans(given[0], folds[units.number])
    attention = pool(torch.tensor(scans), torch.tensor(units.number), n, pooling_of())[1].reshape(n, size)
    ill = y < 2
    assert (attention.argmax(1).numpy()[ill] == which[ill]).mean() > 0.9
    np.testing.assert_allclose(
        pool(torch.tensor(scans), torch.tensor(units.number), n, pooling_of())[0],
        outputs[torch.arange(n), torch.tensor(folds)],
        atol=1e-4,
    )


def test_units_a_batch_are_few_where_they_are_large():
    assert units_a_batch(2500, 100) == 2 and units_a_batch(2000, 1000) == 16 and units_a_batch(40, 20) == 2


@pytest.fixture(scope="module")
def table(phantoms, tmp_path_factory):
    return bag_table(phantoms, tmp_path_factory.mktemp("table") / "scans.csv")


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    """A run that answers for volumes. Nobody writes into it."""
    out = tmp_path_factory.mktemp("bags") / "run"
    return train_classifier(**quick(table, views=1, folds=2, epochs=2, level="volume", out=str(out)))


def test_every_unit_is_judged_by_a_head_that_never_saw_its_patient(run):
    table, info = held_out_predictions(run, temperature=1.0)
    scans = run.scans.query("split != 'test'")
    assert info.level == "volume" and info.pooling == {"kind": "attention", "hidden": 64}
    assert sorted(table["volume"]) == sorted(scans["volume"].unique()) and table["scans"].sum() == len(scans)
    assert set(table[FOLD]) == {0, 1}
    best = run.history.loc[run.history["valid_loss"].idxmin()]
    assert table["loss"].mean() == pytest.approx(best["valid_loss"], rel=1e-4)
    each = pd.concat([scan_answers(run, split) for split in ("train", "valid")], ignore_index=True)
    assert sorted(each["path"]) == sorted(scans["path"])
    np.testing.assert_allclose(each.groupby("volume")["attention"].sum(), 1, atol=1e-6)
    # A unit is shown by the scan that counts most.
    most = each.loc[each.groupby("volume")["attention"].idxmax()].set_index("volume")["path"]
    assert table["path"].tolist() == most.loc[table["volume"]].tolist()
    assert run.config["level"] == "volume" and run.config["chosen"]["folds"] == 2


def test_the_bundle_answers_as_the_training_did(run):
    model, info = load_bundle(run.bundle, units=True)
    assert json.loads((run.bundle / INFO_FILE).read_text())["version"] == 4
    scans = run.scans.query("split == 'test'")
    found, _ = predict_units(model, info, scans, precision="fp32")
    kept, _ = run_predictions(run, "test")
    np.testing.assert_allclose(found["loss"], kept["loss"], atol=1e-5)
    predictor = load(run.path, precision="fp32")
    first = kept.iloc[0]
    own = scans[scans["volume"] == first["volume"]]["path"].tolist()
    answer = predictor.answer_unit([*own, "nowhere.png"])
    np.testing.assert_allclose(answer.probabilities, [first[f"p_{c}"] for c in info.classes], atol=1e-5)
    assert own[int(answer.attention.argmax())] == first["path"] and answer.attention[-1] == 0
    assert answer.scans[-1].error is not None and answer.attention.sum() == pytest.approx(1)


def test_lost_predictions_of_test_are_made_again(run, tmp_path):
    own = open_run(shutil.copytree(run.path, tmp_path / "own"))
    own.predictions_file("test").unlink()
    own.scan_answers_file("test").unlink()
    table, _ = run_predictions(own, "test")
    np.testing.assert_allclose(table["loss"], run_predictions(run, "test")[0]["loss"], atol=1e-4)
    assert len(scan_answers(own, "test")) == 16


def test_figures_count_units(run, table, tmp_path):
    found = evaluate_run(run, "test", resamples=100)
    units = run.scans.query("split == 'test'")["volume"].nunique()
    assert found.counts["scans"] == units and found.source["level"] == "volume"
    assert any("answers for whole volumes" in note for note in found.notes)
    again = evaluate_data(run, table, tmp_path / "out", "test", resamples=100)
    assert again.value("nll") == pytest.approx(found.value("nll"), rel=1e-3)
    assert (tmp_path / "out" / "predictions-test-scans.csv").is_file()


def test_the_report_and_interpret_show_the_scans_that_counted(run, tmp_path):
    own = open_run(shutil.copytree(run.path, tmp_path / "own"))
    table = pd.read_csv(own.predictions_file("test"))
    urgent = table.loc[table["label"] != table["predicted"], "label"].iloc[:1].tolist()
    missed = table[table["label"].isin(urgent) & ~table["predicted"].isin(urgent)]
    found = interpret_run(own, "test", 2, heatmaps=False, urgent=urgent)
    listed = pd.read_csv(own.path / "missed-units-test.csv")
    assert sorted(listed["volume"].unique()) == sorted(missed["volume"]) and listed["rank"].max() <= 3
    assert found.figures["missed_units"].is_file()
    page = write_report(own, "test", heatmaps=False, resamples=100, urgent=urgent).read_text()
    assert "answers for whole volumes" in page and f"{len(missed)} urgent volume" in page
    assert all(Path(p).name in page for p in listed["path"])


def test_runs_of_different_levels_are_not_compared(run, trained):
    with pytest.raises(DataError, match="answers for a"):
        compare_runs([run, trained], "test", resamples=100)
    same = compare_runs([run, run], "test", resamples=100)
    assert (same.differences["difference"].dropna() == 0).all()


def test_no_door_answers_for_single_scans(run, table, tmp_path):
    scan = run.scans["path"].iloc[0]
    predictor = load(run.path)
    for ask in (lambda: predictor.predict([scan]), lambda: predictor.probabilities([scan]), predictor.to_learner):
        with pytest.raises(UsageError, match="whole volume"):
            ask()
    for ask in (lambda: load_bundle(run.bundle), lambda: stored_features(run)):
        with pytest.raises(BundleError, match="whole volume"):
            ask()


def test_a_table_that_is_not_of_units_is_refused(run, tmp_path):
    own = open_run(shutil.copytree(run.path, tmp_path / "own"))
    file = own.predictions_file("test")
    table = pd.read_csv(file)
    table.drop(columns="scans").to_csv(file, index=False)
    with pytest.raises(BundleError, match="not a table of volumes"):
        run_predictions(own, "test")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"level": "organ"}, "level"),
        ({"level": "scan"}, "pooling"),
        ({"pooling": None}, "pooling"),
        ({"pooling": {"kind": "attention"}}, "pooling"),
        ({"pooling": {"kind": "mean", "hidden": 64}}, "pooling"),
        ({"pooling": {"kind": "attention", "hidden": 0}}, "pooling"),
        ({"pooling": {"kind": "attention", "hidden": True}}, "pooling"),
        ({"pooling": {"kind": "attention", "hidden": 10**6}}, "pooling"),
        ({"pooling": {"kind": "median"}}, "pooling"),
        ({"pooling": {"kind": ["max"]}}, "pooling"),
        ({"pooling": {"kind": "max", "k": 1}}, "pooling"),
        ({"pooling": {"kind": "topk"}}, "pooling"),
        ({"pooling": {"kind": "topk", "k": 0}}, "pooling"),
        ({"pooling": {"kind": "topk", "k": True}}, "pooling"),
        ({"version": 3}, "unknown"),
    ],
)
def test_a_bundle_that_does_not_say_how_it_pools_is_refused(run, changes, message):
    raw = json.loads((run.bundle / INFO_FILE).read_text()) | changes
    with pytest.raises(BundleError, match=message):
        parse_info(json.dumps(raw).encode(), INFO_FILE)


def test_tensors_of_another_pooling_are_refused(run, tmp_path):
    folder = shutil.copytree(run.bundle, tmp_path / "model")
    raw = json.loads((folder / INFO_FILE).read_text())
    raw["pooling"]["hidden"] = 32
    (folder / INFO_FILE).write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="attention"):
        load_bundle(folder, units=True)


def test_tensors_of_attention_are_refused_where_none_is_meant(run, tmp_path):
    folder = shutil.copytree(run.bundle, tmp_path / "model")
    raw = json.loads((folder / INFO_FILE).read_text()) | {"version": 5, "pooling": {"kind": "mean"}}
    (folder / INFO_FILE).write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="attention"):
        load_bundle(folder, units=True)


@pytest.mark.parametrize("kind", ["mean", "max", "topk"])
def test_another_pooling_is_kept_and_answers_as_the_training_did(table, tmp_path, kind):
    given = {"pooling": kind, **({"top_k": 2} if kind == "topk" else {})}
    out = tmp_path / "run"
    made = train_classifier(**quick(table, views=1, folds=2, epochs=1, level="volume", out=str(out), **given))
    raw = json.loads((made.bundle / INFO_FILE).read_text())
    assert raw["version"] == 5 and raw["pooling"] == {"kind": kind, **({"k": 2} if kind == "topk" else {})}
    assert describe_bundle(made.bundle).to_dict()["pooling"] == raw["pooling"]
    kept, info = run_predictions(made, "test")
    each = scan_answers(made, "test").groupby("volume")["attention"]
    share = {"mean": 1 / each.size(), "max": 1.0, "topk": 1 / each.size().clip(upper=2)}[kind]
    np.testing.assert_allclose(each.max() - share, 0, atol=1e-6)
    np.testing.assert_allclose(each.sum(), 1, atol=1e-6)
    first = kept.iloc[0]
    own = made.scans.loc[made.scans["volume"] == first["volume"], "path"].tolist()
    answer = load(made.path, precision="fp32").answer_unit(own)
    np.testing.assert_allclose(answer.probabilities, [first[f"p_{c}"] for c in info.classes], atol=1e-5)
    assert own[int(answer.attention.argmax())] == first["path"]
    again = repeat_training(made.path, out=str(tmp_path / "again"))
    assert again.config["pooling"] == kind
    assert (again.bundle / MODEL_FILE).read_bytes() == (made.bundle / MODEL_FILE).read_bytes()


@pytest.mark.parametrize(
    "given", [{"level": "scan", "pooling": "max"}, {"top_k": 3}, {"level": "eye", "pooling": "max", "top_k": 3}]
)
def test_a_pooling_of_nothing_is_refused_before_anything_is_read(given):
    with pytest.raises(UsageError, match="--pooling"):
        TrainConfig(**given)


def test_a_pooling_is_refused_where_labels_are_those_of_scans(phantoms, tmp_path):
    with pytest.raises(UsageError, match="each of these scans has its own answer"):
        train_classifier(**quick(phantoms, views=1, pooling="mean", out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_the_options_name_every_pooling():
    assert TrainConfig.__dataclass_fields__["pooling"].metadata["choices"] == POOLINGS


def test_a_bundle_of_scans_stays_one_that_older_versions_read(trained):
    raw = json.loads((trained.bundle / INFO_FILE).read_text())
    assert raw["version"] == 2 and not {"level", "pooling"} & set(raw)
    assert read_info(trained.bundle).level == "scan"


@pytest.mark.parametrize("given", [{"unfreeze": "all"}, {"views": 0}, {"folds": 0}, {"balance": "sample"}])
def test_what_does_not_go_with_units_is_refused_before_anything_is_read(given):
    with pytest.raises(UsageError, match="--level volume does not go with"):
        replace(TrainConfig(level="volume"), **given)


def test_units_without_folds_are_refused(table, tmp_path):
    few = pd.read_csv(table).query("split == 'train'")
    few = few[~few["label"].eq("CNV") | few["patient"].isin(few.loc[few["label"].eq("CNV"), "patient"].unique()[:1])]
    few.to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(DataError, match="without folds"):
        train_classifier(**quick(tmp_path / "few.csv", views=1, folds=2, level="volume", out=str(tmp_path / "run")))
