"""Who may ask the web page and how much may be sent: hosts, origins, headers of safety, bodies read within limits."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
import time
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from octfast.deploy.app.answers import Limits, Refused, too_large
from octfast.errors import UsageError

if TYPE_CHECKING:
    from starlette.requests import Request

log = logging.getLogger("octfast")

# Everything comes from this server, nothing is run that stands in the page itself, and no other page may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
# A form has a boundary and headers around its file.
_AROUND = 64 << 10
# Files of one volume, and what a form has around each.
MAX_TOGETHER, _A_HEAD = 1024, 512
# An upload may take so many seconds, and one more for so many bytes that have come.
_PATIENCE, _SLOWEST = 5.0, 64 << 10


class Guard:
    """ASGI middleware: refuses strange hosts and other pages' posts, and puts the headers of safety on every answer.

    A page from elsewhere can make a browser send requests to this machine, and by rebinding a name of its own even
    read the answers. So the Host header must be an address or a name that is meant, and a post must not come from
    another origin.

    Parameters
    ----------
    app : the ASGI application.
    hosts : names that are meant beside localhost and plain addresses, with or without a port.
    root_path : the path below which a proxy has the page, "" or as "/octfast"; the proxy may take it off or leave it.
    pages : of the hosts, those of a proxy before it, whose own page may post whatever Host header the proxy sends.
    """

    def __init__(self, app: Any, hosts: Iterable[str] = (), root_path: str = "", pages: Iterable[str] = ()):
        self.app = app
        self.hosts = {"localhost", *(re.sub(r":\d+$", "", h).lower().rstrip(".") for h in hosts)}
        self.root_path = root_path
        self.pages = {p.lower().rstrip(".") for p in pages}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        begun = False

        async def send_guarded(message: Any) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                known = {k.lower() for k, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in known]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        headers = [(k.lower(), v.decode("latin-1")) for k, v in scope["headers"]]
        refused = self._refusal(scope["method"], headers)
        if refused is not None:
            await refusal(refused)(scope, receive, send_guarded)
            return
        if self.root_path and scope["path"] == self.root_path:
            await _with_slash(self.root_path)(scope, receive, send_guarded)
            return
        try:
            await self.app(self._below_root(scope), receive, send_guarded)
        # So the server ends what is under way when it is told to stop; it would answer with words that are no JSON.
        except asyncio.CancelledError:
            if not begun:
                stopping = Refused(503, "octfast is being stopped", "ask again when it runs", 10)
                await refusal(stopping)(scope, receive, send_guarded)

    def _below_root(self, scope: Any) -> Any:
        """The request without the path of the page, which a proxy may leave in place."""
        if not scope["path"].startswith(f"{self.root_path}/") or not self.root_path:
            return scope
        path = scope["path"].removeprefix(self.root_path)
        return {**scope, "path": path, "raw_path": path.encode()}

    def _refusal(self, method: str, headers: list[tuple[bytes, str]]) -> Refused | None:
        named = [v for k, v in headers if k == b"host"]
        if len(named) != 1 or not is_meant(named[0], self.hosts):
            return Refused(
                403,
                "this address is not one that the page answers for",
                "open it by the address that octfast app printed, or add the name with --allow-host",
            )
        if method in ("GET", "HEAD"):
            return None
        found = dict(headers)
        origin = found.get(b"origin")
        site = found.get(b"sec-fetch-site", "none")
        from_here = origin is None or origin.partition("://")[2].lower() in {named[0].lower(), *self.pages}
        if not from_here or site not in ("same-origin", "none"):
            return Refused(403, "another page asked for this", "use octfast's own page, or a program")
        return None


def is_meant(host: str, names: Iterable[str]) -> bool:
    """Whether a Host header is a plain address, which nobody can rebind, or one of the names."""
    name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "0")
    if not port.isdigit():
        return False
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
        return True
    except ValueError:
        return name.lower().rstrip(".") in set(names)


def own_names(host: str) -> list[str]:
    """The names that a server bound to `host` goes by: that name, or this machine's if it is open to others."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return [host]
    return [socket.gethostname(), socket.getfqdn()] if not address.is_loopback else []


def clean_root_path(path: str) -> str:
    """A path as given, with one slash before it and none behind it; "" for the root.

    Raises
    ------
    UsageError : it is no plain path.
    """
    inner = path.strip("/")
    if not re.fullmatch(r"[A-Za-z0-9._~/-]*", inner) or ".." in inner.split("/") or "//" in inner:
        raise UsageError(f"--root-path {path}: no path that a page can have", "for example --root-path /octfast")
    return f"/{inner}" if inner else ""


def _with_slash(path: str) -> Any:
    """The way to the same page with a slash at the end, which the addresses in it are relative to."""
    from starlette.responses import Response

    # Relative, as only the proxy knows the whole address.
    return Response(status_code=307, headers={"location": f"{path.rpartition('/')[2]}/"})


def refusal(refused: Refused) -> Any:
    """A refusal as an answer in JSON: `error` is a sentence, `hint` says what to do."""
    from starlette.responses import JSONResponse

    headers = {} if refused.retry_after is None else {"retry-after": str(refused.retry_after)}
    content = {"error": refused.message, "hint": refused.hint}
    return JSONResponse(content, refused.status, headers)


async def picture_of(request: Request, limits: Limits) -> bytes:
    """The picture that a request holds, as its body or as the one file of a form; nothing is written to disk.

    Raises
    ------
    Refused : too large, too slow, or a form without a file or with several.
    """
    return (await _files_of(request, limits, 1))[0][1]


async def pictures_of(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """The pictures that a request holds, as the files of a form or the one that is its body, with their names.

    Together they may have as much as one file.

    Raises
    ------
    Refused : too large, too slow, or a form without a file or with more than are taken.
    """
    return await _files_of(request, limits, limits.max_files)


async def files_of(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """The files of one volume that a request holds; as `pictures_of`, but so many as a volume has B-scans."""
    found = await _files_of(request, limits, MAX_TOGETHER)
    if sum(len(content) for _, content in found) > limits.max_bytes:
        raise too_large(limits)
    return found


async def _files_of(request: Request, limits: Limits, most: int) -> list[tuple[str, bytes]]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form = kind == "multipart/form-data"
    body = await _body(request, limits.max_bytes + (_AROUND + most * _A_HEAD if form else 0), limits)
    return await _files_of_form(request, body, limits, most) if form else [("", body)]


async def discard(request: Request, limits: Limits) -> None:
    """Read and drop a body that is refused, within limits, since a browser that is cut off reads no answer."""
    if request.headers.get("expect"):
        return

    async def read() -> None:
        left = 4 * limits.max_bytes
        async for chunk in request.stream():
            left -= len(chunk)
            if left < 0:
                return

    try:
        await asyncio.wait_for(read(), min(limits.seconds, 10))
    except Exception as e:  # the client has gone, or takes too long; the answer is tried all the same
        log.debug("not read to its end: %s", type(e).__name__)


async def _body(request: Request, most: int, limits: Limits) -> bytes:
    from starlette.requests import ClientDisconnect

    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_large(limits)
    body = bytearray()

    start, allowed = time.monotonic(), limits.seconds
    stream = request.stream()
    try:
        while True:
            # A body that drips would keep the place of a picture from others.
            allowed = min(limits.seconds, _PATIENCE + len(body) / _SLOWEST)
            body.extend(await asyncio.wait_for(anext(stream), max(0, allowed - (time.monotonic() - start))))
            if len(body) > most:
                raise too_large(limits)
    except StopAsyncIteration:
        pass
    except asyncio.TimeoutError:
        raise Refused(
            408, f"the upload took longer than {allowed:.3g} seconds for {len(body):,} bytes", "try again"
        ) from None
    except ClientDisconnect:  # nobody hears this, and it is no fault that the terminal should show
        raise Refused(400, "the upload broke off", "try again") from None
    return bytes(body)


async def _files_of_form(request: Request, body: bytes, limits: Limits, most: int) -> list[tuple[str, bytes]]:
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def once() -> AsyncIterator[bytes]:
        yield body
        yield b""

    parser = MultiPartParser(request.headers, once(), max_files=most, max_fields=8, max_part_size=_AROUND)  # type: ignore[arg-type]
    # Beyond this Starlette would go on in a temporary file on disk.
    parser.spool_max_size = limits.max_bytes + most * _AROUND
    hint = 'send one file: curl -F "file=@scan.jpeg" ADDRESS'
    try:
        form = await parser.parse()
        files = [v for _, v in form.multi_items() if not isinstance(v, str)]
        found = [(file.filename or "", await file.read()) for file in files]
        await form.close()
    except MultiPartException as e:
        raise Refused(400, f"the form cannot be read: {e.message}", hint) from None
    except Exception as e:  # hostile forms: unknown character sets, headers that are none
        raise Refused(400, f"the form cannot be read: {type(e).__name__}", hint) from None
    if not found:
        raise Refused(400, "the form has no file in it", hint)
    return found
