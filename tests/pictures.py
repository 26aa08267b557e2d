"""Pictures of every kind that a folder of scans may hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def scan(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    """Grey samples, uint8 of shape (height, width), with the whole range in them."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def write_kinds(folder: Path) -> dict[str, Path]:
    """The same scan as a file of every kind that is read, by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    grey = Image.fromarray(scan())
    alpha = Image.fromarray(scan(seed=1))
    colour = Image.fromarray(np.random.default_rng(2).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    pictures = {
        "grey.png": grey,
        "grey.jpeg": grey,
        "sixteen.png": Image.fromarray(scan().astype(np.uint16) * 257),
        "sixteen.tif": Image.fromarray(scan().astype(np.uint16) * 257),
        "cmyk.jpeg": colour.convert("CMYK"),
        "colour.jpeg": colour,
        "rgba.png": Image.merge("RGBA", (*colour.split(), alpha)),
        "la.png": Image.merge("LA", (grey, alpha)),
        "palette.png": colour.quantize(32),
        "one-bit.png": grey.convert("1"),
        "dot.png": grey.crop((0, 0, 1, 1)),
        "still.gif": grey,
        "scan.bmp": grey,
        "scan.webp": colour,
    }
    for name, picture in pictures.items():
        picture.save(folder / name, **({"lossless": True} if name.endswith("webp") else {}))
    grey.save(folder / "animated.gif", save_all=True, append_images=[alpha, grey])
    return {name: folder / name for name in (*pictures, "animated.gif")}


def write_broken(folder: Path) -> dict[str, Path]:
    """Files that cannot be read, by what is wrong with them."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "whole.jpeg"
    Image.fromarray(scan(200, 200)).save(whole)
    content = whole.read_bytes()
    whole.unlink()
    broken = {
        "empty.jpeg": b"",
        "truncated.jpeg": content[: len(content) // 2],
        "head-only.jpeg": content[:40],
        "text.jpeg": b"not a picture at all\n",
        "web.png": b"<!DOCTYPE html><html></html>",
    }
    for name, held in broken.items():
        (folder / name).write_bytes(held)
    Image.fromarray(scan().astype(np.float32)).save(folder / "floats.tif")
    Image.fromarray(scan().astype(np.int32)).save(folder / "integers.tif")
    return {name: folder / name for name in (*broken, "floats.tif", "integers.tif")}
