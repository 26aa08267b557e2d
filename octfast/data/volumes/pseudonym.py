"""Keyed digests in the place of patients, volumes and file names, and the key, which stays with the user."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import uuid
from contextlib import suppress
from pathlib import Path

from octfast.data.volumes.exports import pictures_beside
from octfast.data.volumes.kinds import frames_in, is_export
from octfast.errors import DataError
from octfast.files import sha256_of

log = logging.getLogger("octfast")

_LENGTH = 12


def key_file(file: str | Path | None = None) -> Path:
    """Where the key is: the argument, else OCTFAST_KEY, else `pseudonym.key` in the user's folder of settings."""
    named = file or os.environ.get("OCTFAST_KEY")
    if named:
        return Path(named).expanduser()
    from platformdirs import user_config_dir

    return Path(user_config_dir("octfast", appauthor=False)) / "pseudonym.key"


def load_key(file: str | Path | None = None) -> bytes:
    """The key, 32 bytes; made by chance at first use, for its owner alone to read (mode 0600), which the log says.

    Raises
    ------
    DataError : it cannot be read or made, or is damaged.
    """
    path = key_file(file)
    try:
        if not path.exists():
            _make(path)
        held = path.read_text(encoding="ascii").strip()
        if os.name == "posix" and path.stat().st_mode & 0o077:
            log.warning("others can read the key %s: who has it can link pseudonyms to patients; chmod 600 it", path)
        key = bytes.fromhex(held)
    except (OSError, ValueError) as e:
        said = getattr(e, "strerror", None) or "it holds no key"
        raise DataError(f"cannot use the key {path}: {said}", "give another with --key or OCTFAST_KEY") from None
    if len(key) != 32:
        raise DataError(f"cannot use the key {path}: it holds no key", "give another with --key or OCTFAST_KEY")
    return key


def pseudonym(key: bytes, kind: str, of: str) -> str:
    """A short name that tells nothing without the key: the first letter of the kind, and 12 hex digits of HMAC-SHA256.

    Parameters
    ----------
    kind : "patient" or "volume"; the same text of another kind gets another name.
    """
    digest = hmac.new(key, f"{kind}\0{of}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()
    return kind[0] + digest[:_LENGTH]


def content_of(path: Path) -> str:
    """The SHA-256 of a file, of the pictures in a folder in their order, or of HEYEX's XML and the pictures it names.

    Raises
    ------
    OSError : one cannot be read.
    """
    if path.is_dir():
        return sha256_of(*frames_in(path))
    return sha256_of(path, *pictures_beside(path)) if is_export(path) else sha256_of(path)


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
            f.write(secrets.token_hex(32) + "\n")
        # Of two programs that make one at the same moment, the first one's stays.
        with suppress(FileExistsError):
            os.link(part, path)
            log.info("a new key for pseudonyms is in %s: keep it, and give it to nobody who has the pictures", path)
    finally:
        part.unlink(missing_ok=True)
