"""The files of one feature store: what they hold, whether they are whole, and who has them open.

A store is the folder `<cache root>/features/<hash>/`:

- `key.json`: everything that determines the numbers, with shape, dtype, block size and the version of this format;
- `features.bin`: the numbers, shape (scans, views, dim) in C order, little-endian on every machine octfast runs on;
- `scans.bin`: the SHA-256 of each scan's content, 32 bytes each; `key.json` has the SHA-256 of them all;
- `blocks.csv`: a line for each block that is done, with its CRC-32. A block is `block` consecutive scans.

`<cache root>/features/locks/` has a lock for each store, held by whoever makes or checks it, and one for each reader.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from octfast.errors import OctfastError

FORMAT, VERSION = "octfast features", 2
KEY, DATA, RECORD, DIGESTS, LOCKS = "key.json", "features.bin", "blocks.csv", "scans.bin", "locks"
RECORD_HEADER = b"block,crc32"

# A kill loses at most this much finished work: each time, the data is forced to disk and then its blocks are recorded.
SYNC_SECONDS = 2.0
WARN_BYTES = 5_000_000_000
MARGIN_BYTES = 200_000_000
CHUNK_BYTES = 1 << 20

SPACE_HINT = "ask for fewer --views, name a roomier folder with --cache DIR, or make room with `octfast cache clear`"


@dataclass(frozen=True)
class StoreSpec:
    """What is stored: `key` determines the numbers, the rest their shape (scans, views, dim), dtype and block size.

    `key` holds what JSON can hold. Raises ValueError for a count below one or an unknown dtype.
    """

    key: Mapping[str, Any]
    scans: int
    views: int
    dim: int
    dtype: str = "float16"
    block: int = 64

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"dtype is 'float16' or 'float32', not {self.dtype!r}")
        for name in ("scans", "views", "dim", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")

    @property
    def hash(self) -> str:
        """First 20 hexadecimal digits of the SHA-256 of key, shape, dtype and block size as canonical JSON."""
        described = {name: value for name, value in self.described().items() if name not in ("format", "version")}
        text = json.dumps(described, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers of all scans."""
        return self.scans * self.scan_bytes

    @property
    def scan_bytes(self) -> int:
        """Bytes of the numbers of one scan with all its views."""
        return self.views * self.dim * np.dtype(self.dtype).itemsize

    @property
    def blocks(self) -> int:
        """Number of blocks; the last may be shorter."""
        return -(-self.scans // self.block)

    def scans_in(self, block: int) -> int:
        """Number of scans in a block."""
        return min(self.block, self.scans - block * self.block)

    def rows(self, block: int) -> np.ndarray:
        """The numbers of the scans in a block."""
        return np.arange(block * self.block, block * self.block + self.scans_in(block))

    def described(self) -> dict[str, Any]:
        """What key.json says, less the time it was made; the key as JSON gives it back (a tuple becomes a list)."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "shape": [self.scans, self.views, self.dim],
            "dtype": self.dtype,
            "block": self.block,
            "key": json.loads(json.dumps(dict(self.key), allow_nan=False)),
        }


class UnusableError(Exception):
    """A store that cannot be used as it is; the message says why. It never leaves octfast."""


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Say what the system says about the cache folder as an OctfastError, with what to do next."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise OctfastError(f"the disk of the cache folder {root} is full", SPACE_HINT) from error
        message = f"cannot use the cache folder {root}: {error.strerror or error}"
        raise OctfastError(message, "name another folder with --cache DIR") from error
    except NotImplementedError as error:
        message = f"the file system of the cache folder {root} has no file locks"
        raise OctfastError(message, "name another folder with --cache DIR") from error


def lock_for(folder: Path, reader: str = "") -> FileLock:
    """The lock of a store, or of one of its readers; any thread may let it go."""
    name = f"{folder.name}.{reader}.reader" if reader else f"{folder.name}.lock"
    return FileLock(folder.parent / LOCKS / name, thread_local=False)


def wait_for(folder: Path, note: Callable[[str], None]) -> FileLock:
    """The lock of a store, held, after saying so where it takes waiting."""
    lock = lock_for(folder)
    try:
        # Somebody listing the stores holds the lock for a moment: no reason to say that one waits.
        lock.acquire(timeout=0.3)
    except Timeout:
        note("another process is making or checking these activations: waiting for it")
        lock.acquire(poll_interval=0.2)
    return lock


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether no process has the store open; if so nobody can open it inside the with block.

    A reader holds a lock on a file of its own, and the system lets go of that when the process dies, however it dies.
    """
    lock = lock_for(folder)
    try:
        lock.acquire(timeout=0)
    except OSError:
        # Held by another, or a cache that cannot be written: either way hands off.
        yield False
        return
    try:
        readers = sorted((folder.parent / LOCKS).glob(f"{folder.name}.*.reader"))
        yield not any([_is_held(reader) for reader in readers])
    finally:
        lock.release()


def _is_held(path: Path) -> bool:
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    with suppress(OSError):
        path.unlink()
    return False


def remove(folder: Path) -> None:
    """Remove the files that octfast wrote, and the folder unless something else lies in it."""
    # key.json goes last, so that a removal cut short leaves something that still counts as a store.
    for name in (DATA, RECORD, f"{RECORD}.tmp", DIGESTS, f"{DIGESTS}.tmp", f"{KEY}.tmp", KEY):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def described_in(folder: Path) -> dict[str, Any] | None:
    """What the key.json of a folder says, or None where the folder is no store of octfast's."""
    if not re.fullmatch(r"[0-9a-f]{20}", folder.name) or folder.is_symlink() or (folder / KEY).is_symlink():
        return None
    try:
        described = json.loads((folder / KEY).read_text(encoding="utf-8"))
        return described if described["format"] == FORMAT else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def inspect(
    folder: Path, spec: StoreSpec, note: Callable[[str], None], warn: Callable[[str], None]
) -> list[int | None]:
    """The CRC-32 of each block that is there and whole, None for the others; what cannot be mended is removed."""
    if not any((folder / name).exists() for name in (KEY, DATA, RECORD)):
        return [None] * spec.blocks
    try:
        _check_key(folder, spec)
        size = (folder / DATA).stat().st_size if (folder / DATA).exists() else 0
        if size != spec.nbytes:
            raise UnusableError(f"{DATA} has {size:,} bytes and should have {spec.nbytes:,}")
        recorded = read_record(folder, spec.blocks)
    except UnusableError as reason:
        warn(f"the stored activations in {folder} cannot be used ({reason}): making them anew")
        remove(folder)
        return [None] * spec.blocks
    if spec.nbytes >= 1e9:
        note(f"checking {spec.nbytes / 1e9:.1f} GB of stored activations")
    crcs: list[int | None] = []
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with (folder / DATA).open("rb", buffering=0) as file:
        for block, crc in enumerate(recorded):
            crcs.append(crc if crc is not None and _crc(file, spec, block, buffer) == crc else None)
    damaged = sum(now != before for now, before in zip(crcs, recorded, strict=True))
    if damaged:
        warn(f"{damaged} of {spec.blocks} blocks in {folder} are damaged: making them again")
    return crcs


def _check_key(folder: Path, spec: StoreSpec) -> None:
    try:
        found = json.loads((folder / KEY).read_text(encoding="utf-8"))
        found.pop("made")
    except FileNotFoundError:
        raise UnusableError(f"{KEY} is missing") from None
    except (ValueError, AttributeError, TypeError, KeyError):
        raise UnusableError(f"{KEY} is damaged") from None
    if found.get("version") != VERSION:
        raise UnusableError(f"its format is version {found.get('version')} and this octfast writes version {VERSION}")
    if found != spec.described():
        raise UnusableError(f"{KEY} is about something else")


def read_record(folder: Path, blocks: int) -> list[int | None]:
    """The CRC-32 that is recorded for each block, None where there is none. Raises UnusableError."""
    try:
        # What follows the last line end is a line that a killed process did not finish.
        lines = (folder / RECORD).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        raise UnusableError(f"{RECORD} is missing") from None
    crcs: list[int | None] = [None] * blocks
    if lines[:1] != [RECORD_HEADER]:
        raise UnusableError(f"{RECORD} is damaged")
    for line in lines[1:]:
        match = re.fullmatch(rb"(\d{1,12}),([0-9a-f]{8})", line)
        if match is None or int(match[1]) >= blocks:
            raise UnusableError(f"{RECORD} is damaged")
        crcs[int(match[1])] = int(match[2], 16)
    return crcs


def _record_line(block: int, crc: int) -> bytes:
    return b"%d,%08x\n" % (block, crc)


def _crc(file: Any, spec: StoreSpec, block: int, buffer: memoryview) -> int:
    file.seek(block * spec.block * spec.scan_bytes)
    left, crc = spec.scans_in(block) * spec.scan_bytes, 0
    while left:
        got = file.readinto(buffer[: min(left, len(buffer))])
        if not got:
            return -1
        crc, left = zlib.crc32(buffer[:got], crc), left - got
    return crc


def is_whole(folder: Path, spec: StoreSpec, block: int, crc: int | None) -> bool:
    """Whether a block has this checksum. Raises OSError."""
    if crc is None:
        return False
    with (folder / DATA).open("rb", buffering=0) as file:
        return _crc(file, spec, block, memoryview(bytearray(CHUNK_BYTES))) == crc


def prepare(
    root: Path,
    folder: Path,
    spec: StoreSpec,
    crcs: Sequence[int | None],
    warn: Callable[[str], None],
    digests: np.ndarray | None = None,
) -> None:
    """See that there is room for the missing blocks, and leave the files ready to be written into."""
    needed = spec.scan_bytes * sum(spec.scans_in(block) for block, crc in enumerate(crcs) if crc is None)
    started = (folder / DATA).exists()
    free = shutil.disk_usage(root).free
    # Windows takes the room for a file when its length is set, so what an interrupted store still needs is gone there.
    if free < needed + MARGIN_BYTES and not (started and os.name == "nt"):
        raise OctfastError(
            f"no room for the activations of {spec.scans:,} scans x {spec.views} views: they need {needed:,} bytes "
            f"with {MARGIN_BYTES:,} to spare, and {free:,} are free in {root}",
            SPACE_HINT,
        )
    if needed > WARN_BYTES:
        warn(f"storing {needed:,} bytes ({needed / 1e9:.1f} GB) of activations in {root}")
    if not started:
        folder.mkdir(exist_ok=True)
        described = {**spec.described(), "made": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        _replace(folder / KEY, (json.dumps(described, indent=2) + "\n").encode())
        with (folder / DATA).open("wb") as file:
            file.truncate(spec.nbytes)
    if digests is not None:
        _replace(folder / DIGESTS, digests.tobytes())
    lines = [_record_line(block, crc) for block, crc in enumerate(crcs) if crc is not None]
    _replace(folder / RECORD, RECORD_HEADER + b"\n" + b"".join(lines))


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(f"{path.name}.tmp")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


class BlockWriter:
    """Writes blocks in place, and records those whose data has reached the disk."""

    def __init__(self, folder: Path, spec: StoreSpec):
        self._spec = spec
        self._data = (folder / DATA).open("r+b", buffering=0)
        self._record = (folder / RECORD).open("ab", buffering=0)
        self._pending = b""
        self._synced = time.monotonic()

    def put(self, block: int, values: np.ndarray) -> None:
        """Write the values of a block: C order, in the dtype of the store."""
        content = left = values.data.cast("B")
        self._data.seek(block * self._spec.block * self._spec.scan_bytes)
        while left:
            left = left[self._data.write(left) :]
        self._pending += _record_line(block, zlib.crc32(content))
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Force the data to disk, then record its blocks."""
        if self._pending:
            os.fsync(self._data.fileno())
            self._record.write(self._pending)
            os.fsync(self._record.fileno())
            self._pending = b""
        self._synced = time.monotonic()

    def close(self) -> None:
        """Record what is written, a whole block each, and close the files."""
        try:
            self.sync()
        finally:
            self._data.close()
            self._record.close()
