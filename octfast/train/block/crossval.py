"""Cross-validation of the last block with its head: both are trained anew for each fold, from the stored maps."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.callback.training import BnFreeze
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import Tensor, nn

from octfast.console import track
from octfast.train.alone import OneProcess
from octfast.train.block.probe import ALONE_RATE, Features, head_length, logits, train_head
from octfast.train.callbacks import EpochLog, History, SaveLast, TrainBar
from octfast.train.checkpoint import State, random_state, random_tensors, restore_random, write_state
from octfast.train.frozen.frozen import NextView
from octfast.train.frozen.part import FrozenLearner
from octfast.train.store.loader import StoreLoader
from octfast.train.store.rows import Rows

log = logging.getLogger("octfast")


@dataclass(frozen=True)
class Recipe:
    """How the last block and its head are trained.

    Attributes
    ----------
    head_epochs : of the head alone, which comes first.
    epochs : of both.
    lr : highest rate of the head; the block's is a tenth of it.
    callbacks : makes further callbacks of each training, such as `octfast.train.balance.Balance`.
    """

    head_epochs: int
    epochs: int
    lr: float
    callbacks: Callable[[], Sequence[Callback]] = tuple


def cross_validate(
    trainee: FrozenLearner,
    folds: np.ndarray,
    recipe: Recipe,
    folder: Path,
    state: Path | None = None,
    past: State | None = None,
    kept: Callable[[], None] = lambda: None,
) -> None:
    """Train the part of a Learner on all scans, after a copy of it for each fold on the scans outside of it.

    Every scan of training and validation is judged by the copy that never saw its patient. No training is stopped
    early, as no scans are left to choose an epoch by; the last epoch's weights are kept. The history is the model's
    own loss on what it learns from, and beside it the loss and accuracy of the copies on the scans of their folds.

    Parameters
    ----------
    trainee : of the last block and the head, untrained; it gets `folds`, and its `out_of_fold()` answers.
    folds : of the training, then the validation scans.
    folder : of the run, which gets history.csv and checkpoints/best.safetensors.
    state : the file that keeps what the folds gave, as each of them ends.
    past : of that file, from a training that was cut off, whose folds are not trained again.
    kept : called as each fold has been kept.
    """
    trainee.check()
    store = Rows(trainee.stores)
    targets = torch.cat([dl.targets for dl in trainee.stored.loaders])
    features = Features(trainee.part[: -head_length(trainee)], store, _device(trainee))
    count = int(folds.max()) + 1
    if past is None:
        minutes = _expected(trainee, store, targets, folds, recipe) / 60
        log.info(
            "cross-validation of block and head: %d trainings beside the model's own, about %s more (--folds 0 spares "
            "it)",
            count,
            _minutes(minutes),
        )
    untrained, every = copy.deepcopy(trainee.part), np.arange(len(store))
    outputs: np.ndarray | None = None
    rows: list[dict[str, Any]] = []
    if past is not None:
        outputs, rows = past.tensors["outputs"].numpy(), past.rows
        restore_random(past.rest["random"], past.tensors)

    def train(part: nn.Sequential, learned: np.ndarray, held: np.ndarray, cbs: Sequence[Callback]) -> None:
        sources = (Rows([store], learned), Rows([store], held), Rows([features], learned))
        _train(trainee, part, sources, (targets[learned], targets[held]), recipe, cbs)

    for k in range(0 if past is None else past.phase, count):
        part = copy.deepcopy(untrained)
        outside, inside = every[folds != k], every[folds == k]
        epochs = EpochLog()
        with _bar(f"training fold {k + 1} of {count}") as bar:
            train(part, outside, inside, [epochs, bar])
        given = logits(part, Rows([store], inside), _device(trainee))
        outputs = np.zeros((len(store), given.shape[1]), np.float32) if outputs is None else outputs
        outputs[inside] = given
        rows += [{**row, "scans": len(inside)} for row in epochs.rows]
        last = epochs.rows[-1]
        log.info(
            "fold %d of %d: loss %.4f, accuracy %.3f out of fold", k + 1, count, last["valid_loss"], last["accuracy"]
        )
        if state is not None:
            tensors = {"outputs": torch.from_numpy(outputs), **random_tensors()}
            bs = trainee.stored.train.bs
            write_state(state, State(k + 1, 0, recipe.lr, bs, rows, tensors, {"random": random_state()}))
            kept()
    (folder / "history.csv").unlink(missing_ok=True)
    with _bar("training") as bar:
        history = FoldHistory(folder / "history.csv", pd.DataFrame(rows))
        best = SaveLast(folder / "checkpoints" / "best.safetensors")
        train(trainee.part, every, every[:0], [history, best, bar])
    trainee.folds, trainee.judged = folds, outputs


class FoldHistory(History):
    """The history of a training on all scans, whose validation is the mean of the folds', weighted by their scans.

    Parameters
    ----------
    folds : the epochs of each fold as `EpochLog` has them, with a column `scans`.
    """

    def __init__(self, file: Path, folds: pd.DataFrame):
        super().__init__(file)
        names = ["valid_loss", "accuracy"]
        weighted = folds[names].mul(folds["scans"], axis=0).groupby(folds["epoch"]).sum()
        self.means = weighted.div(folds.groupby("epoch")["scans"].sum(), axis=0)

    def keep(self, row: dict[str, Any]) -> None:
        row.update(self.means.loc[row["epoch"]].to_dict())
        super().keep(row)


def _train(
    trainee: FrozenLearner,
    part: nn.Sequential,
    sources: tuple[Rows, Rows, Rows],
    targets: tuple[Tensor, Tensor],
    recipe: Recipe,
    cbs: Sequence[Callback],
) -> None:
    """Train the head of a part, then the part, in place.

    Parameters
    ----------
    sources : the maps that are learned from, those that are held out, and the features of the first.
    """
    device, bs = _device(trainee), min(trainee.stored.train.bs, len(sources[0]))
    same = {"loss_func": trainee.loss_func, "opt_func": trainee.opt_func, "wd": trainee.wd}
    train_head(
        part[-head_length(trainee) :],
        sources[2],
        targets[0],
        epochs=recipe.head_epochs,
        lr=ALONE_RATE,
        bs=bs,
        device=device,
        cbs=recipe.callbacks(),
        **same,
    )
    loaders = DataLoaders(
        StoreLoader(sources[0], targets[0], bs=bs, shuffle=True, drop_last=True, device=device),
        StoreLoader(sources[1], targets[1], bs=max(bs, 256), device=device),
        device=device,
    )
    # The Learner's own callbacks hold what they follow, so that another training needs others of their kind.
    own = [type(cb)() for cb in trainee.cbs if type(cb) in _KEPT]
    learn = Learner(
        loaders,
        part,
        splitter=_splitter(trainee),
        metrics=trainee.metrics,
        moms=trainee.moms,
        wd_bn_bias=trainee.wd_bn_bias,
        train_bn=trainee.train_bn,
        cbs=own,
        **same,
    )
    with learn.removed_cbs(learn._grab_cbs(ProgressCallback)), learn.no_logging(), learn.no_bar(), trainee.pace():
        learn.fit_one_cycle(recipe.epochs, slice(recipe.lr / 10, recipe.lr), cbs=[*recipe.callbacks(), *cbs])


# Callbacks of a FrozenLearner that say how it computes, none of which takes an argument.
_KEPT = (NextView, BnFreeze, ChannelsLast, MixedPrecision, OneProcess)


def _splitter(trainee: FrozenLearner) -> Callable[[nn.Module], list[list[nn.Parameter]]]:
    """The parameter groups of the Learner's part, of a copy of it."""
    place = {id(p): i for i, p in enumerate(trainee.part.parameters())}
    groups = [[place[id(p)] for p in group] for group in trainee.splitter(trainee.part)]

    def split(part: nn.Module) -> list[list[nn.Parameter]]:
        parameters = list(part.parameters())
        return [[parameters[i] for i in group] for group in groups]

    return split


def _expected(trainee: FrozenLearner, store: Rows, targets: Tensor, folds: np.ndarray, recipe: Recipe) -> float:
    """Seconds that the trainings of the folds will take, by a step of a copy that is thrown away."""
    bs = min(trainee.stored.train.bs, len(store))
    part = copy.deepcopy(trainee.part).train()
    x = torch.from_numpy(store.take(np.arange(bs), 0)).float().to(_device(trainee))
    for _ in range(2):  # the first warms up
        started = time.perf_counter()
        with trainee.pace():
            trainee.loss_func(part(x), targets[:bs].to(x.device)).backward()
            x.sum().item()
    step = time.perf_counter() - started
    outside = sum(int((folds != k).sum()) for k in range(int(folds.max()) + 1))
    # A scan that is judged costs a third of one that is learned from.
    return step * recipe.epochs * (outside + len(store) / 3) / bs


def _minutes(value: float) -> str:
    return f"{value:.0f} minutes" if value >= 1.5 else f"{60 * value:.0f} s"


@contextmanager
def _bar(what: str) -> Iterator[TrainBar]:
    with track(what, 1, "batches", after=0, lines=False) as update:
        yield TrainBar(update)


def _device(trainee: FrozenLearner) -> torch.device:
    return next(trainee.part.parameters()).device
