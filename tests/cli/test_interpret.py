from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from octfast.run.folder import open_run
from tests.assess.simulated import simulated_run
from tests.assess.tables import predicted_as
from tests.cli.test_cli import error


def test_interpret_shows_missed_urgent_scans_and_label_errors(octfast, own_run):
    table = own_run.predictions("valid")
    table = predicted_as(table, ["NORMAL" if label == "CNV" else label for label in table["label"]])
    own_run.save_predictions(table, "valid")
    ended = octfast("interpret", own_run.path, "--no-heatmaps", "--label-errors", "--top-losses", 2)
    assert ended.code == 0 and [line.split(" scans are")[0] for line in ended.lines] == [
        "label errors among fewer than 10"
    ]
    n = (table["label"] == "CNV").sum()
    assert f"Urgent scans (CNV, DME) taken for another class: {n}" in ended.out
    assert "by this run's valid predictions" in ended.out and "label-errors.csv" in ended.out
    assert "missed_urgent.png" in ended.out and "montage.png" in ended.out
    said = json.loads(octfast("interpret", own_run.path, "--no-heatmaps", "--urgent", "DRUSEN", "--json").out)
    assert said["urgent"] == ["DRUSEN"] and said["missed_urgent"] == [] and said["label_errors"] is None
    ended = octfast("interpret", own_run.path, "--no-heatmaps", "--urgent", " DRUSEN, DME")
    assert "No urgent scan (DME, DRUSEN) was taken for another class." in ended.out


def test_interpret_with_folds(octfast, own_run, trained, tmp_path):
    table = trained.predictions("valid")
    patients = sorted(table["patient"].unique())
    for i in range(2):
        fold = open_run(shutil.copytree(trained.path, tmp_path / "folds" / f"fold{i}"))
        fold.save_predictions(table[table["patient"].isin(patients[i::2])], "valid")
    words = ["interpret", own_run.path, "--no-heatmaps", "--json"]
    for folds in (["--folds", tmp_path / "folds"], [x for i in "01" for x in ("--folds", tmp_path / f"folds/fold{i}")]):
        assert json.loads(octfast(*words, *folds).out)["label_errors_from"] == "out-of-fold predictions of 2 runs"
    assert "two folds" in error(octfast(*words, "--folds", tmp_path / "folds" / "fold0"), 2)


def test_what_interpret_refuses(octfast, own_run):
    assert "no heat map by 'x'" in error(octfast("interpret", own_run.path, "--method", "x"), 2)
    assert "CNX" in error(octfast("interpret", own_run.path, "--urgent", "CNX"), 2)


def test_show_for_people_and_programs(octfast, own_run):
    ended = octfast("show", own_run.path, "--seed", 3)
    said = json.loads(octfast("show", own_run.path, "--seed", 3, "--json").out)
    assert ended.code == 0 and said["path"] in ended.out and said["file"] in ended.out
    assert Path(said["file"]).exists() and sum(said["probabilities"].values()) == pytest.approx(1)
    assert f"label {said['actual']}, predicted {said['predicted']}" in ended.out
    assert "Not a medical device." in ended.out


def test_show_prints_the_seed_that_it_chose_by(octfast, own_run):
    ended = octfast("show", own_run.path)
    (seed,) = re.findall(r"the same again: --seed (\d+)", ended.out)
    assert ended.out.splitlines()[0] == octfast("show", own_run.path, "--seed", seed).out.splitlines()[0]


@pytest.mark.parametrize(
    "words",
    [["interpret", "--no-heatmaps"], ["show", "--seed", 1], ["calibrate"], ["evaluate", "--figures", "curves"]],
    ids=lambda words: words[0],
)
def test_figures_in_other_formats(octfast, own_run, tmp_path, words):
    run = simulated_run(tmp_path / "run") if words[0] == "calibrate" else own_run
    before = set(run.figures.glob("*.png"))
    ended = octfast(words[0], run.path, *words[1:], "--format", "svg", "--dpi", 50, "--json")
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    drawn = [f for f in [*said.get("files", ()), said.get("file", "")] if f.endswith(".svg")]
    assert drawn and all(Path(f).read_text(encoding="utf-8").startswith("<?xml") for f in drawn)
    assert set(run.figures.glob("*.png")) == before
    assert "unknown" in error(octfast(words[0], run.path, *words[1:], "--format", "bmp"), 2)


def test_nothing_is_drawn_of_no_scans(octfast, own_run):
    table = own_run.predictions("valid")
    own_run.save_predictions(predicted_as(table, list(table["label"])), "valid")
    (own_run.figures / "missed_urgent.png").write_text("of another question")
    ended = octfast("interpret", own_run.path, "--no-heatmaps")
    assert "No urgent scan" in ended.out and "missed_urgent.png" not in ended.out
    assert not (own_run.figures / "missed_urgent.png").exists()
    assert not (own_run.figures / "hardest_wrong.png").exists()


def test_show_takes_a_scan_by_name_or_file(octfast, octfast_train, phantoms):
    assert octfast_train(phantoms).code == 0
    row = open_run().predictions("valid").iloc[0]
    name = Path(row["path"]).name
    for words in ((row["path"],), (name,), ("runs/latest", name), ("runs/latest", row["path"])):
        said = json.loads(octfast("show", *words, "--json", "--top", 2).out)
        assert said["path"] == row["path"] and said["actual"] == row["label"] and len(said["probabilities"]) == 2
    assert "no such file: gone.png" in error(octfast("show", "runs/latest", "gone.png"), 1)
    assert "no such file: gone.png" in error(octfast("show", "gone.png"), 1)
    assert "not a run folder" in error(octfast("show", "gone"), 1)


def test_the_lists_can_be_read_back(octfast, own_run):
    assert octfast("interpret", own_run.path, "--no-heatmaps", "--label-errors", "--split", "test").code == 0
    for name in ("missed-urgent-test.csv", "label-errors-test.csv"):
        listed = pd.read_csv(own_run.path / name)
        assert {"path", "label", "predicted", "p_actual"} <= set(listed.columns)
