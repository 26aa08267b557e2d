"""The trainings of a cross-validation of the last block with its head, each from a seed of its own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.callback.training import BnFreeze
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import Tensor, nn

from octfast.train.alone import OneProcess
from octfast.train.balance import balance_callbacks
from octfast.train.block.probe import ALONE_RATE, Features, head_length, logits, train_head
from octfast.train.callbacks import EpochLog
from octfast.train.frozen.draws import seeded
from octfast.train.frozen.frozen import NextView
from octfast.train.frozen.part import FrozenLearner
from octfast.train.store.loader import StoreLoader
from octfast.train.store.rows import Rows


@dataclass(frozen=True)
class Recipe:
    """How the last block and its head are trained.

    Attributes
    ----------
    head_epochs : of the head alone, which comes first.
    epochs : of both.
    lr : highest rate of the head; the block's is a tenth of it.
    seed : that each training has its own seed of.
    balance, loss, weights : see `octfast.train.balance.balance_callbacks`; a weight a class.
    """

    head_epochs: int
    epochs: int
    lr: float
    seed: int = 0
    balance: str = "none"
    loss: str = "cross_entropy"
    weights: Sequence[float] = ()

    def callbacks(self) -> list[Callback]:
        """Those of one training."""
        return balance_callbacks(torch.tensor(self.weights), self.balance, self.loss)


class Trainings:
    """The training of each fold, on the scans outside of it, and the one on all scans.

    What one gives depends on no other, nor on what was drawn before: they may run in any order, and in any process.

    Parameters
    ----------
    trainee : of the last block and the head, untrained.
    targets : of the training, then the validation scans.
    folds : of the same scans, from 0.
    """

    def __init__(self, trainee: FrozenLearner, targets: Tensor, folds: np.ndarray, recipe: Recipe):
        self.trainee, self.targets, self.folds, self.recipe = trainee, targets, folds, recipe
        self.store = Rows(trainee.stores)
        self.untrained = copy.deepcopy(trainee.part)
        self.count = int(folds.max()) + 1

    @functools.cached_property
    def _features(self) -> Features:
        """What the untrained block gives, which the head alone learns from."""
        trainee = self.trainee
        return Features(trainee.part[: -head_length(trainee)], self.store, device_of(trainee))

    def fold(self, k: int, cbs: Sequence[Callback] = ()) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Train a copy of the part on the scans outside of a fold.

        Returns
        -------
        (logits of the scans in the fold, float32 of shape (n, classes); its epochs as `EpochLog` has them, with
        `scans`, how many are in the fold).
        """
        part, epochs = copy.deepcopy(self.untrained), EpochLog()
        outside, inside = (np.flatnonzero(found) for found in (self.folds != k, self.folds == k))
        with seeded(self.recipe.seed, k):
            self._train(part, outside, inside, [epochs, *cbs])
            given = logits(part, Rows([self.store], inside), device_of(self.trainee))
        return given, [{**row, "scans": len(inside)} for row in epochs.rows]

    def whole(self, cbs: Sequence[Callback] = ()) -> None:
        """Train the part itself on all scans."""
        every = np.arange(len(self.store))
        with seeded(self.recipe.seed, self.count):
            self._train(self.trainee.part, every, every[:0], cbs)

    def _train(self, part: nn.Sequential, learned: np.ndarray, held: np.ndarray, cbs: Sequence[Callback]) -> None:
        """Train the head of a part on the rows that are learned from, then the part, in place."""
        trainee, recipe, targets = self.trainee, self.recipe, self.targets
        device, bs = device_of(trainee), min(trainee.stored.train.bs, len(learned))
        same = {"loss_func": trainee.loss_func, "opt_func": trainee.opt_func, "wd": trainee.wd}
        train_head(
            part[-head_length(trainee) :],
            Rows([self._features], learned),
            targets[learned],
            epochs=recipe.head_epochs,
            lr=ALONE_RATE,
            bs=bs,
            device=device,
            cbs=recipe.callbacks(),
            **same,
        )
        learning, judging = Rows([self.store], learned), Rows([self.store], held)
        loaders = DataLoaders(
            StoreLoader(learning, targets[learned], bs=bs, shuffle=True, drop_last=True, device=device),
            StoreLoader(judging, targets[held], bs=max(bs, 256), device=device),
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


def device_of(trainee: FrozenLearner) -> torch.device:
    """Where its part is trained."""
    return next(trainee.part.parameters()).device
