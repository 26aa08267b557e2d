"""A small model, scans to ask it about, and predictions that stop half-way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from octfast.deploy.predict.predict import run_prediction
from octfast.deploy.predictor import Predictor, load
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import save_bundle
from octfast.model.heads import body_and_head
from tests.data.volumes import volume_files as files
from tests.pictures import scan, write_broken

CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")


OPERATING = {"urgent": ["CNV", "DME"], "sensitivity": 0.95, "threshold": 0.5}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A small untrained model, its answers spread by a low temperature."""
    torch.manual_seed(3)
    arch = find_arch("test_resnet")
    model = nn.Sequential(*body_and_head(make_network(arch, 64), arch, "octfast", 4))
    info = BundleInfo("test_resnet", "octfast", CLASSES, 64, (0.5,) * 3, (0.2,) * 3, temperature=0.3)
    return save_bundle(tmp_path_factory.mktemp("bundle") / "model", model, info)


@pytest.fixture(scope="module")
def predictor(bundle) -> Predictor:
    return load(bundle, precision="fp32", device="cpu")


@pytest.fixture
def scans(tmp_path, monkeypatch) -> Path:
    """Seven pictures, a volume of five B-scans, and broken files, in the current folder's `scans`."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "scans"
    folder.mkdir()
    for n in range(7):
        Image.fromarray(scan(40 + n, 50, seed=n)).save(folder / f"{n}.png")
    files.write_vol(folder / "5-volume.vol", files.frames_of(5))
    write_broken(folder / "broken")
    return folder


class StopHereError(Exception):
    pass


def interrupted(predictor, inputs, after: int, **options):
    """Predict into out.csv, killed after so many rows."""
    seen = 0

    def on_row(row, columns):
        nonlocal seen
        seen += 1
        if seen == after:
            raise StopHereError

    with pytest.raises(StopHereError):
        run_prediction(predictor, inputs, on_row, out="out.csv", bs=3, **options)
    assert not Path("out.csv").exists() and Path(".out.csv.part").exists()
