"""Fetch one file over HTTP: time-outs that hold, progress for a terminal or a log, whole and checked or not at all."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from octfast.console import in_terminal, is_quiet

CONNECT_TIMEOUT = 10.0  # seconds for the name look-up, every address of the host and the TLS handshake together
READ_TIMEOUT = 30.0  # seconds without a single byte before a download is given up
CHUNK = 1 << 20


class UnavailableError(Exception):
    """Why a source has nothing to give, in words that go on after "no pretrained weights for X:"."""


class _WriteError(Exception):
    """The disk, not the network: an OSError could be either."""


def fetch_url(url: str, target: Path, sha256_prefix: str = "", progress: bool | None = None) -> str:
    """Download `url` to `target` and give back its SHA-256 (hex); `target` appears whole and checked, or not at all.

    `progress`: True draws a bar, False shows nothing, None draws a bar on a terminal and prints plain lines elsewhere.
    Raises UnavailableError.
    """
    host = urlparse(url).netloc
    # not mkstemp: its files are readable by their owner alone, and the folder may be shared
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    digest, done = hashlib.sha256(), 0
    try:
        with _opener(READ_TIMEOUT).open(url, timeout=CONNECT_TIMEOUT) as answer:
            length = answer.headers.get("Content-Length") or ""
            total = int(length) if length.isdigit() else None
            with _writing(target.parent):
                target.parent.mkdir(parents=True, exist_ok=True)
                file = part.open("wb")
            with file, _shown(target.name, total, progress) as advance:
                while chunk := answer.read(CHUNK):
                    with _writing(target.parent):
                        file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    advance(len(chunk))
        if total is not None and done != total:
            raise UnavailableError(f"the download from {host} broke off after {_size(done)} of {_size(total)}")
        sha256 = digest.hexdigest()
        if not sha256.startswith(sha256_prefix):
            was = sha256[: len(sha256_prefix)]
            raise UnavailableError(
                f"what {host} sent is not {target.name}: its SHA-256 begins {was}, not {sha256_prefix}"
            )
        with _writing(target.parent):
            part.replace(target)
    except _WriteError as error:
        raise UnavailableError(str(error)) from error
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(_reason(host, error, READ_TIMEOUT, broke_off=done > 0)) from error
    finally:
        if part.exists():
            part.unlink()
    return sha256


def exists_at(url: str) -> bool:
    """Whether a server has a file, asked once; a redirect counts as yes. Raises UnavailableError.

    The answer must begin within CONNECT_TIMEOUT of the connection.
    """
    host = urlparse(url).netloc
    try:
        # a redirect is not followed: an address signed for a download may refuse to be asked about
        with _opener(CONNECT_TIMEOUT, _Stay()).open(
            urllib.request.Request(url, method="HEAD"), timeout=CONNECT_TIMEOUT
        ):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        if error.code < 400:
            return True
        if error.code == 404:
            return False
        raise UnavailableError(_reason(host, error, CONNECT_TIMEOUT)) from error
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(_reason(host, error, CONNECT_TIMEOUT)) from error


def one_line(error: BaseException) -> str:
    """What an exception says, on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _WriteError(f"cannot write to {folder} ({error.strerror or one_line(error)})") from error


def _reason(host: str, error: BaseException, read_timeout: float, broke_off: bool = False) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{host} answered {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate of {host} was not accepted ({cause.verify_message})"
    if isinstance(cause, TimeoutError):
        why = str(cause) if str(cause).startswith("timed out after") else f"timed out after {read_timeout:g} s"
    elif isinstance(cause, socket.gaierror):
        why = "its name could not be looked up"
    elif isinstance(cause, ConnectionRefusedError):
        why = "the connection was refused"
    else:
        why = one_line(cause) if isinstance(cause, BaseException) else str(cause)
    return f"the download from {host} broke off ({why})" if broke_off else f"{host} cannot be reached ({why})"


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count >= 10e6 else f"{count / 1e3:.0f} kB" if count >= 1e4 else f"{count} bytes"


@contextmanager
def _shown(name: str, total: int | None, progress: bool | None) -> Iterator[Callable[[int], None]]:
    """A function to be told how many bytes have come, shown as a bar, as lines at each quarter, or not at all."""
    if progress is False or (progress is None and is_quiet()):
        yield lambda count: None
    elif progress or in_terminal():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        yield _Lines(name, total)


class _Lines:
    """Prints a line to stderr at 0, 25, 50, 75 and 100%; the first alone where the size is not known."""

    def __init__(self, name: str, total: int | None):
        self.name, self.total, self.done, self.quarter = name, total, 0, -1
        self(0)

    def __call__(self, count: int) -> None:
        self.done += count
        quarter = 4 * self.done // self.total if self.total else 0
        if quarter > self.quarter:
            self.quarter = quarter
            size = f" of {_size(self.total)}" if self.total else ""
            print(f"downloading {self.name}: {25 * quarter}%{size}", file=sys.stderr, flush=True)


def _opener(read_timeout: float, *more: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_HTTPHandler(read_timeout), _HTTPSHandler(read_timeout), *more)


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Connection(http.client.HTTPConnection):
    """A connection with one time-out for becoming connected and another for reading."""

    def __init__(self, *args: Any, read_timeout: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.read_timeout = read_timeout
        self._create_connection = _connect

    def connect(self) -> None:
        try:
            super().connect()
        except TimeoutError:
            raise TimeoutError(f"timed out after {self.timeout:g} s") from None
        self.sock.settimeout(self.read_timeout)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    pass


class _HTTPHandler(urllib.request.HTTPHandler):
    def __init__(self, read_timeout: float):
        super().__init__()
        self.read_timeout = read_timeout

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_Connection, read_timeout=self.read_timeout), request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def __init__(self, read_timeout: float):
        super().__init__()
        self.read_timeout = read_timeout

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_SecureConnection, read_timeout=self.read_timeout), request)


def _connect(address: tuple[str, int], timeout: float, source_address: Any = None) -> socket.socket:
    """`socket.create_connection`, but the time-out bounds the name look-up and all of the host's addresses together.

    A content network has a dozen addresses, and a network that drops packets would take the time-out for each.
    """
    deadline = time.monotonic() + timeout
    last: OSError = TimeoutError("timed out")
    found = _look_up(address, timeout)
    for index, (family, kind, protocol, _, where) in enumerate(found):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        sock = socket.socket(family, kind, protocol)
        try:
            # half of what is left, so that a dead IPv6 route leaves time for IPv4
            sock.settimeout(max(left / 2 if index + 1 < len(found) else left, 0.05))
            if source_address:
                sock.bind(source_address)
            sock.connect(where)
            sock.settimeout(max(deadline - time.monotonic(), 0.05))
            return sock
        except OSError as error:
            last = error
            sock.close()
    raise last


def _look_up(address: tuple[str, int], timeout: float) -> list[Any]:
    """The addresses of a host, one of each family first. Raises socket.gaierror or TimeoutError."""
    answer: list[Any] = []
    failed: list[OSError] = []

    def ask() -> None:
        try:
            answer.extend(socket.getaddrinfo(*address, 0, socket.SOCK_STREAM))
        except OSError as error:
            failed.append(error)

    # the look-up has no time-out of its own and can take half a minute where a firewall drops its packets
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout)
    if asking.is_alive():
        raise TimeoutError("timed out")
    if failed:
        raise failed[0]
    first: dict[int, Any] = {}
    for entry in answer:
        first.setdefault(entry[0], entry)
    return [*first.values(), *(entry for entry in answer if entry not in first.values())]
