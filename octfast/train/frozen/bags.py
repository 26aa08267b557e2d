"""Learns one answer for all scans of a unit, a bag of their stored features, with heads of folds beside the model's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fastai.torch_core import TensorCategory
from torch import Tensor, nn

from octfast.data.units import Units
from octfast.model.pooling import BagHead, pool
from octfast.train.frozen.folds import IGNORED, FoldHeads, FoldLoader
from octfast.train.store.rows import RowSource

# Scans that the heads are asked about at a time.
_AT_ONCE = 512


class BagHeads(FoldHeads):
    """`FoldHeads` of `BagHead`s: one answer for all scans of a unit; see there."""

    def __init__(self, unpack: nn.Module, head: nn.Module, folds: int):
        super().__init__(unpack, head, folds)
        self.pooling = next(m.pooling for m in head.modules() if isinstance(m, BagHead))

    def forward(self, x: Tensor, unit: Tensor, fold: Tensor) -> Tensor:  # type: ignore[override]
        """Logits of every head, of shape (units, folds + 1, classes).

        Parameters
        ----------
        x : rows of the store, of shape (n, dim).
        unit : which of the batch's units each row is of, of shape (n,).
        fold : of each unit, of shape (units,); in training a head does not see the units of its fold.
        """
        x = self.unpack(x)
        outs = []
        for k, head in enumerate(self.heads):
            seen = (fold != k)[unit]
            if not self.training or int(seen.sum()) < 2:
                outs.append(pool(head(x), unit, len(fold), self.pooling)[0])
            else:
                outs.append(pool(head(x[seen]), unit[seen], len(fold), self.pooling)[0])
        together = torch.stack(outs, 1)
        if together.requires_grad:
            # The loss is the mean over the heads, but each is to learn as it would alone.
            together.register_hook(lambda gradient: gradient * len(self.heads))
        return together

    @torch.no_grad()
    def of_scans(self, store: RowSource, fold: np.ndarray) -> np.ndarray:
        """What each scan is given by the head of its fold: its logits and its score, of shape (n, classes + 1)."""
        self.eval()
        device = next(self.parameters()).device
        rows = []
        for at in np.array_split(np.arange(len(store)), max(1, -(-len(store) // _AT_ONCE))):
            x = self.unpack(torch.from_numpy(store.take(at, 0)).float().to(device))
            together = torch.stack([head(x) for head in self.heads], 1)
            rows.append(together[torch.arange(len(at)), torch.tensor(fold[at])].float().cpu().numpy())
        return np.concatenate(rows)


class BagLoader(FoldLoader):
    """Batches of units of training and validation: the activations of all their scans, which unit each is of, folds.

    Parameters
    ----------
    store : of the training and the validation scans.
    units : which scans are of which unit.
    targets, folds : class indices and folds of the units.
    learning : see `FoldLoader`.
    """

    def __init__(
        self, store: RowSource, units: Units, targets: Tensor, folds: np.ndarray, learning: bool, **kwargs: Any
    ):
        self.units = units
        order = np.argsort(units.number, kind="stable")
        self.members = np.split(order, np.cumsum(np.bincount(units.number))[:-1])
        super().__init__(store, targets, folds, learning, **kwargs)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, ...]:  # type: ignore[override]
        scans = [self.members[unit] for unit in rows]
        unit = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(s) for s in scans]))
        fold, heads = self.folds[rows], int(self.folds.max()) + 2
        inside = fold[:, None] == torch.arange(heads)
        wanted = ~inside if self.learning else inside
        targets = torch.where(wanted, self.targets[rows][:, None], IGNORED)
        x = torch.from_numpy(self.store.take(np.concatenate(scans), self.view)).float()
        return x, unit, fold, TensorCategory(targets)

    def new(self, dataset=None, cls=None, **kwargs):
        """The same activations with other settings, as `Learner.get_preds` asks for."""
        self.refuse_other(dataset)
        given = (self.store, self.units, self.targets, self.folds.numpy(), self.learning)
        made = type(self)(*given, **{**self.settings(), **kwargs})
        made.view = self.view
        return made


def units_a_batch(scans: int, units: int) -> int:
    """How many units a batch has: about 64 scans, and few enough for sixteen batches an epoch."""
    return int(np.clip(min(64 * units // max(scans, 1), units // 16), 2, 16))
