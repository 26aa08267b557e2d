"""Processes that decode scans for training: how many, and that they end quietly with the main process."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType

from octfast.files import usable_cores
from octfast.launcher import runs

# In which the main process ends a decoding process, where it still can.
_GRACE_SECONDS = 3.0

log = logging.getLogger("octfast")


def decoding_workers(size: int, bs: int, shm: str | Path = "/dev/shm") -> int:
    """How many decoding processes to use: one a core, to 8; none, said in the log, where shared memory is too small."""
    workers = _wanted()
    shm = Path(shm)
    if workers and shm.is_dir():
        needed = shared_memory_needed(size, bs)
        free = shutil.disk_usage(shm).free
        if free < needed:
            log.warning(
                "shared memory is too small for decoding in %d processes (%d MB free, %d MB needed): decoding in the "
                "main process instead",
                workers,
                free >> 20,
                needed >> 20,
            )
            return 0
    return workers


def shared_memory_needed(size: int = 224, bs: int = 64) -> int:
    """Bytes for the batches under way: two of three float channels each process."""
    return _wanted() * 2 * bs * 3 * size * size * 4


def _wanted() -> int:
    return min(8, usable_cores())


def end_with_the_main_process() -> None:
    """Begin a decoding process of fastai (its `wif`): what ends the main process ends it too, and it prints nothing.

    Ctrl-C in a terminal and SIGTERM of a batch system reach every process; the main one tells the others, which end by
    themselves only if it does not. A connection that the main process left half-way is no news. Torch looks after a
    main process that dies later, not after one that was killed while this process was started.
    """
    shown = sys.excepthook

    def wait(number: int, frame: FrameType | None) -> None:
        timer = threading.Timer(_GRACE_SECONDS, os._exit, (128 + number,))
        timer.daemon = True
        timer.start()

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            shown(kind, error, trace)

    sys.excepthook = tell
    signal.signal(signal.SIGTERM, wait)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    if main is not None and main.pid is not None and not runs(main.pid):
        os._exit(1)
