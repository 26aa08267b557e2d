"""The fits that a training consists of, in one process or in each of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastai.learner import Learner


def fit_as_asked(
    learn: Learner, unfreeze: str, epochs: int, lr: float, start_of: Callable[[int, int], int], cbs: list[Any]
) -> None:
    """Fit by the one-cycle schedule; a whole network as fastai's `fine_tune` does, after an epoch of the head alone.

    Parameters
    ----------
    unfreeze : what is trained, "head", "block5" or "all".
    start_of : of a fit's number and its epochs, gives the first one that is not done yet.
    """
    if unfreeze != "all":
        rates = slice(lr / 10, lr) if unfreeze == "block5" else lr
        learn.fit_one_cycle(epochs, rates, cbs=cbs, start_epoch=start_of(0, epochs))
        return
    learn.freeze()
    learn.fit_one_cycle(1, slice(lr), pct_start=0.99, cbs=cbs, start_epoch=start_of(0, 1))
    learn.unfreeze()
    rates = slice(lr / 2 / 100, lr / 2)
    learn.fit_one_cycle(epochs, rates, pct_start=0.3, div=5.0, cbs=cbs, start_epoch=start_of(1, epochs))
