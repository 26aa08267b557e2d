"""A training that was cut off goes on to the same result as one that was not."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import octfast.train.block.trainings as trainings
import octfast.train.checkpoint as checkpoint
import octfast.train.outcome.outcome as outcome
import octfast.train.store.files as store_files
from octfast.data.readers.folder import read_scans
from octfast.errors import BundleError, DataError, OctfastError, UsageError
from octfast.model.bundle.state import is_live, resume_command, state_of
from octfast.run.folder import latest_run, open_run
from octfast.train.callbacks import History, SaveBest, TrainBar
from octfast.train.job import train_classifier
from octfast.train.resume import newest_unfinished, repeat_training, resume_training
from tests.conftest import quick
from tests.test_disk import files_up_to

RECIPES = {
    "default": {"views": 1, "folds": 3, "lr": None},
    "views": {"views": 2, "head": "fastai"},
    "stock": {"views": 0, "balance": "sample"},
    "all": {"unfreeze": "all", "epochs": 2},
    "block5": {"unfreeze": "block5", "arch": "resnet18", "views": 1, "epochs": 4},
    "patients": {"views": 1, "folds": 2, "epochs": 2, "level": "patient"},
    "patients, topk": {"views": 1, "folds": 2, "epochs": 2, "level": "patient", "pooling": "topk", "top_k": 2},
    "block5, folds": {"unfreeze": "block5", "arch": "resnet18", "views": 1, "epochs": 4, "folds": 3},
}


class Killed(BaseException):
    """What ends a training here at a chosen moment."""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cut(monkeypatch):
    """Let a function end a training as it is called for the nth time, or has then done its work."""

    def arrange(owner, name: str, nth: int = 1, after: bool = False):
        real, calls = getattr(owner, name), []

        def cutting(*args, **kwargs):
            calls.append(name)
            if len(calls) == nth and not after:
                raise Killed
            given = real(*args, **kwargs)
            if len(calls) == nth:
                raise Killed
            return given

        monkeypatch.setattr(owner, name, cutting)
        return lambda: monkeypatch.setattr(owner, name, real)

    return arrange


MOMENTS = {
    "in the first epoch": (History, "keep", 1, False),
    "before the second is kept": (History, "keep", 2, True),
    "before its best weights are": (SaveBest, "_write", 2, False),
    "after them": (SaveBest, "_write", 2, True),
    "after the training": (outcome, "calibrate_bundle", 1, True),
    "in the second fold": (trainings, "logits", 2, False),
    "at the end": (outcome, "headline", 1, False),
}


CUTS = [("default", moment) for moment in MOMENTS if "fold" not in moment] + [
    *(
        ("views", "before the second is kept"),
        ("stock", "in the first epoch"),
        ("stock", "before its best weights are"),
    ),
    *(("all", "in the first epoch"), ("all", "before the second is kept"), ("all", "after them")),
    *(("block5", "before the second is kept"), ("block5", "after the training")),
    ("patients", "before the second is kept"),
    ("patients, topk", "before the second is kept"),
    *(("block5, folds", "in the second fold"), ("block5, folds", "before the second is kept")),
]


def left_by(run: Path) -> dict[str, bytes]:
    """What a training leaves, but for what says when, where and how often: figures, config.json, log.txt."""
    found = {p.relative_to(run).as_posix(): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    rows = found["history.csv"].decode().splitlines()
    found["history.csv"] = "\n".join(row.rpartition(",")[0] for row in rows).encode()
    apart = [name for name in found if name in ("config.json", "log.txt") or name.endswith(".png")]
    return {**found, **dict.fromkeys(apart, b"")}


def options(phantoms: Path, recipe: str, out: Path | str) -> dict:
    return quick(phantoms, **{"out": str(out), "epochs": 3, **RECIPES[recipe]})


@pytest.fixture(scope="module")
def whole(phantoms, tmp_path_factory):
    """A training of each recipe that nothing ends, made once."""
    made: dict[str, dict[str, bytes]] = {}

    def of(recipe: str) -> dict[str, bytes]:
        if recipe not in made:
            run = train_classifier(**options(phantoms, recipe, tmp_path_factory.mktemp(recipe) / "run"))
            made[recipe] = left_by(run.path)
        return made[recipe]

    return of


@pytest.mark.parametrize(("recipe", "moment"), CUTS)
def test_a_training_that_was_cut_off_ends_as_one_that_was_not(phantoms, whole, cut, recipe, moment):
    expected = whole(recipe)
    mend = cut(*MOMENTS[moment])
    with pytest.raises(Killed):
        train_classifier(**options(phantoms, recipe, "runs/r"))
    mend()
    run = resume_training("runs/r")
    assert left_by(run.path) == expected
    assert run.config["state"] == "finished" and latest_run() == run.path and len(run.config["resumed"]) == 1


def test_features_that_were_stored_are_not_computed_again(phantoms, whole, cut, tmp_path, said):
    mend = cut(store_files.BlockWriter, "put", 2, True)
    with pytest.raises(Killed):
        train_classifier(**options(phantoms, "default", "runs/r"), cache=str(tmp_path / "cache"))
    mend()
    run = resume_training("runs/r")
    assert any("resuming the store: 32 of 42 scans are there" in line for line in said())
    assert left_by(run.path) == whole("default")


def test_a_damaged_checkpoint_is_said_and_the_training_starts_again(phantoms, whole, cut):
    mend = cut(History, "keep", 3, True)
    with pytest.raises(Killed):
        train_classifier(**options(phantoms, "default", "runs/r"))
    mend()
    file = Path("runs/r/checkpoints") / checkpoint.FILE
    file.write_bytes(file.read_bytes()[:-100])
    run = resume_training("runs/r")
    assert left_by(run.path) == whole("default")
    assert any("starts again from its first epoch" in note.text for note in run.notes)


def test_columns_of_a_table_are_written_as_they_were_read(phantoms, cut):
    scans = read_scans(phantoms)
    scans = scans.assign(code=[f"{i:03d}" for i in range(len(scans))], age=[i if i % 3 else None for i in scans.index])
    scans.assign(eye="", share=scans["age"] / 10).drop(columns="split").to_csv("t.csv", index=False)
    fields = quick("t.csv", views=1)
    expected = train_classifier(**fields, out="runs/whole")
    mend = cut(History, "keep", 2)
    with pytest.raises(Killed):
        train_classifier(**fields, out="runs/r")
    mend()
    assert left_by(resume_training("runs/r").path) == left_by(expected.path)


def test_early_stopping_counts_on(phantoms, cut):
    fields = quick(phantoms, views=1, epochs=30, patience=4, lr=0.5)
    expected = train_classifier(**fields, out="runs/whole")
    rows = len(expected.history)
    assert 3 < rows < 30
    for name, nth in (("a", rows - 1), ("b", rows)):
        mend = cut(SaveBest, "after_epoch", nth, True)
        with pytest.raises(Killed):
            train_classifier(**fields, out=f"runs/{name}")
        mend()
        assert left_by(resume_training(f"runs/{name}").path) == left_by(expected.path)


def test_what_cannot_go_on_is_refused(trained, phantoms, cut, tmp_path):
    with pytest.raises(UsageError, match="no unfinished run"):
        resume_training()
    with pytest.raises(BundleError, match="is not a run folder"):
        resume_training(tmp_path)
    with pytest.raises(UsageError, match="is finished: there is nothing to go on with"):
        resume_training(trained.path)
    mend = cut(History, "keep", 2)
    with pytest.raises(Killed):
        train_classifier(**options(phantoms, "default", "runs/r"))
    mend()
    assert newest_unfinished() == Path("runs/r") and state_of("runs/r") == "failed"
    with pytest.raises(UsageError, match=r"--bs 4: the training of runs/r began with its default") as e:
        resume_training(bs=4)
    assert "octfast train --config runs/r/config.json --bs 4" in e.value.hint
    assert resume_training(seed=0, data=str(phantoms)).path == (tmp_path / "runs/r")


def test_scans_that_changed_or_went_since_are_said(own_phantoms, cut):
    mend = cut(History, "keep", 2)
    with pytest.raises(Killed):
        train_classifier(**options(own_phantoms, "default", "runs/r"))
    mend()
    first, second, *_ = sorted((own_phantoms / "train" / "CNV").iterdir())
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match="files have other sizes"):
        resume_training("runs/r")
    first.write_bytes(kept)
    second.unlink()
    run = resume_training("runs/r")
    assert second.name not in {Path(p).name for p in run.scans["path"]} and len(run.history) == 3
    notes = [note.text for note in run.notes]
    assert any(second.name in text for text in notes) and any("starts again" in text for text in notes)


def test_a_training_is_made_again_byte_for_byte_and_what_differs_is_said(own_phantoms, said):
    first = train_classifier(**options(own_phantoms, "default", "runs/first"))
    again = repeat_training("runs/first/config.json")
    assert left_by(again.path) == left_by(first.path) and again.path != first.path
    assert any("history is the same" in line for line in said())
    assert not any("not as it was" in note.text for note in again.notes)
    file = first.path / "config.json"
    about = json.loads(file.read_text())
    about["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(about))
    gone = min((own_phantoms / "train" / "CNV").iterdir())
    gone.unlink()
    again = repeat_training(first.path, epochs=1)
    notes = " ".join(note.text for note in again.notes)
    assert "instead of 1.0" in notes and "--epochs 1 instead of 3" in notes
    assert f"1 are missing, such as train/CNV/{gone.name}" in notes


def test_a_process_that_decodes_and_is_killed_ends_the_training_in_words(phantoms, monkeypatch):
    real = TrainBar.after_batch

    def kill_in_the_second_epoch(bar):
        real(bar)
        for child in multiprocessing.active_children() if bar.learn.epoch == 1 else ():
            child.kill()

    fields = quick(phantoms, views=0, epochs=2)
    expected = train_classifier(**fields, out="runs/whole")
    monkeypatch.setattr(TrainBar, "after_batch", kill_in_the_second_epoch)
    with pytest.raises(OctfastError, match="a process that decodes scans was ended"):
        train_classifier(**{**fields, "workers": 1}, out="runs/r")
    monkeypatch.setattr(TrainBar, "after_batch", real)
    assert state_of("runs/r") == "failed"
    assert left_by(resume_training("runs/r", workers=0).path) == left_by(expected.path)


@pytest.mark.skipif(os.name == "nt", reason="there is no limit on the size of a file")
def test_a_training_goes_on_when_the_disk_has_room_again(phantoms, whole):
    with files_up_to(40_000), pytest.raises(OSError, match=r"last\.safetensors"):
        train_classifier(**options(phantoms, "stock", "runs/r"))
    assert state_of("runs/r") == "failed" and not list(Path("runs/r").rglob("*.part"))
    assert left_by(resume_training("runs/r").path) == whole("stock")


def test_pictures_that_are_all_alike_are_refused_before_anything_is_made(own_phantoms):
    for file in own_phantoms.rglob("*.jpeg"):
        Image.new("L", (64, 64), 100).save(file)
    with pytest.raises(DataError, match="are all alike"):
        train_classifier(**quick(own_phantoms, out="r"))
    assert not Path("r").exists()


def test_a_run_folder_that_is_removed_ends_the_training_and_names_no_way_on(phantoms, monkeypatch, said):
    real = History.keep

    def remove(history, row):
        real(history, row)
        shutil.rmtree("runs/r")

    monkeypatch.setattr(History, "keep", remove)
    with pytest.raises(FileNotFoundError):
        train_classifier(**quick(phantoms, views=0, out="runs/r"))
    assert not Path("runs/r").exists() and not any("--resume" in line for line in said())


def begin(words: list[object]) -> subprocess.Popen:
    """`octfast train` in a process of its own, once the first epoch of its run is kept."""
    command = [sys.executable, "-m", "octfast", "train", *map(str, words)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 300
    while not Path("r/checkpoints", checkpoint.FILE).exists() and time.monotonic() < until:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return process


def test_a_killed_and_a_terminated_process_leave_what_goes_on(phantoms, octfast):
    small = ["--arch", "test_resnet", "--size", 64, "--weights", "none", "--views", 0, "--epochs", 8, "--lr", 0.003]
    small += ["--valid", 0.25, "--precision", "fp32", "--workers", 1, phantoms]
    assert octfast("train", *small, "--out", "whole").code == 0
    process = begin([*small, "--out", "r"])
    assert is_live("r")
    process.kill()
    process.communicate(timeout=60)  # to the end of those that decode, which hold the pipes
    assert state_of("r") == "running"
    said = octfast("interpret", "r")
    assert said.code == 1 and "its training was killed" in said.err and resume_command("r") in said.err
    assert octfast("train", "--resume", "r", "--epochs", 9).code == 2
    said = octfast("train", "--resume", "r", "--json")
    assert said.code == 0 and json.loads(said.out)["run"] == str(Path("r").resolve())
    assert left_by(Path("r")) == left_by(Path("whole"))
    shutil.rmtree("r")
    process = begin([*small, "--out", "r"])
    # As a batch system ends a job: every process of it is told.
    os.killpg(process.pid, signal.SIGTERM)
    started = time.monotonic()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and time.monotonic() - started < 30
    assert "octfast train --resume r" in errors and "Traceback" not in errors
    assert state_of("r") == "stopped" and not Path("r/.lock").exists()
    assert octfast("train", "--resume", "r").code == 0 and open_run("r")
    assert left_by(Path("r")) == left_by(Path("whole"))
