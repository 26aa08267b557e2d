"""Makes the DataLoaders and the untrained Learner of a configuration."""

from __future__ import annotations

import logging
from typing import Any

from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import nn

from octfast.data.loaders import oct_dataloaders
from octfast.data.prepare import Prepared
from octfast.errors import WeightsError
from octfast.model.heads import set_dropout
from octfast.train.config import TrainConfig
from octfast.train.learner import answer_for, oct_learner, plain_learner

log = logging.getLogger("octfast")


def new_dataloaders(prepared: Prepared, config: TrainConfig) -> DataLoaders:
    """The DataLoaders of these scans as a configuration has them."""
    return oct_dataloaders(
        prepared,
        size=config.size,
        fit=config.fit,
        bs=config.bs,
        seed=config.seed,
        augment=config.augment,
        num_workers=config.workers,
    )


def new_learner(dls: DataLoaders, config: TrainConfig) -> Learner:
    """An untrained Learner as configured."""
    kwargs: dict[str, Any] = {
        "arch": config.arch,
        "head": config.head,
        "seed": config.seed,
        "unfreeze": config.unfreeze,
        "random_layers": config.random_layers,
        **({} if config.wd is None else {"wd": config.wd}),
    }
    try:
        learn = oct_learner(dls, weights=config.weights, **kwargs)
    except WeightsError as e:
        if config.data is not None or config.weights != "auto":
            raise
        log.warning("%s; on phantoms an untrained body will do", e.message)
        learn = oct_learner(dls, weights="none", **kwargs)
    if config.level not in (None, "scan"):
        answer_for(learn, str(config.level), config.chosen_pooling, config.top_k)
    if config.dropout is not None:
        set_dropout(learn.model[1], config.dropout)
    return learn


def told_learner(dls: DataLoaders, model: nn.Sequential, head: str, config: TrainConfig) -> Learner:
    """A Learner as configured of a network that another process told of; nothing is frozen yet."""
    settings = {} if config.wd is None else {"wd": config.wd}
    learn = plain_learner(dls, model, head, **settings)
    if config.dropout is not None:
        set_dropout(learn.model[1], config.dropout)
    return learn
