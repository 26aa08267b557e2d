from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from octfast.data.audit.annotations import find_annotations, white_border
from octfast.data.audit.image_stats import image_stats
from tests.data.audit.samples import again, phantom, save


@pytest.mark.parametrize("size, at", [(12, (6, 6)), (16, (10, 460)), (22, (200, 12))])
def test_letters_are_found(size, at):
    scan = phantom()
    ImageDraw.Draw(scan).text(at, "OD 12/03/2011 ART 100", fill=255, font=ImageFont.load_default(size=size))
    assert "letters" in find_annotations(np.asarray(again(scan, 85)))
    assert find_annotations(np.asarray(phantom())) == ""


def test_a_scale_bar_and_coloured_marks_are_found(tmp_path):
    scan = phantom()
    ImageDraw.Draw(scan).line((380, 470, 480, 470), fill=255, width=2)
    assert "line" in find_annotations(np.asarray(scan))
    arrow = phantom().convert("RGB")
    ImageDraw.Draw(arrow).line((100, 60, 160, 120), fill=(255, 255, 0), width=3)
    ((check, detail),) = image_stats(save(arrow, tmp_path / "arrow.png", "PNG")).remarks
    assert check == "burnt-in" and "surely" in detail


@pytest.mark.parametrize("side", [64, 128, 224, 300, 496])
def test_no_letters_where_there_are_none(side):
    for label in ("CNV", "DME", "DRUSEN", "NORMAL"):
        for patient in range(3):
            assert (
                find_annotations(np.asarray(phantom(label, patient).resize((side, side), Image.Resampling.BILINEAR)))
                == ""
            )


@pytest.mark.parametrize("shape", [8, 4, 2])
def test_no_letters_in_strong_speckle(shape):
    rng = np.random.default_rng(shape)
    for patient in range(4):
        scan = np.asarray(phantom("CNV", patient)).astype(float)
        noisy = (1.3 * scan * rng.gamma(shape, 1 / shape, scan.shape)).clip(0, 255).astype(np.uint8)
        assert find_annotations(noisy) == ""


def test_white_that_touches_the_border_is_border():
    thumb = np.full((96, 96), 40, np.uint8)
    thumb[40:50, 40:50] = 255
    assert white_border(thumb) == 0
    thumb[:10, :48] = 255
    assert white_border(thumb) == pytest.approx(480 / 96**2)
