"""The local web page of a trained model, and the JSON endpoint beside it. Not a medical device."""

from __future__ import annotations

import asyncio
import contextlib
import html
import importlib.util
import ipaddress
import logging
import math
import os
import socket
import string
import time
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octfast.data.fit import fit_in_words
from octfast.deploy.app.answers import Answers, Limits, Refused
from octfast.deploy.app.connection import connection_class
from octfast.deploy.app.guard import Guard, clean_root_path, discard, files_of, own_names, picture_of, pictures_of
from octfast.deploy.app.parts import STATIC, error_handlers, static_route
from octfast.deploy.app.similar import SHOWN_TO_ALL, Similar, run_with_scans
from octfast.deploy.app.together import Upload
from octfast.deploy.app.unit import Pictures, open_volume
from octfast.deploy.app.volume import Volume, response_of
from octfast.errors import UsageError
from octfast.notices import LONG_NOTICE, SYNTHETIC_NOTE

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger("octfast")

PORT = 8731


def make_app(answers: Answers, hosts: Iterable[str] = (), root_path: str = "", pages: Iterable[str] = ()) -> Guard:
    """The page and its endpoints, as an ASGI application.

    `GET /` is the page. `POST /api/predict` takes a picture as its body, or as the one file of a form, and gives its
    probabilities; with `?heatmap=1` also the heat map. `POST /api/volume` takes a volume likewise, `?name=` says the
    name of its file, and gives JSON lines, see `octfast.deploy.app.volume`; with `?pictures=1` also the B-scans. A form
    may hold the files of a DICOM series, or an export of HEYEX with its pictures. Of a model that answers for whole
    volumes, eyes or patients it answers so, and `POST /api/unit` takes the pictures of one as the files of a form, and
    gives lines of the same kind, see `octfast.deploy.app.unit`.
    `GET /api/model` says what the model is, `GET /health` whether it answers. The model runs in one thread, and a
    volume gives way to pictures after some B-scans. No more than `Limits.queue` files are held at a time, and
    `Limits.volumes` of them volumes; what comes beyond is answered with 503 and the seconds to wait. Nothing is written
    to disk (but a volume while it is read, where there are no files in memory), and nothing kept after the answer.

    Parameters
    ----------
    answers : the model and its limits.
    hosts, root_path, pages : see `octfast.deploy.app.guard.Guard`.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    limits = answers.limits
    pool = ThreadPoolExecutor(1, thread_name_prefix="octfast-model")
    readers = ThreadPoolExecutor(limits.volumes, thread_name_prefix="octfast-volume")
    page = _page(answers)
    state = {"held": 0, "answered": 0, "seconds": 1.0}
    volumes: dict[object, Volume | None] = {}

    async def show_page(request: Request) -> Response:
        return Response(page, media_type="text/html")

    async def health(request: Request) -> Response:
        found = {"status": "ok", "held": state["held"], "queue": limits.queue, "answered": state["answered"]}
        return JSONResponse(found)

    async def model(request: Request) -> Response:
        return JSONResponse(answers.about())

    async def content_of(request: Request, read: Any = picture_of) -> Any:
        try:
            return await read(request, limits)
        except Refused as e:
            if e.status == 413:
                await discard(request, limits)
            raise

    async def predict(request: Request) -> Response:
        if state["held"] >= limits.queue:
            await discard(request, limits)
            wait = max(1, math.ceil(limits.queue * state["seconds"] / 2))
            raise Refused(503, "too many pictures are waiting", f"try again in {wait} seconds", wait)
        state["held"] += 1
        try:
            content = await content_of(request)
            wanted, of = _wanted(request, "heatmap"), request.query_params.get("of")
            start = time.monotonic()
            work = partial(answers.answer, content, heat_map=wanted, of=of)
            found = await asyncio.get_running_loop().run_in_executor(pool, work)
            # How long a picture takes when as many wait as now, for those that are sent away.
            state["seconds"] = 0.8 * state["seconds"] + 0.2 * (time.monotonic() - start) / max(1, state["held"])
            state["answered"] += 1
        finally:
            state["held"] -= 1
        return JSONResponse(found)

    async def volume(request: Request) -> Response:
        named = request.query_params.get("name", "")

        def open_(files: list[tuple[str, bytes]], shown: bool) -> Volume:
            content = files[0][1] if len(files) == 1 else [Upload(*file) for file in files]
            return open_volume(answers, content, named, shown)

        return await in_lines(request, files_of, open_)

    async def unit(request: Request) -> Response:
        return await in_lines(request, pictures_of, partial(Pictures, answers))

    async def in_lines(request: Request, read: Any, open_: Callable[[Any, bool], Volume]) -> Response:
        """A line of JSON a scan, of what `read` takes from a request and `open_` makes a volume of."""
        if state["held"] >= limits.queue or len(volumes) >= limits.volumes:
            await discard(request, limits)
            raise Refused(503, "too many volumes are being read", "try again in 5 seconds", 5)
        loop = asyncio.get_running_loop()
        place = object()
        opened: Volume | None = None
        state["held"] += 1
        volumes[place] = None

        def done() -> None:
            state["held"] -= 1
            volumes.pop(place, None)
            if opened is not None:
                opened.close()

        async def more() -> list[dict[str, Any]]:
            assert opened is not None
            found = await loop.run_in_executor(readers, opened.read)
            return await loop.run_in_executor(pool, opened.answer, found) if found else [opened.end()]

        try:
            content = await content_of(request, read)
            opened = await loop.run_in_executor(readers, open_, content, _wanted(request, "pictures"))
            volumes[place] = opened
            first: list[dict[str, Any]] = []
            while not opened.frames:
                first += await more()
                if "end" in first[-1]:
                    raise Refused(422, "the file holds no B-scans", "leave it out")
            state["answered"] += 1
            return response_of(opened, first, more, done)
        except BaseException:
            done()
            raise

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        for opened in volumes.values():
            if opened is not None:
                opened.close()
        readers.shutdown(wait=False, cancel_futures=True)
        pool.shutdown(wait=False, cancel_futures=True)

    app = Starlette(
        routes=[
            Route("/", show_page),
            static_route(STATIC),
            Route("/health", health),
            Route("/api/model", model),
            Route("/api/predict", predict, methods=["POST"]),
            Route("/api/volume", volume, methods=["POST"]),
            Route("/api/unit", unit, methods=["POST"]),
        ],
        exception_handlers=error_handlers("see GET / and POST /api/predict"),
        lifespan=lifespan,
    )
    return Guard(app, hosts, root_path, pages)


def _wanted(request: Request, what: str) -> bool:
    return request.query_params.get(what, "0").lower() in ("1", "true", "yes")


def serve(
    bundle: str | Path,
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    limits: Limits | None = None,
    urgent: Sequence[str] | None = None,
    abstain_below: float | None = None,
    answer_anyway: bool = False,
    similar: bool = False,
    data: str | Path | None = None,
    allow_hosts: Sequence[str] = (),
    root_path: str = "",
    precision: str = "auto",
    device: str | None = None,
    weights: str | Path | None = None,
    open_browser: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the page until it is interrupted.

    Parameters
    ----------
    bundle : the folder of a bundle, or a run folder.
    host : address to bind to; any other than loopback is reached by others, and that is said.
    port : None takes 8731, or a free one where that is taken.
    limits, urgent, abstain_below, answer_anyway : see `Answers`.
    similar : show beside each answer the training scans that are most like it, to whoever opens the page.
    data : where these scans lie now; see `octfast.deploy.app.similar.run_with_scans`.
    allow_hosts : further names by which the page may be called, as that of a proxy before it; with its port where that
        is an unusual one.
    root_path : the path below which a proxy has the page, as "/octfast".
    precision, device, weights : see `octfast.deploy.predictor.load`.
    open_browser : show the page in the user's browser.
    ready : called with the page's address before the first request is taken.

    Raises
    ------
    UsageError : a missing package, an address that cannot be bound to, an unknown class in `urgent`.
    BundleError : see `octfast.model.bundle.read.load_bundle`.
    OctfastError : with `similar`, what was given is no run, or its scans are not at hand.
    """
    need_app()
    root_path = clean_root_path(root_path)
    if data is not None and not similar:
        raise UsageError("--data says where the scans that --similar shows lie", "add --similar, or leave --data out")
    run = run_with_scans(bundle, data) if similar else None
    from octfast.deploy.predictor import load

    listener = bind(host, port)
    with contextlib.closing(listener):
        answers = Answers(load(bundle, precision, device, weights), limits, urgent, abstain_below, answer_anyway)
        if run:
            answers.similar = Similar(run, answers.predictor.engine.device)
        address = url(listener)
        log.info("%s, %s", answers.predictor.info.arch, answers.predictor.engine.description)
        if not is_loopback(listener):
            log.warning(
                "bound to %s: whoever reaches this machine can use the page, with no password and unencrypted", host
            )
        if run:
            log.warning("%s", SHOWN_TO_ALL)
        if not answers.predictor.info.calibrated:
            log.info("the model's probabilities are not calibrated; see octfast calibrate")
        log.info("%s", LONG_NOTICE)
        if answers.predictor.info.synthetic:
            log.info("%s", SYNTHETIC_NOTE)
        if ready:
            ready(address)
        app = make_app(answers, [*own_names(host), *allow_hosts], root_path, allow_hosts)
        run_server(app, listener, open_browser)
        log.info("stopped")


def run_server(app: Guard, listener: socket.socket, open_browser: bool = False) -> None:
    """Answer requests at a listening socket until it is interrupted.

    Parameters
    ----------
    open_browser : show the page in the user's browser.
    """
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=connection_class(),
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=5,
            # Far above the queue, whose refusals are better worded.
            limit_concurrency=1000,
        )
    )
    if open_browser:
        # The socket listens already, so that the browser waits until the server answers.
        webbrowser.open(url(listener))
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def need_app(command: str = "octfast app") -> None:
    """
    Parameters
    ----------
    command : that needs it.

    Raises
    ------
    UsageError : starlette, uvicorn or python-multipart is not installed.
    """
    packages = {"starlette": "starlette", "uvicorn": "uvicorn", "python-multipart": "python_multipart"}
    missing = [name for name, module in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"{command} needs {', '.join(missing)}, which is not installed", "pip install 'octfast[app]'")


def bind(host: str, port: int | None) -> socket.socket:
    """A listening socket; with no port given 8731, or a free one where that is taken.

    Raises
    ------
    UsageError : the address is not this machine's, or the port is taken.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port or PORT, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as e:
        raise UsageError(f"--host {host}: no such address: {e}", "leave --host out, or use 127.0.0.1") from None
    listener = socket.socket(family, kind, proto)
    # On Windows this would let two programs listen on one port; there the default is what it brings elsewhere.
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        try:
            listener.bind(address)
        except OSError:
            if port is not None:
                raise
            listener.bind((address[0], 0, *address[2:]))
            log.info("port %d is taken; a free one is used", PORT)
        listener.listen(2048)
    except OSError as e:
        listener.close()
        where = f"{host}, port {port or PORT}"
        raise UsageError(f"cannot listen on {where}: {e.strerror or e}", "give another --host or --port") from None
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether a bound socket is reached from this machine alone."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def url(listener: socket.socket) -> str:
    """The address of the page, as a browser on this machine takes it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _page(answers: Answers) -> str:
    about: dict[str, Any] = answers.about()
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    urgent = ", ".join(about["urgent_classes"])
    if about["urgent_threshold"] is not None:
        urgent = f"{urgent} (referred from a summed probability of {about['urgent_threshold']:.2f} on)"
    words = {
        "notice": about["notice"],
        "synthetic": about["synthetic"] or "",
        "classes": ", ".join(about["classes"]),
        "urgent": urgent or "none",
        "calibration": about["calibration"],
        "unlike": about["unlike"],
        "answers_for": about["answers_for"],
        "level": about["level"],
        "of_units": "" if about["level"] != "scan" else "hidden",
        "similar": about["similar"] or "",
        "model": f"{about['arch']}, scans {fit_in_words(about['fit'], about['size'])}, {about['precision']}",
        "formats": about["formats"],
        "limits": f"{about['max_bytes'] / (1 << 20):g} MB and {about['max_pixels'] / 1e6:g} million pixels",
        "max_files": str(about["max_files"]),
        "caution": about["heat_map_caution"],
    }
    return string.Template(text).substitute({k: html.escape(v) for k, v in words.items()})
