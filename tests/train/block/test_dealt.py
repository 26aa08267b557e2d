"""Folds of the last block that several processes train are those of one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch

from octfast.errors import OctfastError
from octfast.train.checkpoint import read_state
from octfast.train.resume import resume_training
from octfast.train.store.files import StoreSpec
from octfast.train.store.store import address_of, open_at, open_store
from tests import folds
from tests.test_processes import LAUNCHER, ROOT, environment


@pytest.fixture
def one_thread():
    """Threads of one process, as a launcher gives them, since sums of more differ by rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def left_by(run: Path) -> dict[str, object]:
    """Model, answers, metrics and history, but for the seconds."""
    files = [*run.glob("predictions-*.csv"), *run.glob("metrics-*.json"), *run.glob("model/*")]
    found: dict[str, object] = {p.relative_to(run).as_posix(): p.read_bytes() for p in files}
    assert {"model/model.safetensors", "predictions-train.csv", "metrics-folds.json"} <= set(found)
    return {**found, "history": pd.read_csv(run / "history.csv").drop(columns="seconds").to_csv()}


def said_by(run: Path) -> tuple[dict, str]:
    return json.loads((run / "config.json").read_text()), (run / "log.txt").read_text()


def test_two_processes_leave_what_one_does(phantoms, tmp_path, one_thread):
    """To the end, on from a cut, where one of them has not the store, and when one has died."""
    one, two = tmp_path / "one", tmp_path / "two"
    for each in (one, two):
        each.mkdir()
    folds.train(phantoms, one, "run")
    expected = left_by(one / "run")
    command = [*LAUNCHER, str(ROOT / "tests" / "folds.py"), str(phantoms), str(two)]
    env = {**environment(), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)

    assert left_by(two / "two") == expected
    assert {f.read_text() for f in two.glob("two-fold-*")} == {"0", "1"}
    _, log = said_by(two / "two")
    assert "3 trainings beside the model's own, in 2 processes" in log
    assert 0 < log.index("fold 1 of 3: ") < log.index("fold 2 of 3: ") < log.index("fold 3 of 3: ")

    assert left_by(two / "cut") == expected
    assert said_by(two / "cut")[0]["resumed"] == [1]

    assert left_by(two / "apart") == expected
    assert [f.read_text() for f in two.glob("apart-fold-*")] == ["0", "0", "0"]
    (said,) = [n["text"] for n in said_by(two / "apart")[0]["notes"] if "trains no folds" in n["text"]]
    assert said.startswith("process 1 of 2 on ") and "/elsewhere" in said and "--cache" in said and "\n" not in said

    assert ended.returncode != 0
    assert "process 1 of 2 (pid " in ended.stderr and "go on with: octfast train --resume" in ended.stderr
    assert said_by(two / "died")[0]["state"] == "stopped"
    assert read_state(two / "died" / "checkpoints" / "last.safetensors").phase == 1
    resume_training(two / "died")
    assert left_by(two / "died") == expected


def test_a_store_with_other_numbers_under_the_same_path_is_refused(tmp_path):
    spec = StoreSpec({"body": "a"}, scans=6, views=1, dim=2, dtype="float32", block=4)
    with open_store(spec, lambda wanted: (torch.rand(len(r), 1, 2).numpy() for r in wanted), cache=tmp_path) as store:
        address = json.loads(json.dumps(address_of(store)))
        with open_at(address) as again:
            assert again.take_all(torch.arange(6).numpy()).tolist() == store.take_all(torch.arange(6).numpy()).tolist()
        for other in ({"blocks": [1, 2]}, {"described": {**address["described"], "dtype": "float16"}}):
            with pytest.raises(OctfastError, match="cannot read the stored activations"):
                open_at({**address, **other})
    with pytest.raises(OctfastError, match="it is not there"):
        open_at({**address, "path": str(tmp_path / "nowhere")})
    assert not (tmp_path / "nowhere").exists()
