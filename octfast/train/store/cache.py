"""The cache of feature stores: what lies in it, and how it is cleared."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from octfast.files import cache_root
from octfast.train.store import files
from octfast.train.store.files import disk_errors


@dataclass(frozen=True)
class StoreInfo:
    """One store of a cache, as `list_stores` finds it; `bytes` is what it takes on disk, times are in UTC."""

    name: str
    what: str
    bytes: int
    complete: bool
    made: datetime
    used: datetime
    in_use: bool
    path: Path


def list_stores(cache: str | Path | None = None) -> list[StoreInfo]:
    """The stores of a cache, the last used first; empty when there is no cache. Checksums are not looked at."""
    root = cache_root(cache)
    found = []
    with disk_errors(root):
        for folder in sorted((root / "features").glob("*")):
            described = files.described_in(folder)
            if described is not None:
                # A store that another process clears while this one looks is left out.
                with suppress(FileNotFoundError):
                    found.append(_info(folder, described))
    return sorted(found, key=lambda info: info.used, reverse=True)


def is_wanted(info: StoreInfo, *, older_than: timedelta | None = None, incomplete_only: bool = False) -> bool:
    """Whether `clear_stores` with the same arguments would remove this store."""
    if info.in_use or (incomplete_only and info.complete):
        return False
    return older_than is None or datetime.now(timezone.utc) - info.used >= older_than


def clear_stores(
    cache: str | Path | None = None, *, older_than: timedelta | None = None, incomplete_only: bool = False
) -> tuple[int, int]:
    """Remove stores that no process has open, and give (their number, their bytes on disk).

    older_than : only those last used so long ago. incomplete_only : only those that were never finished.
    Only the files that octfast wrote go, and only from a folder whose key.json is octfast's; no link is followed.
    """
    number = freed = 0
    for info in list_stores(cache):
        if not is_wanted(info, older_than=older_than, incomplete_only=incomplete_only):
            continue
        with disk_errors(cache_root(cache)), files.alone(info.path) as alone:
            if alone:
                files.remove(info.path)
                number, freed = number + 1, freed + info.bytes
    return number, freed


def readable_size(nbytes: int) -> str:
    """A number of bytes as people read it: '18 KB', '3.2 MB', '12.4 GB'."""
    if nbytes >= 1e9:
        return f"{nbytes / 1e9:.1f} GB"
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.0f} KB"


def _info(folder: Path, described: Mapping[str, Any]) -> StoreInfo:
    used = datetime.fromtimestamp((folder / files.KEY).stat().st_mtime, timezone.utc)
    try:
        key, dtype, shape = described["key"], str(described["dtype"]), tuple(map(int, described["shape"]))
        scans, views, dim = shape
        made = datetime.fromisoformat(described["made"])
        parts = [key.get("arch"), f"{scans:,} scans x {views} views x {dim:,}", dtype, key.get("precision")]
        what = ", ".join(dict.fromkeys(str(part) for part in parts if part))
        recorded = files.read_record(folder, -(-scans // int(described["block"])))
        whole = (folder / files.DATA).stat().st_size == scans * views * dim * np.dtype(dtype).itemsize
        complete = whole and None not in recorded
    except (files.UnusableError, OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError):
        what, made, complete = "damaged", used, False
    size = 0
    for name in (files.KEY, files.DATA, files.RECORD):
        with suppress(OSError):
            stat = (folder / name).lstat()
            # A store in the making has its full length and takes only the room of what is written.
            size += min(stat.st_size, getattr(stat, "st_blocks", stat.st_size) * 512)
    with files.alone(folder) as alone:
        return StoreInfo(folder.name, what, size, complete, made, used, not alone, folder)
