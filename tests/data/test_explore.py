from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from octfast.cli.data import app as data_app
from octfast.data import explore as ex
from octfast.data import explore_figures  # noqa: F401 - before decoding is forbidden to what imports it
from octfast.data.phantom.draw import is_synthetic
from octfast.data.readers.folder import read_scans
from octfast.errors import DataError


def test_counts_and_patients(folder):
    scans = read_scans(folder)
    assert ex.counts(scans).to_dict("index") == {
        "train": {"A": 3, "B": 1, "all": 4},
        "test": {"A": 1, "B": 2, "all": 3},
        "all": {"A": 4, "B": 3, "all": 7},
    }
    # Patient 2 stands under both labels and counts once in all.
    assert ex.patients(scans).to_dict("index") == {
        "train": {"A": 2, "B": 1, "all": 2},
        "test": {"A": 1, "B": 1, "all": 2},
        "all": {"A": 3, "B": 2, "all": 4},
    }


def test_balance(folder):
    table = ex.balance(read_scans(folder))
    assert table.loc["train"].tolist() == [0.75, 0.25, 3.0]
    assert table.loc["all", "largest/smallest"] == pytest.approx(4 / 3)
    only = pd.DataFrame({"label": ["A", "A", "B"], "split": ["test", "train", "train"], "patient": ["1", "2", "3"]})
    assert np.isnan(ex.balance(only).loc["test", "largest/smallest"])


def test_sizes_formats_and_brightness(folder):
    scans = ex.explore(folder).scans
    assert ex.sizes(scans).values.tolist() == [[30, 20, 4, 4 / 7], [64, 48, 2, 2 / 7], [40, 20, 1, 1 / 7]]
    assert ex.formats(scans).values.tolist() == [["PNG", "L", 5, 5 / 7], ["JPEG", "L", 2, 2 / 7]]
    table = ex.brightness(scans).set_index(["split", "label"])
    assert list(table.index) == [("train", "A"), ("train", "B"), ("test", "A"), ("test", "B")]
    assert table.loc[("train", "A"), ["scans", "mean", "std", "min", "max"]].tolist() == [3, 30, 20, 10, 50]
    assert table.loc[("test", "B"), "mean"] == pytest.approx(96, abs=0.5)


def test_the_brightness_of_a_jpeg_is_that_of_the_whole_picture(phantoms):
    scans = ex.measure(read_scans(phantoms).head(12))
    for row in scans.itertuples():
        with Image.open(row.path) as image:
            assert row.brightness == pytest.approx(np.asarray(image).mean(), abs=0.7)


def test_without_brightness_no_picture_is_decoded(folder, monkeypatch):
    monkeypatch.setattr(ex, "decode", lambda *_, **__: pytest.fail("decoded"))
    found = ex.explore(folder, with_brightness=False)
    assert found.scans["width"].tolist() == [30, 64, 64, 30, 30, 40, 30]
    assert found.scans["brightness"].isna().all()
    assert "brightness" not in found.figures()


def test_files_that_cannot_be_read_are_said_and_the_rest_is_described(folder):
    (folder / "train/A/A-1-1.png").write_bytes(b"")
    (folder / "test/B/B-4-1.jpeg").write_bytes((folder / "test/B/B-4-1.jpeg").read_bytes()[:300])
    found = ex.explore(folder)
    broken = found.scans[found.scans["trouble"] != ""]
    assert [Path(p).name for p in broken["path"]] == ["B-4-1.jpeg", "A-1-1.png"]
    assert ex.sizes(found.scans)["scans"].sum() in (5, 6)
    assert found.to_dict()["total"] == {"scans": 7, "patients": 4, "unreadable": 2}
    assert isinstance(found.figures()["samples"], Figure)


def test_threads_make_no_difference(phantoms):
    scans = read_scans(phantoms)
    pd.testing.assert_frame_equal(ex.measure(scans, workers=1), ex.measure(scans, workers=4))


def test_measuring_twice_does_not_double_the_columns(folder):
    once = ex.measure(read_scans(folder))
    assert list(ex.measure(once).columns) == list(once.columns)


def test_phantoms_are_marked_as_such(phantoms, folder, tmp_path):
    assert ex.explore(phantoms, False).synthetic
    assert is_synthetic(read_scans(phantoms).query("split == 'test' and label == 'CNV'"))
    assert not ex.explore(folder, False).synthetic
    assert "Synthetic phantoms" in ex.explore(phantoms).figures()["samples"]._supxlabel.get_text()
    assert "Synthetic" not in ex.explore(folder).figures()["samples"]._supxlabel.get_text()


def test_saved_is_all_of_it_and_nothing_is_overwritten(phantoms, tmp_path):
    found = ex.explore(phantoms)
    written = {f.name for f in found.save(tmp_path / "out")}
    names = {"counts", "patients", "balance", "sizes", "formats", "brightness", "scans"}
    assert written == {f"{n}.csv" for n in names} | {f"{n}.png" for n in ("counts", "sizes", "samples", "brightness")}
    assert written == {f.name for f in (tmp_path / "out").iterdir()}
    with Image.open(tmp_path / "out" / "samples.png") as image:
        assert image.format == "PNG" and np.asarray(image.convert("L")).std() > 20
    assert len(pd.read_csv(tmp_path / "out" / "scans.csv")) == 72
    with pytest.raises(DataError, match="not empty"):
        found.save(tmp_path / "out")


def test_an_empty_table_is_refused():
    with pytest.raises(DataError, match="no scans to explore"):
        ex.explore(pd.DataFrame(columns=["path", "label", "patient", "split"]))


def command(*words: object):
    return CliRunner().invoke(data_app, ["explore", *map(str, words)])


def test_the_command_prints_tables(folder, tmp_path):
    ended = command(folder, "--out", tmp_path / "out", "--samples", 2)
    assert ended.exit_code == 0, ended.exception
    assert "set: scans" in ended.stdout and "Widths and heights" in ended.stdout
    assert (tmp_path / "out" / "samples.png").is_file()
    refused = command(folder, "--out", tmp_path / "out").exception
    assert isinstance(refused, DataError) and "not empty" in refused.message


def test_the_command_prints_json_alone(folder):
    content = json.loads(command(folder, "--json", "--no-brightness").stdout)
    assert content["total"] == {"scans": 7, "patients": 4, "unreadable": 0}
    assert content["counts"][0] == {"split": "train", "A": 3, "B": 1, "all": 4}
    assert content["brightness"] == [] and content["synthetic"] is False


def test_pipes_and_devices_are_not_opened(folder):
    scans = ex.explore(folder).scans
    for n, path in enumerate(scans["path"].iloc[:2]):
        Path(path).unlink()
        os.mkfifo(path) if n else Path(path).symlink_to("/dev/zero")
    for with_brightness in (False, True):
        found = ex.explore(scans, with_brightness=with_brightness).scans
        assert found["trouble"].str.contains("not a plain file").tolist() == [True, True] + [False] * (len(scans) - 2)
