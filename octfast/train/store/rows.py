"""What a head is trained on in the place of one store: some rows of several stores, or values in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class RowSource(Protocol):
    """Rows of features by place and view, as `octfast.train.store.store.FeatureStore` has them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(scans, views, dim)."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray, view: int) -> np.ndarray:
        """One view of some scans, of shape (len(rows), dim)."""


class Rows:
    """Some rows of one or several stores, one after the other, in the place of a store.

    Parameters
    ----------
    stores : a store of fewer views than another gives its last one instead.
    rows : places in all of them; None takes all.
    """

    def __init__(self, stores: Sequence[RowSource], rows: np.ndarray | None = None):
        self.stores, self.ends = list(stores), np.cumsum([s.shape[0] for s in stores])
        self.rows = np.arange(self.ends[-1]) if rows is None else np.asarray(rows)
        self.shape = (len(self.rows), stores[0].shape[1], stores[0].shape[2])

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray, view: int) -> np.ndarray:
        """One view of some of the rows, float32 of shape (len(rows), dim)."""
        wanted = self.rows[rows]
        out = np.empty((len(wanted), self.shape[2]), np.float32)
        of = np.searchsorted(self.ends, wanted, side="right")
        for i, store in enumerate(self.stores):
            if (here := of == i).any():
                first = self.ends[i] - store.shape[0]
                out[here] = store.take(wanted[here] - first, min(view, store.shape[1] - 1))
        return out


class Values:
    """Features in memory.

    Parameters
    ----------
    values : of shape (views, scans, dim), or (scans, dim) of one view.
    """

    def __init__(self, values: np.ndarray):
        self.values = values if values.ndim == 3 else values[None]
        self.shape = (self.values.shape[1], self.values.shape[0], self.values.shape[2])

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: np.ndarray, view: int) -> np.ndarray:
        """One view of some scans, of shape (len(rows), dim)."""
        return self.values[view][rows]
