"""The one preprocessing for validation, test and prediction: decode as grey, resize, repeat, normalise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from octfast.data.decode import MAX_PIXELS as MAX_PIXELS
from octfast.data.decode import decode
from octfast.data.fit import box_of

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def decode_grey(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Decode a picture as 8-bit grey, strictly; see `octfast.data.decode.decode`, which also says what was changed.

    Returns
    -------
    A PIL image of mode L.

    Raises
    ------
    DataError : the file is missing, empty, truncated, damaged, no picture, no regular file, larger than 100 million
        pixels, or of a kind of sample that has no fixed white (32-bit integers and floats).
    """
    return decode(source).grey


def resize(grey: Image.Image, size: int, fit: str) -> Image.Image:
    """Bring a picture to size x size with an antialiased bilinear filter.

    Parameters
    ----------
    fit : "squeeze" brings all of it there; "crop" the square in its middle, and nothing outside of that plays a part,
        not even at the border. See `octfast.data.fit.box_of`.
    """
    return seen(grey, fit).resize((size, size), Image.Resampling.BILINEAR)


def seen(picture: Image.Image, fit: str) -> Image.Image:
    """The part of a picture that a network sees."""
    box = box_of(picture.width, picture.height, fit)
    return picture if box == (0, 0, picture.width, picture.height) else picture.crop(box)


def preprocess(
    source: str | Path | bytes | Image.Image,
    size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    fit: str = "squeeze",
) -> torch.Tensor:
    """A picture as the network sees it outside training.

    Parameters
    ----------
    source : a file, the bytes of one, or a PIL image.
    size : the side, in pixels.
    mean, std : of the three channels, for samples in 0..1.
    fit : "squeeze" or "crop", as the model was trained; see `resize`.

    Returns
    -------
    A float32 tensor of shape (3, size, size).

    Raises
    ------
    DataError : see `decode_grey`.
    UsageError : an unknown fit.
    """
    return normalise(np.asarray(resize(decode_grey(source), size, fit)), mean, std)


def normalise(
    grey: np.ndarray, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> torch.Tensor:
    """Grey samples, uint8 of shape (..., H, W), as three normalised float32 channels: (..., 3, H, W)."""
    import torch

    shape = (3, 1, 1)
    x = torch.from_numpy(np.array(grey)).unsqueeze(-3).float().div_(255)
    return (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
