"""The Figure of every plot: one that a notebook shows, whether or not pyplot was ever imported there."""

from __future__ import annotations

import io

from matplotlib.figure import Figure as _Figure


class Figure(_Figure):
    """A matplotlib Figure without pyplot, so that a process that draws many keeps none of them in memory."""

    def _repr_png_(self) -> bytes:
        """The picture, for IPython, which knows by itself the figures of pyplot alone."""
        data = io.BytesIO()
        self.savefig(data, format="png")
        return data.getvalue()
