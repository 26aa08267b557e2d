"""Further labelled scans join training: never those of a test patient, and no patient ends up in two splits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from octfast.data import corrections as c
from octfast.data.also import add_scans, read_labelled
from octfast.data.phantom.draw import write_phantoms
from octfast.errors import DataError


@pytest.fixture
def scans(tmp_path):
    rows = []
    for i, (label, patient, split) in enumerate(
        [("CNV", "1", "train"), ("DME", "2", "train"), ("CNV", "03", "valid"), ("DME", "4", "test")]
    ):
        Image.new("L", (40 + i, 40), 50 + i).save(tmp_path / f"{i}.png")
        rows.append((str(tmp_path / f"{i}.png"), label, patient, split))
    return pd.DataFrame(rows, columns=["path", "label", "patient", "split"])


def picture(folder: Path, name: str, grey: int) -> Path:
    Image.new("L", (50, 50), grey).save(folder / name)
    return folder / name


def test_each_scan_goes_where_its_patient_is_and_never_into_a_test(scans, tmp_path, said):
    new = tmp_path / "new"
    new.mkdir()
    file = new / "labels.csv"
    for name, patient, grey in (("a.png", "9", 1), ("b.png", "3", 2), ("c.png", "04", 3), ("d.png", "8", 4)):
        picture(new, name, grey)
        c.record(file, name, c.RELABEL, "", "CNV", patient=patient)
    shutil.copy(scans["path"][3], new / "copy.png")
    c.record(file, "copy.png", c.RELABEL, "", "DME", patient="77")
    c.record(file, "d.png", c.LEAVE_OUT, "", patient="8")
    both, left = add_scans(scans, file)
    where = both.set_index(both["path"].map(lambda p: Path(p).name))
    assert where["split"].to_dict() == {
        **{"0.png": "train", "1.png": "train", "2.png": "valid", "3.png": "test"},
        **{"a.png": "train", "b.png": "valid"},
    }
    assert where["patient"]["b.png"] == "03"
    assert sorted(Path(p).name for p in left["path"]) == ["c.png", "copy.png"]
    assert left["reason"].str.contains("in test").all() and len(both) == 6
    assert any("1 scans join training and 1 validation" in line for line in said())
    assert sum("left out" in line for line in said()) == 1


def test_a_plain_table_joins_too_and_what_the_data_has_keeps_its_label(scans, tmp_path, said):
    picture(tmp_path, "e.png", 9)
    file = tmp_path / "more.csv"
    pd.DataFrame({"path": ["e.png", "0.png"], "label": ["ERM", "DME"], "patient": ["70", "1"]}).to_csv(
        file, index=False
    )
    both, left = add_scans(scans, file)
    assert left.empty and len(both) == 5
    assert both.set_index("path")["label"][scans["path"][0]] == "CNV"
    assert any("in the data already" in line for line in said()) and any(
        "does not have: ERM" in line for line in said()
    )


def test_what_tells_volumes_and_eyes_apart_is_kept_where_the_data_has_it(scans, tmp_path):
    more = [(picture(tmp_path, f"v{i}.png", 20 + i).name, "CNV", "9", "R", "v") for i in range(2)]
    file = tmp_path / "more.csv"
    pd.DataFrame(more, columns=["path", "label", "patient", "eye", "volume"]).to_csv(file, index=False)
    assert list(read_labelled(file).columns) == ["path", "label", "patient", "eye", "volume"]
    both, _ = add_scans(scans.assign(volume=["a", "b", "c", "d"]), file)
    assert list(both[both["patient"] == "9"]["volume"]) == ["v", "v"] and "eye" not in both
    assert list(add_scans(scans, file)[0].columns) == list(scans.columns)


def test_what_is_no_file_of_labels_is_refused(tmp_path):
    file = tmp_path / "corrections.csv"
    c.record(file, "0.png", c.RELABEL, "CNV", "DME")
    with pytest.raises(DataError, match="has already") as refused:
        read_labelled(file)
    assert "--corrections" in refused.value.hint
    labels = tmp_path / "labels.csv"
    c.record(labels, "0.png", c.LEAVE_OUT, "", patient="1")
    with pytest.raises(DataError, match="no scan in"):
        read_labelled(labels)


def test_where_reviewers_differ_no_label_is_taken(tmp_path, said):
    file = tmp_path / "labels.csv"
    for name, new, reviewer in (("a.png", "CNV", "AB"), ("a.png", "DME", "CD"), ("b.png", "CNV", "AB")):
        c.record(file, name, c.RELABEL, "", new, "", reviewer, patient="p")
    assert [Path(p).name for p in read_labelled(file)["path"]] == ["b.png"]
    assert any("reviewers differ" in line for line in said())


def test_a_training_learns_from_them(octfast_train, phantoms, tmp_path):
    drawn = write_phantoms(tmp_path / "pool", 8, seed=79, size=64, test=0)
    paths = sorted(p for p in drawn.rglob("*") if p.suffix in (".jpeg", ".png"))
    for i, path in enumerate(paths):
        c.record(
            tmp_path / "labels.csv", path.relative_to(tmp_path).as_posix(), c.RELABEL, "", "CNV", patient=f"new{i}"
        )
    ended = octfast_train(phantoms, "--also", tmp_path / "labels.csv", "--out", "run")
    assert ended.code == 0 and "scans join training" in ended.err
    table = pd.read_csv("run/scans.csv", dtype=str)
    mine = table[table["patient"].str.startswith("new")]
    assert len(mine) == 8 and set(mine["label"]) == {"CNV"} and "test" not in set(mine["split"])
    assert json.loads(Path("run/config.json").read_text())["also"] == str(tmp_path / "labels.csv")
