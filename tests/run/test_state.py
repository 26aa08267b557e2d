"""A run that has not come to its end is known by its state, and every command says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import octfast.run.state as state_module
import octfast.train.outcome.outcome as outcome
from octfast.errors import BundleError, OctfastError, UsageError
from octfast.launcher import ended_by_signals
from octfast.model.bundle.read import find_bundle
from octfast.model.bundle.state import LOCK, is_live, resume_command
from octfast.run.folder import latest_run, new_run, open_run
from octfast.run.state import held, training_state
from octfast.train.job import train_classifier
from octfast.train.resume import resume_training
from tests.conftest import quick


def set_state(run, state: str | None) -> Path:
    file = run.path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("state")
    file.write_text(json.dumps({**config, **({} if state is None else {"state": state})}), encoding="utf-8")
    return run.path


def state(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["state"]


def test_a_whole_training_is_finished(trained):
    assert state(trained.path) == "finished" and open_run(trained.path).path == trained.path


@pytest.mark.parametrize("word", [None, "finished", "of a later version", 7])
def test_a_run_from_before_there_were_states_is_finished(own_run, word):
    folder = set_state(own_run, word)
    assert open_run(folder).path == folder and find_bundle(folder) == folder / "model"


@pytest.mark.parametrize(("word", "why"), [("running", "killed"), ("stopped", "was stopped"), ("failed", "failed")])
def test_an_unfinished_run_is_refused_in_one_sentence(own_run, word, why):
    folder = set_state(own_run, word)
    for open_ in (open_run, find_bundle, lambda run: find_bundle(run / "model")):
        with pytest.raises(BundleError, match=f"unfinished run: its training .*{why}") as e:
            open_(folder)
        assert str(folder) in e.value.message and resume_command(folder) in e.value.hint


def test_a_run_that_is_still_trained_is_told_from_one_that_was_killed(own_run, monkeypatch):
    monkeypatch.setattr(state_module, "WAIT_SECONDS", 0.1)
    folder = set_state(own_run, "running")
    with held(own_run):
        assert is_live(folder)
        with pytest.raises(BundleError, match="still under way"):
            open_run(folder)
        with pytest.raises(UsageError, match="is being trained by another process"):
            resume_training(folder)
    assert not is_live(folder) and not (folder / LOCK).exists()
    with pytest.raises(BundleError, match="was killed"):
        open_run(folder)


def test_the_command_that_goes_on_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resume_command(tmp_path / "runs" / "first") == "octfast train --resume runs/first"
    assert resume_command(tmp_path / "my runs" / "x") == "octfast train --resume 'my runs/x'"
    assert resume_command("/elsewhere/x") == "octfast train --resume /elsewhere/x"


@pytest.mark.parametrize(
    "words",
    [
        *("interpret RUN", "evaluate RUN", "evaluate RUN DATA", "calibrate RUN", "report RUN", "show RUN SCAN"),
        *("predict RUN SCAN", "export RUN --out x.onnx", "compare RUN RUN", "model show RUN", "app RUN"),
        *("model slim RUN --out slim", "predict RUN/model SCAN", "evaluate RUN/model DATA"),
    ],
)
def test_every_command_says_that_a_run_is_unfinished(own_run, phantoms, octfast, words):
    if "export" in words:
        pytest.importorskip("onnxscript")
    folder = set_state(own_run, "running")
    given = {"DATA": str(phantoms), "SCAN": own_run.scans["path"].iloc[-1]}
    said = octfast(*[given.get(w, w.replace("RUN", str(folder))) for w in words.split()])
    assert said.code == 1 and "unfinished run" in said.err and not said.out
    assert len([line for line in said.lines if line.startswith(("error: ", "what to do: "))]) == 2


def test_what_ends_a_training_is_in_its_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n, (raised, ended) in enumerate(
        [(KeyboardInterrupt(), "stopped"), (SystemExit(), "stopped"), (OctfastError("no room"), "failed")]
    ):
        run = new_run(f"runs/{n}", "x")
        with pytest.raises(type(raised)), training_state(run, {"data": {"root": "/data"}}):
            assert state(run.path) == "running"
            raise raised
        assert state(run.path) == ended
    assert run.config["failure"] == "no room"


SIGTERM = """
import logging, os, signal
from octfast.run.folder import new_run
from octfast.run.state import training_state

logging.basicConfig(level=logging.INFO, format="%(message)s")
run, before = new_run("runs/a", "x"), signal.getsignal(signal.SIGTERM)
try:
    with training_state(run, {"data": {"root": "/data"}}):
        (run.path / "history.csv").write_text("epoch\\n1\\n2\\n")
        os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.SIGTERM) == before)
"""


def test_sigterm_stops_a_training_as_ctrl_c_does(tmp_path):
    done = subprocess.run([sys.executable, "-c", SIGTERM], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "interrupted True\n", done.stderr
    assert state(tmp_path / "runs" / "a") == "stopped"
    assert any(
        "2 epochs are kept" in line and "octfast train --resume runs/a" in line for line in done.stderr.splitlines()
    )


def test_a_training_cut_off_before_it_is_calibrated_looks_unfinished(phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = train_classifier(**quick(phantoms, epochs=1, out="runs/first"))

    def cut_off(bundle, table):
        # What a kill at this moment would leave.
        assert (bundle / "model.safetensors").exists() and state(bundle.parent) == "running"
        assert latest_run() == first.path
        raise KeyboardInterrupt

    monkeypatch.setattr(outcome, "calibrate_bundle", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(**quick(phantoms, epochs=1, out="runs/second"))
    assert latest_run() == first.path and open_run().path == first.path
    with pytest.raises(BundleError, match="unfinished run"):
        open_run("runs/second")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_where_python_drops_what_is_raised_ends_the_work_all_the_same(monkeypatch, number):
    """As when it comes while an object is deleted, or while a process that decodes is started."""

    class Deleted:
        def __del__(self):
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    printed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt), ended_by_signals() as asked:
            Deleted()
            assert len(asked) == 1
            time.sleep(20)
    finally:
        signal.signal(signal.SIGINT, before)
    assert asked == [number] * 2 and printed == []
