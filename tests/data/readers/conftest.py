from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four pictures of two classes in a folder of images, with an umlaut and a space in their names."""
    images = tmp_path / "Übung eins" / "images"
    images.mkdir(parents=True)
    for i in range(4):
        Image.new("L", (8, 8), 40 * i).save(images / f"scan {i}.png")
    return images.parent
