"""The Figure of every plot, how it is written, and where it is drawn: on its own, in an axes, on pyplot's figure."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as _Figure
from matplotlib.figure import FigureBase
from matplotlib.text import Text

from octfast.errors import UsageError
from octfast.files import whole_file

FORMATS = ("png", "svg", "pdf")


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


@dataclass(frozen=True)
class Files:
    """How figures are written.

    Attributes
    ----------
    format : png, svg or pdf.
    dpi : pixels an inch, of png and of the scans in the others.

    Raises
    ------
    UsageError : another format, or a resolution outside 20 to 1200.
    """

    format: str = "png"
    dpi: int = 120

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"--format {self.format}: unknown", f"one of {', '.join(FORMATS)}")
        if not 20 <= self.dpi <= 1200:
            raise UsageError(f"--dpi {self.dpi}: must be 20 to 1200", "120 is for a screen, 300 for print")

    def save(self, fig: _Figure, file: Path) -> Path:
        """Write a figure; `file` : its path without the ending."""
        return save_figure(fig, file.with_name(f"{file.name}.{self.format}"), self.dpi)


# Where to draw: in a figure, in an axes, in a new figure that the function makes; None makes one without pyplot.
Place = FigureBase | Axes | Callable[..., FigureBase] | None


def whole_place(place: Place, figsize: tuple[float, float], dpi: float | None = None) -> Any:
    """The figure, or the part of one, in which a plot makes axes of its own; a given axes gives its place away.

    Raises
    ------
    UsageError : the axes is none of plt.subplots or plt.subplot.
    """
    if place is None:
        return Figure(figsize=figsize, dpi=dpi, layout="constrained")
    if isinstance(place, Axes):
        where, fig = place.get_subplotspec(), place.get_figure()
        if where is None or fig is None:
            raise UsageError("this plot has several parts, which need a cell of a grid", "give an axes of plt.subplots")
        place.remove()
        return fig.add_subfigure(where)
    return place if isinstance(place, FigureBase) else place(figsize=figsize, dpi=dpi)


def one_axes(place: Place, figsize: tuple[float, float], dpi: float | None = None) -> tuple[Any, Axes]:
    """(the figure to write around the plot in, the axes to draw in); the figure is None for an axes that was given."""
    if isinstance(place, Axes):
        return None, place
    fig = whole_place(place, figsize, dpi)
    return fig, fig.subplots()


def pyplot_place(ax: Axes | None = None) -> Place:
    """Where matplotlib's users expect a plot: the given axes, else pyplot's current one if empty, else a new figure.

    A new figure is pyplot's too, so that `plt.savefig` saves it and a notebook shows it, once.
    """
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    if plt.get_fignums():
        fig = plt.gcf()
        if not fig.axes and not fig.subfigs:
            return _shown_once(fig)
        if not getattr(fig, "_drawn_by_octfast", False) and not plt.gca().has_data():
            return plt.gca()
    return partial(_new_figure, plt)


def _new_figure(plt: Any, **about: Any) -> FigureBase:
    return _shown_once(plt.figure(FigureClass=Figure, layout="constrained", **about))


def _shown_once(fig: Any) -> Any:
    """A figure that a notebook shows once, though it is the value of a cell and pyplot would show it at its end too."""

    def show() -> None:
        from IPython.display import display
        from matplotlib import pyplot

        data = io.BytesIO()
        fig.savefig(data, format="png")
        display({"image/png": data.getvalue()}, raw=True)
        if "inline" in matplotlib.get_backend():
            pyplot.close(fig)

    fig._ipython_display_ = show
    fig._drawn_by_octfast = True
    if fig.get_layout_engine() is None:
        fig.set_layout_engine("constrained")
    return fig


def plain_text(fig: Any) -> None:
    """Let no text of a figure, or of an axes, be read as a formula: names are drawn as they are."""
    for text in fig.findobj(Text):
        text.set_parse_math(False)


def save_figure(fig: _Figure, file: str | Path, dpi: int = 120) -> Path:
    """Write a figure under its name only when it is whole, in the format that its ending names; the folder is made."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as part:
        fig.savefig(part, dpi=dpi, format=file.suffix[1:])
    return file


def short(name: object, most: int = 24) -> str:
    """A name that leaves room for others."""
    text = str(name)
    return text if len(text) <= most else text[: most - 1] + "…"
