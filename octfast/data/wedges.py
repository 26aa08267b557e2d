"""White wedges at the border of a scan, as OCT2017's registration left them."""

from __future__ import annotations

import numpy as np

# Bright layers reach white in places and touch the side of a scan, but in no square of so large a share of its height.
_THICK = 0.02


def white_joined_to_border(grey: np.ndarray) -> np.ndarray:
    """Which samples are white and joined to the border by white ones; bool of the picture's shape.

    Parameters
    ----------
    grey : uint8 of shape (H, W).
    """
    from scipy import ndimage

    white = grey >= 250
    edge = np.zeros_like(white)
    edge[[0, -1]] = True
    edge[:, [0, -1]] = True
    if not (white & edge).any():
        return np.zeros_like(white)
    return ndimage.binary_propagation(white & edge, mask=white)


def white_wedges(grey: np.ndarray) -> np.ndarray:
    """Which samples are of a white wedge: white, joined to the border, and no thin bright layer; as above."""
    from scipy import ndimage

    joined = white_joined_to_border(grey)
    if not joined.any():
        return joined
    side = max(3, round(_THICK * min(grey.shape)))
    # Beyond the border there is more of it, so that a wedge is thick there too.
    wide = np.pad(joined, side, mode="edge")
    wide = ndimage.binary_opening(wide, np.ones((side, side), dtype=bool))[side:-side, side:-side]
    # The thin tips come back, and no layer farther than that.
    return ndimage.binary_dilation(wide, np.ones((3, 3), dtype=bool), iterations=2 * side, mask=joined)
