"""The one preprocessing for validation, test and prediction: decode as grey, resize, repeat, normalise."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from octfast.errors import DataError

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 100_000_000


def decode_grey(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Decode a picture as 8-bit grey.

    Colour becomes luma (ITU-R 601-2), transparency is dropped, 16-bit samples are divided by 257 so that 65,535 is
    white, and of an animation the first frame is taken.

    Parameters
    ----------
    source : a file, the bytes of one, or a PIL image.

    Returns
    -------
    A PIL image of mode L.

    Raises
    ------
    DataError : the file is missing, empty, truncated, no picture, larger than 100 million pixels, or of a kind of
        sample that has no fixed white (32-bit integers and floats).
    """
    name = str(source) if isinstance(source, str | Path) else "the picture"
    try:
        if isinstance(source, Image.Image):
            return _grey(source, name)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{name} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}",
                    "crop or shrink it",
                )
            return _grey(image, name)
    except FileNotFoundError:
        raise DataError(f"no such file: {name}", "was the folder moved? give it again") from None
    except UnidentifiedImageError:
        raise DataError(f"no picture: {name}", "remove it, or save it as JPEG or PNG") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as e:
        raise DataError(f"cannot decode {name}: {e}", "fetch the file again, or remove it") from None


def resize(grey: Image.Image, size: int) -> Image.Image:
    """Squeeze a picture to size x size with an antialiased bilinear filter; nothing is cropped away."""
    return grey.resize((size, size), Image.Resampling.BILINEAR)


def preprocess(
    source: str | Path | bytes | Image.Image,
    size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> torch.Tensor:
    """A picture as the network sees it outside training.

    Parameters
    ----------
    source : a file, the bytes of one, or a PIL image.
    size : the side, in pixels.
    mean, std : of the three channels, for samples in 0..1.

    Returns
    -------
    A float32 tensor of shape (3, size, size).

    Raises
    ------
    DataError : see `decode_grey`.
    """
    return normalise(np.asarray(resize(decode_grey(source), size)), mean, std)


def normalise(
    grey: np.ndarray, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> torch.Tensor:
    """Grey samples, uint8 of shape (..., H, W), as three normalised float32 channels: (..., 3, H, W)."""
    import torch

    shape = (3, 1, 1)
    x = torch.from_numpy(np.array(grey)).unsqueeze(-3).float().div_(255)
    return (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def _grey(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise DataError(f"{name} has 32-bit samples, which have no fixed white", "save it with 8 or 16 bits a sample")
    if image.mode.startswith("I"):
        samples = np.asarray(image).astype(np.int64)
        return Image.fromarray((samples.clip(0, 65535) // 257).astype(np.uint8))
    return image.convert("L")
