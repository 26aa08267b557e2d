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
