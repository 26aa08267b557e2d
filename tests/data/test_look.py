from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from octfast.data.decode import decode
from octfast.data.look import chroma, refuse_alike, unusual
from octfast.data.phantom.draw import make_phantom
from octfast.errors import DataError
from tests.pictures import scan


def checks(picture: Image.Image) -> list[str]:
    return [check for check, _ in unusual(decode(picture))]


def test_nothing_is_said_of_an_ordinary_scan():
    for label in ("CNV", "NORMAL"):
        assert checks(Image.fromarray(make_phantom(label, 1))) == []
        assert checks(Image.fromarray(make_phantom(label, 1)).convert("RGB")) == []


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (Image.new("L", (100, 100), 90), ["blank"]),
        (Image.fromarray(scan() // 20), ["dark"]),
        (Image.fromarray(scan(20, 100)), ["tiny"]),
        (Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)), ["colour"]),
        (Image.fromarray(scan().astype(np.uint16)), ["16-bit"]),
        (Image.fromarray(scan()).convert("CMYK"), ["cmyk"]),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_blank_dark_tiny_and_coloured_pictures_are_said(picture, said):
    assert checks(picture) == said


def test_a_huge_picture_is_said_with_its_size():
    # As a JPEG comes that was decoded at an eighth of its size.
    found = unusual(replace(decode(Image.fromarray(scan())), width=12000, height=4000))
    assert found == [("huge", "huge: 12000x4000 pixels, which take memory and seconds at each reading")]


def test_chroma_counts_pixels_whose_channels_lie_apart():
    picture = np.zeros((10, 10, 3), np.uint8)
    picture[0, :, 0] = 200
    assert chroma(picture) == (0.1, 10)


def test_pictures_that_are_all_alike_are_refused(tmp_path):
    paths = [str(tmp_path / f"{i}.jpeg") for i in range(80)]
    for path in paths:
        Image.new("L", (60, 50), 128).save(path)
    with pytest.raises(DataError, match=r"all alike: 64 of 80 were looked at, and each is grey 128 all over"):
        refuse_alike(paths)
    Image.fromarray(make_phantom("CNV", 1)).save(paths[-1])
    refuse_alike(paths)
    for path in paths:
        Image.fromarray(make_phantom("CNV", 1)).save(path, quality=90 if path < paths[40] else 91)
    with pytest.raises(DataError, match="each is the same picture"):
        refuse_alike(paths)
    refuse_alike(paths[:1])
