"""The real command in processes of its own, from a folder of scans to what its model gets wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SHARED

SMALL = [
    *("--size", "64", "--weights", "none", "--arch", "test_resnet", "--epochs", "1", "--lr", "0.003"),
    *("--valid", "0.25", "--workers", "0", "--views", "1"),
]


def octfast(*words: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [sys.executable, "-m", "octfast", *map(str, words)],
        capture_output=True,
        encoding="utf-8",
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )
    assert "Traceback" not in ended.stderr
    return ended


def test_train_copy_and_interpret_elsewhere(phantoms, tmp_path):
    first = octfast("train", phantoms, *SMALL, "--folds", 0, "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    said = json.loads(first.stdout)
    run = tmp_path / "runs" / "latest"
    assert Path(said["run"]) == run.resolve()
    # Plain lines and nothing to garble a log: no bar, no control characters, no Python warnings.
    assert "\x1b" not in first.stderr and "\r" not in first.stderr and "Warning" not in first.stderr
    assert "epoch  1/1" in first.stderr
    assert not [p for p in run.resolve().rglob("*") if p.suffix in (".pkl", ".pth", ".pt")]

    moved = Path(shutil.copytree(run.resolve(), tmp_path / "other machine" / "run"))
    data = shutil.copytree(phantoms, tmp_path / "other machine" / "scans")
    (moved / "predictions-valid.csv").unlink()
    second = octfast("interpret", moved, "--data", data, "--json", cwd=tmp_path / "other machine")
    assert second.returncode == 0, second.stderr
    found = json.loads(second.stdout)
    assert found["loss"] == pytest.approx(said["results"]["valid"]["loss"], abs=0.05)
    assert found["right"] == said["results"]["valid"]["right"]
    assert all(row["path"].startswith(str(data)) for row in found["top_losses"])
    assert all(Path(f).is_file() and Path(f).is_relative_to(moved) for f in found["files"])


def test_errors_are_a_line_and_a_hint_even_where_a_terminal_knows_ascii_alone(tmp_path):
    for words, code in ((["train", "nichts-da-ä"], 1), (["train", "--epochs", 0], 2)):
        ended = octfast(*words, cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
        assert (ended.returncode, ended.stdout) == (code, "")
        assert [line.split(":")[0] for line in ended.stderr.splitlines()] == ["error", "what to do"]


@pytest.mark.realdata
def test_real_scans_with_real_weights(octfast_train):
    data, weights = SHARED / "data" / "oct2017-sample", SHARED / "weights" / "vgg16_bn_features.safetensors"
    if not (data.is_dir() and weights.exists()):
        pytest.skip(f"no real scans and weights in {SHARED}")
    words = ["--arch", "vgg16_bn", "--weights", weights, "--epochs", 4, "--out", "run"]
    ended = octfast_train(data, *words, "--json")
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    assert said["results"]["valid"]["scans"] == 8 and not any("untrained" in note for note in said["notes"])
    history = Path("run/history.csv").read_text().splitlines()
    assert len(history) == 5
