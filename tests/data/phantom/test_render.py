from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from octfast.data.phantom.anatomy import HEIGHT, Eye, draw_eye, draw_lesions
from octfast.data.phantom.render import draw_slice


def eye(**changed) -> Eye:
    rng = np.random.default_rng(0)
    return replace(draw_eye(rng, draw_lesions("NORMAL", rng)), **changed)


@pytest.mark.parametrize("width", [512, 768])
def test_a_slice_is_of_the_size_of_its_eye(width):
    scan = draw_slice(eye(width=width, turned=False), np.random.default_rng(1))
    assert scan.shape == (HEIGHT, width) and scan.dtype == np.uint8 and scan.flags["C_CONTIGUOUS"]
    assert 20 < scan.mean() < 140 and scan.std() > 20


def test_slices_of_an_eye_have_speckle_of_their_own():
    first, second = (draw_slice(eye(turned=False), np.random.default_rng(s)) for s in (1, 2))
    assert (first != second).mean() > 0.7


def test_a_turned_scan_has_white_wedges():
    def white(turned: bool) -> float:
        scans = (draw_slice(eye(turned=turned), np.random.default_rng(s)) for s in range(6))
        return max(float((scan[[0, -1]] == 255).mean()) for scan in scans)

    assert white(True) > 0.3 and white(False) < 0.05
