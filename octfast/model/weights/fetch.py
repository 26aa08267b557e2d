"""Fetch one file over HTTP: whole and checked or not at all, with time-outs that hold wherever the network hangs."""

from __future__ import annotations

import hashlib
import http.client
import queue
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from octfast.console import size_text, track_bytes
from octfast.files import whole_file

CONNECT_TIMEOUT = 10.0  # seconds until an answer begins: look-up of the name, all addresses, TLS, redirects together
READ_TIMEOUT = 30.0  # seconds without a single byte before a download is given up
CHUNK = 1 << 20


class UnavailableError(Exception):
    """Why a source has nothing to give, in words that go on after "no pretrained weights for X:"."""


def fetch_url(url: str, target: Path, sha256_prefix: str = "", progress: bool | None = None) -> str:
    """Download `url` to `target` and give back its SHA-256 (hex); `target` appears whole and checked, or not at all.

    `progress`: see `octfast.console.track_bytes`.
    Raises UnavailableError.
    """
    host = urlparse(url).netloc
    try:
        answer = _open(url)
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(_reason(host, error)) from error
    digest, done = hashlib.sha256(), 0
    length = answer.headers.get("Content-Length") or ""
    total = int(length) if length.isdigit() else None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with answer, whole_file(target) as part:
            with part.open("wb") as file, track_bytes(target.name, total, progress) as advance:
                for chunk in _chunks(answer, host):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    advance(len(chunk))
            if total is not None and done != total:
                sizes = f"{size_text(done)} of {size_text(total)}"
                raise UnavailableError(f"the download from {host} broke off after {sizes}")
            sha256 = digest.hexdigest()
            if not sha256.startswith(sha256_prefix):
                was = sha256[: len(sha256_prefix)]
                raise UnavailableError(
                    f"what {host} sent is not {target.name}: its SHA-256 begins {was}, not {sha256_prefix}"
                )
    except OSError as error:
        raise UnavailableError(f"cannot write to {target.parent} ({error.strerror or one_line(error)})") from error
    return sha256


def exists_at(url: str) -> bool:
    """Whether a server has a file, asked once; a redirect counts as yes. Raises UnavailableError."""
    try:
        # A redirect is not followed: an address signed for a download may refuse to be asked about.
        with _open(urllib.request.Request(url, method="HEAD"), _NoRedirects()):
            return True
    except (OSError, http.client.HTTPException) as error:
        code = 0
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            code = error.code
        if 300 <= code < 400:
            return True
        if code == 404:
            return False
        raise UnavailableError(_reason(urlparse(url).netloc, error)) from error


def one_line(error: BaseException) -> str:
    """What an exception says, on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _open(request: str | urllib.request.Request, *handlers: urllib.request.BaseHandler) -> Any:
    """The answer to a request, once it has begun. Raises OSError or HTTPException, TimeoutError among the former.

    It is awaited in a thread of its own, as no time-out of a library bounds it: a look-up of a name takes half a minute
    where a firewall drops its packets, and the time-out of a connection is one for each of the host's addresses, of
    which a content network has a dozen.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    opener = urllib.request.build_opener(*handlers)

    def ask() -> None:
        try:
            answers.put(opener.open(request, timeout=READ_TIMEOUT))
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=CONNECT_TIMEOUT)
    except queue.Empty:
        raise TimeoutError(f"timed out after {CONNECT_TIMEOUT:g} s") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _chunks(answer: http.client.HTTPResponse, host: str) -> Iterator[bytes]:
    """The body of an answer. Raises UnavailableError, so that an OSError beside it is the disk's."""
    while True:
        try:
            chunk = answer.read(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(_reason(host, error, broke_off=True)) from error
        if not chunk:
            return
        yield chunk


def _reason(host: str, error: BaseException, broke_off: bool = False) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{host} answered {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate of {host} was not accepted ({cause.verify_message})"
    if isinstance(cause, TimeoutError):
        why = str(cause) if str(cause).startswith("timed out after") else f"timed out after {READ_TIMEOUT:g} s"
    elif isinstance(cause, socket.gaierror):
        why = "its name could not be looked up"
    elif isinstance(cause, ConnectionRefusedError):
        why = "the connection was refused"
    else:
        why = one_line(cause) if isinstance(cause, BaseException) else str(cause)
    return f"the download from {host} broke off ({why})" if broke_off else f"{host} cannot be reached ({why})"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None
