"""Bodies of timm from training to answers: stored features, bundle, prediction, ONNX, report, heat maps."""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from octfast.assess.interpret.heatmap import heat_map
from octfast.data.scans import load_scans
from octfast.deploy.export.export import export_bundle
from octfast.deploy.export.onnx import onnx_runner
from octfast.deploy.predictor import load
from octfast.model import arch as arch_module
from octfast.model.arch import Arch
from octfast.model.bundle.read import load_bundle
from octfast.train.job import train_classifier
from tests.conftest import quick


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of RETFound's layout, made of a tiny transformer."""
    file = tmp_path_factory.mktemp("weights") / "RETFound_mae_tiny.pth"
    torch.manual_seed(0)
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    args = argparse.Namespace(model="mae_vit", epochs=800)
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_pred.bias": torch.zeros(8)}
    torch.save({"model": {**state, **decoder}, "args": args, "epoch": 799}, file)
    return file


@pytest.mark.parametrize("arch", ["test_efficientnet+depths", "test_vit+depths", "retfound_tiny"])
def test_a_body_of_timm_works_at_every_door(arch, phantoms, checkpoint, tmp_path, monkeypatch):
    tiny = Arch("retfound_tiny", "timm", timm_name="test_vit", pool="avg", licence="CC BY-NC 4.0: no commercial use")
    monkeypatch.setitem(arch_module.FOUNDATIONS, "retfound_tiny", tiny)
    monkeypatch.chdir(tmp_path)
    weights = str(checkpoint) if arch == "retfound_tiny" else "none"
    run = train_classifier(**quick(phantoms, arch=arch, weights=weights, views=1, epochs=1))
    model, info = load_bundle(run.bundle)
    assert info.arch == arch and info.mean == arch_module.find_arch(arch).mean
    scans = load_scans(run.path / "scans.csv", phantoms)
    paths = scans.loc[scans["split"] == "test", "path"].head(4).tolist()
    found = load(run.bundle, "fp32").probabilities(paths)
    wanted = run.predictions("test").set_index("path").loc[paths, [f"p_{c}" for c in info.classes]].to_numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    grey = Image.open(paths[0]).convert("L")
    if find_spec("onnxscript"):
        answer = onnx_runner(export_bundle(run.path, out=tmp_path / "model.onnx").file)
        np.testing.assert_allclose(answer(np.asarray(grey)[None, :, :, None])[0], wanted[0], atol=1e-4)
    method = "gradcam" if arch == "test_efficientnet+depths" else "attention"
    assert heat_map(model, info, grey, 0, method).shape == (grey.height, grey.width)
    if arch == "retfound_tiny":
        about = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
        assert "CC BY-NC" in about["weights_report"]["licence"] and "CC BY-NC" in info.weights["licence"]
        assert "CC BY-NC" in (run.path / "log.txt").read_text(encoding="utf-8")
