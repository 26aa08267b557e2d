"""Finds the files that cannot be read before training does, and leaves them out with their reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from PIL import Image, UnidentifiedImageError

from octfast.data import preprocess
from octfast.data.preprocess import decode_grey
from octfast.errors import DataError

log = logging.getLogger("octfast")

_UNUSUAL = {
    "I": "16-bit grey, read with 65,535 as white",
    "CMYK": "CMYK, read as grey",
    "RGBA": "RGBA, read as grey without its transparency",
    "LA": "grey with transparency, read without it",
    "RGB": "colour, read as grey",
    "P": "palette colour, read as grey",
    "animated": "animated, only the first frame is read",
}


def check_file(path: str | Path) -> tuple[str, str]:
    """What is wrong with a scan, and what is unusual about it.

    A JPEG that opens, is not enormous and ends with its end-of-image marker is believed; anything else is decoded in
    full.

    Returns
    -------
    (why it cannot be read, or ""; a mode that is read with a change, or "").
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            return "empty file", ""
        with Image.open(path) as image:
            kind = "animated" if getattr(image, "is_animated", False) else image.mode.partition(";")[0]
            usual = image.format == "JPEG" and image.mode in ("L", "RGB", "CMYK")
            if usual and image.width * image.height <= preprocess.MAX_PIXELS and _ends_well(path):
                return "", kind
        decode_grey(path)
        return "", kind
    except UnidentifiedImageError:
        return "not a picture", ""
    except DataError as e:
        return e.message.replace(str(path), "").replace("cannot decode : ", "").strip() or "cannot be decoded", ""
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        return str(e), ""


def leave_out_unreadable(
    scans: pd.DataFrame, progress: Callable[[int, int], None] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Check every file of a Scans table, and say what was found.

    Returns
    -------
    The readable scans, and the rest with a column `reason`.

    Raises
    ------
    DataError : none can be read, or what is left has fewer than two classes to train on.
    """
    results = []
    with ThreadPoolExecutor(max_workers=4) as pool:
        for n, result in enumerate(pool.map(check_file, scans["path"]), 1):
            results.append(result)
            if progress:
                progress(n, len(scans))
    reason = pd.Series([r for r, _ in results], index=scans.index)
    kinds = pd.Series([k for _, k in results], index=scans.index)
    for kind, count in kinds[kinds.isin(list(_UNUSUAL))].value_counts().items():
        if kind == "RGB":
            log.info("%d scans are colour pictures, read as grey", count)
        else:
            first = scans.loc[kinds == kind, "path"].iloc[0]
            log.warning("%d scans are %s; the first: %s", count, _UNUSUAL[str(kind)], first)
    bad = scans.assign(reason=reason)[reason != ""].reset_index(drop=True)
    good = scans[reason == ""].reset_index(drop=True)
    for row in bad.head(5).itertuples():
        log.warning("left out, unreadable: %s (%s)", row.path, row.reason)
    if len(bad) > 5:
        log.warning("left out, unreadable: %d more", len(bad) - 5)
    left = good.loc[good["split"] != "test", "label"].nunique()
    if left < 2:
        raise DataError(
            f"{len(bad)} of {len(scans)} files cannot be read, and the rest has {left} classes to train on",
            "fetch the data again; two classes or more are needed",
        )
    return good, bad


def _ends_well(path: Path) -> bool:
    with path.open("rb") as f:
        f.seek(0, 2)
        f.seek(max(0, f.tell() - 64))
        return b"\xff\xd9" in f.read()
