"""Suggestions of a run: what is chosen of a pool, what is left out of it and why, and that a second call is quick."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

import octfast
from octfast.data.phantom.draw import write_phantoms
from octfast.errors import DataError, UsageError
from octfast.train.again import pool as pool_module


@pytest.fixture(scope="module")
def new_scans(tmp_path_factory) -> list[Path]:
    """24 phantoms of patients that the run does not have, in one folder without classes."""
    drawn = write_phantoms(tmp_path_factory.mktemp("drawn"), 24, seed=77, size=64, test=0)
    folder = tmp_path_factory.mktemp("pool")
    for i, file in enumerate(sorted(p for p in drawn.rglob("*") if p.suffix in (".jpeg", ".png"))):
        # Two scans a patient.
        (folder / f"p{i // 2:03d}").mkdir(exist_ok=True)
        shutil.copy(file, folder / f"p{i // 2:03d}" / f"scan{i}{file.suffix}")
    return sorted(p for p in folder.rglob("scan*"))


@pytest.fixture
def pool(new_scans, tmp_path) -> Path:
    return Path(shutil.copytree(new_scans[0].parents[1], tmp_path / "pool"))


def test_suggestions_are_judged_as_predict_does_and_each_is_of_another_patient(trained, pool):
    found = octfast.suggest(trained, pool, 8, patient_from="folder")
    table = found.table
    assert found.scans == 24 and found.patients == 12 and found.left_out.empty
    assert table["patient"].nunique() == len(table) == 8 and list(table["rank"]) == list(range(1, 9))
    assert table["uncertainty"].between(0, 1).all() and (table["novelty"] >= 0).all()
    predicted = octfast.predict(trained.path, list(table["path"]), answer_anyway=True, precision="fp32")
    assert list(table["predicted"]) == list(predicted["predicted"])
    assert table["probability"].to_numpy() == pytest.approx(predicted["probability"].to_numpy(), abs=5e-3)
    assert table["why"].str.contains("of the pool").all()


def test_a_second_call_runs_no_scan_through_the_body_and_gives_the_same(trained, pool, monkeypatch):
    first = octfast.suggest(trained, pool, 5, patient_from="folder").table
    ran = []
    run_pictures = pool_module.run_pictures

    def counted(engine, info, pictures, *rest):
        if isinstance(engine, pool_module.Engine):
            ran.extend(pictures)
        return run_pictures(engine, info, pictures, *rest)

    monkeypatch.setattr(pool_module, "run_pictures", counted)
    again = octfast.suggest(trained, pool, 5, patient_from="folder").table
    assert again.equals(first)
    # One tells the shape.
    assert len(ran) == 1


def test_what_the_run_has_or_is_tested_on_is_left_out_and_said(trained, pool, said):
    scans = trained.scans
    mine, tested = scans[scans["split"] == "train"]["path"].iloc[0], scans[scans["split"] == "test"].iloc[0]
    shutil.copy(mine, pool / "p000" / f"copy{Path(mine).suffix}")
    (pool / "p001" / "broken.png").write_bytes(b"no picture")
    (pool / "p002" / "volume.dcm").write_bytes(bytes(128) + b"DICM")
    theirs = next((pool / "p003").glob("scan*"))
    theirs.rename(pool / f"{tested['label']}-{tested['patient']}-999{theirs.suffix}")
    found = octfast.suggest(trained, [pool, mine], 100, patient_from="name")
    why = found.left_out.set_index("path")["reason"].rename(lambda p: Path(p).name).to_dict()
    assert why[f"copy{Path(mine).suffix}"] == "the run has the same file under another name"
    assert why[Path(mine).name] == "the run has it already"
    assert "volume" in why["volume.dcm"] and why["broken.png"]
    assert (
        why[f"{tested['label']}-{tested['patient']}-999{theirs.suffix}"] == "its patient is among the run's test scans"
    )
    assert len(found.left_out) == 5 and not set(found.left_out["path"]) & set(found.table["path"])
    assert len(found.table) == 23
    assert any("fewer than the 100" in line for line in said())
    assert any(line.startswith("left out: 1 of the pool: its patient") for line in said())


def test_a_table_names_the_patients(trained, pool, tmp_path):
    rows = [{"file": p.relative_to(pool).as_posix(), "subject": f"00{p.parent.name[1:]}"} for p in pool.rglob("scan*")]
    pd.DataFrame([*rows, {"file": "missing.png", "subject": "7"}]).to_csv(pool / "pool.csv", index=False)
    found = octfast.suggest(trained, pool / "pool.csv", 3)
    assert found.patients == 12 and list(found.left_out["reason"]) == [f"no such file: {pool / 'missing.png'}"]
    with pytest.raises(UsageError, match="has no such column"):
        octfast.suggest(trained, pool / "pool.csv", 3, patient_column="who")
    with pytest.raises(UsageError, match="is not a table"):
        octfast.suggest(trained, pool, 3, patient_column="who")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="can be suggested"):
        octfast.suggest(trained, tmp_path / "empty", 3)
