"""Pictures that go with the table of answers: heat maps over the scans, and a montage of the most urgent."""

from __future__ import annotations

import heapq
import logging
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from octfast.data.fit import hides, seen_in_words
from octfast.data.preprocess import decode_grey
from octfast.data.volumes.kinds import kind_of
from octfast.data.volumes.reader import VolumeReader
from octfast.deploy.predictor import Predictor
from octfast.errors import DataError, UsageError
from octfast.files import whole_file
from octfast.model.prefetch import decode_picture
from octfast.notices import CAUTION, NOTICE, SYNTHETIC_NOTE

if TYPE_CHECKING:
    from octfast.figure import Figure

log = logging.getLogger("octfast")

MONTAGE = 48
# Pixels below a heat map for its caption, and how wide the caption is at most.
_CAPTION, _CAPTION_WIDTH = 20, 500
# Side of the pictures that heat maps are drawn over, in pixels: of 100 million pixels they would take gigabytes.
_LARGEST = 2048


def check_heat_maps(predictor: Predictor) -> None:
    """
    Raises
    ------
    UsageError : there are none of this network, or captum is not installed.
    """
    from octfast.assess.interpret.heatmap import check_method, last_map

    check_method("gradcam")
    try:
        last_map(predictor.model, predictor.info.size)
    except UsageError:
        raise UsageError(
            f"--heatmaps: {predictor.info.arch} has no feature map to take heat maps from",
            "leave it out; octfast interpret RUN --method occlusion draws them for the run's own scans, slowly",
        ) from None


def heat_map_name(number: int, values: Mapping[str, Any]) -> str:
    """The file name of a row's heat map: its number, the scan's name, and which B-scan of a volume it is."""
    stem = re.sub(r"[^\w.-]+", "_", Path(values["path"]).stem, flags=re.ASCII)[:80]
    frame = "" if values["frame"] is None else f"-{values['volume']}-{values['frame']:04d}"
    return f"{number:06d}-{stem}{frame}.png"


def write_heat_map(predictor: Predictor, picture: Any, values: Mapping[str, Any], file: Path, of: str = "") -> None:
    """Write a scan with the heat map of its predicted class over it, and below it what was predicted.

    It is no larger than 2,048 x 2,048 pixels.

    Parameters
    ----------
    of : what the class is of, where it is not of the scan itself.

    Raises
    ------
    DataError : the picture cannot be read any more.
    """
    from octfast.assess.interpret.heatmap import overlay

    grey = decode_picture(picture)
    grey.thumbnail((_LARGEST, _LARGEST))
    target = predictor.classes.index(values["predicted"])
    fit = predictor.info.fit
    over = overlay(grey, predictor.heat_map(grey, target), fit=fit)
    dark = "What is dark at the sides is not seen. " if hides(grey.width, grey.height, fit) else ""
    said = " ".join(filter(None, [values["predicted"][:24], f"{values['probability']:.0%}", of]))
    caption = f"{said}. {dark}{CAUTION.capitalize()}. {NOTICE}"
    # The built-in font has Latin letters alone.
    shown, font = caption.encode("latin-1", "replace").decode("latin-1"), ImageFont.load_default(size=13)
    wide = math.ceil(font.getlength(shown)) + 8 if dark or of else _CAPTION_WIDTH
    whole = Image.new("RGB", (max(over.width, wide), over.height + _CAPTION), "white")
    whole.paste(over, (0, 0))
    ImageDraw.Draw(whole).text((4, over.height + 2), shown, "black", font)
    with whole_file(file) as part:
        whole.save(part, format="PNG")


@dataclass
class Montage:
    """Keeps the rows that a montage shows: the most urgent, or without urgent classes the first."""

    most: int = MONTAGE
    _held: list[tuple[float, int, dict[str, Any]]] = field(default_factory=list)
    _seen: int = 0

    def add(self, values: dict[str, Any]) -> None:
        """Think of a row."""
        self._seen += 1
        if values["error"] or values["predicted"] is None:
            return
        entry = (values.get("urgent_score") or 0.0, -self._seen, values)
        if len(self._held) < self.most:
            heapq.heappush(self._held, entry)
        else:
            heapq.heappushpop(self._held, entry)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows to show, in order."""
        return [values for *_, values in sorted(self._held, key=lambda e: e[:2], reverse=True)]


def write_montage(
    shown: Montage,
    predictor: Predictor,
    file: Path,
    reader: VolumeReader,
    series: Mapping[str, Sequence[str]] | None = None,
    noun: str = "scan",
) -> None:
    """Draw the rows that a montage shows, and write them to a file.

    Parameters
    ----------
    reader, series : see `read_again`.
    noun : what a row is of; of a unit it is the scan that counted most which is drawn.
    """
    from octfast.figure import save_figure

    what = f"The {'most urgent' if predictor.rule().urgent else 'first'} {noun}s"
    title = what if noun == "scan" else f"{what}, each by the scan that counted most"
    seen = seen_in_words(predictor.info.fit)
    note = "  ".join(w for w in (SYNTHETIC_NOTE if predictor.info.synthetic else "", seen and f"({seen})") if w)
    rows = shown.rows
    save_figure(plot_montage(rows, read_again(rows, reader, series), title, note), file, dpi=110)


def plot_montage(rows: list[dict[str, Any]], pictures: list[np.ndarray | str], title: str, note: str = "") -> Figure:
    """Scans in a grid, each with its predicted class, probability and file name.

    Parameters
    ----------
    rows : of the table of answers; a `caption` stands below the picture in the place of the file's name.
    pictures : for each, grey samples of shape (H, W), or why there are none.
    note : a line below.
    """
    from octfast.figure import Figure

    columns = max(1, min(len(rows), 8, math.ceil(math.sqrt(1.5 * len(rows)))))
    lines = max(1, math.ceil(len(rows) / columns))
    fig = Figure(figsize=(2.3 * columns, 2.55 * lines + 0.8), layout="constrained")
    axes = np.atleast_1d(fig.subplots(lines, columns)).ravel()
    for ax in axes:
        ax.axis("off")
    for ax, row, picture in zip(axes, rows, pictures, strict=False):
        if isinstance(picture, str):
            said = "\n".join(textwrap.wrap(_letters(picture), 28))
            ax.text(0.5, 0.5, said, transform=ax.transAxes, ha="center", va="center", fontsize=6)
        else:
            ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
        shown = f"{_letters(row['predicted'])[:20]} {row['probability']:.0%}" + (
            " (abstained)" if row.get("abstained") else ""
        )
        ax.set_title(shown, fontsize=9, loc="left")
        frame = "" if row["frame"] is None else f", B-scan {row['frame']}"
        name = row.get("caption") or f"{Path(row['path']).name[-56:]}{frame}"
        name = "\n".join(textwrap.wrap(_letters(name), 32))
        ax.text(0, -0.03, name, transform=ax.transAxes, va="top", fontsize=6, color="#444444")
    fig.suptitle(title, fontsize=11)
    fig.supxlabel(f"{note}  {NOTICE}".strip(), fontsize=8, color="#444444")
    return fig


def read_again(
    rows: list[dict[str, Any]], reader: VolumeReader, series: Mapping[str, Sequence[str]] | None = None
) -> list[np.ndarray | str]:
    """The pictures of rows, grey samples of shape (H, W) no larger than needed, or why one cannot be read.

    series : the files of those paths that are the first of a DICOM series.
    """
    found: dict[int, np.ndarray | str] = {}
    volumes: dict[str, dict[tuple[int, int], int]] = {}
    for n, row in enumerate(rows):
        if row["frame"] is None:
            try:
                found[n] = _small(decode_grey(row["path"]))
            except DataError as e:
                found[n] = e.message
        else:
            volumes.setdefault(row["path"], {})[row["volume"], row["frame"]] = n
    for path, wanted in volumes.items():
        try:
            for scan in reader.read(path, kind_of(path), (series or {}).get(path, ())):
                n_or_none = wanted.pop((scan.volume, scan.frame), None)
                if n_or_none is not None:
                    found[n_or_none] = _small(Image.fromarray(scan.pixels))
                if not wanted:
                    break
        except (DataError, OSError) as e:
            log.warning("%s", str(e).splitlines()[0])
        found |= {n: "cannot be read any more" for n in wanted.values()}
    return [found[n] for n in range(len(rows))]


def _letters(text: str) -> str:
    """A text as fonts can draw it: matplotlib dies of bytes of a file name that are no letters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _small(grey: Image.Image) -> np.ndarray:
    grey.thumbnail((384, 384))
    return np.asarray(grey)
