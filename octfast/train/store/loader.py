"""Batches from a feature store, as fastai's DataLoader gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fastai.data.load import DataLoader
from fastai.torch_core import TensorCategory
from torch import Tensor

from octfast.errors import UsageError
from octfast.train.store.rows import RowSource


class StoreLoader(DataLoader):
    """Batches from a RowSource: activations, float32 of shape (bs, dim), and class indices of shape (bs,).

    The class indices of a batch say in their attribute `rows` of which scans they are.

    Parameters
    ----------
    pictures : gives for some rows a DataLoader of their pictures, and their batch, to be shown.
    """

    def __init__(
        self,
        store: RowSource,
        targets: Tensor,
        pictures: Callable[[list[int]], tuple[Any, tuple]] | None = None,
        **kwargs: Any,
    ):
        self.pictures = pictures
        super().__init__(dataset=range(len(targets)), num_workers=0, **kwargs)
        self.store, self.targets, self.view = store, targets, 0

    def create_batches(self, samps):
        rows = np.fromiter(samps, dtype=np.int64)
        end = len(rows) // self.bs * self.bs if self.drop_last else len(rows)
        for start in range(0, end, self.bs):
            yield self.batch(rows[start : start + self.bs])

    def batch(self, rows: np.ndarray) -> tuple[Tensor, ...]:
        """What is stored of some scans, and their targets."""
        targets = TensorCategory(self.targets[rows])
        targets.rows = rows.tolist()
        return torch.from_numpy(self.store.take(rows, self.view)).float(), targets

    def settings(self) -> dict[str, Any]:
        """How this loader was made, but for what it loads."""
        return {
            "bs": self.bs,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "device": self.device,
            "pictures": self.pictures,
        }

    def show_batch(self, b=None, max_n: int = 9, **kwargs):
        """Show the pictures of a batch."""
        dl, shown = self._shown(self.one_batch() if b is None else b, max_n)
        return dl.show_batch(shown, max_n=max_n, **kwargs)

    def show_results(self, b, out, max_n: int = 9, **kwargs):
        """Show the pictures of a batch and what was predicted of them."""
        dl, shown = self._shown(b, max_n)
        return dl.show_results(shown, out[: len(shown[-1])], max_n=max_n, **kwargs)

    def _shown(self, b: tuple, max_n: int) -> tuple[Any, tuple]:
        rows = getattr(b[-1], "rows", None)
        if self.pictures is None or rows is None:
            raise UsageError("these are stored activations without pictures", "show learn.dls of the whole Learner")
        return self.pictures(rows[:max_n])

    def refuse_other(self, dataset: Any) -> None:
        """
        Raises
        ------
        UsageError : a data set other than what is stored.
        """
        if dataset is not None and dataset is not self.dataset:
            raise UsageError(
                "stored activations are of the training and validation scans alone",
                "ask the whole Learner of others: learn.get_preds(dl=learn.dls.test_dl(files))",
            )

    def new(self, dataset=None, cls=None, **kwargs):
        """The same activations with other settings, as `Learner.get_preds` asks for."""
        self.refuse_other(dataset)
        made = type(self)(self.store, self.targets, **{**self.settings(), **kwargs})
        made.view = self.view
        return made
