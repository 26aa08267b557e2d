"""Finds by halving how many scans fit into memory at once, on a GPU or a CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from octfast.errors import OctfastError

log = logging.getLogger("octfast")

Given = TypeVar("Given")


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of a GPU or of the computer, was too small."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in text for words in ("out of memory", "can't allocate memory", "not enough memory"))
    )


class Passes:
    """Runs a batch in one pass, or where memory is too small in passes of half as many scans, and half of that.

    What was found is kept for the batches that come, and said once each time that it is halved. What a network gives of
    a scan in another pass differs by rounding alone.

    Parameters
    ----------
    what : is done in a pass, in words, such as "the frozen part".
    last : what is raised where not even a single scan fits; by default an OctfastError, else the exception itself.

    Attributes
    ----------
    most : scans a pass; None as long as nothing was too large.
    """

    def __init__(self, what: str, last: bool = True):
        self.what, self.last = what, last
        self.most: int | None = None

    def __call__(self, scans: int, run: Callable[[slice], Given]) -> list[Given]:
        """What `run` gives of each part of a batch of so many scans, in order.

        Raises
        ------
        OctfastError : memory is too small for a single scan.
        """
        found: list[Given] = []
        start = 0
        while start < scans:
            part = slice(start, min(scans, start + (self.most or scans)))
            given = self._tried(run, part)
            if given is not None:
                found.append(given)
                start = part.stop
        return found

    def _tried(self, run: Callable[[slice], Given], part: slice) -> Given | None:
        count = part.stop - part.start
        try:
            return run(part)
        except (RuntimeError, MemoryError) as e:
            if not out_of_memory(e) or (count == 1 and not self.last):
                raise
            if count == 1:
                raise OctfastError(
                    f"memory is too small for {self.what} of a single scan",
                    "try a smaller --size, another --arch, or --device cpu; or close other programs",
                ) from e
        # Outside of the handler, as the exception holds what the pass had made.
        self.most = count // 2
        log.warning("memory is too small for %s of %d scans at once: %d at a time", self.what, count, self.most)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None
