"""The state of a training at the end of an epoch, in one file that holds tensors and JSON, and the way back to it."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.torch_core import get_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from octfast.files import whole_file
from octfast.train.callbacks import History, SaveBest, StopEarly

log = logging.getLogger("octfast")

FILE = "last.safetensors"
_VERSION = 1


@dataclass(frozen=True)
class State:
    """Where a training stands at the end of an epoch.

    Attributes
    ----------
    phase, epoch : of several fits one after the other the number, from 0, and how many of its epochs are done.
    lr, bs : highest learning rate and batch size of the training.
    rows : the history, a dict an epoch.
    tensors : of the model and the optimiser, and random states.
    rest : what of the optimiser, the random states and the smoothed loss is not a tensor, as JSON takes it.
    """

    phase: int
    epoch: int
    lr: float
    bs: int
    rows: list[dict[str, Any]]
    tensors: dict[str, Tensor]
    rest: dict[str, Any]


def write_state(file: Path, state: State) -> None:
    """Write a state into a file that has its name only when it is whole and on the disk.

    Raises
    ------
    OSError : it cannot be written.
    """
    about = {"version": _VERSION, **{k: v for k, v in asdict(replace(state, tensors={})).items() if k != "tensors"}}
    with whole_file(file, durable=True) as part:
        part.write_bytes(save(state.tensors, metadata={"octfast": json.dumps(about)}))


def read_state(file: Path) -> State | None:
    """Read what `write_state` wrote; None where there is none, or, with a word, where it is damaged."""
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads((opened.metadata() or {})["octfast"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no dict)
        if about.pop("version") != _VERSION:
            raise ValueError("it is of another version of octfast")
        return State(tensors=tensors, **about)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as e:
        log.warning("%s cannot be used (%s): the training starts again from its first epoch", file, e)
        return None


class Restore(Callback):
    """Goes on from the state of a training: weights, optimiser, smoothed loss, gradient scale and random states.

    They are restored as the first epoch begins that is to be trained.

    Parameters
    ----------
    past : the state to go on from; None begins a new training.
    """

    order = 58

    def __init__(self, past: State | None):
        super().__init__()
        self.past = past
        self.phase, self.restored = -1, past is None

    def start_of(self, phase: int, epochs: int) -> int:
        """The first epoch of a fit that is to be trained; `epochs` where it is done."""
        if self.past is None or phase > self.past.phase:
            return 0
        return self.past.epoch if phase == self.past.phase else epochs

    def before_fit(self):
        self.phase += 1

    def before_epoch(self):
        past = self.past
        if not self.restored and past is not None and (self.phase, self.epoch) == (past.phase, past.epoch):
            self._restore(past)

    def after_fit(self):
        # All epochs of the last fit were there.
        past = self.past
        if not self.restored and past is not None and self.phase == past.phase and past.epoch >= self.n_epoch:
            self._restore_random(past)

    def _restore(self, past: State) -> None:
        get_model(self.model).load_state_dict(_under("model.", past.tensors))
        params = [p for p, *_ in self.opt.all_params()]
        states = [dict(others) for others in past.rest["opt"]["state"]]
        for i, (param, state) in enumerate(zip(params, states, strict=True)):
            state |= {k: v.to(param.device) for k, v in _under(f"opt.{i}.", past.tensors).items()}
        self.opt.load_state_dict({"state": states, "hypers": [dict(h) for h in past.rest["opt"]["hypers"]]})
        smooth = self.recorder.smooth_loss
        smooth.count, smooth.val = past.rest["smooth"], past.tensors["smooth"]
        if past.rest["scaler"] and getattr(self.learn, "scaler", None) is not None:
            self.learn.scaler.load_state_dict(past.rest["scaler"])
        self._restore_random(past)

    def _restore_random(self, past: State) -> None:
        for dl, state in zip(self._loaders(), past.rest["loaders"], strict=True):
            dl.rng.setstate(_as_tuples(state))
        restore_random(past.rest["random"], past.tensors)
        self.restored = True

    def _loaders(self) -> list[Any]:
        """Those that draw: where several processes share batches, of the whole batches."""
        return [getattr(dl, "whole", dl) for dl in self.dls.loaders]


class Checkpoint(Restore):
    """Keeps the state of the training at the end of every epoch, and goes on from one.

    See `Restore`; the history, the best weights and the count of early stopping are restored before, from the losses so
    far.

    Parameters
    ----------
    file : of the state.
    past : the state to go on from.
    history, best, stop : of the same training.
    lr, bs : see `State`.
    kept : called when a state has been written.
    """

    # After History, so that no epoch is kept whose loss is not a number, and before SaveBest: what that writes can
    # always be made again from the state, and the best weights of an earlier epoch outlast an epoch that is cut off.
    order = 58

    def __init__(
        self,
        file: Path,
        past: State | None,
        *,
        history: History,
        best: SaveBest,
        stop: StopEarly,
        lr: float,
        bs: int,
        kept: Callable[[], None] = lambda: None,
    ):
        super().__init__(past)
        self.file, self.history, self.best, self.stop = file, history, best, stop
        self.lr, self.bs, self.kept = lr, bs, kept
        if past is not None:
            losses = [float(row["valid_loss"]) for row in past.rows]
            history.go_on(past.rows)
            best.go_on(losses, _under("model.", past.tensors))
            stop.go_on(past.phase, losses[len(losses) - past.epoch :])

    def after_epoch(self):
        if not self.history.trained:
            return
        tensors, hypers = self._taken()
        rest = {
            "opt": hypers,
            "smooth": self.recorder.smooth_loss.count,
            "scaler": self.learn.scaler.state_dict() if getattr(self.learn, "scaler", None) is not None else None,
            "random": random_state(),
            "loaders": [dl.rng.getstate() for dl in self._loaders()],
        }
        rows = [{k: v if isinstance(v, int) else float(v) for k, v in row.items()} for row in self.history.rows]
        state = State(self.phase, self.epoch + 1, self.lr, self.bs, rows, tensors, rest)
        write_state(self.file, state)
        self.kept()

    def _taken(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors of model, optimiser, smoothed loss and torch's random states; what else the optimiser knows."""
        tensors = {f"model.{k}": _own(v) for k, v in get_model(self.model).state_dict().items()}
        opt, others = self.opt.state_dict(), []
        for i, state in enumerate(opt["state"]):
            tensors |= {f"opt.{i}.{k}": _own(v) for k, v in state.items() if isinstance(v, Tensor)}
            others.append({k: v for k, v in state.items() if not isinstance(v, Tensor)})
        tensors["smooth"] = _own(torch.as_tensor(self.recorder.smooth_loss.val))
        return {**tensors, **random_tensors()}, {"state": others, "hypers": [dict(h) for h in opt["hypers"]]}


def random_state() -> dict[str, Any]:
    """The random states of Python and numpy, as JSON takes them."""
    name, keys, *others = np.random.get_state()
    return {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *others]}


def random_tensors() -> dict[str, Tensor]:
    """The random states of torch, of the CPU and of each GPU."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"random.cpu": torch.get_rng_state(), **{f"random.cuda.{i}": state for i, state in enumerate(gpus)}}


def restore_random(rest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Restore the random states of `random_state` and `random_tensors`."""
    random.setstate(_as_tuples(rest["python"]))
    name, keys, *others = rest["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *others))
    torch.set_rng_state(tensors["random.cpu"])
    gpus = _under("random.cuda.", tensors)
    if gpus and len(gpus) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([gpus[str(i)] for i in range(len(gpus))])


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(Tensor).cpu().contiguous().clone()


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _as_tuples(value: Any) -> Any:
    """JSON makes lists of the tuples that a state of Python's consists of."""
    return tuple(map(_as_tuples, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value
