"""Suggestions of a run that answers for volumes: whole ones, by the scans of each, of tables, folders and files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import octfast
from octfast.data.phantom.draw import write_phantoms
from octfast.data.phantom.volumes import write_volumes
from octfast.deploy.suggest.suggest import unit_words
from octfast.errors import DataError, UsageError
from octfast.run.folder import open_run


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    """21 phantoms of patients that the run does not have, three in each of seven folders."""
    drawn = write_phantoms(tmp_path_factory.mktemp("drawn"), 21, seed=77, size=64, test=0)
    folder = tmp_path_factory.mktemp("pool")
    for i, file in enumerate(sorted(p for p in drawn.rglob("*") if p.suffix in (".jpeg", ".png"))):
        (folder / f"v{i // 3}").mkdir(exist_ok=True)
        shutil.copy(file, folder / f"v{i // 3}" / f"scan{i}{file.suffix}")
    return folder


def table_of(pool: Path, **columns) -> Path:
    """A table of the pool: two volumes a patient."""
    scans = sorted(pool.rglob("scan*"))
    volume = [p.parent.name for p in scans]
    about = {"path": scans, "patient": [f"p{int(v[1:]) // 2}" for v in volume], "volume": volume}
    file = pool / "pool.csv"
    pd.DataFrame({**about, **columns}).to_csv(file, index=False)
    return file


def test_volumes_are_suggested_and_judged_as_predict_does(of_volumes, pool, tmp_path, said):
    table = table_of(pool)
    found = octfast.suggest(of_volumes, table, 4)
    assert (found.level, found.units, found.scans, found.patients) == ("volume", 7, 21, 4)
    top = found.table
    assert list(top["rank"]) == [1, 2, 3, 4] and top["patient"].nunique() == 4 and (top["scans"] == 3).all()
    assert top["uncertainty"].between(0, 1).all() and (top["novelty"] > 0).all()
    assert top["why"].str.contains("farther from labelled volumes").all()
    octfast.predict(of_volumes.path, table, answer_anyway=True, precision="fp32", out=tmp_path / "answers.csv")
    predicted = pd.read_csv(tmp_path / "answers.csv").set_index("path")
    of = found.of_units.set_index("path")
    assert list(of["rank"]) == [r for r in (1, 2, 3, 4) for _ in range(3)]
    assert list(found.of_units.drop_duplicates("rank")["path"]) == list(top["path"])
    assert of["attention"].to_numpy() == pytest.approx(predicted["attention"][of.index].to_numpy(float), abs=5e-3)
    assert found.of_units.groupby("rank")["attention"].sum().to_numpy() == pytest.approx(np.ones(4))
    units = pd.read_csv(tmp_path / "answers-volumes.csv").set_index("name").loc[top["volume"]]
    assert list(units["predicted"]) == list(top["predicted"])
    assert units["probability"].to_numpy() == pytest.approx(top["probability"].to_numpy(), abs=5e-3)
    assert octfast.suggest(of_volumes, table, 4, by="doubt").table["uncertainty"].is_monotonic_decreasing
    assert not any("of the pool" in line for line in said())


def test_pictures_of_a_folder_are_one_volume_and_that_is_said(of_volumes, pool, said):
    (pool / "pool.csv").unlink(missing_ok=True)
    found = octfast.suggest(of_volumes, pool, 7)
    assert sorted(unit_words(found.table, "volume")) == [f"v{i}" for i in range(7)]
    assert found.units == found.patients == 7 and set(found.table["scans"]) == {3}
    assert any("are taken for one volume (7 folders)" in line for line in said())
    assert any("each volume of these is taken for a patient of its own" in line for line in said())
    assert octfast.suggest(of_volumes, pool, 7, patient_from=r"v(\d)").table["patient"].str.len().eq(1).all()


def test_files_of_volumes_are_read_and_named(of_volumes, tmp_path, said):
    write_volumes(tmp_path / "files", 4, frames=5, size=64, seed=3, kind="vol")
    files = sorted((tmp_path / "files" / "volumes").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:3000])
    found = octfast.suggest(of_volumes, tmp_path / "files" / "volumes", 3)
    assert [line for line in said() if "B-scans" in line] == ["3 volumes are read as 15 B-scans"]
    assert found.units == 3 and (found.table["scans"] == 5).all()
    assert set(found.table["file"]) == set(map(str, files[1:])) and list(found.left_out["path"]) == [str(files[0])]
    assert set(found.of_units["file"]) == set(map(str, files[1:]))
    assert [name.split(" / ")[-1] for name in unit_words(found.table, "volume")] == [
        Path(file).name for file in found.table["file"]
    ]


def test_volumes_that_the_run_has_or_is_tested_on_are_left_out_whole(of_volumes, pool, tmp_path):
    own = Path(shutil.copytree(pool, tmp_path / "pool"))
    scans = of_volumes.scans
    mine, tested = scans[scans["split"] == "train"]["path"].iloc[0], scans[scans["split"] == "test"].iloc[0]
    shutil.copy(mine, own / "v0" / f"copy{Path(mine).suffix}")
    patient = [tested["patient"] if p.parent.name == "v1" else "new" for p in sorted(own.rglob("scan*"))]
    table = table_of(own, patient=patient)
    rows = pd.read_csv(table)
    copy = {"path": own / "v0" / f"copy{Path(mine).suffix}", "patient": "new", "volume": "v0"}
    pd.concat([rows, pd.DataFrame([copy])]).to_csv(table, index=False)
    found = octfast.suggest(of_volumes, table, 10)
    assert sorted(found.table["volume"]) == ["v2", "v3", "v4", "v5", "v6"]
    why = found.left_out.set_index("path")["reason"].rename(lambda p: Path(p).parent.name)
    assert set(why["v1"]) == {"its patient is among the run's test scans"} and len(why["v1"]) == 3
    assert sorted(set(why["v0"])) == [
        "the run has a scan of its volume already",
        "the run has the same file under another name",
    ]
    table_of(own, path=[mine] * 21)
    with pytest.raises(DataError, match="can be suggested"):
        octfast.suggest(of_volumes, own / "pool.csv", 3)


def at_level(run, level: str, folder: Path):
    """The run as one that answers for eyes or patients."""
    run = open_run(shutil.copytree(run.path, folder / "run"))
    file = run.bundle / "octfast.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"level": level}))
    return run


def test_patients_are_suggested_with_the_scans_of_all_their_files(of_volumes, pool, tmp_path, octfast):
    run = at_level(of_volumes, "patient", tmp_path)
    ended = octfast("suggest", table_of(pool), "--run", run.path, "--n", 4)
    assert ended.code == 0 and "4 of 4 patients (21 scans)" in ended.out
    table = pd.read_csv("suggestions.csv")
    assert sorted(table["patient"]) == ["p0", "p1", "p2", "p3"] and sorted(table["scans"]) == [3, 6, 6, 6]
    assert all(patient in ended.out for patient in table["patient"])


def test_an_eye_needs_a_patient(of_volumes, pool, tmp_path):
    run = at_level(of_volumes, "eye", tmp_path)
    scans = sorted(pool.rglob("scan*"))
    pd.DataFrame({"path": scans, "eye": "OD"}).to_csv(tmp_path / "eyes.csv", index=False)
    with pytest.raises(UsageError, match="not whose"):
        octfast.suggest(run, tmp_path / "eyes.csv", 2)
    about = {"path": scans, "eye": ["OD", "OS", "OD"] * 7, "patient": [p.parent.name for p in scans]}
    pd.DataFrame(about).to_csv(tmp_path / "eyes.csv", index=False)
    found = octfast.suggest(run, tmp_path / "eyes.csv", 7)
    assert (found.level, found.units, found.patients) == ("eye", 14, 7) and set(found.table["scans"]) <= {1, 2}
