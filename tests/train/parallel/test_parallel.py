"""Several processes that share the batches of a training come to what one process comes to."""

from __future__ import annotations

import json
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from octfast import processes
from octfast.data.phantom.draw import write_phantoms
from octfast.errors import UsageError
from octfast.train.config import TrainConfig
from octfast.train.parallel.beside import say_shared
from octfast.train.parallel.whole_batch import share
from octfast.train.resume import resume_training
from tests import parallel
from tests.test_processes import LAUNCHER, ROOT, environment

pytest.importorskip("accelerate")


def in_two(*words):
    command = [*LAUNCHER, str(ROOT / "tests" / "parallel.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of what one process trained, of what two did, and how the latter ended."""
    folder = tmp_path_factory.mktemp("parallel")
    data = write_phantoms(folder / "data", 96, size=64)
    two = folder / "two"
    two.mkdir()
    ended = in_two(data, two)
    parallel.train(data, folder / "one", "whole")
    return SimpleNamespace(one=folder / "one", two=two, ended=ended)


def kept(folder, kind, rank=0):
    with np.load(folder / f"{kind}-{rank}.npz") as found:
        return {name: found[name] for name in found.files}


def history(run):
    return pd.read_csv(run / "history.csv").drop(columns="seconds")


def test_the_gradients_of_a_step_are_those_of_one_process(done):
    """With augmentation, dropout, weights of classes and batch norms that learn, of batches that cannot be halved."""
    one = kept(done.one / "whole-seen", "gradients")
    for rank in (0, 1):
        two = kept(done.two / "whole-seen", "gradients", rank)
        largest = max(np.abs(g).max() for g in one.values())
        assert max(np.abs(one[name] - two[name]).max() for name in one) < 1e-5 * max(1, largest)


@pytest.mark.parametrize("name", ["whole", "sought", "stopped", "broken"])
def test_all_processes_end_with_the_same_weights(done, name):
    first, second = (kept(done.two / f"{name}-seen", "weights", rank) for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[k], second[k]) for k in first)


def test_two_processes_learn_what_one_does(done):
    one, two = (folder / "whole" for folder in (done.one, done.two))
    pd.testing.assert_frame_equal(history(one), history(two), rtol=1e-3)
    about = [json.loads((run / "config.json").read_text()) for run in (one, two)]
    assert [a["chosen"].get("processes") for a in about] == [None, 2]
    assert {**about[1]["chosen"], "processes": None} == {**about[0]["chosen"], "processes": None}
    assert any("2 processes" in note["text"] for note in about[1]["notes"])
    assert {f.name for f in one.iterdir()} == {f.name for f in two.iterdir()}


def test_validation_has_each_scan_once_and_in_order(done):
    run = done.two / "whole"
    scans, predictions = pd.read_csv(run / "scans.csv"), pd.read_csv(run / "predictions-valid.csv")
    valid = scans.loc[scans["split"] == "valid", "path"]
    assert len(valid) % 9 == 1
    assert list(predictions["path"]) == list(valid)
    kept = history(run)["accuracy"].iloc[-1] * len(valid)
    assert kept == pytest.approx(round(kept), abs=1e-4)


def test_process_0_ends_a_training_early_for_all(done):
    rows = len(history(done.two / "stopped"))
    assert 1 < rows < 9
    assert "stopped early" in (done.two / "stopped" / "log.txt").read_text()


def test_a_scan_that_another_process_cannot_read_is_left_out(done):
    assert len(pd.read_csv(done.two / "broken" / "left-out.csv")) == 1
    assert json.loads((done.two / "broken" / "config.json").read_text())["state"] == "finished"


def test_a_process_that_is_killed_ends_the_other_and_two_go_on_to_the_same_result(done):
    run = done.two / "died"
    assert done.ended.returncode != 0
    said = "process 1 of 2 (pid "
    assert said in done.ended.stderr and "go on with: octfast train --resume" in done.ended.stderr
    assert json.loads((run / "config.json").read_text())["state"] == "stopped"
    assert len(history(run)) == 2
    alone = done.two / "alone"
    shutil.copytree(run, alone)
    went_on = in_two("--resume", run)
    assert went_on.returncode == 0, went_on.stderr
    pd.testing.assert_frame_equal(history(run), history(done.two / "whole"))
    resume_training(alone)
    pd.testing.assert_frame_equal(history(alone), history(done.two / "whole"), rtol=1e-3)


def test_a_batch_of_fewer_scans_than_processes_is_refused(monkeypatch):
    monkeypatch.setattr(processes, "_current", SimpleNamespace(rank=0, size=4))
    with pytest.raises(UsageError) as said:
        say_shared(TrainConfig(unfreeze="all"), 3)
    assert "3 scans cannot be shared by 4 processes" in said.value.message


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_make_up_the_batch(size):
    for count in range(12):
        assert [share(count, rank, size) for rank in range(size)] == [
            len(range(count)[rank::size]) for rank in range(size)
        ]
