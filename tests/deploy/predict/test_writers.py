from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from octfast.deploy.predict.outputs import volumes_file
from octfast.deploy.predict.predict import predict, run_prediction
from octfast.deploy.predict.rows import Wanted
from octfast.deploy.predict.writers import Journal, csv_line, format_of
from octfast.errors import DataError, UsageError
from tests.deploy.predict.conftest import interrupted


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_the_file_holds_the_table(predictor, scans, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    table = predict(predictor, scans, out=name, top_k=2, abstain_below=0.5)
    read = {"csv": pd.read_csv, "jsonl": lambda f: pd.read_json(f, lines=True), "parquet": pd.read_parquet}
    found = read[name.split(".")[1]](name)
    assert list(found.columns) == list(table.columns)
    assert found["path"].tolist() == table["path"].tolist()
    assert np.allclose(found["p_CNV"], table["p_CNV"], rtol=1e-5, equal_nan=True)
    assert found["error"].fillna("").tolist() == table["error"].tolist()
    right = table["error"] == ""
    assert found.loc[right, "abstained"].astype(bool).tolist() == table.loc[right, "abstained"].tolist()
    assert found["frame"].astype("Int64").tolist() == table["frame"].tolist()
    assert sorted(p.name for p in Path().iterdir()) == sorted([name, volumes_file(Path(name)).name, "scans"])


@pytest.mark.parametrize("cut", [1, 10, 200, 1500])
def test_a_torn_last_line_is_dropped(predictor, scans, cut):
    whole = predict(predictor, ["scans"])
    interrupted(predictor, ["scans"], 14)
    part = Path(".out.csv.part")
    part.write_bytes(part.read_bytes()[:-cut])
    pd.testing.assert_frame_equal(predict(predictor, ["scans"], out="out.csv", resume=True), whole)


def test_a_journal_torn_in_its_first_line_starts_anew(predictor, scans):
    Path(".out.csv.part").write_bytes(b'{"octfast": "pred')
    assert len(predict(predictor, ["scans"], out="out.csv", resume=True)) == 19


def test_two_processes_do_not_write_the_same_file(predictor, scans):
    other = Journal(Path("out.csv"), {})
    other.open(False, False)
    with pytest.raises(UsageError, match="another process"):
        predict(predictor, ["scans"], out="out.csv", force=True)
    other.close()
    assert not Path(".out.csv.lock").exists()


def test_hostile_names_are_harmless_in_csv(predictor, scans):
    import csv

    hostile = ['=HYPERLINK("x").png', "+1.png", "-1.png", "@x.png", 'quo"te,.png', "new\nline.png", "$x_1$.png"]
    for name in hostile:
        shutil.copy(scans / "0.png", name)
    predict(predictor, [f"./{n}" for n in hostile] + ["=gone.png"], out="out.csv", montage="montage.png")
    with Path("out.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 8
    assert all(not v.startswith(("=", "+", "-", "@")) for row in rows for v in row.values())
    assert all(Path(row["path"]).samefile(n) for row, n in zip(rows, hostile, strict=False))


def test_a_class_whose_name_is_a_formula():
    assert csv_line(["=1+1", "a", -0.5, True, None, 1e-12]) == "'=1+1,a,-0.5,true,,1e-12\r\n"


def test_formats_by_ending():
    assert [format_of(f"a{e}", None) for e in (".csv", ".CSV", ".ndjson", ".pq")] == ["csv", "csv", "jsonl", "parquet"]
    assert format_of(None, None) == "csv" and format_of("a.txt", "jsonl") == "jsonl"


def test_rows_are_in_the_journal_as_they_come(predictor, scans):
    """Somebody who follows the file sees each row when it is there, not when all are."""
    lines = []

    def on_row(row, columns):
        lines.append(len(Path(".out.jsonl.part").read_bytes().splitlines()))

    run_prediction(predictor, ["scans"], on_row, out="out.jsonl", wanted=Wanted(top_k=2))
    assert lines == [n + 2 for n in range(19)]
    assert json.loads(Path("out.jsonl").read_text().splitlines()[0])["path"] == "scans/0.png"


@pytest.mark.parametrize("held", [b"notes of mine\n", b'{"a": 1}\nx\n', b"[1]\n"])
def test_a_file_of_another_program_is_no_journal(predictor, scans, held):
    Path(".out.csv.part").write_bytes(held)
    with pytest.raises(UsageError, match="not an interrupted prediction"):
        predict(predictor, ["scans"], out="out.csv", resume=True)
    assert Path(".out.csv.part").read_bytes() == held


def test_a_journal_with_a_row_that_is_none(predictor, scans):
    interrupted(predictor, ["scans"], 3)
    with Path(".out.csv.part").open("ab") as f:
        f.write(b'{"item": 3}\n')
    with pytest.raises(DataError, match="damaged"):
        predict(predictor, ["scans"], out="out.csv", resume=True)
