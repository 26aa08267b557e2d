"""A training is kept to its minutes by fewer views and scans, which a later one repeats whatever its clock says."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pandas as pd
import pytest

import octfast.train.minutes.minutes as minutes
import octfast.train.minutes.pace as pace_of
import octfast.train.outcome.outcome as outcome
from octfast.data.prepare import Prepared
from octfast.errors import UsageError
from octfast.run.folder import open_run
from octfast.train.config import TrainConfig
from octfast.train.job import train_classifier
from octfast.train.minutes.pace import Pace, Scans, shorter, times
from octfast.train.resume import repeat_training, resume_training
from tests.conftest import quick

# So slow a machine that what the test itself takes does not count.
SLOW = Pace(read=0, view=1000, learn=0, judge=0)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pace(monkeypatch):
    """Set the pace of the machine."""

    def arrange(pace: Pace) -> None:
        monkeypatch.setattr(minutes, "measured", lambda *_: pace)
        monkeypatch.setattr(minutes, "measured_whole", lambda *_: pace)

    return arrange


def test_views_come_down_before_scans_and_what_was_taken_is_repeated(phantoms, pace, monkeypatch, said):
    pace(SLOW)
    given = {"size": 32, "minutes": 1132, "epochs": 1, "out": "first"}
    # Cut off after the model was written, it goes on with the same scans on a machine that has become slower.
    with monkeypatch.context() as patch:
        patch.setattr(outcome, "keep_quality", lambda *_: pytest.fail("cut off"))
        with pytest.raises(BaseException, match="cut off"):
            train_classifier(**quick(phantoms, **given))
    pace(Pace(0, 10_000, 0, 0))
    run = resume_training("first")
    took = run.config["chosen"]["minutes"]
    n, v = took["training_scans"]["taken"], took["validation_scans"]["taken"]
    splits, unused = run.scans["split"].value_counts(), pd.read_csv(run.path / "unused.csv")
    assert took["training_scans"]["of"] == 42 > n >= 32 and (splits["train"], splits["valid"]) == (n, v)
    assert (splits["test"], took["test"]) == (16, "predicted") and len(run.predictions("test")) == 16
    assert run.config["views"] == 2 and run.config["chosen"]["views"] == took["views"] == 1
    assert len(unused) == 72 - len(run.scans) and not set(unused["path"]) & set(
        pd.read_csv(run.path / "scans.csv")["path"]
    )
    assert any(f"{n} of 42 training" in note.text and "1 of 2 views" in note.text for note in run.notes)
    again = repeat_training(run.path, out="again")
    assert (
        again.scans.equals(run.scans) and again.config["chosen"]["minutes"]["training_scans"] == took["training_scans"]
    )
    assert again.history["valid_loss"].equals(run.history["valid_loss"])
    assert not any("not as it was" in note.text for note in again.notes)
    assert any(line.startswith("took ") and line.endswith("of 1132 minutes") for line in said())


def test_too_few_minutes_are_refused_before_anything_is_trained(phantoms, pace, tmp_path, octfast_train):
    pace(SLOW)
    ended = octfast_train(phantoms, "--minutes", 0.05, "--out", tmp_path / "run")
    assert ended.code == 2 and "--minutes 0.05: the least that makes sense, 3" in ended.err
    assert not (tmp_path / "run").exists()


def phantoms_table(train: int = 42, valid: int = 14, test: int = 16) -> pd.DataFrame:
    splits = ["train"] * train + ["valid"] * valid + ["test"] * test
    return pd.DataFrame(
        {"path": [__file__] * len(splits), "label": [f"c{i % 4}" for i in range(len(splits))], "split": splits}
    ).assign(patient=[str(i) for i in range(len(splits))])


def choose(scans: pd.DataFrame, **fields) -> minutes.Taken:
    """The choice for a network that is trained as a whole, at whatever pace was set."""
    learn = SimpleNamespace(dls=SimpleNamespace(train=SimpleNamespace(bs=16)))
    config = TrainConfig(unfreeze="all", lr=0.01, **fields)
    return minutes.choose(Prepared(scans, scans.iloc[:0], None), config, learn, 0.0, clock=lambda: 0.0)


def test_of_a_whole_network_epochs_come_down_before_scans_and_test_is_left_whole_or_done(pace, said):
    pace(Pace(read=1, view=1, learn=8, judge=1))
    scans = phantoms_table()
    rest = choose(scans, minutes=1e4)
    assert rest.about["epochs"] == 10 and not len(rest.unused)
    fewer = [choose(scans, minutes=m) for m in (60, 40, 30, 25)]
    epochs, taken = zip(*((t.about["epochs"], t.about["training_scans"]["taken"]) for t in fewer), strict=True)
    assert 10 > epochs[0] > 3 and epochs[-1] == 3 and list(epochs) == sorted(epochs, reverse=True)
    assert taken[0] == 42 > taken[-1] >= 32 and list(taken) == sorted(taken, reverse=True)
    for less, more in zip(fewer[1:], fewer, strict=False):
        assert set(less.prepared.scans["patient"]) <= set(more.prepared.scans["patient"])
    assert fewer[0].about["test"] == "predicted"
    many = choose(phantoms_table(test=2000), minutes=60)
    assert many.about["test"] == "later" and (many.prepared.scans["split"] == "test").sum() == 2000
    assert "octfast evaluate --split test" in " ".join(said())
    with pytest.raises(UsageError) as refused:
        choose(scans, minutes=5)
    assert "--unfreeze head" in refused.value.hint
    # What is said to be enough is enough.
    enough = float(refused.value.hint.split("give --minutes ")[1].split()[0])
    assert choose(scans, minutes=enough).about["training_scans"]["taken"] >= 32


def test_the_time_of_a_long_training_is_said_with_what_is_shorter(said):
    pace = Pace(read=0.002, view=0.04, learn=1e-4, judge=1e-5)
    every = Scans(84_000, 9_000, 1_000, 84_000, 9_000)
    config = TrainConfig(views=4)
    assert times(pace, every, config, 64).frozen == pytest.approx(84_000 * 0.162 + 9_000 * 0.042)
    stored = Scans(84_000, 9_000, 1_000, 82_000, 9_000)
    assert times(pace, every, config, 64).all - times(pace, stored, config, 64).all == pytest.approx(2000 * 0.162)
    found = " ".join(shorter(pace, every, config, 64, "bf16"))
    assert all(way in found for way in ("--views 1 (about 68 minutes)", "--size 160", "--minutes 5"))


@pytest.mark.parametrize(("processes", "trainings"), [(1, 5), (2, 3), (3, 2), (8, 1)])
def test_folds_of_the_last_block_that_several_processes_train_are_reckoned_at_a_time(processes, trainings, monkeypatch):
    monkeypatch.setattr(pace_of, "current", lambda: SimpleNamespace(size=processes) if processes > 1 else None)
    pace = Pace(read=0, view=0, learn=0.01, judge=0, folds=pace_of.share_of_folds(5))
    config = TrainConfig(unfreeze="block5", folds=5, epochs=2, lr=0.001)
    took = times(pace, Scans(900, 100, 0, 0, 0), config, 16)
    # Each fold learns from four of five scans, and after them the model from all.
    assert took.epochs == pytest.approx(trainings * 800 * 0.01 + 1000 * 0.01)


def test_saying_how_long_it_takes_changes_nothing_of_the_result(phantoms, trained, monkeypatch, said, tmp_path):
    for name in ("SAY_AFTER", "WORTH_SAYING", "LONG"):
        monkeypatch.setattr(pace_of, name, 0)
    run = train_classifier(**quick(phantoms, epochs=3, lr=None, cache=str(tmp_path / "empty")))
    lines = " ".join(said())
    assert "for 42 training scans x 2 views: " in lines and "shorter would be: --views 1 (about " in lines
    same = [r.history.drop(columns="seconds") for r in (run, trained)]
    pd.testing.assert_frame_equal(*same, check_exact=True)


def test_config_json_has_the_minutes(phantoms, pace, said):
    pace(Pace(0, 0, 0, 0))
    run = train_classifier(**quick(phantoms, size=32, minutes=5.0, epochs=1))
    about = json.loads((run.path / "config.json").read_text())
    assert about["minutes"] == 5 and about["chosen"]["minutes"]["training_scans"] == {"taken": 42, "of": 42}
    assert "--minutes 5: all scans fit" in said() and not (run.path / "unused.csv").exists()
    assert open_run(run.path).config["chosen"]["views"] == 2
