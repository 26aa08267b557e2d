"""Finds annotations burnt into a B-scan: rows of letters, thin straight lines, coloured marks."""

from __future__ import annotations

import numpy as np

from octfast.data.wedges import white_joined_to_border

# Letters and rulers are burnt in at or near white, but thin and smoothed ones reach half of it only. Bright speckle and
# white wedges are told from them by shape and by what lies around. At 100 a clean phantom had four parts in a row.
_BRIGHT = 120
# Squeezed to a small square, letters lose their white, and speckle its peaks.
_SMALL, _BRIGHT_SMALL = 300, 80
_DARK_AROUND = 60
_WHITE = 200
# Strong speckle falls apart into ten times as many bright parts as a scan with text, and among so many some stand in a
# row by chance, but of other heights and not on one line.
_MOST_PARTS = 1 / 170
_LEAST_SHARE, _MOST_SPREAD, _MOST_OFF = 0.3, 0.22, 0.12


def find_annotations(grey: np.ndarray) -> str:
    """Say what looks like text or lines burnt into a scan, or "" where nothing does.

    Only bright marks on a dark ground are found: five or more separate parts of about one height side by side
    (letters), or a straight white stroke over an eighth of a picture of 300 pixels or more. Letters lower than 4
    pixels, and those written over the retina or a white border, are missed.

    Parameters
    ----------
    grey : uint8 of shape (H, W).
    """
    from scipy import ndimage

    height, width = grey.shape
    small = min(height, width) < _SMALL
    mask = grey >= (_BRIGHT_SMALL if small else _BRIGHT)
    if height < 48 or width < 48 or not mask.any():
        return ""
    labels, parts = ndimage.label(mask, structure=np.ones((3, 3), dtype=int))
    if parts > _MOST_PARTS * max(grey.size, 256 * 256):
        return ""
    boxes = np.array([(y.start, y.stop, x.start, x.stop) for y, x in ndimage.find_objects(labels)])
    high, wide = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    inside = (boxes[:, 0] > 0) & (boxes[:, 1] < height) & (boxes[:, 2] > 0) & (boxes[:, 3] < width)
    stroke = inside & (((high <= 5) & (wide >= max(24, width // 8))) | ((wide <= 5) & (high >= max(24, height // 8))))
    for i in np.flatnonzero(stroke):
        top, bottom, left, right = boxes[i]
        # The vitreous' membrane is as thin and as straight, but grey.
        along = grey[top:bottom, left:right].max(axis=0 if wide[i] > high[i] else 1)
        if not small and np.percentile(along, 10) >= _WHITE and _ground(grey, mask, boxes[i]) < _DARK_AROUND:
            return f"likely a line, {wide[i]} x {high[i]} pixels at x {left}, y {top}"
    letter = inside & (high >= (4 if small else 5)) & (high <= max(12, height // 8)) & (wide <= 6 * high)
    letters = [i for i in np.flatnonzero(letter) if _ground(grey, mask, boxes[i]) < _DARK_AROUND]
    row = _longest_row(boxes[letters])
    if len(row) < 5:
        return ""
    found = boxes[letters][row]
    heights, middles = found[:, 1] - found[:, 0], (found[:, 0] + found[:, 1]) / 2
    off = max(heights.std() / heights.mean() - _MOST_SPREAD, middles.std() / heights.mean() - _MOST_OFF)
    if off > 0 or len(row) < _LEAST_SHARE * len(letters):
        return ""
    return f"likely text, {len(row)} letters at x {found[:, 2].min()}, y {found[:, 0].min()}"


def white_border(thumb: np.ndarray) -> float:
    """The share of a picture that is white and joined to its border, where OCT2017's rotations left wedges.

    Parameters
    ----------
    thumb : the picture made small, uint8 of shape (H, W).
    """
    return float(white_joined_to_border(thumb).mean())


def _ground(grey: np.ndarray, mask: np.ndarray, box: np.ndarray) -> float:
    """The mean grey around a part, its own bright pixels and their blurred rim left out."""
    top, bottom, left, right = box
    pad = 4
    y, x = slice(max(0, top - pad), bottom + pad), slice(max(0, left - pad), right + pad)
    ring = np.ones(grey[y, x].shape, dtype=bool)
    ring[2:-2, 2:-2] = False
    ring &= ~mask[y, x]
    return float(grey[y, x][ring].mean()) if ring.any() else 255.0


def _longest_row(boxes: np.ndarray) -> np.ndarray:
    """The indices of the longest row of boxes: next to each other on one line, of about the same height."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    if len(boxes) < 5 or len(boxes) > 1000:
        return np.array([], dtype=int)
    high = (boxes[:, 1] - boxes[:, 0]).astype(float)
    middle = (boxes[:, 0] + boxes[:, 1]) / 2
    taller, lower = np.maximum(high[:, None], high), np.minimum(high[:, None], high)
    gap = np.maximum(boxes[:, None, 2], boxes[:, 2]) - np.minimum(boxes[:, None, 3], boxes[:, 3])
    beside = (
        (np.abs(middle[:, None] - middle) <= 0.3 * taller)
        & (lower / taller >= 0.55)
        & (gap <= 1.5 * taller)
        & (gap >= -1)
    )
    groups = connected_components(csr_matrix(beside), directed=False)[1]
    return np.flatnonzero(groups == np.bincount(groups).argmax())
