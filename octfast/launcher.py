"""What a launcher of several processes says of this one, and what a process of several needs of the system."""

from __future__ import annotations

import functools
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from octfast.errors import OctfastError

log = logging.getLogger("octfast")

# After which a process is told again that it is to end.
_AGAIN_SECONDS = 1.5
# What ends the work in `ended_by_signals`, of those that are at work.
_stops: list[Callable[[int, FrameType | None], None]] = []
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launched() -> tuple[int, int] | None:
    """This process's number and how many there are, where a launcher started several; else None.

    A launcher sets all of RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Fewer of them are leftovers, and
    so are those of a launcher that keeps the meeting place itself, as torchrun does, where nobody answers there.
    """
    try:
        rank, size, _, _, port = (os.environ[n] if n == "MASTER_ADDR" else int(os.environ[n]) for n in _NEEDED)
    except (KeyError, ValueError):
        return None
    assert isinstance(rank, int) and isinstance(size, int) and isinstance(port, int)
    if size < 2 or not 0 <= rank < size:
        return None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and not _answers(os.environ["MASTER_ADDR"], port):
        return None
    return rank, size


@contextmanager
def out_of_sight() -> Iterator[dict[str, str]]:
    """Hide from fastai that this is one of several processes; gives what was hidden, and puts it back."""
    left = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE") if name in os.environ}
    try:
        yield left
    finally:
        os.environ.update(left)


@functools.cache
def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=10).close()
        return True
    except OSError:
        return False


def place() -> dict[str, Any]:
    """Where this process is: numbers of processes can be compared on one machine, within one container."""
    machine = socket.gethostname()
    with suppress(OSError):
        boot = open("/proc/sys/kernel/random/boot_id").read().strip()  # noqa: PTH123, SIM115
        machine = f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": machine}


@contextmanager
def ended_by_signals() -> Iterator[list[int]]:
    """Let SIGTERM, which a launcher or a batch system sends, end the work as Ctrl-C does; gives the signals that came.

    Python drops what is raised while a process is forked or an object deleted: what has not ended then is told again,
    and the traceback that Python prints there is left out.
    """
    asked: list[int] = []
    again: list[threading.Timer] = []
    own = os.getpid()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a process that was just forked, which the main one will tell
            return
        asked.append(number)
        again.append(threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)))
        again[-1].daemon = True
        again[-1].start()
        raise KeyboardInterrupt

    def tell(dropped: Any) -> None:
        # Torch finds processes that decode ended by the same signal, where its loader is deleted after all this.
        if not (asked and (dropped.exc_type is KeyboardInterrupt or "DataLoader worker" in str(dropped.exc_value))):
            shown(dropped)

    before, shown = {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}, sys.unraisablehook
    if (handler := signal.getsignal(signal.SIGINT)) in (signal.default_int_handler, *_stops):
        before[signal.SIGINT] = handler  # not one of the user's, nor where it is ignored, as with nohup
    _stops.append(stop)
    for number in before:
        signal.signal(number, stop)
    sys.unraisablehook = tell
    try:
        yield asked
    finally:
        if not asked:
            sys.unraisablehook = shown
        for timer in again:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        _stops.remove(stop)


def refuse_other_device(first: str, own: str) -> None:
    """Refuse to compute on another kind of device than process 0.

    Raises
    ------
    OctfastError : they are not of one kind.
    """
    if own != first:
        raise OctfastError(
            f"one process works on {first} and another on {own}",
            "start them on machines of one kind, or hide the GPUs: CUDA_VISIBLE_DEVICES=",
        )


def runs(pid: int) -> bool:
    """Whether a process of this machine is there, and not only its remains."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    with suppress(OSError), open(f"/proc/{pid}/stat") as f:  # noqa: PTH123  (no file of a user's)
        return f.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


@contextmanager
def unheard(said: list[str]) -> Iterator[None]:
    """Keep octfast's log from the terminal; warnings are added to a list instead."""
    from octfast import console

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                said.append(record.getMessage())

    before, propagate, bars, level = list(log.handlers), log.propagate, console.bars, log.level
    log.handlers[:], log.propagate, console.bars = [Keep()], False, False
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.handlers[:], log.propagate, console.bars = before, propagate, bars
        log.setLevel(level)
