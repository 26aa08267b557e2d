"""Figures and scans as data URIs, so that a page holds its pictures itself."""

from __future__ import annotations

import base64
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image

from octfast.assess.interpret.heatmap import HeatMaps, overlay
from octfast.console import track
from octfast.data.fit import seen_in_words
from octfast.data.preprocess import decode_grey
from octfast.errors import OctfastError
from octfast.figure import Figure
from octfast.model.bundle.read import load_bundle
from octfast.model.units import scan_view
from octfast.notices import CAUTION
from octfast.run.folder import Run
from octfast.run.privacy import within, without_places

log = logging.getLogger("octfast")

# A curve of a large test set has more points than a page wants; then it is a bitmap.
_LARGEST_SVG = 150_000
_SCAN_WIDTH = 400


@dataclass(frozen=True)
class Picture:
    """A picture within a page: its data URI, what it shows in words, and its size in pixels."""

    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Shot:
    """A scan as a report shows it; `scan` and `heat` are None where there is none to show, and `problem` says why."""

    name: str
    patient: str
    actual: str
    predicted: str
    p_actual: str
    p_predicted: str
    loss: str
    right: bool
    scan: Picture | None
    heat: Picture | None
    problem: str


def figure_picture(fig: Figure, alt: str) -> Picture:
    """A figure as SVG, or as PNG where that would be large."""
    width, height = (round(96 * side) for side in fig.get_size_inches())
    with matplotlib.rc_context({"svg.hashsalt": "octfast"}):
        svg = io.BytesIO()
        fig.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        if svg.tell() <= _LARGEST_SVG:
            return Picture(_uri("svg+xml", svg.getvalue()), alt, width, height)
        png = io.BytesIO()
        fig.savefig(png, format="png", dpi=160)
    return Picture(_uri("png", png.getvalue()), alt, width, height)


def scan_picture(grey: Image.Image, alt: str, width: int = _SCAN_WIDTH) -> Picture:
    """A scan or overlay as JPEG, no wider than `width` pixels."""
    if grey.width > width:
        grey = grey.resize((width, max(1, round(grey.height * width / grey.width))), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    grey.save(out, "JPEG", quality=82, optimize=True)
    return Picture(_uri("jpeg", out.getvalue()), alt, grey.width, grey.height)


class HeatPictures:
    """Scans with a heat map of their predicted class drawn over them; the model is loaded when the first is asked for.

    Attributes
    ----------
    problem : why there are none, or "".
    drawn : how many there are.
    """

    def __init__(self, run: Run, method: str = "gradcam", wanted: bool = True):
        self.run, self.method = run, method
        self.problem = "" if wanted else "Heat maps were not asked for."
        self.drawn = 0
        self._maps: HeatMaps | None = None

    def prepare(self, *parts: pd.DataFrame) -> None:
        """Compute the heat maps of rows of a Predictions table, so that it is done in batches and shown as one work."""
        rows = pd.concat([part[["path", "predicted"]] for part in parts], ignore_index=True).drop_duplicates()
        if self.problem or rows.empty:
            return
        try:
            if self._maps is None:
                self._maps = HeatMaps(*scan_view(*load_bundle(self.run.bundle, units=True)), self.method)
            with track("heat maps", len(rows)) as update:
                self._maps.compute(list(rows["path"]), list(rows["predicted"]), update)
        except OctfastError as e:
            self.problem = f"There are no heat maps: {within(self.run, e)}."
            log.warning("%s", self.problem)

    def overlay(self, path: str, predicted: str, grey: Image.Image) -> Image.Image | None:
        """What raised the score of the predicted class, drawn over the scan; None where there is no heat map."""
        if self.problem or self._maps is None:
            return None
        heat = self._maps.get(path, predicted)
        if isinstance(heat, str):
            return None
        self.drawn += 1
        return overlay(grey, heat, fit=self._maps.info.fit)

    def bar(self) -> Picture | None:
        """The colours of a heat map from little to much, over grey as a scan is; None where none was drawn."""
        if not self.drawn:
            return None
        ramp = np.tile(np.linspace(0, 1, 160, dtype=np.float32), (12, 1))
        out = io.BytesIO()
        overlay(Image.new("L", (160, 12), 90), ramp).save(out, "PNG")
        return Picture(_uri("png", out.getvalue()), "The colours of the heat maps, from little to much", 160, 12)

    @property
    def words(self) -> str:
        """What the heat maps of predicted classes show, or why there are none."""
        return self.said("its predicted class")

    def said(self, of: str) -> str:
        """What the heat maps beside scans show, or why there are none; `of` : their class, in words."""
        if self.problem or not self.drawn:
            return self.problem
        how = {"gradcam": "Grad-CAM", "hirescam": "HiResCAM"}.get(self.method, self.method)
        said = f"Beside each scan: what raised the score of {of} ({how}); {CAUTION}."
        seen = seen_in_words(self._maps.info.fit) if self._maps else ""
        return f"{said} What is darkened is not seen: {seen}." if seen else said


def shots(rows: pd.DataFrame, heat_maps: HeatPictures | None = None) -> list[Shot]:
    """Rows of a Predictions table as a report shows them, with heat maps where some are given."""
    return [_shot(row, heat_maps) for row in rows.to_dict("records")]


def scan_pictures(
    path: str, of: str, taken: str, heat_maps: HeatPictures | None
) -> tuple[Picture | None, Picture | None, str]:
    """A scan, the heat map of a class over it where there is one, and what is wrong where the scan cannot be shown.

    Parameters
    ----------
    of : the class.
    taken : what is seen, in words.
    """
    scan = heat = None
    try:
        grey = decode_grey(path)
        scan = scan_picture(grey, f"OCT {taken}")
        drawn = heat_maps.overlay(path, of, grey) if heat_maps else None
        heat = scan_picture(drawn, f"Heat map over the {taken}") if drawn is not None else None
    except OctfastError as e:
        return scan, heat, without_places(e.message, [Path(path).parent])
    return scan, heat, ""


def _shot(row: dict[Any, Any], heat_maps: HeatPictures | None) -> Shot:
    path, actual, predicted = (str(row[c]) for c in ("path", "label", "predicted"))
    right = actual == predicted
    scan, heat, problem = scan_pictures(path, predicted, f"scan of {actual}, taken for {predicted}", heat_maps)
    return Shot(
        name=Path(path).name,
        patient=str(row["patient"]),
        actual=actual,
        predicted=predicted,
        p_actual=f"{float(np.exp(-row['loss'])):.1%}",
        p_predicted=f"{row['probability']:.1%}",
        loss=f"{row['loss']:.2f}",
        right=right,
        scan=scan,
        heat=heat,
        problem=problem,
    )


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
