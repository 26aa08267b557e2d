"""Networks that were converted and quantised for OpenVINO, kept in octfast's cache so that it is done once.

A network is the folder `<cache root>/networks/<hash>/`: `network.xml` and `network.bin` as OpenVINO writes them, and
`about.json` with everything that determines them and the SHA-256 of both files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from octfast.files import cache_root, sha256_of

log = logging.getLogger("octfast")

FORMAT = "octfast network"
ABOUT, XML, BIN = "about.json", "network.xml", "network.bin"


@dataclass(frozen=True)
class NetworkInfo:
    """A kept network, as `list_networks` finds it."""

    path: Path
    bytes: int
    used: datetime


def folder_of(key: Mapping[str, Any], cache: str | Path | None = None) -> Path:
    """Where the network of a key lies, whether or not it is there; `key` holds what JSON can hold."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return cache_root(cache) / "networks" / hashlib.sha256(text.encode()).hexdigest()[:20]


def kept_network(key: Mapping[str, Any], cache: str | Path | None = None) -> Path | None:
    """The file of a kept network, for OpenVINO to read, or None; a damaged one is removed, with a word."""
    folder = folder_of(key, cache)
    if not (folder / ABOUT).exists():
        return None
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        whole = about["key"] == json.loads(json.dumps(key)) and about["sha256"] == _digest(folder)
        (folder / ABOUT).touch()
    except (OSError, ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        log.warning("the converted network in %s is damaged: making it again", folder)
        _remove(folder)
    return folder / XML if whole else None


def keep_network(key: Mapping[str, Any], model: Any, save: Any, cache: str | Path | None = None) -> None:
    """Write a network aside and give it its name when it is whole; a cache that cannot be written is said.

    Parameters
    ----------
    save : called with the model and the path of its XML file; OpenVINO's `save_model`.
    """
    folder = folder_of(key, cache)
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        aside.mkdir(parents=True)
        save(model, aside / XML)
        made = datetime.now(timezone.utc).isoformat(timespec="seconds")
        about = {"format": FORMAT, "made": made, "sha256": _digest(aside), "key": dict(key)}
        (aside / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        with suppress(FileExistsError):
            aside.rename(folder)
    except (OSError, RuntimeError) as e:
        if not folder.exists():  # another process may have been first
            log.warning("the converted network is not kept: %s", e)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def list_networks(cache: str | Path | None = None) -> list[NetworkInfo]:
    """The networks of a cache, the last used first."""
    found = []
    for folder in (cache_root(cache) / "networks").glob("*"):
        if re.fullmatch(r"[0-9a-f]{20}", folder.name) and not folder.is_symlink() and (folder / ABOUT).is_file():
            with suppress(FileNotFoundError):
                size = sum((folder / n).stat().st_size for n in (ABOUT, XML, BIN) if (folder / n).exists())
                used = datetime.fromtimestamp((folder / ABOUT).stat().st_mtime, timezone.utc)
                found.append(NetworkInfo(folder, size, used))
    return sorted(found, key=lambda n: n.used, reverse=True)


def clear_networks(cache: str | Path | None = None, older_than: timedelta | None = None) -> tuple[int, int]:
    """Remove kept networks, all or those last used so long ago; gives (their number, their bytes).

    One that a process runs is in that process's memory. Only files that octfast wrote go.
    """
    number = freed = 0
    for network in list_networks(cache):
        if older_than is None or datetime.now(timezone.utc) - network.used >= older_than:
            _remove(network.path)
            number, freed = number + 1, freed + network.bytes
    return number, freed


def _digest(folder: Path) -> str:
    return sha256_of(folder / XML, folder / BIN)


def _remove(folder: Path) -> None:
    for name in (XML, BIN, ABOUT):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
