"""Work that is done by one process or by several: run by torchrun, and called by tests."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

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
    answer_for_volumes(data, folder)


def answer_for_volumes(data: Path, folder: Path, **options: Any) -> None:
    """Ask a model of volumes about a table whose rows of volumes are mixed, and about files of volumes."""
    from octfast.deploy.predict.predict import predict

    drawn: dict[str, Any] = {"montage": folder / "montage.png", "heatmaps": folder / "maps"}
    inputs = [data / "files", data / "mixed.csv"]
    predict(data / "bags", inputs, out=folder / "volumes.jsonl", bs=8, **(drawn | options))


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


def die_over_volumes(data: Path, folder: Path) -> None:
    """As `answer_for_volumes`, process 1 being killed in the midst of it."""
    from octfast.deploy.predict import dealt

    begun, rank = dealt.pictures_of, os.environ["RANK"]

    def dying(n, item, reader):
        # The volumes come before, four files; process 0 is so slow that it cannot be done before the other has begun.
        if rank == "1" and n >= 4:
            os.kill(os.getpid(), signal.SIGKILL)
        elif n >= 12:
            time.sleep(0.5)
        return begun(n, item, reader)

    dealt.pictures_of = dying
    answer_for_volumes(data, folder)


if __name__ == "__main__":
    from octfast.console import log_to_terminal

    log_to_terminal()
    for work in sys.argv[3:]:
        globals()[work](Path(sys.argv[1]), Path(sys.argv[2]))
