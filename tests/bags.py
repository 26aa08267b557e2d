"""Bags of scans for tests: phantoms put together as volumes, eyes and patients, with one label each."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from octfast.data.readers.folder import read_scans
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import save_bundle
from octfast.model.heads import body_and_head
from octfast.model.pooling import bag_head


def bag_table(phantoms: Path, file: Path) -> Path:
    """A table of phantoms, three of a class and split as a volume of a patient and an eye of its own."""
    scans = read_scans(phantoms)
    place = scans.groupby(["split", "label"]).cumcount() // 3
    name = scans["split"].str[:2] + scans["label"] + place.astype(str)
    table = scans.assign(patient="p" + name, eye="OD", volume=name, frame=scans.groupby(name).cumcount())
    table.to_csv(file, index=False)
    return file


def bag_bundle(folder: Path, classes: tuple[str, ...] = ("CNV", "DME", "DRUSEN", "NORMAL"), **info) -> Path:
    """A small untrained model that answers for volumes, its answers and its attention spread."""
    torch.manual_seed(3)
    arch = find_arch("test_resnet")
    body, scan = body_and_head(make_network(arch, 64), arch, "octfast", len(classes))
    about = {"temperature": 0.3, "level": "volume", "pooling": {"kind": "attention", "hidden": 16}, **info}
    head = bag_head(scan, "octfast", about["pooling"])
    if head.attention is not None:
        nn.init.normal_(head.attention.score.weight, std=3)
    made = BundleInfo("test_resnet", "octfast", classes, 64, (0.5,) * 3, (0.2,) * 3, **about)
    return save_bundle(folder, nn.Sequential(body, head), made)
