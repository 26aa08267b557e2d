"""Work that is done by one process or by several: run by torchrun, and called by tests."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

SMALL = {"arch": "test_resnet", "weights": "none", "size": 32, "epochs": 2, "valid": 0.25, "workers": 0}


def train_and_predict(data: Path, folder: Path) -> None:
    """Train, a scan becoming unreadable as the training begins, and ask the model about files, one of them damaged."""
    from octfast.deploy.predict.predict import predict
    from octfast.train import job

    begun = job.share

    def damage_first(learn, prepared, config):
        job.share = begun
        file = Path(prepared.scans.loc[prepared.scans["split"] == "train", "path"].iloc[40])
        file.write_bytes(file.read_bytes()[:200])
        begun(learn, prepared, config)

    job.share = damage_first
    where = {"out": str(folder / "run"), "cache": str(folder / "cache")}
    run = job.train_classifier(data=str(data), **where, **SMALL, views=3)
    job.share = begun
    found = predict(folder / "run", [data / "train", data / "test"], out=folder / "answers.csv")
    assert (run is None) == (found is None)


def die_early(data: Path, folder: Path) -> None:
    """Train what takes minutes; process 1 is killed as soon as the first scans are stored."""
    from octfast.train.job import train_classifier

    def die():
        while not list(folder.glob("dead/features/*/features.bin")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["RANK"] == "1":
        threading.Thread(target=die, daemon=True).start()
    where = {"out": str(folder / "died"), "cache": str(folder / "dead")}
    train_classifier(data=str(data), **where, **SMALL, views=60)


if __name__ == "__main__":
    from octfast.console import log_to_terminal

    log_to_terminal()
    train_and_predict(Path(sys.argv[1]), Path(sys.argv[2]))
    die_early(Path(sys.argv[1]), Path(sys.argv[2]))
