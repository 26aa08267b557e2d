"""The commands that make, extract, list and clear volumes, as a person calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest


@pytest.fixture
def clinic(octfast, tmp_path, monkeypatch) -> Path:
    """Four phantom volumes, in a cache of their own."""
    monkeypatch.setenv("OCTFAST_CACHE", str(tmp_path / "cache"))
    words = ("--volumes", 4, "--frames", 3, "--diseased", 2, "--size", 32, "--format", "vol")
    ended = octfast("data", "phantom", "--out", tmp_path / "clinic", *words)
    assert ended.code == 0 and "volumes.csv" in ended.out and "no clinical meaning" in ended.out
    return tmp_path / "clinic"


def test_extract_says_what_stayed_behind_and_what_to_do_next(octfast, clinic, tmp_path):
    ended = octfast("data", "extract", clinic / "volumes.csv", "--out", "bscans")
    assert ended.code == 0 and "PatientID" in ended.out and "12 B-scans of 4 volumes" in ended.out
    assert "octfast data explore bscans" in ended.out
    table = pd.read_csv("bscans/scans.csv")
    assert len(table) == 12 and set(table["label"]) == {"CNV", "DME", "DRUSEN", "NORMAL"}
    again = octfast("data", "extract", clinic / "volumes.csv", "--out", "bscans", "--json")
    said = json.loads(again.out)
    assert said["volumes"] == 4 and said["bscans"] == 12 and said["unreadable"] == []
    explored = octfast("data", "explore", "bscans", "--json")
    assert explored.code == 0 and not [line for line in explored.err.splitlines() if "left out" in line]


def test_extract_explains_what_is_wrong(octfast, clinic, tmp_path):
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    for words, line in (
        ((clinic, "--out", "full"), "not empty"),
        (("nowhere", "--out", "out"), "no such file"),
        ((clinic / "volumes.csv", "--out", "out", "--label-column", "nothing"), "no such column"),
    ):
        ended = octfast("data", "extract", *words)
        assert ended.code in (1, 2) and line in ended.err and "what to do:" in ended.err


def test_the_cache_lists_and_clears_pictures_of_volumes(octfast, clinic):
    assert octfast("data", "explore", clinic).code == 0
    assert "pictures of volumes: 4 files" in octfast("cache", "list").out
    assert len(json.loads(octfast("cache", "list", "--json").out)["volumes"]) == 4
    assert octfast("cache", "clear", "--older-than", 1, "--yes").code == 0
    assert "pictures of volumes: 4 files" in octfast("cache", "list").out
    assert "removed the pictures of 4 files of volumes" in octfast("cache", "clear", "--yes").out
    assert "nothing is stored" in octfast("cache", "list").out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--volumes", 4, "--diseased", "some"), "neither a number nor a range"),
        (("--volumes", 4, "--fault", "blank=1"), "single scans"),
        (("--volumes", 2), "one volume a class"),
    ],
)
def test_phantom_volumes_that_cannot_be(octfast, words, line):
    ended = octfast("data", "phantom", "--out", "out", *words)
    assert ended.code == 2 and line in ended.err and not Path("out").exists()
