"""A scan that becomes unreadable while training goes on is left out, listed and said; training ends all the same."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import octfast.train.job as job
import octfast.train.outcome.outcome as outcome
from octfast.errors import DataError
from octfast.train.job import train_classifier
from tests.conftest import quick


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def harmed(monkeypatch, harm, module=job, step="_fit"):
    """Harm the scans just before a step is first taken; gives the list of what was harmed."""
    call, done = getattr(module, step), []

    def wrapped(*args, **kwargs):
        if not done:
            done.extend(harm())
        return call(*args, **kwargs)

    monkeypatch.setattr(module, step, wrapped)
    return done


def cut(folder: Path, split: str, count: int):
    """Cut scans short or remove them, which had been checked."""
    files = sorted((folder / split).rglob("*.jpeg"))[3 : 3 + count]
    for n, file in enumerate(files):
        if n % 2:
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:200])
    return files


@pytest.mark.parametrize("views", [1, 0])
def test_scans_that_go_bad_while_training_are_left_out(own_phantoms, monkeypatch, said, views):
    gone = harmed(monkeypatch, lambda: cut(own_phantoms, "train", 2))
    run = train_classifier(**quick(own_phantoms, views=views, epochs=1))
    assert run.config["state"] == "finished" and len(gone) == 2
    left_out = pd.read_csv(run.path / "left-out.csv")
    assert [own_phantoms / p for p in left_out["path"]] == gone and left_out["reason"].str.len().gt(5).all()
    assert not set(run.scans["path"]) & set(map(str, gone))
    for file in gone:
        assert any("left out, unreadable since training began" in line and str(file) in line for line in said())
        assert any(str(file) in note.text for note in run.notes)
    assert len(run.predictions("test")) == 16 and len(run.history) == 1


def test_it_is_the_training_that_never_had_them(own_phantoms, monkeypatch):
    gone = harmed(monkeypatch, lambda: cut(own_phantoms, "train", 1))
    first = train_classifier(**quick(own_phantoms, epochs=1))
    scans = first.scans
    other = train_classifier(**quick(own_phantoms, epochs=1, splits=_splits(scans)))
    assert len(gone) == 1 and list(other.scans["path"]) == list(scans["path"])
    pd.testing.assert_frame_equal(first.predictions("test"), other.predictions("test"))


def _splits(scans: pd.DataFrame) -> str:
    table = scans.assign(path=[Path(p).relative_to(Path.cwd()).as_posix() for p in scans["path"]])
    table[["path", "label", "patient", "split"]].to_csv("splits.csv", index=False)
    return "splits.csv"


def test_test_scans_that_go_bad_are_left_out(own_phantoms, monkeypatch):
    gone = harmed(monkeypatch, lambda: cut(own_phantoms, "test", 2), outcome, "_predict_test")
    run = train_classifier(**quick(own_phantoms, epochs=1))
    assert len(run.predictions("test")) == 14 and run.config["state"] == "finished"
    assert len(pd.read_csv(run.path / "left-out.csv")) == 2 == len(gone)


def test_test_scans_that_are_all_gone_do_not_end_a_training(own_phantoms, monkeypatch, said):
    harmed(monkeypatch, lambda: cut(own_phantoms, "test", 99), outcome, "_predict_test")
    run = train_classifier(**quick(own_phantoms, epochs=1))
    assert run.config["state"] == "finished" and run.predictions("test") is None
    assert any(line.startswith("no predictions of test: ") for line in said())


def test_a_folder_that_goes_is_an_error(own_phantoms, monkeypatch):
    harmed(monkeypatch, lambda: cut(own_phantoms, "train", 99))
    with pytest.raises(DataError, match="cannot be read any more") as e:
        train_classifier(**quick(own_phantoms, epochs=1, out="r"))
    assert "drive" in e.value.hint
