"""Folds of the last block, trained by several processes, each from the stored maps in the folder of process 0."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from torch import nn

from octfast.errors import OctfastError
from octfast.launcher import refuse_other_device
from octfast.processes import Computed, Content, Group, current
from octfast.train.block.trainings import Recipe, Trainings, device_of
from octfast.train.build import told_learner
from octfast.train.config import TrainConfig
from octfast.train.frozen.frozen import learner_on
from octfast.train.learner import unfreeze_to
from octfast.train.store.store import address_of, open_at

log = logging.getLogger("octfast")

Given = tuple[np.ndarray, list[dict[str, Any]]]


def folds_from(
    trainings: Trainings, first: int, bar: Callable[[int], AbstractContextManager[Callback]]
) -> Generator[Given, None, None]:
    """What `Trainings.fold` gives of a fold and of those after it, divided among the processes that work together.

    Parameters
    ----------
    bar : makes the progress bar of a fold that is trained here.
    """
    trainee, count = trainings.trainee, trainings.count - first

    def own(claims: Iterator[int]) -> Iterator[Content]:
        for k in claims:
            with bar(first + k) as shown:
                outputs, rows = trainings.fold(first + k, [shown])
            yield {"rows": rows}, {"outputs": outputs}

    if (group := helpers(trainings, first)) is None:
        given: Iterator[Content] = own(iter(range(count)))
    else:
        about = {
            "first": first,
            "recipe": asdict(trainings.recipe),
            "stores": [address_of(store) for store in trainee.stores],
            "shapes": trainee.part[0].shapes,
            "bs": trainee.stored.train.bs,
            "device": device_of(trainee).type,
        }
        tensors = trainee.part.state_dict()
        arrays = {f"part.{name}": t.detach().cpu().contiguous().numpy() for name, t in tensors.items()}
        arrays |= {"targets": trainings.targets.numpy(), "folds": trainings.folds}
        given = group.deal("folds", about, count, own, arrays)
    for about_k, arrays_k in given:
        yield np.array(arrays_k["outputs"]), about_k["rows"]


def helpers(trainings: Trainings, first: int) -> Group | None:
    """The processes that the folds from one on are divided among; None where this one trains them all."""
    group = current()
    if group is None or group.rank or group.shared is not trainings.trainee.whole or trainings.count - first < 2:
        return None
    return group


def train_folds(
    dls: DataLoaders,
    model: nn.Sequential,
    head: str,
    config: TrainConfig,
    about: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> Computed | None:
    """Train folds in another process, as `folds_from` asks for; None, and why, where it has not the stored maps.

    Parameters
    ----------
    model, head, config : as process 0 has told of them.

    Raises
    ------
    OctfastError : the device is another one than process 0's.
    """
    group = current()
    assert group is not None
    with ExitStack() as opened:
        try:
            stores = [opened.enter_context(open_at(address)) for address in about["stores"]]
        except OctfastError as e:
            who = f"process {group.rank} of {group.size} on {group.places[group.rank]['host']}"
            log.warning("%s trains no folds: %s (%s)", who, e.message, e.hint)
            return None
        learn = told_learner(dls, copy.deepcopy(model).requires_grad_(True), head, config)
        unfreeze_to(learn, "block5")
        trainee = learner_on(
            learn, stores, about["shapes"], precision=config.precision, bs=about["bs"], compiled=config.compile
        )
        refuse_other_device(about["device"], device_of(trainee).type)
        part = {name.removeprefix("part."): array for name, array in arrays.items() if name.startswith("part.")}
        trainee.part.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in part.items()})
        targets, folds = torch.from_numpy(arrays["targets"].copy()), np.array(arrays["folds"])
        trainings = Trainings(trainee, targets, folds, Recipe(**about["recipe"]))
        kept = opened.pop_all()

    def compute(claims: Iterator[int]) -> Iterator[Content]:
        with kept:
            for k in claims:
                outputs, rows = trainings.fold(about["first"] + k)
                yield {"rows": rows}, {"outputs": outputs}

    return compute
