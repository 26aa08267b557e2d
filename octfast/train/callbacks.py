"""fastai callbacks of a run: the history, the best weights, stopping early, progress."""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback, CancelFitException
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback, TrackerCallback
from fastai.callback.training import BnFreeze
from fastai.learner import Recorder
from fastai.torch_core import get_model
from safetensors.torch import load_file, save
from torch import Tensor

from octfast.errors import OctfastError
from octfast.files import disk_errors_of, whole_file

log = logging.getLogger("octfast")


class FrozenEval(BnFreeze):
    """Puts every frozen module back into eval mode whenever fastai calls `train()`.

    fastai's BnFreeze does so for batch norms alone, but dropout in a frozen body would change its features as well.
    """

    def before_train(self):
        super().before_train()
        for module in self.model.modules():
            params = list(module.parameters())
            if params and not any(p.requires_grad for p in params):
                module.eval()


class SaveBest(SaveModelCallback):
    """SaveModelCallback that keeps the best weights as safetensors, and loads only what it saved itself.

    Over several fits, as `fine_tune` makes two, they are the best of all; `best_epoch` counts through them, from 0.
    """

    def __init__(self, file: str | Path, monitor: str = "valid_loss"):
        file = Path(file)
        super().__init__(monitor=monitor, fname=file.stem, reset_on_fit=False)
        self.file = file
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.epochs = 0

    def go_on(self, losses: Sequence[float], last: Mapping[str, Tensor]) -> None:
        """Go on after epochs of these losses.

        Parameters
        ----------
        last : the weights at the end of the last of them, which are written where they are the best.
        """
        self.epochs, self.best = len(losses), math.inf
        for epoch, loss in enumerate(losses):
            if self.comp(loss - self.min_delta, self.best):
                self.best, self.best_epoch = loss, epoch
        if self.best_epoch == len(losses) - 1:
            self._write(last)

    def after_epoch(self):
        if _was_skipped(self):
            return
        self.epochs += 1
        # fastai prints each improvement; History has a line for each epoch.
        with redirect_stdout(None):
            super().after_epoch()

    def _save(self, name):
        self.best_epoch = self.epochs - 1
        self._write({k: v.detach().cpu().contiguous().clone() for k, v in get_model(self.model).state_dict().items()})

    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        with whole_file(self.file) as part:
            # Through bytes, as its save_file makes files that only their owner can read.
            part.write_bytes(save(dict(tensors)))
        self.last_saved_path = self.file

    def after_fit(self, **kwargs):
        # fastai's would unpickle a file of this name whoever wrote it, and also where this fit saved none.
        if self.run and self.best_epoch is not None:
            self.model.load_state_dict(load_file(self.file))
        TrackerCallback.after_fit(self)


class SaveLast(SaveBest):
    """Keeps the weights of the last epoch, where no scan is held out to choose an epoch by."""

    def after_epoch(self):
        self.epochs += 1
        if self.epoch == self.n_epoch - 1:
            self._save(self.fname)


class StopEarly(EarlyStoppingCallback):
    """EarlyStoppingCallback that says so in the log instead of printing."""

    wait: int
    best: float
    fits = 0
    past: tuple[int, Sequence[float]] = -1, ()

    def go_on(self, fit: int, losses: Sequence[float]) -> None:
        """Go on in a fit, numbered from 0, after epochs of these losses."""
        self.past = fit, losses

    def before_fit(self):
        super().before_fit()
        fit, losses = self.past
        if fit == self.fits:
            for loss in losses:
                better = bool(self.comp(loss - self.min_delta, self.best))
                self.best, self.wait = (loss, 0) if better else (self.best, self.wait + 1)
        self.fits += 1
        if self.wait >= self.patience:
            raise CancelFitException

    def after_epoch(self):
        if _was_skipped(self):
            return
        try:
            with redirect_stdout(None):
                super().after_epoch()
        except CancelFitException:
            best = self.epoch - self.wait + 1
            log.info("stopped early: no lower %s in %d epochs since epoch %d", self.monitor, self.wait, best)
            raise


class EpochLog(Callback):
    """Keeps a row for each epoch of every fit of a Learner, as history.csv has them.

    Columns: epoch (from 1), train_loss, valid_loss, train_accuracy (over the epoch's batches, during training),
    accuracy (validation), then any other metric, lr (at the end of the epoch), seconds.

    Parameters
    ----------
    rows : a list to go on with; None begins a new one.
    """

    # After the Recorder has the epoch's metrics and before StopEarly can cancel the fit.
    run_after = Recorder
    order = 55

    def __init__(self, rows: list[dict[str, Any]] | None = None):
        super().__init__()
        self.rows = [] if rows is None else rows

    def before_fit(self):
        self.run = not hasattr(self.learn, "lr_finder") and not hasattr(self.learn, "gather_preds")

    def before_epoch(self):
        # fastai also begins an epoch to validate or to predict.
        self.start, self.trained = time.perf_counter(), False

    def before_train(self):
        self.right, self.seen, self.trained = 0, 0, True

    def after_loss(self):
        if self.training and len(self.yb) and self.pred.ndim == 2 and self.pred.shape[:1] == self.yb[0].shape:
            self.right += int((self.pred.detach().argmax(1) == self.yb[0]).sum())
            self.seen += len(self.yb[0])

    def after_epoch(self):
        if not self.trained:
            return
        values = dict(zip(self.recorder.metric_names[1:], self.recorder.values[-1], strict=False))
        row = {
            "epoch": len(self.rows) + 1,
            "train_loss": values.pop("train_loss", math.nan),
            "valid_loss": values.pop("valid_loss", math.nan),
            "train_accuracy": self.right / self.seen if self.seen else math.nan,
            **{k: v for k, v in values.items() if k != "time"},
            "lr": self.opt.hypers[-1]["lr"],
            "seconds": time.perf_counter() - self.start,
        }
        self.rows.append(row)
        self.keep(row)

    def keep(self, row: dict[str, Any]) -> None:
        """What else becomes of a row."""


class History(EpochLog):
    """Write a row to history.csv at the end of each epoch, see `EpochLog`, and a line to the log."""

    def __init__(self, file: str | Path):
        super().__init__()
        self.file = Path(file)

    def go_on(self, rows: Sequence[dict[str, Any]]) -> None:
        """Go on after these epochs, and let the file have their rows and no others."""
        self.rows[:] = rows
        lines = io.StringIO(newline="")
        for number, row in enumerate(rows):
            _write_row(lines, row, header=number == 0)
        with whole_file(self.file) as part:
            part.write_bytes(lines.getvalue().encode())

    def keep(self, row: dict[str, Any]) -> None:
        if not math.isfinite(row["train_loss"]):
            raise OctfastError(
                f"the training loss of epoch {self.epoch + 1} is {row['train_loss']}",
                "try a lower rate, for example --lr 0.0005",
            )
        with disk_errors_of(self.file), self.file.open("a", newline="", encoding="utf-8") as f:
            _write_row(f, row, header=len(self.rows) == 1)
        log.info(
            "epoch %2d/%d  train loss %.4f  valid loss %.4f  valid accuracy %.3f  lr %.1e  %.1f s",
            *(self.epoch + 1, self.n_epoch, row["train_loss"], row["valid_loss"]),
            *(row.get("accuracy", float("nan")), row["lr"], row["seconds"]),
        )


def _write_row(file: Any, row: dict[str, Any], header: bool) -> None:
    writer = csv.DictWriter(file, row)
    if header:
        writer.writeheader()
    writer.writerow({k: v if isinstance(v, int) else f"{v:.6g}" for k, v in row.items()})


def _was_skipped(tracker: TrackerCallback) -> bool:
    """Whether an epoch that ends was not trained, as fastai's SkipToEpoch has it: it has no losses."""
    return len(tracker.recorder.values[-1]) <= tracker.idx


class TrainBar(Callback):
    """Tells a progress bar, such as `octfast.console.track` gives, of each batch of a fit.

    Parameters
    ----------
    update : called with (batches done, batches in all).
    """

    order = 70

    def __init__(self, update: Callable[[int, int], None]):
        super().__init__()
        self.update = update

    def before_fit(self):
        self.run = not hasattr(self.learn, "lr_finder") and not hasattr(self.learn, "gather_preds")
        self.each = max(1, len(self.dls.train) + len(self.dls.valid))
        self.done, self.total = 0, self.n_epoch * self.each

    def before_train(self):
        self.done = self.epoch * self.each

    def after_batch(self):
        self.done += 1
        self.update(self.done, self.total)
