import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from octfast.cli import cache as command
from octfast.train.store.cache import list_stores, readable_size
from octfast.train.store.files import StoreSpec
from octfast.train.store.store import open_store

ROOT = Path(__file__).resolve().parents[2]


def make(cache, name, days_old=0, finished=True):
    spec = StoreSpec({"arch": name, "precision": "bf16"}, scans=6, views=2, dim=500, block=3)

    def fill(blocks):
        yield np.ones((3, 2, 500), np.float16)
        if finished:
            yield np.ones((3, 2, 500), np.float16)

    if finished:
        open_store(spec, fill, cache=cache).close()
    else:
        with pytest.raises(RuntimeError):
            open_store(spec, fill, cache=cache)
    used = time.time() - days_old * 86400
    os.utime(cache / "features" / spec.hash / "key.json", (used, used))
    return spec


def run(*arguments, **options):
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments], **options)


def test_list_is_a_table_for_people(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    first, second = make(tmp_path, "vgg16_bn"), make(tmp_path, "resnet18", finished=False)
    with open_store(first, lambda blocks: iter([]), cache=tmp_path):
        result = run("list", "--cache", tmp_path)
    assert result.exit_code == 0
    row = next(line for line in result.output.splitlines() if first.hash in line)
    assert "vgg16_bn, 6 scans x 2 views x 500, float16, bf16" in row and "12 KB" in row and "complete, in use" in row
    row = next(line for line in result.output.splitlines() if second.hash in line)
    assert "incomplete" in row and "in use" not in row
    size = readable_size(sum(store.bytes for store in list_stores(tmp_path)))
    assert f"2 stores, {size} in {tmp_path}\n" in result.output


def test_list_as_json(tmp_path):
    spec = make(tmp_path, "vgg16_bn")
    listed = json.loads(run("list", "--json", "--cache", tmp_path).output)
    (store,) = listed["stores"]
    assert listed["cache"] == str(tmp_path) and listed["bytes"] == store["bytes"] >= spec.nbytes
    assert store["name"] == spec.hash and store["complete"] is True and store["in_use"] is False
    assert store["path"] == str(tmp_path / "features" / spec.hash) and store["made"].endswith("+00:00")


def test_an_empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OCTFAST_CACHE", str(tmp_path))
    assert run("list").output == f"nothing is stored in {tmp_path}\n"
    assert json.loads(run("list", "--json").output)["stores"] == []
    cleared = run("clear")
    assert (cleared.exit_code, cleared.output) == (0, "nothing to remove\n")
    assert json.loads(run("clear", "--json").output)["removed"] == 0


def test_clear_outside_a_terminal_wants_yes(tmp_path):
    make(tmp_path, "vgg16_bn")
    result = run("clear", "--cache", tmp_path)
    assert result.exit_code == 2 and "--yes" in result.stderr and len(result.stderr.splitlines()) == 1
    assert len(list_stores(tmp_path)) == 1
    result = run("clear", "--cache", tmp_path, "--yes")
    assert result.exit_code == 0 and result.output == "removed 1 store, 12 KB\n"
    assert list_stores(tmp_path) == []


def test_clear_in_a_terminal_asks(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_in_terminal", lambda: True)
    make(tmp_path, "vgg16_bn")
    result = run("clear", "--cache", tmp_path, input="n\n")
    assert result.exit_code == 1 and "Remove 1 store, 12 KB" in result.output and len(list_stores(tmp_path)) == 1
    result = run("clear", "--cache", tmp_path, input="y\n")
    assert result.exit_code == 0 and list_stores(tmp_path) == []


def test_clear_takes_what_is_asked_for(tmp_path):
    old, new = make(tmp_path, "old", days_old=10), make(tmp_path, "new", days_old=1)
    half = make(tmp_path, "half", finished=False)

    def left():
        return {store.name for store in list_stores(tmp_path)}

    assert json.loads(run("clear", "--older-than", "11", "--yes", "--json", "--cache", tmp_path).output)["removed"] == 0
    cleared = json.loads(run("clear", "--older-than", "5", "--yes", "--json", "--cache", tmp_path).output)
    assert cleared["removed"] == 1 and cleared["bytes"] >= old.nbytes and left() == {new.hash, half.hash}
    assert run("clear", "--incomplete", "--yes", "--cache", tmp_path).exit_code == 0
    assert left() == {new.hash}
    assert run("clear", "--older-than", "-1", "--yes", "--cache", tmp_path).exit_code == 2


def test_clear_says_what_it_left_in_use(tmp_path):
    spec = make(tmp_path, "vgg16_bn")
    make(tmp_path, "resnet18")
    with open_store(spec, lambda blocks: iter([]), cache=tmp_path):
        result = run("clear", "--yes", "--cache", tmp_path)
        assert result.output == "removed 1 store, 12 KB; 1 store in use left alone\n"
        assert run("clear", "--cache", tmp_path).output == "nothing to remove; 1 store in use left alone\n"
    assert [store.name for store in list_stores(tmp_path)] == [spec.hash]


def test_help_reads_no_heavy_library():
    script = "import sys, octfast.cli.cache; print([m for m in ('numpy', 'pandas', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout == "[]\n"
    for arguments in (["--help"], ["list", "--help"], ["clear", "--help"]):
        result = run(*arguments)
        assert result.exit_code == 0
    assert "--older-than" in result.output and "DAYS" in result.output
