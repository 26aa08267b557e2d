"""Whether a scan is darker, more clipped, more cut off or more blurred than the scans that a model was trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# What is measured, each larger where it is worse, and the words for it.
MEASURES = {
    "dark": "darker than the training scans",
    "clipped": "more of it is clipped to white than of the training scans",
    "cut off": "the bright layers reach the upper or lower border, as in hardly any training scan",
    "blurred": "less sharp than the training scans",
}
# Greys from here on are white, which a border may be.
_WHITE = 250


class QualityNote(str):
    """A sentence on a scan's quality, among other remarks about it."""

    __slots__ = ()


def measure(grey: np.ndarray) -> dict[str, float]:
    """What `MEASURES` names, of a scan as the network is shown it; all are above 0.

    Parameters
    ----------
    grey : uint8 of shape (H, W).

    Returns
    -------
    `dark` is one over the grey that a hundredth of the pixels reaches; `clipped` the share of white pixels that are not
    joined to a white border, as of rotated scans; `cut off` how bright the brightest tenth of the upper or lower border
    is, as a share of that grey; `blurred` one over the standard deviation of the Laplacian as a share of that of the
    greys. White borders count for nothing.
    """
    from scipy import ndimage

    x = grey.astype(np.float32)
    white = grey >= _WHITE
    border = _white_border(white)
    inside = ~border
    if not inside.any():
        return {"dark": 1.0, "clipped": 1.0, "cut off": 1.0, "blurred": 1e3}
    level = float(np.percentile(x[inside], 99)) + 1
    strip, wide = max(2, len(x) // 50), max(3, x.shape[1] // 20)
    # Steps at a white border, and its rim, are not the scan's own.
    near = ndimage.binary_dilation(border, iterations=3)
    own = ~near
    edges = []
    for rows in (slice(0, strip), slice(len(x) - strip, None)):
        count = own[rows].sum(0)
        columns = np.where(count > 0, (x[rows] * own[rows]).sum(0) / np.maximum(count, 1), 0)
        edges.append(float(np.percentile(ndimage.uniform_filter1d(columns, wide, mode="nearest"), 90)))
    fine = ndimage.laplace(x)[own] if own.any() else np.zeros(1)
    spread = float(x[inside].std())
    sharp = float(fine.std()) / max(spread, 1e-3)
    return {
        "dark": 1 / level,
        "clipped": float((white & inside).mean()) + 1e-4,
        "cut off": max(edges) / level + 1e-3,
        "blurred": 1 / max(sharp, 1e-3),
    }


def quality_notes(grey: np.ndarray, limits: Mapping[str, Any]) -> tuple[QualityNote, ...]:
    """In what a scan is worse than its model's training scans, a sentence each; mostly none.

    Parameters
    ----------
    limits : by measure, as `octfast.json` has them.
    """
    found = measure(grey)
    return tuple(QualityNote(words) for name, words in MEASURES.items() if found[name] > limits.get(name, math.inf))


def _white_border(white: np.ndarray) -> np.ndarray:
    """What is white and joined to the upper or lower border, of shape (H, W), as wedges of rotated scans are.

    White layers reach the left and the right border where they are clipped, so these do not count, unlike in
    `octfast.data.audit.annotations.white_border`.
    """
    from scipy import ndimage

    edge = np.zeros_like(white)
    edge[[0, -1]] = True
    if not (white & edge).any():
        return edge & False
    return ndimage.binary_propagation(white & edge, mask=white)
