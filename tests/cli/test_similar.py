"""`octfast similar` prints the neighbours of a scan, and refuses what is none."""

from __future__ import annotations

import json


def test_neighbours_are_printed_nearest_first(trained, octfast):
    scan = trained.scans["path"][trained.scans["split"] == "test"].iloc[0]
    ended = octfast("similar", trained.path, scan, "--n", 3)
    assert ended.code == 0 and "Scans like" in ended.out and "Not a medical device." in ended.out
    rows = json.loads(octfast("similar", trained.path, scan, "--n", 3, "--json").out)
    assert [r["rank"] for r in rows] == [1, 2, 3]
    assert rows[0]["distance"] <= rows[2]["distance"]


def test_of_a_model_of_volumes_a_label_is_said_to_be_that_of_the_whole(of_volumes, octfast):
    scans = of_volumes.scans.set_index("path")
    scan = scans.index[scans["split"] == "test"][0]
    ended = octfast("similar", of_volumes.path, scan, "--n", 3)
    assert ended.code == 0 and "label of its volume" in ended.out and "may show in other scans alone" in ended.out
    rows = json.loads(octfast("similar", of_volumes.path, scan, "--n", 3, "--json").out)
    assert [r["label"] for r in rows] == list(scans["label"][[r["neighbour"] for r in rows]])


def test_what_is_no_scan_is_refused(trained, octfast):
    ended = octfast("similar", trained.path, "missing.png")
    assert ended.code == 1 and "missing.png" in ended.err
