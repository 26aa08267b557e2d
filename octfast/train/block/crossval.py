"""Cross-validation of the last block with its head: both are trained anew for each fold, from the stored maps."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from octfast.console import track
from octfast.train.block.dealt import folds_from, helpers
from octfast.train.block.trainings import Recipe, Trainings, device_of
from octfast.train.callbacks import History, SaveLast, TrainBar
from octfast.train.checkpoint import State, write_state
from octfast.train.frozen.draws import seeded
from octfast.train.frozen.part import FrozenLearner

log = logging.getLogger("octfast")


def cross_validate(
    trainee: FrozenLearner,
    folds: np.ndarray,
    recipe: Recipe,
    folder: Path,
    state: Path | None = None,
    past: State | None = None,
    kept: Callable[[], None] = lambda: None,
) -> None:
    """Train the part of a Learner on all scans, after a copy of it for each fold on the scans outside of it.

    Every scan of training and validation is judged by the copy that never saw its patient. No training is stopped
    early, as no scans are left to choose an epoch by; the last epoch's weights are kept. The history is the model's
    own loss on what it learns from, and beside it the loss and accuracy of the copies on the scans of their folds.

    Parameters
    ----------
    trainee : of the last block and the head, untrained; it gets `folds`, and its `out_of_fold()` answers.
    folds : of the training, then the validation scans.
    folder : of the run, which gets history.csv and checkpoints/best.safetensors.
    state : the file that keeps what the folds gave, as each of them ends.
    past : of that file, from a training that was cut off, whose folds are not trained again.
    kept : called as each fold has been kept.
    """
    trainee.check()
    targets = torch.cat([dl.targets for dl in trainee.stored.loaders])
    trainings = Trainings(trainee, targets, folds, recipe)
    count, first = trainings.count, 0 if past is None else past.phase
    group = helpers(trainings, first)
    if past is None:
        seconds = _expected(trainings) * (1 if group is None else -(-count // group.size) / count)
        log.info(
            "cross-validation of block and head: %d trainings beside the model's own%s, about %s more (--folds 0 "
            "spares it)",
            count,
            f", in {group.size} processes" if group else "",
            _minutes(seconds / 60),
        )
    outputs: np.ndarray | None = None
    rows: list[dict[str, Any]] = []
    if past is not None:
        outputs, rows = past.tensors["outputs"].numpy(), past.rows

    def bar(k: int) -> AbstractContextManager[TrainBar]:
        return _bar(f"training fold {k + 1} of {count}")

    with closing(folds_from(trainings, first, bar)) as given_by:
        for k, (given, epochs) in enumerate(given_by, first):
            outputs = np.zeros((len(folds), given.shape[1]), np.float32) if outputs is None else outputs
            outputs[folds == k] = given
            rows += epochs
            reached = [epochs[-1][name] for name in ("valid_loss", "accuracy")]
            log.info("fold %d of %d: loss %.4f, accuracy %.3f out of fold", k + 1, count, *reached)
            if state is not None:
                bs = trainee.stored.train.bs
                write_state(state, State(k + 1, 0, recipe.lr, bs, rows, {"outputs": torch.from_numpy(outputs)}, {}))
                kept()
    (folder / "history.csv").unlink(missing_ok=True)
    with _bar("training") as shown:
        history = FoldHistory(folder / "history.csv", pd.DataFrame(rows))
        best = SaveLast(folder / "checkpoints" / "best.safetensors")
        trainings.whole([history, best, shown])
    trainee.folds, trainee.judged = folds, outputs


class FoldHistory(History):
    """The history of a training on all scans, whose validation is the mean of the folds', weighted by their scans.

    Parameters
    ----------
    folds : the epochs of each fold as `EpochLog` has them, with a column `scans`.
    """

    def __init__(self, file: Path, folds: pd.DataFrame):
        super().__init__(file)
        names = ["valid_loss", "accuracy"]
        weighted = folds[names].mul(folds["scans"], axis=0).groupby(folds["epoch"]).sum()
        self.means = weighted.div(folds.groupby("epoch")["scans"].sum(), axis=0)

    def keep(self, row: dict[str, Any]) -> None:
        row.update(self.means.loc[row["epoch"]].to_dict())
        super().keep(row)


def _expected(trainings: Trainings) -> float:
    """Seconds that the trainings of the folds will take, by a step of a copy that is thrown away."""
    trainee, store = trainings.trainee, trainings.store
    bs = min(trainee.stored.train.bs, len(store))
    part = copy.deepcopy(trainee.part).train()
    x = torch.from_numpy(store.take(np.arange(bs), 0)).float().to(device_of(trainee))
    for _ in range(2):  # the first warms up
        started = time.perf_counter()
        with trainee.pace(), seeded(0):
            trainee.loss_func(part(x), trainings.targets[:bs].to(x.device)).backward()
            x.sum().item()
    step = time.perf_counter() - started
    outside = len(store) * (trainings.count - 1)
    # A scan that is judged costs a third of one that is learned from.
    return step * trainings.recipe.epochs * (outside + len(store) / 3) / bs


def _minutes(value: float) -> str:
    return f"{value:.0f} minutes" if value >= 1.5 else f"{60 * value:.0f} s"


@contextmanager
def _bar(what: str) -> Iterator[TrainBar]:
    with track(what, 1, "batches", after=0, lines=False) as update:
        yield TrainBar(update)
