from __future__ import annotations

import json
import threading
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.errors import BundleError, DataError, UsageError
from octfast.notices import Note
from octfast.run import folder as runs
from octfast.run.folder import Run, latest_run, new_run, open_run, set_latest
from tests.data.splits.test_hold_out import table


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def finished(path) -> Run:
    run = new_run(path, "vgg")
    run.write_json("config.json", {"data": {"root": "/data"}})
    return run


def test_a_new_run_has_a_folder_of_its_own():
    first, second = (new_run(None, "vgg16") for _ in range(2))
    assert first.path != second.path and first.path.parent == Path("runs").resolve() == second.path.parent
    assert first.path.name.split("-")[2] == "vgg16" and (first.path / "checkpoints").is_dir()


def test_an_empty_folder_will_do_and_no_other_is_touched(tmp_path):
    (tmp_path / "empty").mkdir()
    assert new_run("empty", "x").path == tmp_path / "empty"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not empty"):
        new_run("full", "x")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    with pytest.raises(UsageError, match="exists and is not empty"):
        new_run("full/mine.txt", "x")
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("out", ["file/run", "/proc/octfast/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_made(out):
    Path("file").touch()
    with pytest.raises(UsageError, match="cannot write to") as e:
        new_run(out, "x")
    assert "--out" in e.value.hint


def test_the_newest_run_is_the_latest():
    assert latest_run() is None
    for name in ("a", "b"):
        assert set_latest(finished(Path("runs") / name))
        assert open_run().path.name == name
    assert sorted(p.name for p in Path("runs").iterdir()) == ["a", "b", "latest"]
    assert Path("runs/latest").readlink() == Path("b")


def test_the_latest_may_lie_elsewhere(tmp_path):
    run = finished(tmp_path / "else where" / "r")
    set_latest(run)
    assert open_run().path == run.path


def test_without_symbolic_links_a_file_names_it(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for name in ("a", "b"):
        assert set_latest(finished(Path("runs") / name))
        assert Path("runs/latest").is_file() and open_run().path.name == name


def test_a_folder_of_the_users_named_latest_is_left_alone():
    Path("runs/latest").mkdir(parents=True)
    Path("runs/latest/mine.txt").touch()
    assert not set_latest(finished("runs/a"))
    assert [p.name for p in Path("runs/latest").iterdir()] == ["mine.txt"]


def test_no_run_at_all():
    with pytest.raises(BundleError, match="no finished run in") as e:
        open_run()
    assert "octfast train" in e.value.hint


def test_the_latest_run_was_deleted():
    import shutil

    set_latest(finished("runs/a"))
    shutil.rmtree("runs/a")
    with pytest.raises(BundleError):
        open_run()


@pytest.mark.parametrize("run", ["nowhere", ".", "file"])
def test_no_run_folder(run):
    Path("file").touch()
    with pytest.raises(BundleError, match="not a run folder"):
        open_run(run)


def test_the_data_is_not_where_it_is_said_to_be():
    finished("runs/a")
    with pytest.raises(DataError, match="no such folder: gone"):
        open_run("runs/a", "gone")


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda x: st.lists(x, max_size=2) | st.dictionaries(st.sampled_from(["data", "root", "x"]), x, max_size=2),
    )
)
@settings(max_examples=60)
def test_a_config_of_another_kind_is_a_bundle_error(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        root = open_run(tmp_path).root
    except BundleError as e:
        assert e.hint
    else:
        assert root == Path(config["data"]["root"])


@pytest.mark.parametrize("text", ["", "{", "[[[", "\x00"])
def test_a_damaged_config_is_a_bundle_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BundleError, match="not a run folder"):
        _ = open_run(tmp_path).config


@pytest.mark.parametrize("history", [None, "", "epoch,valid_loss\n1,2,3,4\n5"])
def test_a_history_that_is_gone_or_damaged(tmp_path, history):
    run = finished(tmp_path / "r")
    if history is not None:
        (run.path / "history.csv").write_text(history)
    with pytest.raises(BundleError, match=r"history\.csv"):
        _ = run.history


def test_a_run_without_a_model_has_not_ended(tmp_path):
    with pytest.raises(BundleError, match="no trained model: training has not ended"):
        _ = finished(tmp_path / "r").bundle


LABELS = ("0", "01", "1.50", "NA", "None", "True", "1e3", "nan", "", "ä $x$ [b] <c>", '"', "a,b")


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS), st.floats(0, 50)), min_size=1, max_size=6))
@settings(max_examples=60)
def test_predictions_come_back_as_they_were_whatever_the_classes_are_called(tmp_path_factory, rows):
    run = finished(tmp_path_factory.mktemp("run") / "r")
    scans = table([(label, "007") for label, _, _ in rows]).assign(path=[f"/data/{i}.png" for i in range(len(rows))])
    scans = scans.assign(predicted=[p for _, p, _ in rows], loss=[v for _, _, v in rows])
    assert run.predictions("valid") is None
    run.save_predictions(scans, "valid")
    pd.testing.assert_frame_equal(run.predictions("valid"), scans, check_dtype=False)


def test_scans_are_looked_for_where_the_data_is_now(tmp_path):
    run = finished(tmp_path / "r")
    run.save_predictions(table([("A", "1")]).assign(path=["/data/train/A/A-1-1.jpeg"]), "valid")
    assert (run.path / "predictions-valid.csv").read_text().splitlines()[1].count("train/A/A-1-1.jpeg") == 1
    assert "/data/" not in (run.path / "predictions-valid.csv").read_text()
    moved = open_run(run.path, tmp_path)
    assert list(moved.predictions("valid")["path"]) == [str(tmp_path / "train/A/A-1-1.jpeg")]


def test_json_is_whole_or_not_there(tmp_path):
    run = finished(tmp_path / "r")
    with pytest.raises(ValueError, match="Circular"):
        loop: dict = {}
        loop["x"] = loop
        run.write_json("config.json", loop)
    assert run.config == {"data": {"root": "/data"}}
    assert Path("runs") == runs.RUNS


def test_notes_keep_their_kind_and_those_of_old_runs_are_read(tmp_path):
    run = finished(tmp_path / "r")
    assert run.notes == []
    notes = [Note("reminder", "remember"), Note("", "a scan is odd")]
    run.write_json("config.json", {"data": {"root": "/data"}, "notes": notes})
    assert run.notes == notes
    assert run.config["notes"][0] == {"kind": "reminder", "text": "remember"}
    for old, read in (
        (["plain", 3, None, "remember: x"], [Note("", "plain"), Note("reminder", "remember: x")]),
        ("none", []),
        ({}, []),
    ):
        run.write_json("config.json", {"data": {"root": "/data"}, "notes": old})
        assert run.notes == read


@pytest.mark.parametrize("out", [None, "named", "empty"])
def test_calls_at_the_same_moment_never_share_a_folder(out):
    Path("empty").mkdir()
    together, got = threading.Barrier(6), []

    def call():
        together.wait()
        try:
            got.append(new_run(out, "x").path)
        except UsageError:
            got.append(None)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for step in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            step(thread)
    made = [path for path in got if path]
    assert len(got) == 6 and len(set(made)) == len(made) == (6 if out is None else 1)
