"""Keeps RANK and WORLD_SIZE that a launcher of several processes left in the environment from spoiling a training."""

from __future__ import annotations

import logging
import os

import torch
from fastai.callback.core import Callback

from octfast.errors import OctfastError

log = logging.getLogger("octfast")

_NAMES = ("RANK", "WORLD_SIZE")


class OneProcess(Callback):
    """Sees to it that a Learner trains and predicts as one process where nothing has joined it to others.

    fastai goes by RANK and WORLD_SIZE: above rank 0 nothing is saved, so that `lr_find` leaves its own ruined weights
    in the model, and predictions are gathered from processes that are not there. Without MASTER_ADDR no process can
    meet others: then these are leftovers, which are removed from this process's environment with a word. With it a
    launcher may be at work, and the Learner is refused unless it has joined.
    """

    order = -100

    def __init__(self) -> None:
        _remove_leftovers()

    def before_fit(self) -> None:
        """Look again, as they may have been set meanwhile."""
        _remove_leftovers()
        _refuse_unjoined()

    def before_validate(self) -> None:
        """Outside of a fit, too."""
        self.before_fit()


def _remove_leftovers() -> None:
    if "MASTER_ADDR" in os.environ or _joined():
        return
    left = {name: os.environ.pop(name) for name in _NAMES if name in os.environ}
    if left:
        words = ", ".join(f"{name}={value}" for name, value in left.items())
        log.warning("%s in the environment is removed for this process: it is joined to no others", words)


def _refuse_unjoined() -> None:
    if _joined() or (os.environ.get("RANK", "0") == "0" and os.environ.get("WORLD_SIZE", "1") in ("0", "1")):
        return
    raise OctfastError(
        "RANK and WORLD_SIZE say that this is one of several processes, but it has not joined the others",
        'train within `with learn.distrib_ctx():`; or, if they are left over, del os.environ["MASTER_ADDR"]',
    )


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
