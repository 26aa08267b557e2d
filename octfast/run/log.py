"""The log of a run: its file, and the warnings that are kept as the notes of the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from octfast.notices import Note, noted

log = logging.getLogger("octfast")


@contextmanager
def run_log(file: Path) -> Iterator[list[Note]]:
    """Write octfast's log to a file while inside; gives the warnings so far, as a list that grows.

    A warning that programs look for has a kind: `log.warning(text, extra={"kind": "reminder"})`.
    """
    written = logging.FileHandler(file, encoding="utf-8")
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
