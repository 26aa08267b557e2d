"""Folds of the last block, trained by one process or by several: run by torchrun, and called by tests."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

BLOCK = {"unfreeze": "block5", "arch": "resnet18", "weights": "none", "size": 32, "folds": 3, "epochs": 2, "bs": 16}
# What the other process has to be told of, each of which would show in the digits.
TOLD = {"balance": "weights", "loss": "focal", "dropout": 0.4, "wd": 0.05, "lr": 0.002, "seed": 3}
RANK = int(os.environ.get("RANK", 0))


class CutOff(BaseException):
    """What ends a training here at a chosen moment."""


def options(data: Path, folder: Path, name: str) -> dict:
    where = {"data": str(data), "out": str(folder / name), "cache": str(folder / "cache")}
    return {**where, "valid": "0.25", "views": 1, "workers": 0, **BLOCK, **TOLD}


def wait_for(file: Path) -> None:
    until = time.monotonic() + 60
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.02)


def train(data: Path, folder: Path, name: str, dies: bool = False, resume: bool = False) -> None:
    """Train into a folder of this name; process 0 begins a fold when the other has begun one.

    Files `NAME-fold-K` say which process trained which fold. One that dies does so when the first fold is kept.
    """
    from octfast.train.block.trainings import Trainings
    from octfast.train.job import train_classifier
    from octfast.train.resume import resume_training

    real = Trainings.fold

    def fold(trainings, k, cbs=()):
        (folder / f"{name}-fold-{k}").write_text(str(RANK))
        if RANK == 1:
            (folder / f"{name}-begun").touch()
            if dies:
                wait_for(folder / name / "checkpoints" / "last.safetensors")
                os.kill(os.getpid(), signal.SIGKILL)
        elif "TORCHELASTIC_RUN_ID" in os.environ:
            wait_for(folder / f"{name}-begun")
        return real(trainings, k, cbs)

    Trainings.fold = fold
    try:
        if resume:
            resume_training(folder / name)
        else:
            train_classifier(**options(data, folder, name))
    finally:
        Trainings.fold = real


def cut_off(data: Path, folder: Path, name: str) -> None:
    """Train until the first fold is kept."""
    from octfast.train.block import crossval

    real = crossval.write_state

    def cutting(*args):
        real(*args)
        raise CutOff

    crossval.write_state = cutting
    with suppress(CutOff, SystemExit):
        train(data, folder, name)
    crossval.write_state = real


def without_the_store(data: Path, folder: Path, name: str) -> None:
    """Train where process 1 finds no such folder, as on another machine."""
    from octfast.train.block import dealt

    real = dealt.open_at
    if RANK == 1:
        (folder / f"{name}-begun").touch()
        dealt.open_at = lambda address: real({**address, "path": f"/elsewhere{address['path']}"})
    train(data, folder, name)
    dealt.open_at = real


def main(data: Path, folder: Path) -> None:
    """Train to the end, to a cut and on from it, without the store in the other process, and to its death."""
    train(data, folder, "two")
    cut_off(data, folder, "cut")
    train(data, folder, "cut", resume=True)
    without_the_store(data, folder, "apart")
    train(data, folder, "died", dies=True)


if __name__ == "__main__":
    from octfast.console import log_to_terminal

    log_to_terminal()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
