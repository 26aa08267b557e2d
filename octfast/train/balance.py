"""Trains on classes of unequal frequency: rare ones weigh more, or are seen more, and probabilities stay honest.

A network that learns from weighted classes gives the probabilities of a population in which the rare ones are as much
more frequent. While it learns, the logarithm of the weights is therefore added to its logits, and only then is the loss
taken: what the network itself gives is right for the frequencies at hand (Saerens, Latinne and Decaestecker, Neural
Computation 14 (2002) 21). Validation is judged by what it gives, without weights, so that the best epoch is the one of
the lowest log-loss, and nothing is left to be corrected when training ends.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat
from torch import Tensor, nn

from octfast.model.heads import shift_logits
from octfast.train.frozen.folds import IGNORED

log = logging.getLogger("octfast")

# A class is rare where it has less than this part of an even share of the scans.
RARE = 0.25


def say_rare(scans: pd.DataFrame) -> None:
    """Warn of classes with few of the training and validation scans of a Scans table."""
    table = scans[scans["split"] != "test"]
    counts = table["label"].value_counts()
    rare = counts[counts < RARE * len(table) / len(counts)]
    if len(rare):
        patients = table.groupby("label")["patient"].nunique()
        said = ", ".join(f"{c} ({n} of {len(table):,} scans, {patients[c]} patients)" for c, n in rare.items())
        log.warning("rare classes: %s; accuracy says little of them: look at each class", said)


def class_weights(counts: Sequence[int], balance: str, power: float = 0.5) -> Tensor:
    """The weight of a scan of each class, their mean over the scans being 1; ones for `balance` "none".

    Parameters
    ----------
    counts : training scans a class; a class without any weighs like one of one scan.
    power : of the inverse frequency; 1 makes all classes count alike, and one half goes half the way there.
    """
    n = torch.tensor(list(counts), dtype=torch.float32).clamp(min=1)
    if balance == "none":
        return torch.ones_like(n)
    weights = n**-power
    return weights * n.sum() / (weights * n).sum()


class BalancedLoss:
    """The loss of training: cross entropy or focal loss of logits that the weights' logarithms are added to.

    Parameters
    ----------
    weights : of the classes, of shape (classes,).
    weigh : whether scans count by these weights; else they are drawn by them.
    focal : focal loss (Lin et al., ICCV 2017) with gamma 2, in the place of cross entropy.
    """

    def __init__(self, weights: Tensor, weigh: bool, focal: bool):
        self.weights, self.weigh = weights, weigh
        self.each = (FocalLossFlat if focal else CrossEntropyLossFlat)(reduction="none")

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the scans of a batch, (B,), or over those that each head learns from, (B, heads)."""
        seen = targets != IGNORED
        weights = self.weights.to(logits.device)
        shown, asked = logits[seen] + weights.log(), targets[seen]
        losses = self.each(shown, asked)
        if not self.weigh:
            return losses.mean()
        of_scans = weights[asked.long()]
        return (losses * of_scans).sum() / of_scans.sum()


class Balance(Callback):
    """Trains by another loss than validation is judged by, and draws training scans by weight.

    Parameters
    ----------
    loss : of training.
    weights : of the classes, where scans are drawn by them, with replacement.
    """

    def __init__(self, loss: Callable, weights: Tensor | None = None):
        super().__init__()
        self.loss, self.weights = loss, weights

    def before_fit(self):
        dl = self.dls.train
        if self.weights is not None:
            labels = dl.targets if hasattr(dl, "targets") else torch.tensor([int(y) for y in dl.dataset.tls[-1]])
            dl.shuffle_fn = functools.partial(_drawn, dl, self.weights[labels].tolist())

    def before_train(self):
        self.plain = self.learn.loss_func
        self.learn.loss_func = self.loss

    def after_train(self):
        self.restore()

    def after_cancel_train(self):
        self.restore()

    def after_cancel_fit(self):
        self.restore()

    def restore(self):
        """Give the Learner its own loss back."""
        if self.learn.loss_func is self.loss:
            self.learn.loss_func = self.plain


def start_balanced(head: nn.Module, weights: Tensor) -> None:
    """Let a new head start as one that learns from weighted classes does, whose logits have the logarithms added."""
    if not torch.equal(weights, torch.ones_like(weights)):
        shift_logits(head, -weights.log())


def balance_training(learn: Learner, weights: Tensor, balance: str, loss: str) -> None:
    """Let a Learner train as asked for; its head has started by `start_balanced`.

    Parameters
    ----------
    weights : see `class_weights`.
    balance : "none", "weights" or "sample", which draws scans by their weights, with replacement.
    loss : "cross_entropy" or "focal".
    """
    learn.add_cbs(balance_callbacks(weights, balance, loss))


def balance_callbacks(weights: Tensor, balance: str, loss: str) -> list[Callback]:
    """What `balance_training` gives a Learner, to be given to one fit."""
    if balance == "none" and loss == "cross_entropy":
        return []
    told = BalancedLoss(weights, balance == "weights", loss == "focal")
    return [Balance(told, weights if balance == "sample" else None)]


def _drawn(dl: Any, weights: list[float], idxs: Sequence[int]) -> list[int]:
    # fastai gives a DataLoader another generator every epoch.
    return dl.rng.choices(list(idxs), [weights[i] for i in idxs], k=len(idxs))
