from __future__ import annotations

import numpy as np

from octfast.data.wedges import white_joined_to_border, white_wedges


def scan():
    """A dark scan with a white wedge in a corner, and a white layer three samples thick from side to side."""
    grey = np.full((200, 300), 40, np.uint8)
    corner = np.add.outer(np.arange(200), np.arange(300)) < 60
    grey[corner] = 255
    grey[120:123] = 255
    return grey, corner


def test_a_wedge_is_found_and_a_thin_bright_layer_is_none():
    grey, corner = scan()
    found = white_wedges(grey)
    assert (found & corner).sum() == corner.sum() and not (found & ~corner).any()
    assert white_joined_to_border(grey).sum() == corner.sum() + 3 * 300


def test_white_that_is_not_joined_to_the_border_is_none():
    grey = np.zeros((100, 100), np.uint8)
    grey[40:60, 40:60] = 255
    assert not white_wedges(grey).any()
    assert white_wedges(np.full((30, 30), 255, np.uint8)).all()
