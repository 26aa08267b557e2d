"""A run's curves, options and figures as TensorBoard, MLflow and Weights & Biases read them; nothing of a patient's."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

import octfast.train.tracker as tracker
from octfast.errors import UsageError
from octfast.train.callbacks import History
from octfast.train.job import train_classifier
from octfast.train.resume import resume_training
from tests.conftest import quick
from tests.train.test_resume import Killed, cut  # noqa: F401

RECIPES = {
    "folds": {"views": 1, "folds": 2},
    "stock": {"views": 0},
    "all": {"unfreeze": "all", "epochs": 1},
    "block5": {"unfreeze": "block5", "arch": "resnet18", "views": 1, "folds": 2},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def tensorboard_curves(folder) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    assert not found.Tags()["images"] and not found.Tags()["graph"]
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def mlflow_curves(folder) -> dict[str, list[tuple[int, float]]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{(folder / 'mlflow.db').as_posix()}")
    (run,) = client.search_runs([client.get_experiment_by_name("octfast").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["arch"] == "test_resnet"
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(m.step, m.value) for m in each] for name, each in history.items()}


def wandb_records(file):
    """The records of a .wandb file: 7 bytes, then blocks of 32 KB of pieces with checksum, length and kind each."""
    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        if not kind:
            return
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def wandb_curves(file) -> dict[str, list[tuple[int, float]]]:
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list[tuple[int, float]]] = {}
    for data in wandb_records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        for name, value in items.items():
            if not name.startswith("_"):
                found.setdefault(name, []).append((int(items["_step"]), value))
        for item in record.summary.update:
            name = item.key or "/".join(item.nested_key)
            if "/" in name:
                found[name] = [(0, json.loads(item.value_json))]
    return found


def as_history(run) -> dict[str, list[tuple[int, float]]]:
    table = run.history
    return {c: list(zip(table["epoch"], table[c], strict=True)) for c in ("train_loss", "valid_loss", "accuracy", "lr")}


def check_curves(curves, run) -> None:
    for name, wanted in as_history(run).items():
        assert [step for step, _ in curves[name]] == [step for step, _ in wanted]
        assert [value for _, value in curves[name]] == pytest.approx([value for _, value in wanted], rel=1e-5)
    figures = json.loads((run.path / "metrics-test.json").read_text())
    assert curves["test/accuracy"][-1][1] == pytest.approx(figures["accuracy"], rel=1e-5)


def check_private(run) -> None:
    """Neither patients nor where scans lie stand in anything that a tracker wrote."""
    written = b"".join(p.read_bytes() for p in (run.path / "tracker").rglob("*") if p.is_file() and p.suffix != ".log")
    names = {str(p) for p in run.scans["path"]} | {Path(p).name for p in run.scans["path"]} | {str(run.root)}
    assert written and not [name for name in names if name.encode() in written]


@pytest.mark.parametrize("recipe", RECIPES)
def test_tensorboard_shows_the_curves_of_every_kind_of_training(phantoms, recipe):
    pytest.importorskip("tensorboard")
    run = train_classifier(**quick(phantoms, **RECIPES[recipe]), tracker="tensorboard", out="runs/r")
    check_curves(tensorboard_curves(run.path / "tracker"), run)
    check_private(run)
    assert run.config["curves"] == {"where": "tracker", "look": "tensorboard --logdir runs"}


def cut_and_resumed(phantoms, cut, tracker):  # noqa: F811
    """A training of three epochs that was cut off in the second, and went on."""
    mend = cut(History, "keep", 2)
    with pytest.raises(Killed):
        train_classifier(**quick(phantoms, epochs=3), tracker=tracker, out="runs/r")
    mend()
    return resume_training("runs/r")


def test_a_training_that_goes_on_goes_on_in_the_same_curves(phantoms, cut):  # noqa: F811
    pytest.importorskip("tensorboard")
    run = cut_and_resumed(phantoms, cut, "tensorboard")
    check_curves(tensorboard_curves(run.path / "tracker"), run)


def test_mlflow_keeps_a_run_in_the_run_folder_and_goes_on_with_it(phantoms, cut):  # noqa: F811
    pytest.importorskip("mlflow")
    run = cut_and_resumed(phantoms, cut, "mlflow")
    check_curves(mlflow_curves(run.path / "tracker"), run)
    check_private(run)
    assert [p.name for p in Path().iterdir()] == ["runs"]


def test_wandb_is_offline_and_begins_another_run_with_all_epochs(phantoms, cut, said):  # noqa: F811
    pytest.importorskip("wandb")
    run = cut_and_resumed(phantoms, cut, "wandb")
    before, after = sorted((run.path / "tracker").rglob("*.wandb"), key=lambda f: f.stat().st_mtime_ns)
    assert len(wandb_curves(before)["valid_loss"]) == 1
    check_curves(wandb_curves(after), run)
    check_private(run)
    assert any("a new run holds all epochs" in line for line in said())
    assert "wandb sync runs" in run.config["curves"]["look"]


def test_a_package_that_fails_costs_its_curves_alone(phantoms, monkeypatch, said):
    pytest.importorskip("tensorboard")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracker._TensorBoard, "numbers", full)
    run = train_classifier(**quick(phantoms), tracker="tensorboard", out="runs/r")
    assert len(run.history) == 2
    assert any("no more curves for TensorBoard (OSError: [Errno 28]" in n.text for n in run.notes)


def test_a_package_that_is_missing_is_named(phantoms, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(tracker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--tracker wandb needs wandb") as e:
        train_classifier(**quick(phantoms), tracker="wandb", out="runs/r")
    assert e.value.hint == "pip install 'octfast[wandb]'" and not Path("runs").exists()


def test_offline_means_offline(phantoms, monkeypatch, said):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")  # tests are run with OCTFAST_OFFLINE=1
    run = train_classifier(**quick(phantoms, views=1), tracker="wandb", out="runs/r")
    assert any("OCTFAST_OFFLINE is set" in line for line in said())
    assert list((run.path / "tracker" / "wandb").glob("offline-run-*"))
