"""A finished store of activations, open for reading.

The numbers are read with positioned reads and not through a memory map: a mapped page counts as resident memory until
it is given back, and a file that is cut short while mapped kills the process instead of raising. The system keeps in
memory what it has room for either way.
"""

from __future__ import annotations

import os
import threading
import uuid
import weakref
from contextlib import suppress
from io import FileIO
from pathlib import Path

import numpy as np
from filelock import FileLock

from octfast.errors import OctfastError
from octfast.train.store import files
from octfast.train.store.files import StoreSpec

_inherited: list[FileLock] = []


class FeatureStore:
    """A finished store, open for reading; while it is open `clear_stores` leaves it alone.

    Use it as a context manager, or call `close`. Threads may share it, and so may forked workers.
    """

    def __init__(self, path: Path, spec: StoreSpec, warm: bool):
        self.path = path
        self.spec = spec
        self.shape = (spec.scans, spec.views, spec.dim)
        self.warm = warm
        self._seek = threading.Lock()
        hold = files.lock_for(path, reader=uuid.uuid4().hex[:12])
        hold.acquire(timeout=1)
        self._file = (path / files.DATA).open("rb", buffering=0)
        self._closer = weakref.finalize(self, _let_go, self._file, hold, os.getpid())

    def __len__(self) -> int:
        return self.spec.scans

    def take(self, rows: np.ndarray, view: int) -> np.ndarray:
        """Copy out one view of some scans.

        rows : integers in [0, scans), any order, repeats allowed. view : in [0, views).
        Gives (len(rows), dim) in the store's dtype. Raises IndexError for a row or view that is not there, and
        OctfastError when the file was cut short after it was opened.
        """
        rows = np.asarray(rows)
        scans, views, dim = self.shape
        out = np.empty((len(rows), dim), self.spec.dtype)
        if not len(rows):
            return out
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise TypeError(f"rows is a one-dimensional array of integers, not {rows.dtype} of shape {rows.shape}")
        if rows.min() < 0 or rows.max() >= scans:
            raise IndexError(f"rows are in [0, {scans}), not {rows.min()} to {rows.max()}")
        if not 0 <= view < views:
            raise IndexError(f"view is in [0, {views}), not {view}")
        row_bytes = out.itemsize * dim
        target = out.data.cast("B")
        for place, row in enumerate(rows.tolist()):
            start = place * row_bytes
            self._read_into(target[start : start + row_bytes], (row * views + view) * row_bytes)
        return out

    def take_all(self, rows: np.ndarray) -> np.ndarray:
        """Copy out all views of some scans, integers in [0, scans): an array of shape (len(rows), views, dim)."""
        out = np.empty((len(rows), *self.shape[1:]), self.spec.dtype)
        target, size = out.data.cast("B"), self.spec.scan_bytes
        for place, row in enumerate(rows.tolist()):
            self._read_into(target[place * size : (place + 1) * size], row * size)
        return out

    def _read_into(self, target: memoryview, offset: int) -> None:
        while target:
            if hasattr(os, "preadv"):
                got = os.preadv(self._file.fileno(), [target], offset)
            else:
                with self._seek:
                    self._file.seek(offset)
                    got = self._file.readinto(target)
            if not got:
                raise OctfastError(
                    f"{self.path / files.DATA} was cut short while it was open",
                    "run the same command again: a store is checked, and made again where it must be, on opening",
                )
            target, offset = target[got:], offset + got

    def close(self) -> None:
        """Close the file and let `clear_stores` have the store; closing twice is fine."""
        self._closer()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _let_go(file: FileIO, hold: FileLock, pid: int) -> None:
    file.close()
    if os.getpid() != pid:
        # A forked worker shares the lock with its parent, and collecting the object would let go of it for both.
        _inherited.append(hold)
        return
    hold.release()
    with suppress(OSError):
        Path(hold.lock_file).unlink()
