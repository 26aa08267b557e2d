"""Progress of long work: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("octfast")

bars = True  # `octfast --quiet` turns them off

_SHOW_AFTER = 2.0
_LINE_EVERY = 15.0


@contextmanager
def track(what: str, total: int, unit: str = "scans") -> Iterator[Callable[[int, int], None]]:
    """Follow work of about `total` steps: gives a function to be called with (done, all).

    Nothing is shown of work that ends within two seconds. In a terminal a bar with the rate and the time left;
    elsewhere a line every 15 seconds, and one at the end.
    """
    with (_bar if in_terminal() or (bars and _in_notebook()) else _lines)(what, total, unit) as update:
        yield update


def in_terminal() -> bool:
    """Whether a bar can be drawn on standard error, and is wanted."""
    return bars and sys.stderr.isatty()


def is_quiet() -> bool:
    """Whether nothing but results, warnings and errors is wanted."""
    return not bars


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=not _in_notebook()),
        transient=True,
    )
    start = time.monotonic()
    task = bar.add_task(what, total=total, rate="")
    begun = False

    def update(done: int, of: int) -> None:
        nonlocal begun, total
        total = of
        seconds = time.monotonic() - start
        if not begun and seconds > _SHOW_AFTER:
            bar.start()
            begun = True
        bar.update(task, completed=done, total=of, rate=f"{done / max(seconds, 1e-9):.1f} {unit}/s")

    try:
        yield update
    finally:
        if begun:
            bar.stop()
    _say_end(what, total, unit, time.monotonic() - start)


@contextmanager
def _lines(what: str, total: int, unit: str) -> Iterator[Callable[[int, int], None]]:
    start = last = time.monotonic()

    def update(done: int, of: int) -> None:
        nonlocal last, total
        total = of
        now = time.monotonic()
        if now - last >= _LINE_EVERY and 0 < done < total:
            last = now
            left = (now - start) / done * (total - done)
            rate = done / (now - start)
            log.info("%s: %d of %d %s, %.1f a second, %.0f s left", what, done, total, unit, rate, left)

    yield update
    _say_end(what, total, unit, time.monotonic() - start)


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules


def _say_end(what: str, total: int, unit: str, seconds: float) -> None:
    if seconds > _SHOW_AFTER:
        log.info("%s: %d %s in %.0f s, %.1f a second", what, total, unit, seconds, total / seconds)
