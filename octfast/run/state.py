"""A run's state, kept in its config.json while it is trained: running, then finished, stopped or failed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from filelock import FileLock, Timeout

from octfast.errors import OctfastError, UsageError
from octfast.launcher import ended_by_signals
from octfast.model.bundle.state import FAILED, FINISHED, LOCK, RUNNING, STOPPED, resume_command
from octfast.run.folder import Run

log = logging.getLogger("octfast")

# Processes that decode outlive the one that is killed by some seconds, and hold the lock with it.
WAIT_SECONDS = 8.0


@contextmanager
def held(run: Run) -> Iterator[None]:
    """Hold a run folder as the one process that trains in it; inside SIGTERM ends the work as Ctrl-C does.

    Raises
    ------
    UsageError : another process trains in it.
    """
    lock = FileLock(run.path / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=WAIT_SECONDS, poll_interval=0.2)
    except Timeout:
        raise UsageError(
            f"{run.path} is being trained by another process", "wait for its end, or stop that process first"
        ) from None
    except (OSError, NotImplementedError) as e:
        log.warning("%s cannot be locked (%s): do not let two processes train in it", run.path, e)
    try:
        with ended_by_signals():
            yield
    finally:
        # Removed while it is held, so that nobody can take a lock that is about to go.
        with suppress(OSError):
            (run.path / LOCK).unlink(missing_ok=True)
        lock.release()


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
    about.pop("failure", None)
    run.write_json("config.json", about)
    try:
        with ended_by_signals() as asked:
            yield
    except BaseException as e:
        # A process that decodes may have been ended by the same signal, and its end be seen first.
        stopped = isinstance(e, KeyboardInterrupt | SystemExit) or bool(asked)
        about["state"] = STOPPED if stopped else FAILED
        if not stopped:
            about["failure"] = e.message if isinstance(e, OctfastError) else f"{type(e).__name__}: {e}"
        with suppress(OSError):  # the disk may be why it failed
            run.write_json("config.json", about)
        # Not of a Learner that was trained in Python, nor where the folder has been removed.
        if about.get("made_by") is None and (run.path / "config.json").exists():
            log.warning("%s %s; go on with: %s", run.path, _kept(run), resume_command(run.path))
        if stopped and not isinstance(e, KeyboardInterrupt | SystemExit):
            raise KeyboardInterrupt from e
        raise
    about["state"] = FINISHED
    run.write_json("config.json", about)


def _kept(run: Run) -> str:
    """What a training that has not come to its end leaves."""
    epochs = 0
    with suppress(OSError):
        epochs = max(0, (run.path / "history.csv").read_text(encoding="utf-8").count("\n") - 1)
    many = "1 epoch is" if epochs == 1 else f"{epochs} epochs are"
    return f"is not finished: {many} kept, and the features that were computed"
