"""The store on disk of the activations that a frozen prefix of a network gave for the views of a data set.

Made once, in a stream, and read ever after; a process that is killed loses two seconds of work, and a store that was
damaged is mended when it is opened. What a store consists of is in `files`, reading it in `reader`; listing and
clearing stores in `cache`; what one store knows of the scans of another in `reuse`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from octfast.errors import OctfastError
from octfast.files import cache_root
from octfast.train.store import files
from octfast.train.store.cache import readable_size
from octfast.train.store.files import StoreSpec, disk_errors
from octfast.train.store.reader import FeatureStore
from octfast.train.store.reuse import Known

Fill = Callable[[Sequence[np.ndarray]], Iterator[np.ndarray]]
logger = logging.getLogger("octfast")


def open_store(
    spec: StoreSpec,
    fill: Fill,
    *,
    digests: np.ndarray | None = None,
    cache: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> FeatureStore:
    """Open the store of `spec`, made or mended first where it has to be.

    fill : called once with the scans that are missing, for each block in which some are an array of their rows,
        ascending, and not at all when there are none; gives for each, in order, an array (its scans, views, dim). What
        it raises passes through, and the blocks before it are kept for the next call.
    digests : of the scans, uint8 of shape (scans, 32): what other stores of the same cache hold of scans of the same
        content, made in the same way, is taken from there, see `Known`.
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
                files.prepare(root, folder, spec, crcs, warn, digests)
        if missing:
            done = spec.scans - sum(map(spec.scans_in, missing))
            if done:
                note(f"resuming the store: {done} of {spec.scans} scans are there")
            with closing(_known(folder, spec, digests, missing, note)) as known:
                _fill_in(root, folder, spec, missing, known, fill, progress, warn)
        else:
            note(f"using the {readable_size(spec.nbytes)} of stored activations in {folder}")
        with disk_errors(root):
            os.utime(folder / files.KEY)
            return FeatureStore(folder, spec, warm=not missing)
    finally:
        lock.release()


def address_of(store: FeatureStore) -> dict[str, Any]:
    """What `open_at` finds a finished store by in another process, as JSON takes it."""
    return {
        "path": str(store.path.resolve()),
        "described": store.spec.described(),
        "blocks": files.read_record(store.path, store.spec.blocks),
    }


def open_at(address: Mapping[str, Any]) -> FeatureStore:
    """Open, for reading alone, a store that another process has open; nothing is made, mended or waited for.

    Raises
    ------
    OctfastError : this process cannot read it, or its numbers are others.
    """
    folder, described = Path(address["path"]), address["described"]
    scans, views, dim = described["shape"]
    spec = StoreSpec(described["key"], scans, views, dim, described["dtype"], described["block"])
    hint = "let all machines see one folder under the same path: --cache DIR"
    try:
        if {**(files.described_in(folder) or {}), "made": None} != {**described, "made": None}:
            raise files.UnusableError("it is not there")
        whole = (folder / files.DATA).stat().st_size == spec.nbytes
        if not whole or files.read_record(folder, spec.blocks) != list(address["blocks"]):
            raise files.UnusableError("its numbers are others")
        return FeatureStore(folder, spec, warm=True)
    except OSError as e:
        raise OctfastError(f"cannot read the stored activations in {folder}: {e.strerror or e}", hint) from e
    except (files.UnusableError, NotImplementedError) as e:
        raise OctfastError(f"cannot read the stored activations in {folder}: {e}", hint) from e


def stored_scans(spec: StoreSpec, digests: np.ndarray, cache: str | Path | None = None) -> np.ndarray:
    """Which scans `open_store` would not ask for, of shape (scans,): they are in this store or in others of its recipe.

    Nothing is made, mended or waited for.
    """
    folder = cache_root(cache) / "features" / spec.hash
    there = np.zeros(spec.scans, dtype=bool)
    if not folder.parent.is_dir():
        return there
    with suppress(files.UnusableError, OSError):
        for block, crc in enumerate(files.read_record(folder, spec.blocks)):
            there[spec.rows(block)] = crc is not None
    with closing(Known(folder.parent, spec, digests, ~there)) as known:
        return there | known.has(np.arange(spec.scans))


def _known(
    folder: Path, spec: StoreSpec, digests: np.ndarray | None, missing: Sequence[int], note: Callable[[str], None]
) -> Known:
    """What other stores know of the scans of the missing blocks."""
    wanted = np.zeros(spec.scans, dtype=bool)
    for block in missing:
        wanted[spec.rows(block)] = True
    known = Known(folder.parent, spec, digests, wanted)
    if count := int(known.has(np.flatnonzero(wanted)).sum()):
        note(f"{count} of {spec.scans} scans are taken from stores of other sets")
    return known


def _fill_in(
    root: Path,
    folder: Path,
    spec: StoreSpec,
    missing: Sequence[int],
    known: Known,
    fill: Fill,
    progress: Callable[[int, int], None] | None,
    warn: Callable[[str], None],
) -> None:
    done = spec.scans - sum(map(spec.scans_in, missing))
    clipped = 0
    wanted = [rows[~known.has(rows)] for rows in map(spec.rows, missing)]
    with disk_errors(root):
        writer = files.BlockWriter(folder, spec)
    try:
        asked = [rows for rows in wanted if len(rows)]
        given = iter(fill(asked) if asked else ())
        try:
            for block, rows in zip(missing, wanted, strict=True):
                stored = np.empty((spec.scans_in(block), spec.views, spec.dim), spec.dtype)
                if len(rows):
                    values = next(given, None)
                    if values is None:
                        raise RuntimeError(f"fill ended before block {block}, the next it was asked for")
                    stored[rows - block * spec.block], over = _as_stored(values, spec, rows)
                    clipped += over
                if len(rows) < len(stored):
                    others = np.setdiff1d(spec.rows(block), rows)
                    stored[others - block * spec.block] = known.take(others)
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


def _as_stored(values: np.ndarray, spec: StoreSpec, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """The values of some scans of a block in the store's dtype, and how many had to be clipped to fit it."""
    values = np.asarray(values)
    expected, block = (len(rows), spec.views, spec.dim), rows[0] // spec.block
    if values.shape != expected:
        raise ValueError(f"fill gave {values.shape} for block {block}, and it has {expected}")
    bad = values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        raise OctfastError(
            f"block {block} (scans {rows[0]} to {rows[-1]}): {bad:,} of {values.size:,} activations "
            "are NaN or infinite",
            "check the weights, and compute in float32 if this was half precision; the blocks before it are kept",
        )
    limit = float(np.finfo(spec.dtype).max)
    over = 0
    if values.dtype != spec.dtype:
        over = int(np.count_nonzero(np.abs(values) > limit))
        if over:
            values = np.clip(values, -limit, limit)
    return values.astype(spec.dtype), over
