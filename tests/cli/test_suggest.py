"""`octfast suggest` writes its table, prints it for people and programs, and replaces nothing unasked."""

from __future__ import annotations

import json

import pandas as pd

from octfast.data.phantom.draw import write_phantoms


def test_suggestions_are_written_and_printed(trained, octfast, tmp_path):
    pool = write_phantoms(tmp_path / "pool", 8, seed=78, size=64, test=0)
    ended = octfast("suggest", pool, "--run", trained.path, "--n", 3)
    assert ended.code == 0 and "3 of 8 scans" in ended.out and "Not a medical device." in ended.out
    table = pd.read_csv("suggestions.csv")
    named = ["path", "patient", "predicted", "probability", "uncertainty", "novelty", "rank", "why"]
    assert list(table.columns[:8]) == named and len(table) == 3
    refused = octfast("suggest", pool, "--run", trained.path)
    assert refused.code == 2 and "suggestions.csv exists" in refused.err and "--force" in refused.err
    found = json.loads(octfast("suggest", pool, "--run", trained.path, "--n", 3, "--force", "--json").out)
    assert found["pool"] == 8 and [s["path"] for s in found["suggestions"]] == list(table["path"])
    assert octfast("suggest", "nowhere", "--run", trained.path, "--force").code == 1


def test_volumes_are_written_with_their_scans(of_volumes, octfast, tmp_path):
    pool = write_phantoms(tmp_path / "pool", 8, seed=78, size=64, test=0)
    ended = octfast("suggest", pool, "--run", of_volumes.path, "--n", 2)
    assert ended.code == 0 and "2 of 5 volumes (8 scans)" in ended.out and "suggestions-scans.csv" in ended.out
    table, scans = pd.read_csv("suggestions.csv"), pd.read_csv("suggestions-scans.csv")
    assert len(table) == 2 and list(scans["rank"].unique()) == [1, 2] and {"volume", "attention"} <= set(scans)
    assert octfast("suggest", pool, "--run", of_volumes.path, "--out", "suggestions.csv").code == 2
    ended = octfast("suggest", pool, "--run", of_volumes.path, "--n", 2, "--json", "--force")
    found = json.loads(ended.out)
    assert found["level"] == "volume" and found["units"] == 5 and found["scans_file"] == "suggestions-scans.csv"
    of = [scan["path"] for s in found["suggestions"] for scan in s["of"]]
    assert of == list(scans["path"]) and found["suggestions"][0]["path"] == table["path"][0]
