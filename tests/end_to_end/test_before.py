"""A run folder and its bundle that octfast 0.1.0 wrote: they are read, predicted with and judged as they were then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from octfast.assess.evaluate import evaluate_run
from octfast.assess.interpret.interpret import interpret_run
from octfast.assess.predictions import run_predictions
from octfast.assess.report.report import write_report
from octfast.data.scans import load_scans
from octfast.deploy.predictor import load
from octfast.run.folder import open_run

BEFORE = Path(__file__).parents[1] / "fixtures" / "before"
EXPECTED = json.loads((BEFORE / "expected.json").read_text(encoding="utf-8"))
CLASSES = ["CNV", "DME", "DRUSEN", "NORMAL"]
PROBABILITIES = [f"p_{c}" for c in CLASSES]


@pytest.fixture
def before(tmp_path):
    """The run, in a folder that may be written into; its scans where they are now."""
    return open_run(shutil.copytree(BEFORE / "run", tmp_path / "before"), BEFORE / "data")


def expected_answers() -> pd.DataFrame:
    """What the bundle answered then, a row a test scan."""
    return pd.DataFrame(EXPECTED["answers"])


def test_the_folder_is_read(before):
    assert before.scans["split"].value_counts().to_dict() == {"train": 21, "valid": 11, "test": 8}
    assert len(before.history) == 6 and before.config["chosen"]["best_epoch"] == 3
    assert before.config["data"]["synthetic"] is True
    assert "before" in before._repr_html_() and "test_efficientnet" in before._repr_html_()


def test_the_bundle_gives_the_same_probabilities(before):
    then = expected_answers()
    found = load(before.bundle, precision="fp32").predict([BEFORE / "data" / p for p in then["path"]])
    np.testing.assert_allclose(found[PROBABILITIES], then[PROBABILITIES], atol=1e-5)
    assert list(found["predicted"]) == list(then["predicted"])
    assert list(found["referred"]) == list(then["referred"])


def test_the_predictions_are_read_and_made_again_alike(before):
    kept = load_scans(BEFORE / "run" / "predictions-test.csv", BEFORE / "data")
    read, info = run_predictions(before, "test")
    assert list(info.classes) == CLASSES
    before.predictions_file("test").unlink()
    made, _ = run_predictions(before, "test")
    for found in (read, made):
        np.testing.assert_allclose(found[PROBABILITIES], kept[PROBABILITIES], atol=1e-5)
        assert list(found["path"]) == list(kept["path"])


def test_it_is_evaluated_to_the_same_numbers(before):
    then = EXPECTED["evaluation"]
    found = evaluate_run(before, "test").to_dict()
    assert (found["scans"], found["right"]) == (then["scans"], then["right"])
    now = {row["metric"]: row for row in found["overall"]}
    for metric, numbers in then["overall"].items():
        got = [now[metric][name] for name in ("value", "low", "high")]
        np.testing.assert_allclose(np.array(got, float), np.array(numbers, float), atol=1e-5, err_msg=metric)


def test_it_is_interpreted_and_reported(before):
    found = interpret_run(before, split="test", k=2)
    assert len(found.top) == 2 and all(Path(f).exists() for f in found.files)
    page = write_report(before, split="test").read_text(encoding="utf-8")
    assert "its 13 batch norms were set to 16 training scans" in page and "remember:" not in page
