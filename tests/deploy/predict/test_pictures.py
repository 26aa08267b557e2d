from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from torch import nn

from octfast.deploy.predict.predict import predict
from octfast.errors import UsageError
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import save_bundle
from octfast.model.heads import body_and_head
from tests.deploy.predict.conftest import CLASSES, StopHereError
from tests.pictures import scan


def test_heat_maps_and_montage(predictor, scans):
    inputs = ["scans/0.png", "scans/5-volume.vol", "scans/broken"]
    table = predict(predictor, inputs, heatmaps="maps", montage="montage.png", out="out.csv")
    good = table[table["error"] == ""]
    assert sorted(good["heat_map"]) == sorted(p.name for p in Path("maps").iterdir())
    assert good["heat_map"].iloc[1] == "000002-5-volume-0-0000.png"
    assert table.loc[table["error"] != "", "heat_map"].isna().all()
    with Image.open("maps/000001-0.png") as held:
        assert held.mode == "RGB" and held.height > 40
    with Image.open("montage.png") as held:
        assert held.width > 200
    with pytest.raises(UsageError, match="not empty"):
        predict(predictor, inputs, heatmaps="maps")


def test_a_montage_that_fails_costs_nothing_else(predictor, scans, monkeypatch):
    def fail(*_):
        raise StopHereError

    whole = predict(predictor, ["scans"], out="whole.csv", montage="whole.png")
    with monkeypatch.context() as broken, pytest.raises(StopHereError):
        broken.setattr("octfast.deploy.predict.pictures.plot_montage", fail)
        predict(predictor, ["scans"], out="out.csv", montage="out.png")
    for name in ("{}.csv", "{}-volumes.csv"):
        assert Path(name.format("out")).read_bytes() == Path(name.format("whole")).read_bytes()
    again = predict(predictor, ["scans"], out="out.csv", montage="out.png", resume=True)
    pd.testing.assert_frame_equal(again, whole)
    with Image.open("out.png") as one, Image.open("whole.png") as other:
        assert one.size == other.size
    assert not Path(".out.csv.part").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text are Linux's alone")
@pytest.mark.parametrize("name", ["montage.png", "montage.svg"])
def test_a_montage_of_names_that_are_no_text(predictor, scans, name):
    shutil.copy(scans / "0.png", os.fsdecode(bytes(scans) + b"/caf\xe9 $x$ \x1b[31m.png"))
    table = predict(predictor, ["scans"], montage=name, heatmaps="maps", out="out.csv")
    assert (table["error"] == "").sum() == 13 and Path(name).stat().st_size > 1000
    assert len(list(Path("maps").iterdir())) == 13


def test_a_heat_map_is_no_larger_than_needed(predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scan(2600, 4000)).save("large.png")
    predict(predictor, "large.png", heatmaps="maps")
    with Image.open("maps/000001-large.png") as held:
        assert held.width == 2048 and held.height < 1400


def test_a_network_without_a_map_is_told_before_anything_is_read(scans, tmp_path):
    arch = find_arch("test_vit")
    model = nn.Sequential(*body_and_head(make_network(arch, 64), arch, "octfast", 4))
    save_bundle(tmp_path / "vit", model, BundleInfo("test_vit", "octfast", CLASSES, 64, (0.5,) * 3, (0.2,) * 3))
    with pytest.raises(UsageError, match="--heatmaps: test_vit"):
        predict(tmp_path / "vit", ["scans"], heatmaps="maps", out="out.csv", device="cpu")
    assert not Path(".out.csv.part").exists()
