"""The same scans get the same class, abstention, urgent score and referral, whichever door they come in by."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from octfast.deploy.app.answers import Answers
from octfast.deploy.predict.predict import predict
from octfast.deploy.predictor import Predictor, load
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import save_bundle
from octfast.model.decide import decide, rule_of
from octfast.model.heads import body_and_head
from tests.pictures import scan

CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")
URGENT = ["CNV", "DME"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A small untrained model, its answers spread by a low temperature."""
    torch.manual_seed(3)
    arch = find_arch("test_resnet")
    model = nn.Sequential(*body_and_head(make_network(arch, 64), arch, "octfast", 4))
    info = BundleInfo("test_resnet", "octfast", CLASSES, 64, (0.5,) * 3, (0.2,) * 3, temperature=0.05)
    return save_bundle(tmp_path_factory.mktemp("decide") / "model", model, info)


@pytest.fixture(scope="module")
def predictor(bundle) -> Predictor:
    return load(bundle, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Twelve scans, dark to bright, so that the answers differ."""
    folder = tmp_path_factory.mktemp("scans")
    for n in range(12):
        Image.fromarray(scan(64, 64, seed=n) // (1 + n % 4)).save(folder / f"{n:02d}.png")
    return sorted(folder.iterdir())


def between(values: np.ndarray, share: float) -> float:
    """A threshold that this share of the values lies below, far from each, so that no rounding decides."""
    ordered = np.sort(values)
    at = int(share * len(ordered))
    return float(ordered[at - 1 : at + 1].mean())


@pytest.fixture(
    params=[(o, s, b) for o in (False, True) for s in (False, True) for b in (False, True)],
    ids=lambda c: "-".join(n for n, on in zip(("operating", "sets", "below"), c, strict=True) if on) or "plain",
)
def asked(request, predictor, files) -> tuple[Predictor, float | None]:
    """The model with what its bundle keeps, and the `abstain_below` that is asked for."""
    operating, sets, below = request.param
    p = predictor.probabilities(files)
    calibration: dict = {}
    if operating:
        threshold = between(p[:, :2].sum(1), 0.4)
        calibration["operating"] = {"urgent": URGENT, "sensitivity": 0.95, "threshold": threshold}
    if sets:
        calibration["conformal"] = {"coverage": 0.9, "threshold": between(np.sort(p, 1)[:, -2], 0.3)}
    own = Predictor(predictor.model, replace(predictor.info, calibration=calibration), precision="fp32", device="cpu")
    return own, between(p.max(1), 0.6) if below else None


def test_every_door_gives_the_same_answer(asked, files):
    predictor, below = asked
    by_command = predict(predictor, files, abstain_below=below)
    by_predictor = predictor.predict(files, abstain_below=below)
    page = Answers(predictor, abstain_below=below)
    by_page = pd.DataFrame([page.answer(f.read_bytes()) for f in files])
    rule = rule_of(CLASSES, predictor.info.calibration, abstain_below=below)
    expected = decide(predictor.probabilities(files), rule)
    for table in (by_command, by_predictor, by_page):
        assert list(table["predicted"]) == [CLASSES[i] for i in expected.predicted]
        assert list(table["referred"]) == expected.referred.tolist()
        assert np.allclose(table["urgent_score"], expected.urgent_score, atol=1e-5)
        if rule.abstains:
            assert list(table["abstained"]) == expected.abstained.tolist() and 0 < table["abstained"].sum() < len(files)
        assert "urgent" not in table
    assert ("abstained" in by_command) == ("abstained" in by_predictor) == rule.abstains
    if not rule.abstains:
        assert by_page["abstained"].isna().all()


def test_evaluate_counts_what_is_predicted(asked, files):
    from octfast import evaluate_table

    predictor, below = asked
    table = predict(predictor, files, abstain_below=below)
    names = [f"p_{c}" for c in CLASSES]
    judged = table[["path", "predicted", "probability", *names]].assign(patient=table["path"], loss=0.0)
    judged["label"] = ["CNV"] * 11 + ["NORMAL"]
    threshold = predictor.info.calibration.get("operating", {}).get("threshold")
    found = evaluate_table(judged, CLASSES, operating_threshold=threshold, abstain_below=below, resamples=100)
    point = "argmax" if threshold is None else "operating"
    assert found.counts["missed_urgent"][point] == (~table["referred"].astype(bool))[:11].sum()
    if below is not None:
        assert found.abstain["abstained"] == table["abstained"].sum()


def test_a_volume_is_referred_where_one_of_its_scans_is(predictor, tmp_path, monkeypatch):
    from tests.data.volumes import volume_files

    monkeypatch.chdir(tmp_path)
    volume_files.write_vol(tmp_path / "v.vol", volume_files.frames_of(4))
    table = predict(predictor, tmp_path / "v.vol", out="out.csv")
    (volume,) = pd.read_csv("out-volumes.csv").itertuples()
    assert volume.referred == table["referred"].any()
    assert volume.urgent_score == pytest.approx(table["urgent_score"].max(), rel=1e-5)


def test_the_lines_that_run_an_exported_file_decide_alike(bundle, files, predictor, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from octfast.deploy.export.export import export_bundle

    exported = export_bundle(bundle, out=tmp_path / "m.onnx", scans=2)
    p = predictor.probabilities(files)
    calibration = {
        "operating": {"urgent": URGENT, "sensitivity": 0.95, "threshold": between(p[:, :2].sum(1), 0.4)},
        "conformal": {"coverage": 0.9, "threshold": between(np.sort(p, 1)[:, -2], 0.3)},
    }
    monkeypatch.chdir(tmp_path)
    for kept in ({}, calibration):
        rule = rule_of(CLASSES, kept)
        lines = replace(exported, rule=rule).usage()
        expected = decide(p, rule)
        for n, file in enumerate(files):
            Image.open(file).save("scan.jpeg", "PNG")
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(lines, {})
            assert f"referred {expected.referred[n]}" in said.getvalue()
            assert ("abstained" in said.getvalue()) == rule.abstains
            if rule.abstains:
                assert f"abstained {expected.abstained[n]}" in said.getvalue()


def test_an_exported_file_holds_the_rule(bundle, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from octfast.deploy.export.export import export_bundle

    exported = export_bundle(bundle, out=tmp_path / "m.onnx", scans=2)
    held = {p.key: p.value for p in onnx.load(exported.file).metadata_props}
    assert json.loads(held["rule"]) == {"urgent": URGENT, "threshold": None, "set_threshold": None}
    assert exported.to_dict()["rule"]["urgent"] == ("CNV", "DME")
