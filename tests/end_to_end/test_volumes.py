"""The same phantom eyes in four formats are the same scans, pixels and answers; and a clinic's files become a run."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.data.phantom.volumes import write_volumes
from octfast.data.readers.read import read_data
from octfast.deploy.predict.predict import predict
from octfast.deploy.predictor import load


def made(place, kind: str):
    if kind == "dicom":
        pytest.importorskip("pydicom", minversion="3")
    given = {"frames": 3, "diseased": (1, 2), "size": 48, "seed": 5, "workers": 1}
    return write_volumes(place / kind, 4, kind=kind, **given)


def in_order(scans: pd.DataFrame) -> pd.DataFrame:
    return scans.sort_values(["volume", "frame"], ignore_index=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return made(tmp_path_factory.mktemp("plain"), "png")


@pytest.mark.parametrize("kind", ["tiff", "dicom", "vol"])
def test_a_phantom_is_the_same_scans_pixels_and_answers_in_every_format(kind, plain, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("OCTFAST_CACHE", str(tmp_path / "cache"))
    first, scans = (in_order(read_data(f / "volumes.csv")) for f in (plain, made(tmp_path, kind)))
    same = ["label", "patient", "split", "volume", "eye", "frame", "label_level"]
    pd.testing.assert_frame_equal(first[same], scans[same])
    # What a format cannot hold is blank.
    assert first["position_mm"].isna().all() and scans["position_mm"].isna().all() == (kind == "tiff")
    for one, other in zip(first["path"], scans["path"], strict=True):
        with Image.open(one) as a, Image.open(other) as b:
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    model = load(trained.bundle, precision="fp32", device="cpu")
    answers = [np.stack([a.probabilities for a in model.stream(t["path"].tolist())]) for t in (first, scans)]
    np.testing.assert_array_equal(*answers)
    # The files themselves, as octfast predict reads them.
    rows = predict(model, [tmp_path / kind / "volumes"], answer_anyway=True)
    columns = [f"p_{c}" for c in model.classes]
    np.testing.assert_allclose(rows[columns].to_numpy(float), answers[1], atol=1e-4)
    assert rows["frame"].tolist() == [0, 1, 2] * 4


def test_a_clinics_volumes_become_a_run_that_knows_volumes(tmp_path, monkeypatch):
    from octfast.assess.evaluate import evaluate_run
    from octfast.model.bundle.read import read_info
    from octfast.train.job import train_classifier

    monkeypatch.setenv("OCTFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    clinic = write_volumes(
        tmp_path / "clinic", 8, frames=3, diseased=(3, 3), size=40, kind="vol", classes=("DME", "NORMAL"), workers=1
    )
    small = {"arch": "test_resnet", "size": 32, "weights": "none", "epochs": 1, "lr": 0.003, "precision": "fp32"}
    run = train_classifier(data=str(clinic), valid=0.3, folds=0, workers=1, views=1, **small)
    assert {"volume", "eye", "frame", "label_level"} <= set(run.scans.columns)
    assert (run.scans.groupby("patient")["split"].nunique() == 1).all()
    assert read_info(run.bundle).synthetic
    units = evaluate_run(run, split="valid", resamples=100).to_dict()["units"]
    assert {"volume", "eye", "patient"} <= {u["unit"] for u in units}
