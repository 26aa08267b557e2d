"""A run's state, kept in its config.json while it is trained: running, then finished, stopped or failed."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from octfast.errors import OctfastError
from octfast.model.bundle.state import FAILED, FINISHED, RUNNING, STOPPED
from octfast.run.folder import Run

log = logging.getLogger("octfast")


@contextmanager
def training_state(run: Run, about: dict[str, Any]) -> Iterator[None]:
    """Write config.json with the state of the training: "running" inside, "finished" last of all when it ends well.

    Ctrl-C and SIGTERM make it "stopped" and any other exception "failed", with the reason in `failure`; both are passed
    on. A training that is killed stays "running".

    Parameters
    ----------
    about : what config.json says; what is added to it inside is written at the end.
    """
    about["state"] = RUNNING
    run.write_json("config.json", about)
    try:
        with _stopped_by_sigterm():
            yield
    except BaseException as e:
        stopped = isinstance(e, KeyboardInterrupt | SystemExit)
        about["state"] = STOPPED if stopped else FAILED
        if not stopped:
            about["failure"] = e.message if isinstance(e, OctfastError) else f"{type(e).__name__}: {e}"
        with suppress(OSError):  # the disk may be why it failed
            run.write_json("config.json", about)
        if stopped:
            log.warning("%s", _kept(run))
        raise
    about["state"] = FINISHED
    run.write_json("config.json", about)


def _kept(run: Run) -> str:
    """What a training that was stopped leaves, and how to go on."""
    epochs = 0
    with suppress(OSError):
        epochs = max(0, (run.path / "history.csv").read_text(encoding="utf-8").count("\n") - 1)
    kept = f"the history and the best weights of {epochs} epochs" if epochs else "no epoch yet"
    return (
        f"{run.path} keeps {kept}; features that were computed are stored, and the same command with a new --out, or "
        "none, goes on from them"
    )


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the training as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
