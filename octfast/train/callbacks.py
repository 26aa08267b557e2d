"""fastai callbacks of a run: history as it is made, the best weights kept, stopping early, progress."""

from __future__ import annotations

import csv
import logging
import math
import time
from pathlib import Path

from fastai.callback.core import Callback, CancelFitException
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback, TrackerCallback
from fastai.callback.training import BnFreeze
from fastai.learner import Recorder

from octfast.console import in_terminal
from octfast.errors import OctfastError

log = logging.getLogger("octfast")


class FrozenEval(BnFreeze):
    """Keep every module without a trainable parameter in eval mode, each time fastai calls `train()`.

    fastai's BnFreeze does it for batch norm; dropout inside a frozen body would change its features as well.
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
        super().__init__(monitor=monitor, reset_on_fit=False)
        self.file = Path(file)
        self.best_epoch: int | None = None
        self.epochs = 0

    def after_epoch(self):
        TrackerCallback.after_epoch(self)
        self.epochs += 1
        if self.new_best:
            from safetensors.torch import save_file

            self.best_epoch = self.epochs - 1
            part = self.file.with_name(f".{self.file.name}.part")
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in self.model.state_dict().items()}, part)
            part.replace(self.file)

    def after_fit(self, **kwargs):
        if self.run and self.best_epoch is not None:
            from safetensors.torch import load_file

            self.model.load_state_dict(load_file(self.file))
        TrackerCallback.after_fit(self)


class StopEarly(EarlyStoppingCallback):
    """EarlyStoppingCallback that says so in the log instead of printing."""

    wait: int

    def after_epoch(self):
        TrackerCallback.after_epoch(self)
        self.wait = 0 if self.new_best else self.wait + 1
        if self.wait >= self.patience:
            best = self.epoch - self.wait + 1
            log.info("stopped early: no lower %s in %d epochs since epoch %d", self.monitor, self.wait, best)
            raise CancelFitException()


class History(Callback):
    """Write a row an epoch to history.csv, flushed as the epoch ends, and say it in the log.

    Columns: epoch (from 1), train_loss, valid_loss, train_accuracy (over the epoch's batches, while it learns),
    accuracy (validation), then any other metric, lr (at the end of the epoch), seconds.
    """

    # After the Recorder has the epoch's figures and before StopEarly can cancel the fit.
    run_after = Recorder
    order = 55

    def __init__(self, file: str | Path):
        super().__init__()
        self.file = Path(file)
        self.rows = 0

    def before_fit(self):
        self.run = not hasattr(self.learn, "lr_finder") and not hasattr(self.learn, "gather_preds")

    def before_epoch(self):
        self.start = time.perf_counter()

    def before_train(self):
        self.right = self.seen = 0

    def after_loss(self):
        if self.training and len(self.yb) and self.pred.ndim == 2:
            self.right += int((self.pred.detach().argmax(1) == self.yb[0]).sum())
            self.seen += len(self.yb[0])

    def after_epoch(self):
        names = list(self.recorder.metric_names[1:])
        values = dict(zip(names, self.recorder.values[-1], strict=False))
        if not math.isfinite(values["train_loss"]):
            raise OctfastError(
                f"the training loss of epoch {self.epoch + 1} is {values['train_loss']}",
                "try a lower rate, for example --lr 0.0005",
            )
        self.rows += 1
        row = {
            "epoch": self.rows,
            "train_loss": values.pop("train_loss"),
            "valid_loss": values.pop("valid_loss"),
            "train_accuracy": self.right / self.seen if self.seen else float("nan"),
            **{k: v for k, v in values.items() if k != "time"},
            "lr": self.opt.hypers[-1]["lr"],
            "seconds": time.perf_counter() - self.start,
        }
        with self.file.open("a", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, row)
            if self.rows == 1:
                writer.writeheader()
            writer.writerow({k: v if isinstance(v, int) else f"{v:.6g}" for k, v in row.items()})
        log.info(
            "epoch %2d/%d  train loss %.4f  valid loss %.4f  valid accuracy %.3f  lr %.1e  %.1f s",
            *(self.epoch + 1, self.n_epoch, row["train_loss"], row["valid_loss"]),
            *(row.get("accuracy", float("nan")), row["lr"], row["seconds"]),
        )


class TrainBar(Callback):
    """One bar over all batches of a fit, in a terminal; nothing elsewhere, where History's lines serve."""

    order = 70

    def before_fit(self):
        self.bar = None
        if hasattr(self.learn, "lr_finder") or hasattr(self.learn, "gather_preds") or not in_terminal():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.percentage:.0f}%"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.bar.start()
        self.task = self.bar.add_task("", total=self.n_epoch * max(1, len(self.dls.train) + len(self.dls.valid)))

    def after_batch(self):
        if self.bar:
            self.bar.advance(self.task)

    def after_fit(self):
        if self.bar:
            self.bar.stop()
            self.bar = None
