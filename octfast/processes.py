"""Several processes of one command, on one machine or several, as `torchrun` or `accelerate launch` start them.

Process 0 does the work, writes and prints. It asks the others for parts of it, of which each takes the next, and gets
them back in order. All goes through the key-value store at which the processes meet (torch's `TCPStore`), as JSON
and safetensors: nothing is unpickled, no file system need be shared, and whoever waits can still be stopped.
"""

from __future__ import annotations

import _thread
import functools
import itertools
import json
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from octfast.errors import DataError, OctfastError, UsageError
from octfast.launcher import ended_by_signals, launched, out_of_sight, place, runs, unheard
from octfast.meeting import Box, Content

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger("octfast")

P = ParamSpec("P")
T = TypeVar("T")
# For each index, in their order, what was computed.
Computed = Callable[[Iterator[int]], Iterator[Content]]
Kinds = Mapping[str, Callable[[dict[str, Any], "Mapping[str, np.ndarray]"], "Computed | None"]]

# That a process may take to appear beside the others, and to give a sign of life.
JOIN_SECONDS, LOST_SECONDS, BEAT_SECONDS = 180.0, 40.0, 2.0
# One that is lost is said by whoever waits for it; who cannot hear of it, in the midst of a computation, is ended.
GRACE_SECONDS = 12.0
# So many parts for each process lie in the store at most.
_AHEAD = 4
_KINDS: dict[str, type[OctfastError]] = {"DataError": DataError, "UsageError": UsageError, "OctfastError": OctfastError}

_current: Group | None = None
# Several, one after the other, have nothing to do with each other.
_joins = itertools.count()


class LostProcessError(OctfastError):
    """One of several processes has ended, or is not heard of any more."""


class _Abandoned(Exception):  # noqa: N818
    """Process 0 wants no more of what it asked for; it never leaves this module."""


def current() -> Group | None:
    """The processes that this one works with at the moment."""
    return _current


def _next(mine: Iterator[Content]) -> Content | Exception | None:
    """The next part, or what went wrong with it; None where there is no more."""
    try:
        return next(mine, None)
    except Exception as e:
        return e


@functools.cache
def _meeting_place(rank: int, size: int, limit: timedelta) -> Any:
    """The store of all joinings of this process."""
    from torch import distributed

    store, *_ = next(distributed.rendezvous("env://", rank, size, timeout=limit))
    store.set_timeout(limit)
    return store


@contextmanager
def joined() -> Iterator[Group | None]:
    """Join the processes that a launcher started beside this one; gives None where there are none.

    Inside, RANK and WORLD_SIZE are out of fastai's sight: what process 0 does alone it does as the only one.

    Raises
    ------
    LostProcessError : the others do not come, or one ends before its time.
    """
    global _current
    started = None if _current is not None else launched()
    if started is None:
        yield _current
        return
    group = Group(*started)
    _current = group
    try:
        with out_of_sight(), ended_by_signals():
            group.begin_watch()
            yield group
    except BaseException as e:
        group.leave(e)
        if group.rank and isinstance(e, LostProcessError | KeyboardInterrupt):
            raise SystemExit(1) from e  # what there is to say has been said
        raise
    else:
        group.leave(None)
    finally:
        _current = None


def divided(kinds: Callable[[], Kinds]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let process 0 alone call a function, while the others answer what it asks; there the function gives None.

    Parameters
    ----------
    kinds : gives those of `Group.assist`.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with joined() as group:
                if group is None or group.rank == 0:
                    return function(*args, **kwargs)
                return group.assist(kinds())

        return call

    return decorate


class Group:
    """The processes of one command.

    Attributes
    ----------
    rank, size : this process's number, from 0, and how many there are.
    shared : what the others have been told of last, for whoever asks them.
    goes_on : the command that goes on with what is lost when a process ends; said then.
    """

    def __init__(self, rank: int, size: int):
        from torch import distributed

        self.rank, self.size = rank, size
        self.goes_on = ""
        self.shared: Any = None
        self._number = 0
        self._said: list[str] = []
        self._heard: set[str] = set()
        self._beats: dict[int, tuple[int, float]] = {}
        self._over = threading.Event()
        self._lost = ""
        self._asked: list[str] = []
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        limit = timedelta(seconds=JOIN_SECONDS)
        try:
            self.store = distributed.PrefixStore(f"octfast {next(_joins)}", _meeting_place(rank, size, limit))
            self.store.set(f"here/{rank}", json.dumps(place()))
            self.store.wait([f"here/{r}" for r in range(size)], limit)
        except (RuntimeError, ValueError) as e:
            raise LostProcessError(
                f"process {rank} of {size} waited {JOIN_SECONDS:.0f} s at {where} and did not meet the others",
                "start all of them, with a way open between their machines; or, if no launcher is at work, "
                "unset RANK WORLD_SIZE",
            ) from e
        self.box = Box(self.store, self._gone)
        self.places = [json.loads(self.store.get(f"here/{r}")) for r in range(size)]
        if self._on_gpu():
            import torch

            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())

    def __repr__(self) -> str:
        return f"Group(process {self.rank} of {self.size})"

    @property
    def hosts(self) -> list[str]:
        """The names of the machines, each once."""
        return list(dict.fromkeys(p["host"] for p in self.places))

    def name(self, rank: int) -> str:
        """What a process is called in a message."""
        return f"process {rank} of {self.size} (pid {self.places[rank]['pid']} on {self.places[rank]['host']})"

    # What process 0 does.

    def tell(self, kind: str, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> int:
        """Ask the others for something; gives the number of the question."""
        self.check()
        self._number += 1
        key = f"task/{self._number}"
        self.box.put(key, {"kind": kind, "number": self._number, "goes_on": self.goes_on, **about}, arrays or {})
        self._asked = [asked for asked in self._asked if not self.box.thin_out(asked, self.size - 1)] + [key]
        return self._number

    def deal(
        self,
        kind: str,
        about: Mapping[str, Any],
        count: int,
        own: Computed,
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> Iterator[Content]:
        """Have `count` parts of some work computed, by this process as well; gives them in their order.

        Parameters
        ----------
        kind, about, arrays : what the others need to know, see `assist`.
        own : computes parts here.
        """
        number = self.tell(kind, {**about, "count": count}, arrays)
        claimed: deque[int] = deque()
        mine = own(self._claims(number, count, claimed))
        have: dict[int, Content | Exception] = {}
        words = 1
        try:
            for k in range(count):
                while k not in have:
                    self.look_for_errors(number)
                    if (word := self.box.take(f"{number}/word/{words}")) is not None:
                        self._hear(word[0])
                        words += 1
                    if (theirs := self.box.take(f"{number}/{k}")) is not None:
                        have[k] = theirs
                        break
                    given = _next(mine) if len(have) < _AHEAD * self.size else None
                    if isinstance(given, Exception) and not claimed:
                        raise given
                    if given is not None:
                        have[claimed.popleft()] = given
                    elif k not in have:
                        self.check()
                        time.sleep(0.005)
                # What goes wrong is said at its turn, so that what comes before it is not lost.
                if isinstance(content := have.pop(k), Exception):
                    raise content
                about_k, arrays_k = content
                self._refuse(about_k)
                self.box.set(f"{number}/given", k + 1)
                yield about_k, arrays_k
        finally:
            with suppress(LostProcessError):
                self.box.set(f"{number}/stop", 1)
            if hasattr(mine, "close"):
                mine.close()

    def _claims(self, number: int, count: int, claimed: deque[int]) -> Iterator[int]:
        while True:
            if (k := self.box.add(f"{number}/next") - 1) >= count:
                return
            claimed.append(k)
            yield k

    def look_for_errors(self, number: int) -> None:
        if (said := self.box.take(f"{number}/error")) is not None:
            self._refuse(said[0])

    def _refuse(self, about: dict[str, Any]) -> None:
        """Say what another process has to say, and raise what it met."""
        self._hear(about)
        if "error" not in about:
            return
        kind = _KINDS.get(about["error"])
        if kind is None:
            raise RuntimeError(f"{self.name(about['rank'])}: {about['error']}: {about['message']}")
        raise kind(about["message"], about["hint"])

    def _hear(self, about: Mapping[str, Any]) -> None:
        """Say what another process had to say, once."""
        for said in about.get("said", ()):
            if said not in self._heard:
                self._heard.add(said)
                log.warning("%s", said)

    # What the others do.

    def assist(self, kinds: Kinds) -> Any:
        """Answer what process 0 asks, until it is done.

        Nothing is printed meanwhile: warnings go to process 0, which says them.

        Parameters
        ----------
        kinds : for each kind of question a function of what is known about it and its arrays; of work that is dealt it
            gives what computes parts.

        Raises
        ------
        LostProcessError : process 0 has ended.
        """
        with unheard(self._said):
            while True:
                about, arrays = self._next_task()
                if about["kind"] == "end":
                    if about["code"]:
                        raise SystemExit(about["code"])
                    return None
                self.goes_on = about["goes_on"]
                with suppress(_Abandoned):
                    self._answer(kinds[about["kind"]], about, arrays)

    def _next_task(self) -> Content:
        self._number += 1
        key = f"task/{self._number}"
        while not self.box.has(key):
            self.check()
            time.sleep(0.05)
        return self.box.read(key)

    def _answer(self, kind: Callable, about: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        number = self._number
        claimed: deque[int] = deque()

        def claims() -> Iterator[int]:
            # Decoding claims ahead of what is computed: to wait here for a turn could be to wait for oneself.
            for k in self._claims(number, about["count"], claimed):
                if self.box.has(f"{number}/stop"):
                    raise _Abandoned
                yield k

        try:
            computed = kind(about, arrays)
            if computed is None:
                if self._said and "count" in about:
                    # Of work that is dealt no part will come from here, which the word would go with.
                    self.box.put(f"{number}/word/{self.box.add(f'{number}/words')}", self._words(), {})
                return
            for content, found in computed(claims()):
                k = claimed.popleft()
                self._wait_for_turn(number, k)
                self.box.put(f"{number}/{k}", {**content, **self._words()}, found)
        except (_Abandoned, LostProcessError):
            raise
        except Exception as e:
            if not isinstance(e, OctfastError | OSError):
                log.debug("of %s", self.name(self.rank), exc_info=e)
            self.report(f"{number}/{claimed[0] if claimed else 'error'}", e)

    def report(self, key: str, e: Exception) -> None:
        self.check()
        kind = next((n for n, k in _KINDS.items() if isinstance(e, k)), type(e).__name__)
        message, hint = (e.message, e.hint) if isinstance(e, OctfastError) else (str(e), "")
        if isinstance(e, OSError):
            kind, message = "DataError", f"{e.filename or ''}: {e.strerror or e}"
        if len(self.hosts) > 1:
            message += f" (on {self.places[self.rank]['host']})"
        self.box.put(
            key,
            {"error": kind, "message": message, "hint": hint, "rank": self.rank, **self._words()},
            {},
        )

    def _words(self) -> dict[str, Any]:
        said, self._said[:] = list(self._said), []
        return {"said": said} if said else {}

    def _wait_for_turn(self, number: int, k: int) -> None:
        """Let process 0 catch up, so that what lies in the store does not grow with the data."""
        while True:
            if self.box.has(f"{number}/stop"):
                raise _Abandoned
            if k < self.box.get(f"{number}/given") + _AHEAD * self.size:
                return
            self.check()
            time.sleep(0.02)

    # What all do.

    def check(self) -> None:
        """
        Raises
        ------
        LostProcessError : another process has ended, or is not heard of any more.
        """
        if self._lost:
            raise LostProcessError(self._lost, self._what_to_do())

    def ended(self) -> str:
        """Which of the others has ended, in a sentence; empty where none has that is known of."""
        return self._lost or self._look()

    def _what_to_do(self) -> str:
        if self.rank == 0:
            return "its own last words, or the launcher's log, say why"
        return f"go on with: {self.goes_on}" if self.goes_on else "start the command again"

    def _gone(self) -> LostProcessError:
        return LostProcessError(self._lost or self._unreachable(), self._what_to_do())

    def _unreachable(self) -> str:
        return f"the meeting place of the {self.size} processes does not answer any more: the first machine has gone"

    def _on_gpu(self) -> bool:
        import torch

        return torch.cuda.is_available()

    def begin_watch(self) -> None:
        """Begin to give signs of life, and to look for those of the others, in a thread."""
        if self.rank == 0:
            where = f", on {', '.join(self.hosts)}" if len(self.hosts) > 1 else ""
            log.info("%d processes work together%s", self.size, where)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            lost = ""
            try:
                self.store.add(f"beat/{self.rank}", 1)
                lost = self._look()
            except RuntimeError:
                lost = self._unreachable()
            if lost and not self._over.is_set():
                self._lost = lost
                if self._over.wait(1):
                    return
                _thread.interrupt_main(signal.SIGTERM)
                if self._over.wait(GRACE_SECONDS):
                    return
                self._say(LostProcessError(lost, self._what_to_do()))
                os._exit(1)

    def _look(self) -> str:
        """Which of the others is not heard of, in a sentence; empty where all are."""
        now = time.monotonic()
        for rank in range(self.size) if self.rank == 0 else (0,):
            if rank == self.rank or self.store.check([f"bye/{rank}"]):
                continue
            if self.places[rank]["machine"] == self.places[self.rank]["machine"] and not runs(self.places[rank]["pid"]):
                return f"{self.name(rank)} has ended before its time"
            beats = self.store.add(f"beat/{rank}", 0)
            before, since = self._beats.get(rank, (-1, now))
            if beats != before:
                self._beats[rank] = beats, now
            elif now - since > LOST_SECONDS:
                return f"{self.name(rank)} has given no sign of life for {LOST_SECONDS:.0f} s"
        return ""

    def leave(self, why: BaseException | None) -> None:
        """End the work together; `why` : what ended it before its time."""
        self._over.set()
        lost = ""
        if isinstance(why, KeyboardInterrupt):
            with suppress(RuntimeError):
                lost = self.ended()
        with suppress(RuntimeError, OctfastError):
            if self.rank:
                if why is None or isinstance(why, SystemExit):
                    self.store.set(f"bye/{self.rank}", "")
                if lost or isinstance(why, LostProcessError):
                    self._say(why if isinstance(why, LostProcessError) else LostProcessError(lost, self._what_to_do()))
                return
            if lost:
                log.error("%s, and so the others are ended", lost)
            self._lost = ""
            self.tell("end", {"code": getattr(why, "exit_code", 1) if why else 0})
            # Whoever keeps the store must not go before the others have read it.
            until = time.monotonic() + (10 if why is None else 2)
            while time.monotonic() < until:
                if all(self.store.check([f"bye/{r}"]) for r in range(1, self.size)):
                    break
                time.sleep(0.02)

    def _say(self, e: LostProcessError) -> None:
        """Say what happened where process 0 cannot, once for all."""
        from octfast.console import print_error

        first = True
        with suppress(RuntimeError):
            first = self.store.add("said", 1) == 1
        if first:
            print_error(e.message, e.hint)
