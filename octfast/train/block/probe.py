"""Fine-tuning of the last block: its head first, on what the block gives as it is; then both, from stored maps.

A head that starts at zero sends large gradients into the block, which forgets what it knew before the head has learned
anything (Kumar et al., Fine-tuning can distort pretrained features and underperform out-of-distribution, ICLR 2022).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import Tensor, nn

from octfast.model.engine import half_where_fast, one_thread
from octfast.train.frozen.part import FrozenLearner
from octfast.train.store.loader import StoreLoader
from octfast.train.store.rows import Rows

log = logging.getLogger("octfast")

# Of the head beside the block, which learns at a tenth of it (docs/accuracy.md), and of the head alone.
HEAD_RATE, ALONE_RATE = 3e-4, 1.5e-3
# A stored map is passed through the block so many at a time.
AT_ONCE = 64


class Features:
    """What the modules before a head give of every row and view of a store, in half precision in a file without a name.

    Parameters
    ----------
    modules : run in eval mode.
    store : as `Rows` takes them.
    """

    def __init__(self, modules: nn.Module, store: Any, device: torch.device | str = "cpu"):
        before = modules.training
        modules.eval()
        scans, views, _ = store.shape
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as this is)
        self._values: Any = None
        pace = half_where_fast() if torch.device(device).type == "cpu" else torch.autocast("cuda", cache_enabled=False)
        with torch.no_grad(), pace:
            for view in range(views):
                for start in range(0, scans, AT_ONCE):
                    rows = np.arange(start, min(scans, start + AT_ONCE))
                    x = torch.from_numpy(store.take(rows, view)).float().to(device)
                    given = modules(x).flatten(1).float().cpu().numpy()
                    if self._values is None:
                        self.shape = (scans, views, given.shape[1])
                        self._values = np.memmap(self._file, np.float16, "w+", shape=self.shape)
                    self._values[rows, view] = given
        modules.train(before)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: np.ndarray, view: int) -> np.ndarray:
        """Some rows of a view, float32 of shape (n, dim)."""
        return self._values[rows, view].astype(np.float32)


def head_length(trainee: FrozenLearner) -> int:
    """How many modules at the end of a part, or of a copy of it, are the head's."""
    own = {id(m) for m in trainee.whole.model[1].modules()}
    return sum(id(m) in own for m in trainee.part.children())


def start_from_head(trainee: FrozenLearner, epochs: int, cbs: Sequence[Any] = ()) -> None:
    """Train the head alone, in place, on what the block gives of the stored maps, before both are trained.

    Parameters
    ----------
    trainee : a Learner of the last block and the head.
    cbs : of this training.
    """
    part = trainee.part
    length, device = head_length(trainee), next(part.parameters()).device
    features = Features(part[:-length], trainee.stores[0], device)
    same = {"loss_func": trainee.loss_func, "opt_func": trainee.opt_func, "wd": trainee.wd, "cbs": cbs}
    bs, targets = trainee.stored.train.bs, trainee.stored.train.targets
    train_head(part[-length:], features, targets, epochs=epochs, lr=ALONE_RATE, bs=bs, device=device, **same)
    log.info("the head alone was trained for %d epochs; from there block and head are trained together", epochs)


def train_head(
    head: nn.Module,
    features: Any,
    targets: Tensor,
    *,
    epochs: int,
    lr: float,
    bs: int,
    device: Any = "cpu",
    cbs: Sequence[Any] = (),
    **kwargs: Any,
) -> None:
    """Train a head alone, in place, by one cycle on all rows of some features; `kwargs` are the Learner's."""
    with one_thread():
        learn = _learner(head, features, targets, bs, device, **kwargs)
        _fit(learn, epochs, lr, cbs=cbs)


def tune(
    part: nn.Module,
    groups: Callable[[nn.Module], list[list[nn.Parameter]]],
    store: Any,
    targets: Tensor,
    *,
    epochs: int,
    rates: slice,
    bs: int,
    device: Any = "cpu",
    cbs: Sequence[Any] = (),
    **kwargs: Any,
) -> None:
    """Train the block and its head, in place, by one cycle on all rows of a store; `groups` as a Learner's splitter."""
    with half_where_fast() if torch.device(device).type == "cpu" else torch.autocast("cuda", cache_enabled=False):
        learn = _learner(part, store, targets, bs, device, splitter=groups, **kwargs)
        _fit(learn, epochs, rates, cbs=cbs)


def logits(part: nn.Module, store: Any, device: Any = "cpu") -> np.ndarray:
    """What a trained part answers for every row of a store, of shape (n, classes)."""
    out = Features(part, store, device)
    return out.take(np.arange(len(out)), 0)


def _learner(model: nn.Module, store: Any, targets: Tensor, bs: int, device: Any, **kwargs: Any) -> Learner:
    loaders = DataLoaders(
        StoreLoader(store, targets, bs=bs, shuffle=True, drop_last=True, device=device),
        StoreLoader(Rows([store], np.arange(0)), targets[:0], bs=bs, device=device),
        device=device,
    )
    return Learner(loaders, model, **kwargs)


def _fit(learn: Learner, epochs: int, rates: Any, cbs: Sequence[Any] = ()) -> None:
    with learn.removed_cbs(learn._grab_cbs(ProgressCallback)), learn.no_logging(), learn.no_bar():
        learn.fit_one_cycle(epochs, rates, cbs=list(cbs))
