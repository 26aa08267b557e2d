"""What every command prints with: log lines, errors, tables for people, JSON for programs."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

_COLOURS = {"error": "1;31", "warning": "33", "bold": "1", "name": "36"}
_NARROWEST = 12  # of a column of text; in less than that words fall apart
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class _Lines(logging.Handler):
    """Log lines on standard error as it is now, so that they appear above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = ""
        if record.levelno >= logging.WARNING:
            word = record.levelname.lower()
            prefix = paint(f"{word}: ", "warning" if word == "warning" else "error", sys.stderr)
        print(prefix + plain_text(record.getMessage()), file=sys.stderr)


def log_to_terminal() -> None:
    """Send octfast's log to standard error, one plain line a message."""
    log = logging.getLogger("octfast")
    if not any(isinstance(h, _Lines) for h in log.handlers):
        log.addHandler(_Lines())
    log.propagate = False
    set_volume()


def set_volume(quiet: bool = False, verbose: bool = False) -> None:
    """How much is said beside the results: warnings alone, or every detail; by default what a person would want.

    The log file of a run always has at least what is said by default.
    """
    from octfast import console as progress
    from octfast.errors import UsageError

    if quiet and verbose:
        raise UsageError("--quiet and --verbose go in opposite directions", "give one of them")
    log = logging.getLogger("octfast")
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    for handler in log.handlers:
        if isinstance(handler, _Lines):
            handler.setLevel(logging.WARNING if quiet else logging.NOTSET)
    progress.bars = not quiet


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
    least = sum(w if n else min(w, _NARROWEST) for w, n in zip(widths, numeric, strict=True)) + 2 * len(columns)
    if least > console.width:
        name = max(map(len, columns))
        for row in shown:
            console.print()
            for column, value in zip(columns, row, strict=True):
                console.print(Text(f"  {column:<{name}}  {value}"), soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, is_numeric in zip(columns, numeric, strict=True):
        table.add_column(column, justify="right" if is_numeric else "left", overflow="fold", no_wrap=is_numeric)
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
