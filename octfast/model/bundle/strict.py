"""Reads the files of an untrusted bundle: plain files only, and strict JSON."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from octfast.errors import BundleError

HINT = "give the folder that holds model.safetensors and octfast.json"
MEND = "the file was changed or damaged; export the model again"
MAX_DEPTH = 16
MAX_STRING = 10_000


def open_plain(file: Path) -> tuple[BinaryIO, int]:
    """Open a plain file, and give its size in bytes; never through a link, nor a pipe or a device.

    Raises
    ------
    BundleError : it is missing, is something else than a plain file, or cannot be read.
    """
    try:
        mode = file.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise BundleError(f"{file} is a link, which a bundle may not hold", "put the file itself in its place")
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise BundleError(f"{file} is {kind}, not a file", HINT)
        # The file may be replaced between the check and the opening; then, too, no link is followed or pipe waited for.
        flags = os.O_RDONLY | sum(getattr(os, f, 0) for f in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
        opened = os.fdopen(os.open(file, flags), "rb")
        about = os.fstat(opened.fileno())
        if not stat.S_ISREG(about.st_mode):
            opened.close()
            raise BundleError(f"{file} is not a plain file", HINT)
        return opened, about.st_size
    except FileNotFoundError:
        what = f"{file.name} is missing" if file.parent.is_dir() else "there is no such folder"
        raise BundleError(f"no trained model in {file.parent}: {what}", HINT) from None
    except NotADirectoryError:
        raise BundleError(f"no trained model in {file.parent}: it is not a folder", HINT) from None
    except (OSError, ValueError) as e:
        raise BundleError(f"cannot read {_shown(str(file))}: {getattr(e, 'strerror', None) or e}", HINT) from None


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object of UTF-8, each key once, its numbers finite, its nesting and its strings of a sane length.

    Parameters
    ----------
    name : of the file, for what is said of it.

    Raises
    ------
    BundleError : it is something else.
    """
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_each_key_once,
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_sane_integer,
        )
    except RecursionError:
        raise BundleError(f"{name} is nested too deeply", MEND) from None
    except UnicodeDecodeError as e:
        raise BundleError(f"{name} is not UTF-8 text: byte {e.start} is not", MEND) from None
    except ValueError as e:
        raise BundleError(f"{name} is not valid JSON: {_shown(str(e))}", MEND) from None
    if not isinstance(found, dict):
        raise BundleError(f"{name} holds no JSON object", MEND)
    problem = _problem(found)
    if problem:
        raise BundleError(f"{name} {problem}", MEND)
    return found


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} stands twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _sane_integer(text: str) -> int:
    # Python refuses 4,301 digits with a sentence about its own settings.
    if len(text) > 20:
        raise ValueError(f"{text[:20]}... is too large a number")
    return int(text)


def _problem(content: Any) -> str:
    """What is wrong with the depth or the strings of parsed JSON; empty where nothing is."""
    level = [content]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                if len(value) > MAX_STRING:
                    return f"holds a text of more than {MAX_STRING:,} characters"
                if any("\ud800" <= c <= "\udfff" for c in value):
                    return "holds half a character (a lone surrogate)"
        if not below:
            return ""
        level = below
    return f"is nested more than {MAX_DEPTH} deep"


def _shown(text: str) -> str:
    """A library's message about an untrusted file, on one printable line."""
    return "".join(c if c.isprintable() else "?" for c in text)[:200]
