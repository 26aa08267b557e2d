from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from octfast.data.phantom.draw import write_phantoms
from octfast.data.phantom.volumes import write_volumes
from octfast.data.readers.folder import read_scans
from octfast.files import sha256_of
from octfast.launcher import launched
from tests.bags import bag_bundle
from tests.several import answer_for_volumes, train_and_predict

ROOT = Path(__file__).parents[1]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
PLACE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"}


@dataclass
class Done:
    """The folder of what one process did, of what two did, and how the latter ended."""

    one: Path
    two: Path
    ended: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Done:
    folder = tmp_path_factory.mktemp("several")
    one, two, kept = folder / "one", folder / "two", folder / "kept"
    for each in (one, two):
        each.mkdir()
    data = write_phantoms(folder / "data", 96, size=64)
    bag_bundle(data / "bags")
    write_volumes(data / "files", 4, frames=9, kind="tiff", size=64)
    scans = read_scans(data)
    # Rows of a volume lie apart and end in the midst of a batch; one of the files is not there.
    mixed = pd.DataFrame({"path": [*scans["path"][:40], "gone.png"], "volume": [f"v{n % 3}" for n in range(41)]})
    mixed.assign(patient="p").to_csv(data / "mixed.csv", index=False)
    shutil.copytree(data, kept)
    train_and_predict(data, one)
    shutil.rmtree(data)
    kept.rename(data)
    return Done(one, two, several("train_and_predict", "die_early", data=data, folder=two))


def several(*works: str, data: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Two processes, which do what these functions of `tests/several.py` do."""
    command = [*LAUNCHER, str(ROOT / "tests" / "several.py"), str(data), str(folder), *works]
    where = {"env": environment(), "cwd": folder.parent}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **where)


def test_two_processes_leave_what_one_does(done):
    """Stores, model, the scan that became unreadable, answers: all of the same bytes."""
    files = [p.relative_to(done.one) for p in sorted(done.one.rglob("*")) if p.suffix in (".bin", ".csv")]
    files += [Path("run/model/model.safetensors"), Path("run/model/octfast.json")]
    files = [f for f in files if f.name not in ("history.csv", "blocks.csv")]
    assert {"features.bin", "answers.csv", "left-out.csv", "predictions-test.csv"} <= {f.name for f in files}
    assert {f: sha256_of(done.one / f) for f in files} == {f: sha256_of(done.two / f) for f in files}
    assert len(pd.read_csv(done.two / "run" / "left-out.csv")) == 1
    notes = [json.loads((f / "run" / "config.json").read_text())["notes"] for f in (done.one, done.two)]
    assert notes[0] == notes[1]
    answers = pd.read_csv(done.two / "answers.csv")
    assert answers["error"].notna().sum() == 1 and len(answers) == 96


def test_two_processes_answer_for_whole_volumes_as_one_does(done):
    """Both tables as JSON, which keeps all digits, heat maps and montage: of the same bytes."""
    names = ["volumes.jsonl", "volumes-volumes.jsonl", "montage.png"]
    names += [f"maps/{p.name}" for p in sorted((done.one / "maps").iterdir())]
    assert [(done.one / n).read_bytes() == (done.two / n).read_bytes() for n in names] == [True] * len(names)
    assert len(names) == 3 + 3 * 7
    assert pd.read_json(done.one / names[1], lines=True)["frames"].tolist() == [9, 9, 9, 9, 14, 13, 13]


def test_one_process_goes_on_where_one_of_two_was_killed_over_volumes(done):
    two = done.two.parent / "over-volumes"
    two.mkdir()
    ended = several("die_over_volumes", data=done.two.parent / "data", folder=two)
    said = ended.stderr
    assert ended.returncode != 0 and "process 1 of 2 (pid " in said and "--resume continues from there" in said
    assert (two / ".volumes.jsonl.part").exists() and not (two / "volumes.jsonl").exists()
    answer_for_volumes(done.two.parent / "data", two, resume=True)
    for name in ("volumes.jsonl", "volumes-volumes.jsonl", "montage.png"):
        assert (two / name).read_bytes() == (done.one / name).read_bytes()


def test_a_process_that_is_killed_ends_the_other_in_a_sentence(done):
    assert done.ended.returncode != 0
    said = done.ended.stderr
    assert "process 1 of 2 (pid " in said and "go on with: octfast train --resume two/died" in said
    assert json.loads((done.two / "died" / "config.json").read_text())["state"] == "stopped"


@pytest.fixture
def place(monkeypatch):
    """The variables of a launcher, and a meeting place that answers."""
    for name in (*PLACE, "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name, value in (PLACE | {"MASTER_PORT": str(server.getsockname()[1])}).items():
            monkeypatch.setenv(name, value)
        yield monkeypatch


def test_what_a_launcher_left_is_told_from_a_launcher(place):
    assert launched() == (1, 2)
    place.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert launched() == (1, 2)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        place.setenv("MASTER_PORT", str(gone.getsockname()[1]))
    assert launched() is None
    place.delenv("TORCHELASTIC_USE_AGENT_STORE")
    for name in PLACE:
        with place.context() as less:
            less.delenv(name)
            assert launched() is None
    place.setenv("WORLD_SIZE", "1")
    assert launched() is None


def test_a_command_that_is_not_divided_is_left_to_the_first_process(place, octfast, tmp_path):
    ended = octfast("cache", "list", "--cache", str(tmp_path))
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    place.setenv("RANK", "0")
    ended = octfast("cache", "list", "--cache", str(tmp_path))
    assert ended.code == 0 and ended.out
    assert "octfast cache is not divided: of 2 processes the first does it alone" in ended.err
