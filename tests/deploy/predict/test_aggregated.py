"""octfast predict of a model of scans that keeps how those of an eye, a patient or a volume are put together."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from octfast.deploy.predict.predict import predict
from octfast.deploy.predictor import load
from octfast.errors import UsageError
from octfast.model.aggregation import MEAN_LOG, TOP, aggregation_of
from octfast.model.bundle.write import update_info
from tests.deploy.predict.conftest import CLASSES, OPERATING, interrupted

KEPT = {"temperature": 0.8, "urgent": ["CNV", "DME"], "operating": OPERATING, "conformal": {"threshold": 0.1}}
UNITS = {
    "volume": {**KEPT, "rule": TOP, "k": 2},
    "eye": {**KEPT, "rule": MEAN_LOG, "k": None},
    "patient": {**KEPT, "rule": TOP, "k": 1},
}


@pytest.fixture(scope="module")
def fitted(bundle, tmp_path_factory):
    """A loaded model of scans, with what it keeps of units."""
    own = shutil.copytree(bundle, tmp_path_factory.mktemp("fitted") / "model")
    update_info(own, calibration={"units": UNITS})
    return load(own, precision="fp32", device="cpu")


@pytest.fixture
def table(scans):
    """Seven scans of three eyes of two patients."""
    rows = [(f"scans/{n}.png", "PQ"[n > 3], "RL"[n % 2] if n < 4 else "R") for n in range(7)]
    pd.DataFrame(rows, columns=["path", "patient", "eye"]).to_csv("clinic.csv", index=False)
    return "clinic.csv"


def put_together(fitted, rows: pd.DataFrame, level: str) -> np.ndarray:
    p = rows[[f"p_{c}" for c in CLASSES]].to_numpy()
    return aggregation_of({"units": UNITS}, level, CLASSES).probabilities(p, np.zeros(len(p), int), 1, CLASSES)[0]


def test_eyes_and_patients_of_a_table_have_answers(fitted, table):
    each = predict(fitted, table, out="answers.csv").set_index("path")
    eyes, patients = (pd.read_csv(f"answers-{level}s.csv") for level in ("eye", "patient"))
    assert sorted(zip(eyes["patient"], eyes["eye"], eyes["frames"], strict=True)) == [
        ("P", "L", 2),
        ("P", "R", 2),
        ("Q", "R", 3),
    ]
    assert patients.set_index("patient")["frames"].to_dict() == {"P": 4, "Q": 3}
    for level, kept, own in (("eye", eyes[eyes["patient"] == "Q"], [4, 5, 6]), ("patient", patients, None)):
        row = kept.iloc[0]
        own = own or ([0, 1, 2, 3] if row["patient"] == "P" else [4, 5, 6])
        rows = each.loc[[f"scans/{n}.png" for n in own]]
        expected = put_together(fitted, rows, level)
        np.testing.assert_allclose([row[f"p_{c}"] for c in CLASSES], expected, atol=1e-5)
        assert row["predicted"] == CLASSES[expected.argmax()] and row["most"] in rows.index
        assert row["urgent_score"] == pytest.approx(expected[:2].sum(), abs=1e-5)
        assert row["referred"] == (expected[:2].sum() >= OPERATING["threshold"])
        assert row["abstained"] == ((expected >= 0.1).sum() > 1)
    assert list(eyes["urgent_score"]) == sorted(eyes["urgent_score"], reverse=True)
    # The answers for a unit agree through another door.
    said = fitted.answer_unit([f"scans/{n}.png" for n in range(4)], level="patient")
    own = patients[patients["patient"] == "P"].iloc[0]
    np.testing.assert_allclose(said.probabilities, [own[f"p_{c}"] for c in CLASSES], atol=1e-5)
    assert said.attention.sum() == pytest.approx(1) and f"scans/{said.attention.argmax()}.png" == own["most"]


def test_a_volume_has_the_answer_that_was_fitted(fitted, scans):
    each = predict(fitted, "scans/5-volume.vol", out="answers.csv")
    (volume,) = pd.read_csv("answers-volumes.csv").to_dict("records")
    np.testing.assert_allclose([volume[f"p_{c}"] for c in CLASSES], put_together(fitted, each, "volume"), atol=1e-5)
    assert volume["frames"] == 5 and sum(volume[f"scans_{c}"] for c in CLASSES) == 5
    assert volume["most_frame"] in range(5) and volume["path"] == "scans/5-volume.vol"


def test_what_was_interrupted_comes_to_the_same(fitted, table):
    predict(fitted, table, out="whole.csv")
    interrupted(fitted, [table], 5)
    predict(fitted, table, out="out.csv", resume=True, bs=3)
    for level in ("eyes", "patients"):
        pd.testing.assert_frame_equal(pd.read_csv(f"out-{level}.csv"), pd.read_csv(f"whole-{level}.csv"), rtol=1e-4)
    with pytest.raises(UsageError, match=r"whole-eyes.csv exists|whole.csv exists"):
        predict(fitted, table, out="whole.csv")


def test_a_model_that_keeps_nothing_of_units_answers_as_before(predictor, table):
    predict(predictor, [table, "scans/5-volume.vol"], out="answers.csv")
    assert {"highest_p_CNV", "urgent_frame"} <= set(pd.read_csv("answers-volumes.csv"))
    with pytest.raises(FileNotFoundError):
        pd.read_csv("answers-eyes.csv")
    with pytest.raises(UsageError, match="single scans"):
        predictor.answer_unit(["scans/1.png"])
