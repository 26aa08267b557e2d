"""The sentences that stand on every page, and the notes of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

NOTICE = "Not a medical device."
LONG_NOTICE = f"{NOTICE} For research and teaching; it has not been validated for diagnosis."
SYNTHETIC_NOTE = "Synthetic phantoms, not patients: this model knows nothing of real eyes."
SYNTHETIC = "SYNTHETIC.txt"
"""The file that says so in a folder of phantoms."""
CAUTION = "not evidence of disease location"
"""Of a heat map; to be put into a sentence."""
UNSEEN = "A disease that the model has not seen is mostly not noticed, nor is every scan of another device."
"""Of what is called unlike the training scans (docs/unlike.md)."""


def notice(synthetic: bool) -> str:
    """What stands at the foot of a page about a model; `synthetic` : whether it was trained on phantoms."""
    return f"{SYNTHETIC_NOTE} {NOTICE}" if synthetic else NOTICE


@dataclass(frozen=True)
class Note:
    """A remark about a result for a person to read, with a kind for programs to find it by.

    Attributes
    ----------
    kind : a short fixed word such as "leak"; empty for a remark that no program looks for.
    text : a sentence.
    """

    kind: str
    text: str

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, str]:
        """As JSON takes it; `from_json` reads it."""
        return {"kind": self.kind, "text": self.text}

    @classmethod
    def from_json(cls, said: str | dict[str, Any]) -> Note:
        """A note as read from JSON; files written before notes had kinds hold plain strings."""
        if isinstance(said, str):
            return cls("", said)
        return cls(str(said.get("kind", "")), str(said.get("text", "")))


@contextmanager
def noted() -> Iterator[list[Note]]:
    """The warnings of octfast's log while inside, each once, as a list that grows; they are said as ever."""
    log, notes = logging.getLogger("octfast"), list[Note]()

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note = Note(getattr(record, "kind", ""), record.getMessage())
            # What is begun anew, as where a scan could not be read, warns again.
            if record.levelno >= logging.WARNING and note not in notes:
                notes.append(note)

    handlers: list[logging.Handler] = [Notes()]
    # Without any handler Python shows warnings, as in a notebook. It would not with this one.
    if not log.hasHandlers() and logging.lastResort:
        handlers.append(logging.lastResort)
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield notes
    finally:
        for handler in handlers:
            log.removeHandler(handler)
