"""Files and the machine they lie on: whole files or none, new folders, digests, offline, cores."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from octfast.console import size_text
from octfast.errors import DataError, UsageError

_BLOCK = 1 << 20

T = TypeVar("T")
R = TypeVar("R")


_FETCH = "download it and give the file or folder; octfast data download fetches public sets"


def refuse_address(source: str | Path, hint: str = _FETCH) -> None:
    """Refuse an address on the web where a file or folder is asked for.

    Parameters
    ----------
    hint : what to do instead.

    Raises
    ------
    DataError : it is one, also as a Path, which has made one slash of two.
    """
    # A single letter is a drive of Windows.
    found = re.match(r"([a-z][a-z0-9+.-]+):/+", str(source), re.IGNORECASE)
    if found and not os.path.exists(source):  # noqa: PTH110
        raise DataError(
            f"{found[1]}://{str(source)[found.end() :]} is an address on the web, and nothing is fetched without being "
            "asked for",
            hint,
        )


@contextmanager
def whole_file(file: Path, durable: bool = False) -> Iterator[Path]:
    """Write a file so that it has its name only when it is whole.

    Gives the path of a hidden part file in the same folder, to be written and closed inside the `with` block. When the
    block ends, the part replaces `file`; when it raises, the part is removed and `file` is as it was. The part is
    opened in the usual way, so the file gets the permissions that the umask gives (those of `tempfile` are for the
    owner alone). Its name ends in .part: tell a library that chooses its format by the suffix which one to take.

    Parameters
    ----------
    durable : wait until the content has reached the disk, so that it outlasts a power cut.

    Raises
    ------
    OSError : it cannot be written; its `filename` is `file`, and of a full disk `strerror` says how much is free.
    """
    # Each writer has its own part. The name is cut, as most file systems allow 255 bytes.
    part = file.with_name(f".{file.name[:50]}.{uuid.uuid4().hex[:8]}.part")
    try:
        with disk_errors_of(file, part):
            yield part
            if durable:
                with part.open("rb+") as written:
                    os.fsync(written.fileno())
            part.replace(file)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def disk_errors_of(file: Path, part: Path | None = None) -> Iterator[None]:
    """Let an error of the disk that is met while a file is written name that file, and say how much room there is.

    Libraries raise some without a name, and errors of their own with the system's number in their words. An error that
    names another file, such as one that is read, passes as it is.

    Parameters
    ----------
    part : what is written in the place of `file`.

    Raises
    ------
    OSError : with `filename` the file, and the system's `errno` and words.
    """
    try:
        yield
    except Exception as e:
        number = _errno(e)
        named = getattr(e, "filename", None)
        if number is None or (named is not None and str(named) not in {str(file), str(part)}):
            raise
        raise OSError(number, f"{os.strerror(number)}{_room(number, part or file)}", str(file)) from e


def _errno(error: Exception) -> int | None:
    """The system's number of an error of the disk, also of safetensors' and Rust's others; None of anything else."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _room(number: int, part: Path) -> str:
    """Of a full disk or quota, and of a file that may not grow, how far the file had come and how much is free."""
    if number not in {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}:
        return ""
    try:
        written, free = part.stat().st_size if part.exists() else 0, shutil.disk_usage(part.parent).free
    except OSError:
        return ""
    return f": more than {size_text(written)} are needed for it, and {size_text(free)} are free"


def write_text(file: Path, text: str, errors: str = "strict") -> Path:
    """Write text as UTF-8 into a file that has its name only when it is whole.

    Parameters
    ----------
    errors : what becomes of characters that UTF-8 cannot hold, as in `open`: file names may have such.

    Raises
    ------
    OSError, UnicodeEncodeError : it cannot be written.
    """
    with whole_file(file) as part:
        part.write_text(text, encoding="utf-8", errors=errors)
    return file


def path_below(path: str | Path, root: Path) -> str:
    """A path as it is reached from a folder, its parts joined by /; "" where it does not lie below."""
    text, start = str(path), f"{root}{os.sep}"
    # Quick for the usual path, as there may be a million.
    if os.sep == "/" and text.startswith(start) and "//" not in text and "/." not in text and text[-1] != "/":
        return text[len(start) :]
    whole = Path(text)
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else ""


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock on a file; one that has died holds none, however it died."""
    from filelock import FileLock, Timeout

    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0, thread_local=False):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # no locks here
        return False


def is_taken(path: Path) -> bool:
    """Whether a path exists and is not empty: a file, or a folder with anything in it."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def new_folder(path: Path, hint: str = "give another --out; nothing is ever overwritten") -> Path:
    """Make a folder, with its parents, that must not exist yet or must be empty.

    Raises
    ------
    UsageError : it exists and is not empty, or cannot be made.
    """
    try:
        if is_taken(path):
            raise UsageError(f"{path} exists and is not empty", hint)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"cannot write to {path}: {e.strerror or e}", hint) from None
    return path


def numbered_folder(path: Path) -> Path:
    """Make a folder that did not exist: `path`, else `path`-2, `path`-3 and so on.

    Two programs that ask at the same moment get two folders.

    Raises
    ------
    OSError : it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen, n = path, 1
    while True:
        try:
            chosen.mkdir()
            return chosen
        except FileExistsError:
            n += 1
            chosen = path.with_name(f"{path.name}-{n}")


def sha256_of(*files: Path) -> str:
    """The SHA-256, in hex, of a file's content, or of several as if they were one; read in pieces.

    Raises
    ------
    OSError : one cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while block := content.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def is_set(variable: str) -> bool:
    """Whether an environment variable says yes: 1, true, yes or on, in any case."""
    return os.environ.get(variable, "").strip().lower() in {"1", "true", "yes", "on"}


def is_offline() -> bool:
    """Whether OCTFAST_OFFLINE forbids to use the network."""
    return is_set("OCTFAST_OFFLINE")


def in_threads(function: Callable[[T], R], items: Iterable[T], threads: int = 4, ahead: int = 512) -> Iterator[R]:
    """What a function gives of each item, in their order; threads are a bounded number of items ahead.

    An executor's own `map` makes an entry of every item before it gives the first, a gigabyte of a million.

    Parameters
    ----------
    ahead : so many items are begun, or done and not yet taken, at most.
    """
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[R]] = deque()
        try:
            for item in items:
                if len(begun) == ahead:
                    yield begun.popleft().result()
                begun.append(pool.submit(function, item))
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


def usable_cores() -> int:
    """The number of processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_root(cache: str | Path | None = None) -> Path:
    """The folder of all that octfast caches: the argument, else OCTFAST_CACHE, else the system's place for caches."""
    root = cache or os.environ.get("OCTFAST_CACHE")
    if not root:
        from platformdirs import user_cache_dir

        root = user_cache_dir("octfast", appauthor=False)
    return Path(root).expanduser()
