from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.volumes.test_reader import read, reader, refusal, stacked

__all__ = ["reader"]


def rasters(path: Path, size: int) -> Path:
    path.write_bytes(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes())
    return path


def test_an_img_of_several_possible_shapes_names_them_and_its_name_can_say_which(reader, tmp_path):
    pytest.importorskip("oct_converter")
    size = 5 * 1024 * 1024  # an HD 5 line raster, which is no ten B-scans 512 wide
    said = refusal(reader, rasters(tmp_path / "PHD 5 Line Raster_OS.img", size))
    assert "10x1024x512 or 5x1024x1024" in said
    scans = read(reader, rasters(tmp_path / "raster_5x1024x1024.img", size))
    assert stacked(scans).shape == (5, 1024, 1024)
    assert "no cube of B-scans 6x1024x1024" in refusal(reader, rasters(tmp_path / "raster_6x1024x1024.img", size))


@pytest.mark.parametrize(
    ("size", "shape"), [(128 * 1024 * 512, (128, 1024, 512)), (200 * 1024 * 200, (200, 1024, 200))]
)
def test_the_cubes_of_cirrus_are_known_by_their_size(reader, tmp_path, size, shape):
    pytest.importorskip("oct_converter")
    path = tmp_path / "cube.img"
    with path.open("wb") as f:
        f.truncate(size)
    assert stacked(read(reader, path)).shape == shape
