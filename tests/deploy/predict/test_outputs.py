from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from octfast.deploy.predict.predict import predict
from octfast.errors import UsageError


def test_nothing_is_overwritten_unless_forced(predictor, scans):
    Path("out.csv").write_text("mine")
    with pytest.raises(UsageError, match=r"out\.csv exists"):
        predict(predictor, ["scans"], out="out.csv")
    assert Path("out.csv").read_text() == "mine"
    predict(predictor, [scans / "0.png"], out="out.csv", force=True)
    assert len(pd.read_csv("out.csv")) == 1


def test_an_input_is_not_overwritten_even_by_force(predictor, scans):
    Path("list.csv").write_text("path\nscans/0.png\n")
    with pytest.raises(UsageError, match="is an input"):
        predict(predictor, ["list.csv"], out="list.csv", force=True)
    assert Path("list.csv").read_text() == "path\nscans/0.png\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 5}, "4 classes"),
        ({"top_k": 0}, "4 classes"),
        ({"abstain_below": 1.5}, "not a probability"),
        ({"out": "gone/out.csv"}, "no such folder"),
        ({"out": "out.xlsx"}, r"\.xlsx"),
        ({"out": "out"}, "ends in nothing"),
        ({"format": "excel"}, "no format"),
        ({"format": "parquet"}, "needs a file"),
        ({"resume": True}, "--resume"),
        ({"heatmaps": "scans/maps"}, "the folder to predict"),
        ({"montage": "montage.txt"}, "unsupported file type"),
        ({"montage": "scans/montage.png"}, "the folder to predict"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(predictor, scans, options, words):
    before = sorted(scans.parent.rglob("*"))
    with pytest.raises(UsageError, match=words):
        predict(predictor, ["scans"], **options)
    assert sorted(scans.parent.rglob("*")) == before


@pytest.mark.parametrize("option", ["out", "heatmaps", "montage"])
def test_a_name_that_no_file_can_have(predictor, scans, option):
    with pytest.raises(UsageError, match="cannot write"):
        predict(predictor, ["scans"], **{option: "x" * 300 + {"out": ".csv", "montage": ".png"}.get(option, "")})
