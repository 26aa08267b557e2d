"""A network in int8 is converted and calibrated once: kept in the cache, checked, made again where it is damaged."""

import json
import logging

import pytest
import torch
from torch import nn

from octfast.model.engine import make_engine
from octfast.model.networks import clear_networks, list_networks

pytest.importorskip("nncf")


def run(cache, seed=0, calibration=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()).eval()
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(calibration))
    return make_engine(network, precision="int8", calibration=lambda: [x], cache=cache)(x)


def test_a_network_is_kept_found_again_and_made_again_where_damaged(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="octfast")
    first = run(tmp_path)
    (kept,) = list_networks(tmp_path)
    about = json.loads((kept.path / "about.json").read_text(encoding="utf-8"))
    assert {"nncf", "calibration", "body", "size", "version", "pictures"} <= set(about["key"])
    assert [p.name for p in kept.path.parent.iterdir()] == [kept.path.name]

    caplog.clear()
    assert torch.equal(run(tmp_path), first)
    assert "taken from the cache" in caplog.text and "calibrating" not in caplog.text

    weights = kept.path / "network.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    caplog.clear()
    assert torch.equal(run(tmp_path), first)
    assert "is damaged: making it again" in caplog.text and len(list_networks(tmp_path)) == 1


def test_another_body_or_other_pictures_are_another_network_and_clearing_leaves_what_is_not_octfasts(tmp_path):
    for settings in ({}, {"seed": 1}, {"calibration": 1}):
        run(tmp_path, **settings)
    assert len(list_networks(tmp_path)) == 3
    other = tmp_path / "networks" / "mine.txt"
    other.write_text("mine")
    number, freed = clear_networks(tmp_path)
    assert number == 3 and freed > 0 and not list_networks(tmp_path)
    assert [p.name for p in (tmp_path / "networks").iterdir()] == ["mine.txt"]
