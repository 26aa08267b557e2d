"""What the pages share: how they answer errors, and the files that they load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from octfast.deploy.app.answers import Refused
from octfast.deploy.app.guard import refusal
from octfast.errors import OctfastError

if TYPE_CHECKING:
    from starlette.requests import Request

STATIC = Path(__file__).parent / "static"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def error_handlers(hint: str) -> dict[Any, Any]:
    """What an application of this page answers to errors, as Starlette takes it: always JSON, never a traceback.

    Parameters
    ----------
    hint : where to look, for an address that there is not.
    """
    from starlette.exceptions import HTTPException

    async def refuse(request: Request, error: Exception) -> Any:
        if isinstance(error, OctfastError):
            error = Refused(422, error.message, error.hint)
        assert isinstance(error, Refused)
        return refusal(error)

    async def strange(request: Request, error: Exception) -> Any:
        assert isinstance(error, HTTPException)
        what = {404: "there is nothing here", 405: "this is asked for in another way"}.get(error.status_code)
        return refusal(Refused(error.status_code, what or str(error.detail), hint))

    async def failed(request: Request, error: Exception) -> Any:
        return refusal(Refused(500, "octfast met an error it did not expect", "see the terminal that it runs in"))

    return {Refused: refuse, OctfastError: refuse, HTTPException: strange, Exception: failed}


def static_route(*folders: Path) -> Any:
    """The route /static/NAME of the files of these folders, which are read once."""
    from starlette.responses import Response
    from starlette.routing import Route

    files = {f.name: f.read_bytes() for folder in folders for f in folder.iterdir() if f.suffix in _TYPES}

    async def show(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            raise Refused(404, "there is nothing here")
        return Response(files[name], media_type=_TYPES[Path(name).suffix])

    return Route("/static/{name}", show)
