"""The log of a run: its file, and the warnings that are kept as the notes of the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from octfast.notices import Note

log = logging.getLogger("octfast")


@contextmanager
def run_log(file: Path) -> Iterator[list[Note]]:
    """Write octfast's log to a file while inside; gives the warnings so far, as a list that grows.

    A warning that programs look for has a kind: `log.warning(text, extra={"kind": "reminder"})`.
    """
    notes: list[Note] = []
    written = logging.FileHandler(file, encoding="utf-8")
    written.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                notes.append(Note(getattr(record, "kind", ""), record.getMessage()))

    handlers: list[logging.Handler] = [written, Notes()]
    # Without any handler Python shows warnings, as in a notebook. It would not with the handler of the file.
    if not log.hasHandlers() and logging.lastResort:
        handlers.append(logging.lastResort)
    level = log.level
    if log.getEffectiveLevel() > logging.INFO:
        log.setLevel(logging.INFO)
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield notes
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
        log.setLevel(level)
