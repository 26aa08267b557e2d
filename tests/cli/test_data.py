from __future__ import annotations

import json

import pandas as pd
import pytest
import typer

from octfast.cli.data import download, phantom, split
from octfast.data.phantom.faults import FAULTS
from octfast.data.readers.read import read_data
from octfast.data.splits.files import apply_splits


@pytest.fixture
def data(octfast, monkeypatch):
    """Call `octfast data ...` in this process, with the commands of this file alone."""
    app = typer.Typer()
    for command in (split, download, phantom):
        app.command()(command)
    monkeypatch.setattr("octfast.cli.root.app", app)
    return octfast


def test_split_writes_a_file_that_both_readers_take(data, phantoms, tmp_path):
    out = tmp_path / "splits.csv"
    ended = data("split", phantoms, "--out", out, "--folds", 3, "--valid", 0.2)
    assert ended.code == 0
    table = pd.read_csv(out)
    assert list(table.columns) == ["path", "label", "patient", "split", "fold"] and len(table) == 72
    assert (table["split"] == "test").sum() == 16
    assert "Splits" in ended.out and "Folds" in ended.out and "--fold 0" in ended.out
    assert "16 test scans are kept" in ended.err
    assert read_data(out)["split"].tolist() == apply_splits(None, out)["split"].tolist()
    assert (apply_splits(None, out, fold=2)["split"] == "valid").sum() == (table["fold"] == 2).sum()


def test_split_prints_json_and_nothing_else(data, phantoms, tmp_path):
    ended = data("split", phantoms, "--out", tmp_path / "s.csv", "--test", 0.25, "--json")
    told = json.loads(ended.out)
    assert told["splits"]["test"]["share"] == pytest.approx(0.25, abs=0.05)
    assert set(told["folds"]) == set("01234") and told["left_out"] == 0
    assert sum(fold["scans"] for fold in told["folds"].values()) + told["splits"]["test"]["scans"] == 72
    assert "shared out anew" in ended.err


def test_split_never_overwrites(data, phantoms, tmp_path):
    out = tmp_path / "splits.csv"
    out.write_text("mine")
    ended = data("split", phantoms, "--out", out)
    assert ended.code == 1 and out.read_text() == "mine"
    assert ended.lines == [
        f"error: {out} exists and is not overwritten",
        "what to do: give another --out, or remove it first",
    ]


def test_split_takes_a_table_with_named_columns(data, phantoms, tmp_path):
    files = sorted(phantoms.rglob("*.jpeg"))
    table = pd.DataFrame(
        {"where": files, "what": [f.parent.name for f in files], "who": [f.stem[-9:-2] for f in files]}
    )
    table.to_csv(tmp_path / "t.csv", sep=";", index=False)
    named = ["--path-column", "where", "--label-column", "what"]
    ended = data("split", tmp_path / "t.csv", *named, "--patient-column", "who", "--out", tmp_path / "s.csv")
    assert ended.code == 0 and len(pd.read_csv(tmp_path / "s.csv")) == 72
    ended = data("split", tmp_path / "t.csv", *named, "--patient-column", "whom", "--out", tmp_path / "s2.csv")
    assert ended.code == 2 and ended.lines[-1] == "what to do: did you mean who?"
    assert not (tmp_path / "s2.csv").exists()


def test_phantom_plants_what_is_asked_for(data, tmp_path):
    out = tmp_path / "faulty"
    ended = data(
        "phantom", "--scans", 40, "--size", 16, "--out", out, "--fault", "truncated=2", "--fault", "gif", "--json"
    )
    told = json.loads(ended.out)
    assert [row["fault"] for row in told["faults"]] == ["gif", "truncated", "truncated"]
    assert sum(told["files"].values()) == 40 and set(told["files"]) == {"train", "test"}
    assert (out / "faults.csv").is_file() and (out / "SYNTHETIC.txt").is_file()


def test_phantom_without_faults(data, tmp_path):
    ended = data("phantom", "--scans", 8, "--size", 16, "--out", tmp_path / "clean", "--test", 0)
    assert ended.code == 0 and "no clinical meaning" in ended.out and "train" in ended.out
    assert not (tmp_path / "clean" / "faults.csv").exists()
    assert data("phantom", "--scans", 8, "--out", tmp_path / "clean").code == 1


def test_the_help_of_phantom_names_every_fault(data):
    words = data("phantom", "--help").out
    assert all(fault in words for fault in FAULTS)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("truncted=2", "what to do: did you mean truncated?"),
        ("truncated=many", "what to do: for example --fault truncated=3"),
        ("truncated=-1", "what to do: for example truncated=1"),
    ],
)
def test_phantom_explains_a_mistyped_fault(data, tmp_path, fault, line):
    ended = data("phantom", "--out", tmp_path / "out", "--fault", fault)
    assert ended.code == 2 and ended.lines[-1] == line and len(ended.lines) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["octmnist", "oct2017"])
def test_download_shows_licence_and_citation_before_it_fetches(data, tmp_path, name):
    ended = data("download", name, "--out", tmp_path / "out")
    assert ended.code == 1 and ended.out == ""
    assert "licence: CC BY 4.0" in ended.err and "Kermany" in ended.err
    assert ended.lines[-2] == "error: nothing is fetched, as OCTFAST_OFFLINE is set"
    assert "by hand" in ended.lines[-1] and str(tmp_path / "out") in ended.lines[-1]


def test_download_of_something_else(data, tmp_path):
    ended = data("download", "oct2018", "--out", tmp_path)
    assert ended.code == 2 and ended.lines == [
        "error: unknown data set: oct2018",
        "what to do: known are octmnist and oct2017",
    ]
