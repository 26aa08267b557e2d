"""A fastai Learner of a trained model, for notebooks: it predicts as the model's bundle says, and can be trained on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import fastai.callback.schedule  # noqa: F401  (gives Learner fit_one_cycle and lr_find)
import numpy as np
import torch
from fastai.data.core import DataLoaders, Datasets
from fastai.data.transforms import Categorize, IntToFloatTensor, Normalize, ToTensor
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import Adam
from fasttransform import Transform
from PIL import Image
from torch import nn

from octfast.data.fit import fit_in_words
from octfast.data.loaders import BScan, Squeeze
from octfast.errors import UsageError
from octfast.model.arch import find_arch
from octfast.model.bundle.info import BundleInfo
from octfast.model.prefetch import decode_picture
from octfast.model.weights.load import WeightsReport
from octfast.train.callbacks import FrozenEval
from octfast.train.learner import NLLLossFlat, OctParts, fit_of, oct_splitter

log = logging.getLogger("octfast")


class TemperedLoss(CrossEntropyLossFlat):
    """Cross entropy in training; the probabilities that a Learner gives have the bundle's temperature applied."""

    def __init__(self, temperature: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature

    def activation(self, x: torch.Tensor) -> torch.Tensor:
        """The probabilities of logits."""
        return torch.softmax(x / self.temperature, dim=-1)


class TemperedNLLLoss(NLLLossFlat):
    """`TemperedLoss` for a model that gives log-probabilities."""

    def __init__(self, temperature: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature

    def activation(self, x: torch.Tensor) -> torch.Tensor:
        """The probabilities of log-probabilities."""
        return torch.softmax(x / self.temperature, dim=-1)


class OpenScan(Transform):
    """A scan from whatever a Predictor takes: a path, the bytes of a file, a PIL image or an array."""

    # fastai asks for them, to find where in a pipeline something given to `predict` goes in.
    input_types = (str, Path, bytes, Image.Image, np.ndarray)

    def encodes(self, x):
        return BScan(decode_picture(x))


class SameLabel(Transform):
    """The same label for every picture."""

    def __init__(self, label: str):
        super().__init__()
        self.label = label

    def encodes(self, x):
        return self.label


def make_learner(model: nn.Sequential, info: BundleInfo, dls: DataLoaders | None = None) -> Learner:
    """A Learner of a copy of the model, its body frozen.

    Parameters
    ----------
    model : a Sequential of body and head; it is left as it is.
    dls : None gives it DataLoaders of one black scan each, whose `test_dl` takes pictures of any kind.

    Returns
    -------
    The Learner; `bundle_info` and `frozen_learner` of `octfast.train` take it as they take `oct_learner`'s.

    Raises
    ------
    UsageError : the classes of `dls` are others, or in another order.
    """
    device = next(model.parameters()).device
    dls = _predicting(info, device) if dls is None else dls
    if tuple(dls.vocab) != info.classes:
        raise UsageError(
            f"the classes of the DataLoaders are {_listed(dls.vocab)}, the model's are {_listed(info.classes)}",
            "give DataLoaders of the same classes, in the same order",
        )
    if fit_of(dls) != info.fit:
        ways = fit_in_words(fit_of(dls), info.size), fit_in_words(info.fit, info.size)
        log.warning("scans of the DataLoaders are %s; the model was trained on scans %s: oct_dataloaders(fit=)", *ways)
    loss = (TemperedNLLLoss if info.head == "article" else TemperedLoss)(info.temperature)
    learn = Learner(
        dls,
        copy.deepcopy(model).requires_grad_(True).to(dls.device),
        loss_func=loss,
        opt_func=Adam,
        metrics=accuracy,
        splitter=oct_splitter,
        train_bn=False,
        cbs=FrozenEval(),
    )
    learn.oct = OctParts(find_arch(info.arch), info.head, _report(info))
    learn.freeze()
    return learn


def _predicting(info: BundleInfo, device: torch.device) -> DataLoaders:
    black = np.zeros((info.size, info.size), dtype=np.uint8)
    label = [SameLabel(info.classes[0]), Categorize(list(info.classes), sort=False)]
    data = Datasets([black, black], tfms=[[OpenScan()], label], splits=[[0], [1]])
    return data.dataloaders(
        bs=16,
        after_item=[Squeeze(info.size, fit=info.fit), ToTensor()],
        after_batch=[IntToFloatTensor(), Normalize.from_stats(list(info.mean), list(info.std))],
        num_workers=0,
        device=device,
    )


def _report(info: BundleInfo) -> WeightsReport:
    """What the bundle says of the body's weights, as far as it is what a report holds."""
    known = {f.name: info.weights[f.name] for f in fields(WeightsReport) if f.name in info.weights}
    listed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
    return WeightsReport(**{"source": "none", **listed})


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names))
