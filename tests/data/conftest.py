from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path) -> Path:
    """Seven scans of known sizes, greys and formats: four to train on, three to test, one of them in two classes."""
    scans = {
        "train/A/A-1-1.png": ((30, 20), 10),
        "train/A/A-1-2.png": ((30, 20), 30),
        "train/A/A-2-1.png": ((40, 20), 50),
        "train/B/B-2-1.png": ((30, 20), 200),
        "test/A/A-3-1.png": ((30, 20), 90),
        "test/B/B-4-1.jpeg": ((64, 48), 128),
        "test/B/B-4-2.jpeg": ((64, 48), 64),
    }
    for name, (size, grey) in scans.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, grey).save(path)
    return tmp_path / "set"
