"""The page of a review and its endpoints, on this machine alone."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import logging
import string
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octfast.deploy.app.answers import Refused
from octfast.deploy.app.app import bind, need_app, run_server, url
from octfast.deploy.app.guard import Guard
from octfast.deploy.app.parts import STATIC as SHARED
from octfast.deploy.app.parts import error_handlers, static_route
from octfast.deploy.review.session import BESIDE, Review
from octfast.errors import OctfastError
from octfast.notices import LONG_NOTICE, SYNTHETIC_NOTE

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger("octfast")

STATIC = Path(__file__).parent / "static"
# Of a decision sent by the page, in bytes.
_MOST = 4096


def make_review_app(review: Review) -> Guard:
    """The page and its endpoints, as an ASGI application.

    `GET /` is the page, `GET /api/list` what is on it. `POST /api/decide` takes `{"id", "decision", "new"}`, `POST
    /api/undo` nothing; both answer with the scan. `GET /api/scan/ID` and `/api/heat/ID` are PNG; `?of=N` is the N-th
    scan of a unit, from 0, by how much it counted, and `small=1` a small picture of it. `POST /api/train`
    trains again and compares. What is slow runs in one thread, one request after the other.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    pool = ThreadPoolExecutor(1, thread_name_prefix="octfast-review")
    page = _page(review)

    async def in_turn(work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, partial(work, *args))

    async def show_page(request: Request) -> Response:
        return Response(page, media_type="text/html")

    async def listed(request: Request) -> Response:
        return JSONResponse(review.about())

    async def scan(request: Request) -> Response:
        small = {"most": BESIDE} if request.query_params.get("small") else {}
        picture = await asyncio.to_thread(partial(review.picture, _item(request, review), _of(request), **small))
        return Response(picture, media_type="image/png")

    async def heat(request: Request) -> Response:
        return Response(await in_turn(review.heat_map, _item(request, review), _of(request)), media_type="image/png")

    async def near(request: Request) -> Response:
        found = await in_turn(review.neighbours, _item(request, review))
        return JSONResponse([{k: v for k, v in each.items() if k != "path"} for each in found])

    async def neighbour(request: Request) -> Response:
        picture = await in_turn(review.neighbour, _item(request, review), request.path_params["rank"])
        return Response(picture, media_type="image/png")

    async def decide(request: Request) -> Response:
        given = await _json(request)
        item, decision, new = given.get("id"), given.get("decision"), given.get("new", "")
        if not isinstance(item, int) or not isinstance(decision, str) or not isinstance(new, str):
            raise Refused(400, "a decision is {id, decision, new}", "see octfast review --help")
        review.decide(item, decision, new)
        return JSONResponse(review.item(item))

    async def undo(request: Request) -> Response:
        item = review.undo()
        return JSONResponse({"id": None} if item is None else review.item(item))

    async def train(request: Request) -> Response:
        return JSONResponse(await in_turn(review.train))

    async def agree(request: Request) -> Response:
        return JSONResponse(await in_turn(review.agreement))

    def prepare() -> None:
        try:
            review.prepare()
        except OctfastError as e:
            log.warning("training again is not possible here: %s", e.message)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        pool.submit(prepare)
        yield
        # While a network is traced, no other thread of this process may run one.
        pool.shutdown(wait=True, cancel_futures=True)

    app = Starlette(
        routes=[
            Route("/", show_page),
            static_route(SHARED, STATIC),
            Route("/api/list", listed),
            Route("/api/scan/{item:int}", scan),
            Route("/api/heat/{item:int}", heat),
            Route("/api/near/{item:int}", near),
            Route("/api/near/{item:int}/{rank:int}", neighbour),
            Route("/api/decide", decide, methods=["POST"]),
            Route("/api/undo", undo, methods=["POST"]),
            Route("/api/train", train, methods=["POST"]),
            Route("/api/agreement", agree),
        ],
        exception_handlers=error_handlers("see GET /"),
        lifespan=lifespan,
    )
    return Guard(app)


def serve_review(
    review: Review,
    port: int | None = None,
    *,
    open_browser: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the page on this machine, and to no other, until it is interrupted.

    Parameters
    ----------
    port : None takes 8731, or a free one where that is taken.
    open_browser : show the page in the user's browser.
    ready : called with the page's address before the first request is taken.

    Raises
    ------
    UsageError : a missing package, or a port that is taken.
    """
    need_app("octfast review")
    listener = bind("127.0.0.1", port)
    with contextlib.closing(listener):
        if ready:
            ready(url(listener))
        run_server(make_review_app(review), listener, open_browser)
        log.info("stopped; %d decisions are in %s", len(review.done), review.shown_file)


def _item(request: Request, review: Review) -> int:
    item = request.path_params["item"]
    if item >= len(review.rows):
        raise Refused(404, f"there is no scan {item} on the list")
    return item


def _of(request: Request) -> int:
    """Which scan of a unit is asked for."""
    given = request.query_params.get("of", "0")
    if not given.isdecimal() or len(given) > 6:
        raise Refused(400, "of is the number of a scan", "such as of=0")
    return int(given)


async def _json(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for chunk in request.stream():
        body.extend(chunk)
        if len(body) > _MOST:
            raise Refused(413, "too long for a decision")
    try:
        given = json.loads(bytes(body))
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise Refused(400, "not JSON", 'send {"id": 0, "decision": "agree"}')
    return given


def _page(review: Review) -> str:
    text = (STATIC / "review.html").read_text(encoding="utf-8")
    words = {
        "notice": LONG_NOTICE,
        "synthetic": SYNTHETIC_NOTE if review.synthetic else "",
        "run": review.run.path.name,
        "file": review.shown_file,
        "title": f"Which labels do these {review.level}s have?" if review.labelling else "Are these labels right?",
        "whole": ""
        if review.level == "scan"
        else f"Labels are those of whole {review.level}s: what you decide holds for all scans of one.",
    }
    return string.Template(text).substitute({k: html.escape(v) for k, v in words.items()})
