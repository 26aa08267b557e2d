"""Begins a training that several processes share: process 0 asks for it, and the others fit the same network."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import Tensor, nn

from octfast.errors import DataError, OctfastError, UsageError
from octfast.files import in_threads, sha256_of
from octfast.launcher import refuse_other_device
from octfast.notices import Note
from octfast.processes import Group, current
from octfast.train.balance import balance_callbacks
from octfast.train.build import told_learner
from octfast.train.checkpoint import Restore, State
from octfast.train.config import TrainConfig
from octfast.train.fits import fit_as_asked
from octfast.train.learner import unfreeze_to

log = logging.getLogger("octfast")

HINT = "pip install 'octfast[accelerate]'"


@dataclass(frozen=True)
class Asked:
    """What is asked of all processes.

    Attributes
    ----------
    config : of which what is trained, balance, loss, dropout and weight decay count.
    epochs, lr, bs : of the training, the batch size of all processes together.
    weights : of the classes.
    past : the state that it goes on from.
    """

    config: TrainConfig
    epochs: int
    lr: float
    bs: int
    weights: Tensor
    past: State | None


def sharing(config: TrainConfig) -> Group | None:
    """The processes that share the batches of a training as configured; None where process 0 trains alone."""
    group = current()
    read_anew = not config.views or config.unfreeze == "all"
    if group is None or group.rank or not read_anew or config.device == "mps" or find_spec("accelerate") is None:
        return None
    return group


def say_shared(config: TrainConfig, bs: int) -> None:
    """Say how several processes share the batches of a training that reads scans anew in each epoch, or why not.

    Raises
    ------
    UsageError : a batch has fewer scans than there are processes.
    """
    group = sharing(config)
    if group is None:
        if (among := current()) is not None:
            why = f" ({HINT}, and all of them train)" if find_spec("accelerate") is None else ""
            others = "the other waits" if among.size == 2 else "the others wait"
            log.info("what is not frozen is trained by process 0 alone, while %s%s", others, why)
        return
    if bs < group.size:
        raise UsageError(
            f"batches of {bs} scans cannot be shared by {group.size} processes", f"give --bs {group.size} or more"
        )
    each = f"{bs // group.size}" if bs % group.size == 0 else f"{bs // group.size} or {bs // group.size + 1}"
    log.info(
        "%d processes train together, each on %s of the %d scans of a batch: rate, steps and results are one process's",
        *(group.size, each, bs),
    )


def note_shared(about: dict[str, Any]) -> None:
    """Add to what config.json is to say how many processes trained together; nothing of one."""
    if count := about["chosen"].get("processes"):
        said = Note("processes", f"{count} processes trained together, each on its share of every batch")
        about["notes"].extend([] if said in about["notes"] else [said])


@contextmanager
def together(learn: Learner, asked: Asked) -> Iterator[list[Callback]]:
    """Let the other processes, where there are any to share with, fit beside this one; gives callbacks for its fits.

    Raises
    ------
    OctfastError : what another process met.
    """
    if (group := sharing(asked.config)) is None:
        yield []
        return
    from octfast.train.parallel.parallel import device_of, training_group

    device = device_of(learn)
    _check_devices(asked.config, device)
    about = {**asdict(replace(asked, config=None, weights=None, past=None)), "config": asdict(asked.config)}  # type: ignore[arg-type]
    about |= {"weights": asked.weights.tolist(), "device": device.type, "digests": None}
    arrays: dict[str, np.ndarray] = {}
    if asked.past is not None:
        about["past"] = asdict(replace(asked.past, tensors={}))
        arrays = {name: t.cpu().numpy() for name, t in asked.past.tensors.items()}
    if len(group.hosts) > 1:
        about["digests"] = digests(learn.dls)
    number = group.tell("fit", about, arrays)
    with training_group(group, number, learn, asked.config.workers) as beside:
        yield [beside]


def follow(dls: DataLoaders, model: nn.Sequential, head: str, about: dict[str, Any], arrays: Mapping[str, Any]) -> None:
    """Fit beside process 0, in another process, as `together` asks for.

    Parameters
    ----------
    model, head : as process 0 has told of them.

    Raises
    ------
    OctfastError : Accelerate is missing here, or the device or a scan is another one than process 0's.
    """
    group = current()
    assert group is not None
    if find_spec("accelerate") is None:
        raise OctfastError(f"Accelerate is not installed for process {group.rank}", HINT)
    from octfast.train.parallel.parallel import ElsewhereError, device_of, training_group

    config = TrainConfig(**about["config"])
    for dl in dls.loaders:
        dl.bs = about["bs"]
    learn = told_learner(dls, copy.deepcopy(model).requires_grad_(True), head, config)
    device = device_of(learn)
    refuse_other_device(about["device"], device.type)
    _check_devices(config, device)
    _check_digests(dls, about["digests"])
    unfreeze_to(learn, "head" if config.unfreeze == "all" else config.unfreeze)
    learn.remove_cb(ProgressCallback)
    past = None
    if about["past"] is not None:
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        past = State(**{**about["past"], "tensors": tensors})
    restore = Restore(past)
    cbs = [restore, *balance_callbacks(torch.tensor(about["weights"]), config.balance, config.loss)]
    try:
        with training_group(group, about["number"], learn, config.workers) as beside, learn.no_logging():
            cbs.append(beside)
            fit_as_asked(learn, config.unfreeze, about["epochs"], about["lr"], restore.start_of, cbs)
    except ElsewhereError:
        return
    except (ConnectionError, EOFError) as e:
        # A process that decodes was ended; process 0 knows it by these words.
        raise RuntimeError(f"DataLoader worker: {e}") from e


def digests(dls: DataLoaders) -> list[str]:
    """Of the files of training and validation scans."""
    paths = pd.concat([pd.DataFrame(dl.items) for dl in dls.loaders])["path"]
    return list(in_threads(sha256_of, list(map(Path, paths))))


def _check_digests(dls: DataLoaders, expected: list[str] | None) -> None:
    if expected is None:
        return
    paths = pd.concat([pd.DataFrame(dl.items) for dl in dls.loaders])["path"]
    for path, here, there in zip(paths, digests(dls), expected, strict=True):
        if here != there:
            raise DataError(f"{path} is another file than process 0 has", "copy the scans again to this machine")


def _check_devices(config: TrainConfig, device: torch.device) -> None:
    """Raise UsageError where two processes would train on one GPU."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cuda" and here > 1 and (here > torch.cuda.device_count() or ":" in config.device):
        raise UsageError(
            f"{here} processes of this machine cannot train on {torch.cuda.device_count()} GPUs with --device "
            f"{config.device}",
            "start one process a GPU, and leave --device out",
        )
