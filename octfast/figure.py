"""The Figure of every plot: a notebook shows it, it is saved whole, and a dollar sign in it is a dollar sign."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure as _Figure
from matplotlib.text import Text

from octfast.files import whole_file


class Figure(_Figure):
    """A matplotlib Figure without pyplot, so that a process that draws many keeps none of them in memory.

    File and class names are drawn as they are: no text is read as a formula.
    """

    def draw(self, renderer: Any) -> None:
        """As matplotlib's, without formulas and without a page of warnings for a name in Chinese."""
        for text in self.findobj(Text):
            text.set_parse_math(False)
        # Ticks are made only as they are drawn, and go by the setting.
        with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        """The picture, for IPython, which knows by itself the figures of pyplot alone."""
        data = io.BytesIO()
        self.savefig(data, format="png")
        return data.getvalue()


def save_figure(fig: Figure, file: str | Path, dpi: int = 120) -> Path:
    """Write a figure as PNG under its name only when it is whole; the folder is made."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as part:
        fig.savefig(part, dpi=dpi, format=file.suffix[1:])
    return file


def short(name: object, most: int = 24) -> str:
    """A name that leaves room for others."""
    text = str(name)
    return text if len(text) <= most else text[: most - 1] + "…"
