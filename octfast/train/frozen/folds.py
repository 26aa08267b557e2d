"""Heads of a cross-validation trained together on stored activations, beside the head that learns from all scans."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.torch_core import TensorCategory
from torch import Tensor, nn

from octfast.data.splits.folds import make_splits
from octfast.errors import DataError
from octfast.train.store.loader import StoreLoader
from octfast.train.store.rows import RowSource

log = logging.getLogger("octfast")

# Cross entropy passes over targets of this value.
IGNORED = -100


class FoldHeads(nn.Module):
    """A copy of a head for each fold, which learns from the scans outside of it, then the head, which learns from all.

    Parameters
    ----------
    unpack : turns stored rows into what the head takes.
    head : the model's own.
    folds : how many.
    """

    def __init__(self, unpack: nn.Module, head: nn.Module, folds: int):
        super().__init__()
        self.unpack = unpack
        self.heads = nn.ModuleList([*(copy.deepcopy(head) for _ in range(folds)), head])

    def forward(self, x: Tensor, fold: Tensor) -> Tensor:
        """Logits of every head, of shape (B, folds + 1, classes), for rows of the store and the fold of each, (B,).

        In training a head does not see the scans of its fold, not even to normalise by: its logits of them are 0.
        """
        x = self.unpack(x)
        outs = []
        for k, head in enumerate(self.heads):
            seen = fold != k
            # Batch norm needs two scans; the targets of those that are held out are ignored in any case.
            if not self.training or int(seen.sum()) < 2:
                outs.append(head(x))
            else:
                out = head(x[seen])
                outs.append(out.new_zeros(len(x), out.shape[1]).index_put((seen.nonzero()[:, 0],), out))
        together = torch.stack(outs, 1)
        if together.requires_grad:
            # The loss is the mean over the heads, but each is to learn as it would alone.
            together.register_hook(lambda gradient: gradient * len(self.heads))
        return together


class FoldLoader(StoreLoader):
    """Batches of training and validation scans: activations, the fold of each and its targets for every head.

    Parameters
    ----------
    store : of the training and the validation scans.
    targets, folds : class indices and folds of all of them, in its order.
    learning : whether a head's targets are those of the scans outside of its fold; else they are those inside.
    heads : how many there are; None is one a fold, and the one that learns from all scans.
    """

    def __init__(
        self,
        store: RowSource,
        targets: Tensor,
        folds: np.ndarray,
        learning: bool,
        heads: int | None = None,
        **kwargs: Any,
    ):
        self.folds, self.learning = torch.tensor(folds), learning
        self.heads = heads or int(self.folds.max()) + 2
        super().__init__(store, targets, **kwargs)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        fold = self.folds[rows]
        inside = fold[:, None] == torch.arange(self.heads)
        wanted = ~inside if self.learning else inside
        targets = torch.where(wanted, self.targets[rows][:, None], IGNORED)
        return torch.from_numpy(self.store.take(rows, self.view)).float(), fold, TensorCategory(targets)

    def new(self, dataset=None, cls=None, **kwargs):
        """The same activations with other settings, as `Learner.get_preds` asks for."""
        self.refuse_other(dataset)
        settings = {**self.settings(), **kwargs}
        made = type(self)(self.store, self.targets, self.folds.numpy(), self.learning, self.heads, **settings)
        made.view = self.view
        return made


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """The share of scans that the head of their fold gets right; targets of shape (B, folds + 1)."""
    asked = targets != IGNORED
    return (logits.argmax(-1)[asked] == targets[asked]).float().mean()


def draw_folds(scans: pd.DataFrame, folds: int, seed: int) -> np.ndarray | None:
    """The fold of each scan, by patient and class, byte-identical files together; None, and why, where it cannot be.

    Parameters
    ----------
    scans : a Scans table without test scans.
    folds : how many are wanted; fewer are drawn where a class has fewer patients.
    """
    patients = scans.groupby("label")["patient"].nunique()
    most = min(folds, int(patients.min()))
    if most < 2:
        log.warning("no cross-validation: %s has scans of one patient alone", patients.idxmin())
        return None
    if most < folds:
        log.warning("%d folds instead of %d, as %s has only %d patients", most, folds, patients.idxmin(), most)
    level = log.level
    try:
        # What drawing says of shares is for who draws splits.
        log.setLevel(logging.ERROR)
        drawn = make_splits(scans.assign(split="train"), valid=0, test=0, folds=most, seed=seed)
    except DataError as e:
        log.setLevel(level)
        log.warning("no cross-validation: %s", e.message)
        return None
    finally:
        log.setLevel(level)
    fold = drawn.set_index("path")["fold"].astype(int)
    return fold.loc[scans["path"]].to_numpy()
