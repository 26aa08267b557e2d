"""Batches from a feature store, as fastai's DataLoader gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fastai.data.load import DataLoader
from fastai.torch_core import TensorCategory
from torch import Tensor

from octfast.train.store.store import FeatureStore


class StoreLoader(DataLoader):
    """Batches from a FeatureStore: activations, float32 of shape (bs, dim), and class indices of shape (bs,)."""

    def __init__(self, store: FeatureStore, targets: Tensor, rows: int | None = None, **kwargs: Any):
        kwargs.pop("dataset", None)
        super().__init__(dataset=range(len(store) if rows is None else rows), num_workers=0, **kwargs)
        self.store, self.targets, self.view = store, targets, 0

    def create_batches(self, samps):
        rows = np.fromiter(samps, dtype=np.int64)
        end = len(rows) // self.bs * self.bs if self.drop_last else len(rows)
        for start in range(0, end, self.bs):
            yield self.batch(rows[start : start + self.bs])

    def batch(self, rows: np.ndarray) -> tuple[Tensor, ...]:
        """What is stored of some scans, and their targets."""
        return torch.from_numpy(self.store.take(rows, self.view)).float(), TensorCategory(self.targets[rows])

    def settings(self) -> dict[str, Any]:
        """How this loader was made, but for what it loads."""
        return {"bs": self.bs, "shuffle": self.shuffle, "drop_last": self.drop_last, "device": self.device}

    def new(self, dataset=None, cls=None, **kwargs):
        """The same activations with other settings, as `Learner.get_preds` asks for."""
        made = type(self)(self.store, self.targets, **{**self.settings(), **kwargs})
        made.view = self.view
        return made
