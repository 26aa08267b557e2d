from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from octfast.data.phantom import spoil
from octfast.data.phantom.draw import make_phantom


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> spoil.Scan:
    path = tmp_path_factory.mktemp("spoil") / "CNV-1234567-1.jpeg"
    path.write_bytes(spoil.jpeg(Image.fromarray(make_phantom("CNV", 1234567))))
    return spoil.Scan(path, "train", "CNV", "1234567")


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_no_fault_changes_the_file_itself(scan):
    before = scan.path.read_bytes()
    for make in (spoil.truncated, spoil.text, spoil.flat(0), spoil.coloured, spoil.written_on, spoil.odd_size):
        data, detail = make(scan)
        assert data != before and detail
    assert scan.path.read_bytes() == before


@pytest.mark.parametrize("way", [0, 1, 2])
def test_a_near_copy_shows_the_same_in_other_bytes(scan, way):
    copy = opened(spoil.almost(scan, way)[0]).convert("L").resize((64, 64))
    small = spoil.open_grey(scan).resize((64, 64))
    assert np.corrcoef(np.asarray(small, float).ravel(), np.asarray(copy, float).ravel())[0, 1] > 0.95


def test_sixteen_bits_keep_the_greys(scan):
    grey = spoil.open_grey(scan)
    wide = np.asarray(spoil.sixteen_bits(grey)).astype(int)
    assert wide.max() > 255 and (wide // 257 == np.asarray(grey)).all()


def test_the_alpha_channel_is_no_part_of_the_greys(scan):
    clear = spoil.half_clear(spoil.open_grey(scan))
    assert clear.mode == "RGBA" and clear.getchannel("A").getextrema() == (200, 200)


def test_a_saved_fault_is_of_the_format_that_it_names(scan):
    data, detail = spoil.saved("GIF", lambda p: p.convert("P"), "a GIF")(scan)
    assert opened(data).format == "GIF" and detail == "a GIF"
