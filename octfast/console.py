"""What is printed: progress of long work, log lines, errors, tables for people, JSON for programs."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TextIO

log = logging.getLogger("octfast")

bars = True  # `octfast --quiet` turns them off
began: float | None = None  # when the command began, where this process is one

_COLOURS = {"error": "1;31", "warning": "33", "bold": "1", "name": "36"}
_NARROWEST = 12  # of a column of text; in less than that words fall apart
_SHOW_AFTER = 2.0  # seconds, as the next one
_LINE_EVERY = 15.0
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class _Lines(logging.Handler):
    """Log lines on standard error as it is now, so that they appear above a progress bar."""

    failed = False  # whether an error was said of something that ended nothing else

    def emit(self, record: logging.LogRecord) -> None:
        prefix = ""
        self.failed |= record.levelno >= logging.ERROR
        if record.levelno >= logging.WARNING:
            word = record.levelname.lower()
            prefix = paint(f"{word}: ", "warning" if word == "warning" else "error", sys.stderr)
        print(prefix + plain_text(record.getMessage()), file=sys.stderr)


def log_to_terminal() -> None:
    """Send octfast's log to standard error, one plain line a message."""
    if not any(isinstance(h, _Lines) for h in log.handlers):
        log.addHandler(_Lines())
    log.propagate = False
    for handler in log.handlers:
        if isinstance(handler, _Lines):
            handler.failed = False
    set_verbosity()


def has_failed() -> bool:
    """Whether the log had an error: the command went on, and ends with exit code 1 all the same."""
    return any(handler.failed for handler in log.handlers if isinstance(handler, _Lines))


def set_verbosity(quiet: bool = False, verbose: bool = False) -> None:
    """How much is said beside the results: warnings alone, or every detail; by default what a person would want.

    The log file of a run always has at least what is said by default.
    """
    from octfast.errors import UsageError

    global bars
    if quiet and verbose:
        raise UsageError("--quiet and --verbose go in opposite directions", "give one of them")
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    for handler in log.handlers:
        if isinstance(handler, _Lines):
            handler.setLevel(logging.WARNING if quiet else logging.NOTSET)
    bars = not quiet


def print_error(message: str, hint: str = "") -> None:
    """Print on standard error what is wrong and, on a line of its own, what to do."""
    print(paint("error: ", "error", sys.stderr) + plain_text(message), file=sys.stderr)
    if hint:
        print(paint("what to do: ", "bold", sys.stderr) + plain_text(hint), file=sys.stderr)


def has_colour(stream: TextIO) -> bool:
    """Whether to colour what goes to a stream: NO_COLOR forbids it, FORCE_COLOR orders it, else a terminal decides."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def paint(words: str, style: str, stream: TextIO) -> str:
    """The words in a style's colour, where the stream takes colours."""
    return f"\x1b[{_COLOURS[style]}m{words}\x1b[0m" if has_colour(stream) else words


def plain_text(words: str) -> str:
    """Words without what would steer the terminal: file names may hold any character, escape sequences too."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found.group()):02x}", words)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table on standard output; numbers to the right.

    Where the terminal is too narrow for columns, each row becomes a few lines of name and value. What is not a
    terminal gets each row on one line, however long.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    body = [list(row) for row in rows]
    shown = [[plain_text(_shown(v)) for v in row] for row in body]
    numeric = [bool(body) and all(isinstance(row[i], int | float) for row in body) for i in range(len(columns))]
    console = _console()
    console.print(Text(f"\n{plain_text(title)}", style="bold"))
    widths = [max(map(len, column)) for column in zip(columns, *shown, strict=True)]
    # No word of a column's name is broken.
    words = [max(map(len, c.split()), default=0) for c in columns]
    needed = [w if n else max(word, min(w, _NARROWEST)) for w, n, word in zip(widths, numeric, words, strict=True)]
    least = sum(needed) + 2 * len(columns)
    if least > console.width:
        name = max(map(len, columns))
        for row in shown:
            console.print()
            for column, value in zip(columns, row, strict=True):
                console.print(Text(f"  {column:<{name}}  {value}"), soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, is_numeric, least in zip(columns, numeric, needed, strict=True):
        table.add_column(
            column,
            justify="right" if is_numeric else "left",
            overflow="fold",
            no_wrap=is_numeric,
            min_width=least,
        )
    for row in shown:
        table.add_row(*map(Text, row))
    _print(console, table)


def print_list(items: Iterable[tuple[str, str, str, str]]) -> None:
    """Print items on standard output: how each stands (ok, warn, fail or -), its name, what was found, what to do."""
    from rich.table import Table
    from rich.text import Text

    items = list(items)
    console = _console()
    name = max((len(item[1]) for item in items), default=0)
    narrow = console.width < name + 48
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    if not narrow:
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for status, called, found, advice in items:
        mark = Text(status, style={"ok": "green", "warn": "yellow", "fail": "bold red"}.get(status, "dim"))
        left = [Text("")] if narrow else [Text(""), Text("")]
        if narrow:
            table.add_row(mark, Text(called, style="bold"))
            table.add_row(*left, Text(plain_text(found)))
        else:
            table.add_row(mark, Text(called), Text(plain_text(found)))
        if advice:
            table.add_row(*left, Text(f"-> {plain_text(advice)}"))
    _print(console, table)


def print_json(content: Any) -> None:
    """Print JSON on standard output, with null for what is no number."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(_plain(content), indent=2, ensure_ascii=not utf8))


def _console() -> Any:
    """Standard output, as wide as its terminal. A pipe has no width: cut to 80 columns, file names would be lost."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 100_000, highlight=False)


def _print(console: Any, table: Any) -> None:
    """Print a table without the blanks that fill its last column."""
    with console.capture() as shown:
        console.print(table)
    print("\n".join(line.rstrip() for line in shown.get().splitlines()))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _shown(value: Any) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


@contextmanager
def track(
    what: str, total: int, unit: str = "scans", *, after: float = _SHOW_AFTER, lines: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """Follow work of about `total` steps: gives a function to be called with (done, all).

    A terminal or a notebook gets a bar with the rate and the time left. Elsewhere the log gets a line every 15 seconds.
    At the end the log gets a line. Nothing is shown of work that ends within two seconds.

    A callback that has no `with` block holds it in a `contextlib.ExitStack`:

        self.bar = ExitStack()
        update = self.bar.enter_context(track("training", batches, "batches", after=0, lines=False))
        ...
        self.bar.close()

    Parameters
    ----------
    after : seconds before a bar is drawn.
    lines : False leaves out the lines in the log, for work that has lines of its own.
    """
    start = last = time.monotonic()
    with _bar(what, total, unit, after) if in_terminal() or (bars and _in_notebook()) else nullcontext() as draw:

        def update(done: int, of: int) -> None:
            nonlocal last, total
            total = of
            now = time.monotonic()
            if draw:
                draw(done, of)
            elif lines and now - last >= _LINE_EVERY and 0 < done < total:
                last = now
                rate = done / (now - start)
                left = (total - done) / rate
                log.info("%s: %d of %d %s, %.1f a second, %.0f s left", what, done, total, unit, rate, left)

        yield update
    seconds = time.monotonic() - start
    if lines and seconds > _SHOW_AFTER:
        log.info("%s: %d %s in %.0f s, %.1f a second", what, total, unit, seconds, total / seconds)


@contextmanager
def track_bytes(what: str, total: int | None, bar: bool | None = None) -> Iterator[Callable[[int], None]]:
    """Follow a download: gives a function to be called with the number of bytes that have just come.

    Parameters
    ----------
    total : bytes in all; None where the server does not say.
    bar : True draws a bar and False shows nothing. None draws a bar in a terminal and elsewhere prints a line on
        standard error at 0, 25, 50, 75 and 100% (at 0% alone where `total` is None), unless `--quiet` was given.
    """
    done, quarter = 0, -1
    drawn = in_terminal() if bar is None else bar
    silent = not drawn and (bar is False or not bars)
    with _bar(what, total, "bytes", 0) if drawn else nullcontext() as draw:

        def advance(count: int) -> None:
            nonlocal done, quarter
            done += count
            if draw:
                draw(done, total)
            elif not silent and (now := 4 * done // total if total else 0) > quarter:
                quarter = now
                size = f" of {size_text(total)}" if total else ""
                print(f"downloading {what}: {25 * quarter}%{size}", file=sys.stderr, flush=True)

        advance(0)
        yield advance


def size_text(count: int) -> str:
    """A number of bytes as it is read with ease."""
    return f"{count / 1e6:.0f} MB" if count >= 10e6 else f"{count / 1e3:.0f} kB" if count >= 1e4 else f"{count} bytes"


def in_terminal() -> bool:
    """Whether a bar can be drawn on standard error, and is wanted."""
    return bars and sys.stderr.isatty()


def is_quiet() -> bool:
    """Whether nothing but results, warnings and errors is wanted."""
    return not bars


@contextmanager
def _bar(what: str, total: int | None, unit: str, after: float) -> Iterator[Callable[[int, int | None], None]]:
    """A bar with a function that draws it at (done, all); it goes away at the end, unless it is of a download."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    count: list[ProgressColumn] = [MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *([DownloadColumn()] if unit == "bytes" else count),
        TimeRemainingColumn(),
        console=Console(stderr=not _in_notebook()),
        transient=unit != "bytes",
    )
    start = time.monotonic()
    task = bar.add_task(what, total=total, rate="")

    def draw(done: int, of: int | None) -> None:
        seconds = time.monotonic() - start
        if seconds >= after:
            bar.start()  # does nothing where it is drawn already
        bar.update(task, completed=done, total=of, rate=f"{done / max(seconds, 1e-9):.1f} {unit}/s")

    try:
        yield draw
    finally:
        bar.stop()


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules
