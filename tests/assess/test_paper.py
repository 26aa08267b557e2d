"""The tables and curves of an evaluation as files."""

from __future__ import annotations

import pandas as pd
import pytest

from octfast.assess.metrics.metrics import evaluate_table
from octfast.assess.paper import write_curves, write_tables
from octfast.errors import UsageError
from octfast.figure import Files
from tests.assess.simulated import simulated


@pytest.fixture(scope="module")
def found():
    table = simulated(300, classes=("CNV", "DME", "A_b & 5%", "inf"), alike=1.0)
    return table, evaluate_table(table, ("CNV", "DME", "A_b & 5%", "inf"), resamples=100, by_group=["split"])


def test_every_table_as_csv_with_all_digits_and_as_latex(found, tmp_path):
    _, evaluation = found
    files = write_tables(evaluation, tmp_path / "tables")
    # The same scans by patient have units of their own.
    names = {"overall", "per_class", "referral", "units", "groups", "confusion"}
    assert len(evaluation.units)
    assert {f.name for f in files} == {f"{n}.{e}" for n in names for e in ("csv", "tex")}
    read = pd.read_csv(tmp_path / "tables" / "overall.csv")
    pd.testing.assert_frame_equal(read, evaluation.overall.reset_index(drop=True), check_dtype=False)
    counts = pd.read_csv(tmp_path / "tables" / "confusion.csv", index_col="label")
    assert counts.to_numpy().tolist() == evaluation.confusion.to_numpy().tolist()


def test_the_latex_says_what_the_table_says_and_escapes_names(found, tmp_path):
    _, evaluation = found
    write_tables(evaluation, tmp_path / "tables")
    text = (tmp_path / "tables" / "per_class.tex").read_text(encoding="utf-8")
    assert r"A\_b \& 5\%" in text and "A_b" not in text and r"95\% intervals" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    row = evaluation.per_class.query("`class` == 'CNV' and metric == 'sensitivity'").iloc[0]
    assert f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})" in text
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in lines} == {4} and "nan" not in text


def test_the_curves_in_the_format_that_is_asked_for(found, tmp_path):
    table, evaluation = found
    files = write_curves(table, evaluation, tmp_path / "curves", Files("pdf"))
    assert [f.name for f in files] == ["roc.pdf", "precision_recall.pdf", "reliability.pdf", "risk_coverage.pdf"]
    assert all(f.read_bytes().startswith(b"%PDF") for f in files)


def test_nothing_is_overwritten(found, tmp_path):
    table, evaluation = found
    (tmp_path / "mine.txt").write_text("mine")
    for write in (lambda: write_tables(evaluation, tmp_path), lambda: write_curves(table, evaluation, tmp_path)):
        with pytest.raises(UsageError, match="not empty"):
            write()
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("about", [{"format": "bmp"}, {"dpi": 5}, {"dpi": 5000}])
def test_what_no_figure_can_be(about):
    with pytest.raises(UsageError, match=r"--(format|dpi)"):
        Files(**about)
