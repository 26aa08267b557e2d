"""The log of a run: its file, and the warnings that are kept as the notes of the run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from octfast.notices import Note, noted

log = logging.getLogger("octfast")


class _File(logging.FileHandler):
    """A file that takes what there is room for: a full disk is said where it stops the work, not a line at a time."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def run_log(file: Path) -> Iterator[list[Note]]:
    """Write octfast's log to a file while inside; gives the warnings so far, as a list that grows.

    A warning that programs look for has a kind: `log.warning(text, extra={"kind": "reminder"})`.
    """
    written = _File(file, encoding="utf-8")
    written.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    level = log.level
    if log.getEffectiveLevel() > logging.INFO:
        log.setLevel(logging.INFO)
    try:
        with noted() as notes:
            log.addHandler(written)
            yield notes
    finally:
        log.removeHandler(written)
        written.close()
        log.setLevel(level)
