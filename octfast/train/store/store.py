"""The store on disk of the activations that a frozen prefix of a network gave for the views of a data set.

Made once, in a stream, and read ever after; a process that is killed loses two seconds of work, and a store that was
damaged is mended when it is opened. What a store consists of is in `files`; listing and clearing stores in `cache`.

The numbers are read with positioned reads and not through a memory map: a mapped page counts as resident memory until
it is given back, and a file that is cut short while mapped kills the process instead of raising. The system keeps in
memory what it has room for either way.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

import numpy as np
from filelock import FileLock

from octfast.errors import OctfastError
from octfast.files import cache_root
from octfast.train.store import files
from octfast.train.store.cache import readable_size
from octfast.train.store.files import StoreSpec, disk_errors

Fill = Callable[[Sequence[int]], Iterator[np.ndarray]]
logger = logging.getLogger("octfast")
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


def open_store(
    spec: StoreSpec,
    fill: Fill,
    *,
    cache: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> FeatureStore:
    """Open the store of `spec`, made or mended first where it has to be.

    fill : called once with the indices of the missing blocks, ascending, and not at all when there are none; gives
        for each, in order, an array (scans in the block, views, dim). What it raises passes through, and the blocks
        before it are kept for the next call.
    progress : called after each block with (scans done, scans in all), both with the scans that were there before.
    say : gets one-line notices; by default they go to the logger `octfast`.

    A damaged store is mended and never raises. Raises OctfastError for a cache folder that cannot be used, a disk
    without room, and numbers from `fill` that are not finite.
    """
    root = cache_root(cache)
    note, warn = say or logger.info, say or logger.warning
    folder = root / "features" / spec.hash
    with disk_errors(root):
        (folder.parent / files.LOCKS).mkdir(parents=True, exist_ok=True)
        lock = files.wait_for(folder, note)
    try:
        with disk_errors(root):
            crcs = files.inspect(folder, spec, note, warn)
            missing = [block for block, crc in enumerate(crcs) if crc is None]
            if missing:
                files.prepare(root, folder, spec, crcs, warn)
        if missing:
            done = spec.scans - sum(map(spec.scans_in, missing))
            if done:
                note(f"resuming the store: {done} of {spec.scans} scans are there")
            _fill_in(root, folder, spec, missing, fill, progress, warn)
        else:
            note(f"using the {readable_size(spec.nbytes)} of stored activations in {folder}")
        with disk_errors(root):
            os.utime(folder / files.KEY)
            return FeatureStore(folder, spec, warm=not missing)
    finally:
        lock.release()


def _let_go(file: FileIO, hold: FileLock, pid: int) -> None:
    file.close()
    if os.getpid() != pid:
        # A forked worker shares the lock with its parent, and collecting the object would let go of it for both.
        _inherited.append(hold)
        return
    hold.release()
    with suppress(OSError):
        Path(hold.lock_file).unlink()


def _fill_in(
    root: Path,
    folder: Path,
    spec: StoreSpec,
    missing: Sequence[int],
    fill: Fill,
    progress: Callable[[int, int], None] | None,
    warn: Callable[[str], None],
) -> None:
    done = spec.scans - sum(map(spec.scans_in, missing))
    clipped = 0
    with disk_errors(root):
        writer = files.BlockWriter(folder, spec)
    try:
        given = iter(fill(list(missing)))
        try:
            for block in missing:
                values = next(given, None)
                if values is None:
                    raise RuntimeError(f"fill ended before block {block}, the next it was asked for")
                stored, over = _as_stored(values, spec, block)
                clipped += over
                with disk_errors(root):
                    writer.put(block, stored)
                done += spec.scans_in(block)
                if progress is not None:
                    progress(done, spec.scans)
        finally:
            if hasattr(given, "close"):
                given.close()
    finally:
        with disk_errors(root):
            writer.close()
        if clipped:
            limit = float(np.finfo(spec.dtype).max)
            warn(f"{clipped:,} activations were beyond ±{limit:g}, the range of {spec.dtype}, and were clipped to it")


def _as_stored(values: np.ndarray, spec: StoreSpec, block: int) -> tuple[np.ndarray, int]:
    """The values of a block in the store's dtype, and how many had to be clipped to fit it."""
    values = np.asarray(values)
    expected = (spec.scans_in(block), spec.views, spec.dim)
    if values.shape != expected:
        raise ValueError(f"fill gave {values.shape} for block {block}, and it has {expected}")
    bad = values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        first = block * spec.block
        raise OctfastError(
            f"block {block} (scans {first} to {first + expected[0] - 1}): {bad:,} of {values.size:,} activations "
            "are NaN or infinite",
            "check the weights, and compute in float32 if this was half precision; the blocks before it are kept",
        )
    limit = float(np.finfo(spec.dtype).max)
    over = 0
    if values.dtype != spec.dtype:
        over = int(np.count_nonzero(np.abs(values) > limit))
        if over:
            values = np.clip(values, -limit, limit)
    return np.ascontiguousarray(values, dtype=spec.dtype), over
