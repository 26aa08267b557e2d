from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
from PIL import Image

from octfast.data.phantom.draw import make_phantom


def files(root: Path, split: str = "train", label: str = "CNV") -> list[Path]:
    """One file of each patient of a class, so that a fault in one says nothing of another."""
    found: dict[str, Path] = {}
    for path in sorted((root / split / label).iterdir()):
        found.setdefault(path.stem.split("-")[1], path)
    return list(found.values())


def picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("L")


def save(image: Image.Image, path: Path, kind: str = "JPEG", **options) -> Path:
    image.save(path, kind, **options)
    return path


def again(image: Image.Image, quality: int = 75) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(out).convert("L")


def scan_table(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["path", "label", "patient", "split"])


def phantom(label: str = "NORMAL", patient: int = 1) -> Image.Image:
    return Image.fromarray(make_phantom(label, patient))
