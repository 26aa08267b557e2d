"""Trainings of a network by one process, or by several that share its batches: run by torchrun, called by tests."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.callback.core import Callback
from fastai.torch_core import defaults, get_model

TINY = {"arch": "test_resnet", "weights": "none", "size": 32, "epochs": 3, "valid": 0.25, "workers": 0}
# An odd batch, of which one process has a scan more; the last one of validation is of one scan.
WHOLE = {**TINY, "unfreeze": "all", "lr": 0.004, "balance": "weights", "bs": 9}
RANK = int(os.environ.get("RANK", 0))


class Look(Callback):
    """Keeps the gradients of the first batch in which the whole network learns, and the weights after each epoch.

    Attributes
    ----------
    folder : of a file a process of each.
    broken : a file that becomes unreadable after the first epoch.
    dies : whether this process is killed in the third epoch.
    """

    order = 54  # when the epoch has been validated, and before anything is written
    folder, broken, dies = Path(), None, False
    epochs = 0

    def before_epoch(self):
        self.trained = False

    def after_train(self):
        self.trained = True

    def before_step(self):
        file = self.folder / f"gradients-{RANK}.npz"
        if not file.exists() and all(p.requires_grad for p in self.model.parameters()):
            np.savez(file, **{str(i): p.grad.numpy() for i, p in enumerate(self.model.parameters())})

    def after_batch(self):
        if self.dies and self.training and self.epochs == 2 and self.iter == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_epoch(self):
        if hasattr(self.learn, "lr_finder") or not self.trained:
            return
        type(self).epochs += 1
        found = {k: v.numpy() for k, v in get_model(self.model).state_dict().items()}
        np.savez(self.folder / f"weights-{RANK}.npz", **found)
        if self.broken is not None and self.epochs == 1 and RANK == 0:
            self.broken.write_bytes(b"no picture")


def train(data: Path, folder: Path, name: str, broken: Path | None = None, dies: bool = False, **options) -> None:
    """Train a tiny network into a folder of this name, and look at it; see `Look`."""
    from octfast.train.job import train_classifier

    seen = folder / f"{name}-seen"
    seen.mkdir(parents=True, exist_ok=True)
    defaults.callbacks.append(type("Looking", (Look,), {"folder": seen, "broken": broken, "dies": dies}))
    try:
        train_classifier(data=str(data), out=str(folder / name), cache=str(folder / "cache"), **{**WHOLE, **options})
    finally:
        defaults.callbacks.pop()


def main(data: Path, folder: Path) -> None:
    """Train to the end, with a rate that is sought, until an early stop, with a file that breaks, and to a death."""
    train(data, folder, "whole")
    train(data, folder, "sought", unfreeze="head", views=0, lr=None, balance="sample", epochs=1)
    train(data, folder, "stopped", unfreeze="head", views=0, lr=8.0, epochs=9, patience=1)
    scans = pd.read_csv(folder / "whole" / "scans.csv")
    # The second scan of a batch is read by the second process.
    second = data / scans.loc[scans["split"] == "valid", "path"].iloc[1]
    content = second.read_bytes()
    train(data, folder, "broken", broken=second)
    if RANK == 0:
        second.write_bytes(content)
    train(data, folder, "died", dies=RANK == 1)


if __name__ == "__main__":
    from octfast.console import log_to_terminal

    log_to_terminal()
    if sys.argv[1] == "--resume":
        from octfast.train.resume import resume_training

        resume_training(sys.argv[2])
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
