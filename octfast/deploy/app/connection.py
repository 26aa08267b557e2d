"""A connection of the page's server that waits only so long for a request to begin, however many others wait."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

# A browser or program sends a request's head at once.
HEAD_SECONDS = 10.0
# Of connections without a whole head, beyond which the longest waiting is closed; 1,024 open files are usual.
MOST_WAITING = 200


def connection_class(seconds: float = HEAD_SECONDS, most: int = MOST_WAITING) -> type[asyncio.Protocol]:
    """uvicorn's HTTP connection with a limit of time for the head of each request, which uvicorn lacks.

    Its own limit (`timeout_keep_alive`) begins with the first answer and ends with the next byte.

    Parameters
    ----------
    seconds : from the connection, or from the first byte of a further request, to the end of the head.
    most : connections that may wait for one; the longest waiting make room for new ones.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    waiting: OrderedDict[Any, asyncio.TimerHandle] = OrderedDict()

    class Connection(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._wait_no_more()
            elif self not in waiting:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait_no_more()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self.transport.is_closing():
                return
            waiting[self] = self.loop.call_later(seconds, self._give_up)
            if len(waiting) > most:
                next(iter(waiting))._give_up()

        def _wait_no_more(self) -> None:
            if (timer := waiting.pop(self, None)) is not None:
                timer.cancel()

        def _give_up(self) -> None:
            self._wait_no_more()
            self.timeout_keep_alive_handler()

    return Connection
