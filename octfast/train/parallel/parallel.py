"""Trains one network in several processes, each on its share of every batch: DDP, by fastai and Accelerate."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, check_cuda_p2p_ib_support
from fastai.callback.core import CancelFitException
from fastai.data.core import TfmdDL
from fastai.distributed import DistributedTrainer
from fastai.learner import Learner
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from octfast.errors import OctfastError
from octfast.model.memory import out_of_memory
from octfast.processes import Group
from octfast.train.parallel.whole_batch import WholeBatch, share

log = logging.getLogger("octfast")

# What a process tells the others before each batch and each epoch; all do what the highest of these asks for.
GO, STOP, FAILED = 0, 1, 2
# That a process may take to say why it is not there any more.
_WORDS_SECONDS = 20.0


class ElsewhereError(Exception):
    """Another process cannot go on with the training, and says why in its own way; it never leaves a training."""


class Together(DistributedTrainer):
    """fastai's DistributedTrainer, for batches that are whole: what comes out is what one process would learn.

    A batch of the Learner's DataLoader is divided among the processes, and its predictions are put together again
    before anything is made of them: losses, metrics and gradients are those of the whole batch, and validation has
    each scan once. fastai's own gives each process batches of the size asked for, of scans of its own, some of them
    twice; it works on GPUs alone; and it leaves synchronised batch norms in the model.

    Process 0 decides how long is trained: where it ends a fit, or raises, the others are told at the next batch or
    epoch.

    Parameters
    ----------
    trained : the Learner that the callback is for.
    workers : processes that decode for this one; None lets the processes of a machine share those of the Learner.
    """

    def __init__(self, group: Group, trained: Learner, workers: int | None = None):
        self.group, self.trained, self.workers = group, trained, workers
        # Whether this process is amid what all compute together, from where it cannot tell the others anything.
        self.inside = True
        self.mode: WholeBatch | None = None
        self.begun = 0
        # So that a network may have parameters that nothing comes of; every step goes the same way.
        ddp = DistributedDataParallelKwargs(static_graph=True)
        own: dict[str, Any] = {
            "cpu": device_of(trained).type == "cpu",
            "mixed_precision": "no",
            "kwargs_handlers": [ddp],
        }
        with _shown_to_accelerate(group):
            super().__init__(sync_bn=False, **own)

    def before_fit(self):
        """Let the network be DDP's, which takes the weights of process 0."""
        self.begun, self.inside = 0, True
        super().before_fit()
        self.inside = False

    def before_epoch(self):
        """Begin an epoch together, or end the fit where process 0 has ended it."""
        if self.exchange(GO) == STOP:
            raise CancelFitException
        self.begun += 1

    def before_train(self):
        """Draw as process 0 does, a whole batch at a time."""
        self.exchange(GO)
        super().before_train()
        self._draw_alike()
        self.mode = WholeBatch(self.group.rank, self.group.size, self.dl.whole.bs)
        self.mode.__enter__()

    def after_train(self):
        """Draw and normalise as ever."""
        self._leave_mode()

    def before_validate(self):
        """Begin the validation together."""
        self.exchange(GO)
        super().before_validate()

    def before_batch(self):
        """Begin a batch once all processes have read their scans of it."""
        self.exchange(GO)
        self.inside = True

    def after_pred(self):
        """Put predictions and targets of the batch together; gradients go back through this process's alone."""
        count = self.dl.sizes[self.iter]
        self.learn.pred = self._whole(self.pred, count)
        self.learn.yb = tuple(self._whole(y, count) for y in self.yb)

    def after_loss(self):
        """Let the mean over the processes, which DDP takes, be the sum of what the gradient consists of."""
        if self.training:
            self.learn.loss_grad = self.loss_grad * self.group.size

    def after_batch(self):
        """From here on a process can say that it does not go on."""
        self.inside = False

    def after_epoch(self):
        """Compare the weights."""
        self.exchange(GO)
        sums = torch.stack([p.detach().double().abs().sum() for p in self.model.parameters()]).sum().cpu()
        low, high = sums.clone(), sums.clone()
        distributed.all_reduce(low, distributed.ReduceOp.MIN)
        distributed.all_reduce(high, distributed.ReduceOp.MAX)
        if high - low > 1e-3 * high:
            raise OctfastError(
                f"after epoch {self.epoch + 1} the processes have other weights than one another",
                "train in one process, and report this",
            )

    def after_cancel_fit(self):
        """Tell the others that process 0 has ended the fit."""
        if not self.group.rank and self.begun < self.n_epoch:
            self.exchange(STOP)

    def exchange(self, own: int) -> int:
        """Tell the others how it goes on, and learn the highest of what they tell.

        Raises
        ------
        ElsewhereError : another one has failed.
        """
        told = torch.tensor([own])
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        if int(told) == FAILED and own != FAILED:
            raise ElsewhereError("another process has failed")  # fastai looks for words
        return int(told)

    def close(self) -> None:
        """Give the Learner its own model and DataLoaders back, where a fit was cut off."""
        self._leave_mode()
        if isinstance(self.trained.model, DistributedDataParallel):
            self.trained.model, self.trained.dls.loaders = self.trained.model.module, self.old_dls
        self.accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)

    def _leave_mode(self) -> None:
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.mode = None

    def _wrap_dl(self, dl: TfmdDL) -> TfmdDL:
        if hasattr(dl, "whole"):
            return dl
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = -(-dl.fake_l.num_workers // here) if self.workers is None else self.workers
        return shared_dl(dl, self.group.rank, self.group.size, workers)

    def _whole(self, own: Tensor, count: int) -> Tensor:
        """Rows of all processes, in the order of the batch; those of others are constants."""
        rank, size = self.group.rank, self.group.size
        most = share(count, 0, size)
        own = own.as_subclass(Tensor)
        filled = torch.cat([own.detach(), own.new_zeros(most - len(own), *own.shape[1:])]).contiguous()
        given = self.accelerator.gather(filled).unflatten(0, (size, most))
        whole = given.transpose(0, 1).flatten(0, 1)[:count].clone()
        whole[rank::size] = own[: share(count, rank, size)]
        return whole

    def _draw_alike(self) -> None:
        """Take the random states of process 0: of torch, on this device, and of Python."""
        version, words, gauss = random.getstate()
        python = torch.tensor(words)
        states = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])]
        for state in (python, *states):
            distributed.broadcast(state, 0)
        random.setstate((version, tuple(python.tolist()), gauss))
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1])


def shared_dl(dl: TfmdDL, rank: int, size: int, workers: int) -> TfmdDL:
    """A DataLoader of a process's scans of each batch of another one: every `size`-th, from `rank` on.

    Process 0 draws the order for all. A process that has none of a last, short batch reads a scan that is not counted.
    Its attributes `whole` and `sizes` hold the DataLoader of whole batches, and how many scans each of these has.
    """
    count = len(dl) * dl.bs if dl.drop_last else dl.n
    sizes = [min(dl.bs, count - start) for start in range(0, count, dl.bs)]

    def own() -> list[int]:
        dl.randomize()
        told = torch.tensor(list(dl.get_idxs())[:count])
        distributed.broadcast(told, 0)
        batches = (batch.tolist() for batch in told.split(dl.bs))
        return [i for batch in batches for i in batch[rank::size] or batch[:1]]

    drawn = random.getstate()
    kept = sum(max(1, share(each, rank, size)) for each in sizes)
    each = max(1, share(dl.bs, rank, size))
    made = dl.new(bs=each, n=kept, shuffle=False, drop_last=False, get_idxs=own, num_workers=workers)
    random.setstate(drawn)
    made.whole, made.sizes = dl, sizes
    return made


@contextmanager
def training_group(group: Group, number: int, learn: Learner, workers: int | None) -> Iterator[Together]:
    """Inside, the processes can train together; gives the callback that fits need.

    Parameters
    ----------
    number : of the question by which process 0 began it.
    workers : see `Together`.

    Raises
    ------
    LostProcessError : another process has ended. What another process met is raised in process 0; ElsewhereError in
        others than the first, where process 0 goes on otherwise.
    """
    try:
        _meet(group, number)
        backend = "gloo" if device_of(learn).type == "cpu" else "cpu:gloo,cuda:nccl"
        store = distributed.PrefixStore(f"train {number}", group.store)
        # Who waits for a process that has gone is told by other means, see `octfast.processes`.
        limits: dict[str, Any] = {"rank": group.rank, "world_size": group.size, "timeout": timedelta(days=7)}
        distributed.init_process_group(backend, store=store, **limits)
        with _told_of_failures(group, number, beside := Together(group, learn, workers)):
            yield beside
    finally:
        if not group.rank:
            group.box.set(f"{number}/stop", 1)
        if distributed.is_initialized():
            distributed.destroy_process_group()


def device_of(learn: Learner) -> torch.device:
    """What a Learner computes on."""
    return torch.device(learn.dls.device or "cpu")


@contextmanager
def _told_of_failures(group: Group, number: int, beside: Together) -> Iterator[None]:
    """Let the others know where this process cannot go on, and raise here what another one met."""
    try:
        yield
        beside.exchange(GO)
    except ElsewhereError:
        if not group.rank:
            _heard(group, number)
        raise
    except Exception as e:
        if beside.inside or _of_the_connection(e):
            _failed_inside(group, number, e)
        else:
            with suppress(RuntimeError):
                beside.exchange(FAILED)
        raise
    finally:
        beside.close()


def _meet(group: Group, number: int) -> None:
    """Wait until all are ready, in a way that ends where one fails before."""
    ready, go = f"{number}/ready", f"{number}/go"
    group.box.add(ready)
    while not group.box.has(go):
        if not group.rank and group.box.get(ready) == group.size:
            group.box.set(go, 1)
        _look_around(group, number)
        time.sleep(0.02)


def _heard(group: Group, number: int) -> None:
    """Give a process that has failed the time to say why, and raise that; elsewhere, that process 0 has ended it."""
    until = time.monotonic() + _WORDS_SECONDS
    while time.monotonic() < until:
        _look_around(group, number)
        time.sleep(0.05)


def _look_around(group: Group, number: int) -> None:
    """Raise what another process met, elsewhere that process 0 has ended the training, and that a process is gone."""
    if group.rank and group.box.has(f"{number}/stop"):
        raise ElsewhereError("another process has failed")
    if not group.rank:
        group.look_for_errors(number)
    group.check()


def _failed_inside(group: Group, number: int, e: Exception) -> None:
    """Say what went wrong where all compute together; the others are freed by the end of this process alone."""
    if not out_of_memory(e) and _of_the_connection(e):
        _heard(group, number)
        return
    if out_of_memory(e):
        e = OctfastError(
            f"memory is too small for a share of a batch in process {group.rank} of {group.size}",
            "give a smaller --bs, which is of all processes together, or a smaller --size",
        )
        if not group.rank:
            raise e
    if group.rank:
        group.report(f"{number}/error", e)
        # With another code torchrun would end process 0 before it has said why.
        raise SystemExit(0)


def _of_the_connection(e: Exception) -> bool:
    text = str(e).lower()
    known = isinstance(e, RuntimeError) and any(w in text for w in ("gloo", "nccl", "connection ", "broken pipe"))
    return known or isinstance(e, distributed.DistError)


@contextmanager
def _shown_to_accelerate(group: Group) -> Iterator[None]:
    """Let Accelerate see the processes, as it goes by the environment, and none of what its launcher was set to.

    It would change the number of threads, too, where that is not set.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("ACCELERATE_")}
    told = {"RANK": group.rank, "WORLD_SIZE": group.size, "OMP_NUM_THREADS": torch.get_num_threads()}
    before = {name: os.environ.get(name) for name in (*told, "LOCAL_WORLD_SIZE")}
    os.environ.update({name: str(value) for name, value in told.items()})
    if torch.cuda.is_available() and not check_cuda_p2p_ib_support():
        # As Accelerate's launcher does for cards of these kinds, which it otherwise refuses.
        os.environ.update(NCCL_P2P_DISABLE="1", NCCL_IB_DISABLE="1")
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        os.environ.update(hidden)
