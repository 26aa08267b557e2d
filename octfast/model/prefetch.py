"""Takes pictures of any kind from their source and decodes them ahead in threads, a bounded number and in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from octfast.data.decode import Decoded, decode
from octfast.data.look import unusual
from octfast.data.preprocess import resize
from octfast.errors import DataError
from octfast.model.quality import quality_notes

Picture = str | Path | bytes | Image.Image | np.ndarray
# How long a batch waits for more pictures from a source that is slower than the model, in seconds.
MAX_WAIT = 0.2
# Among the pictures of a source it ends a batch.
CUT: Any = object()
_END = object()


class Read(NamedTuple):
    """A picture as it was given; its grey samples, uint8 of shape (size, size), or why there are none; what is unusual.

    The remarks are words of `octfast.data.look.unusual`.
    """

    picture: Any
    grey: np.ndarray | DataError
    remarks: tuple[str, ...] = ()


def decoded_batches(
    pictures: Iterable[Picture | DataError] | Picture,
    size: int,
    bs: int,
    workers: int = 1,
    fit: str = "squeeze",
    limits: Mapping[str, float] | None = None,
    max_wait: float | None = MAX_WAIT,
) -> Iterator[list[Read]]:
    """Batches of pictures, decoded and brought to size x size.

    Three batches at most are taken ahead. A batch is full unless its source has ended or failed, gives `CUT`, or is no
    list and has had nothing more for `max_wait`. An exception of the source's own comes after the batch of what it gave
    before. A DataError in place of a picture is passed on, so that what is known to be unreadable keeps its place.

    Parameters
    ----------
    pictures : read in another thread; may never end.
    workers : threads that decode.
    fit : how they become squares, see `octfast.data.preprocess.resize`.
    limits : of their quality, which then is among the remarks, see `octfast.model.quality.quality_notes`.
    max_wait : seconds that a batch waits for more; None until it is full.
    """
    source = _as_iterable(pictures)
    max_wait = None if isinstance(source, list | tuple) else max_wait
    found: queue.Queue[tuple[Any, Future] | BaseException | None] = queue.Queue(maxsize=2 * bs)
    stop = threading.Event()
    read = partial(_read, size=size, fit=fit, limits=limits)
    threading.Thread(target=_feed, args=(source, read, workers, found, stop), daemon=True).start()
    try:
        while True:
            batch, end = _collect(found, bs, max_wait)
            if batch:
                yield [Read(picture, *future.result()) for picture, future in batch]
            if isinstance(end, BaseException):
                raise end
            if end is _END:
                return
    finally:
        stop.set()


def decode_picture(picture: Picture) -> Image.Image:
    """A picture of any kind that a Predictor takes as an 8-bit grey PIL image of its own size.

    Raises
    ------
    DataError : it cannot be read, has no or more than 100 million pixels, or is an array of another kind.
    """
    return _decoded(picture).grey


def display_name(picture: Any) -> str:
    """What a picture is called in a message: its path in printable characters, or "the picture"."""
    return repr(str(picture))[1:-1] if isinstance(picture, str | Path) else "the picture"


def _decoded(picture: Picture) -> Decoded:
    if isinstance(picture, np.ndarray):
        picture = _from_array(picture)
    if isinstance(picture, Image.Image):
        if not picture.width * picture.height:
            raise DataError(f"the picture has {picture.width} x {picture.height} pixels", "give one that has some")
    elif not isinstance(picture, str | Path | bytes):
        kind = type(picture).__name__
        raise DataError(f"a {kind} is not a picture", "give a path, the bytes of a file, a PIL image or a uint8 array")
    return decode(picture, name=display_name(picture))


def _from_array(samples: np.ndarray) -> Image.Image:
    grey = samples.ndim == 2 and samples.dtype in (np.uint8, np.uint16)
    colour = samples.ndim == 3 and samples.shape[2] in (1, 3, 4) and samples.dtype == np.uint8
    if not (grey or colour) or not samples.size:
        raise DataError(
            f"an array of {samples.dtype} of shape {samples.shape} is not a picture",
            "give uint8 of shape (H, W) or (H, W, 3)",
        )
    return Image.fromarray(np.ascontiguousarray(samples[..., 0] if colour and samples.shape[2] == 1 else samples))


def _as_iterable(pictures: Iterable[Picture | DataError] | Picture) -> Iterable[Picture | DataError]:
    """Several pictures, also where a single one was given: a path would otherwise be read letter by letter."""
    if isinstance(pictures, np.ndarray):
        one = pictures.ndim < 3 or (pictures.ndim == 3 and pictures.shape[2] in (1, 3, 4))
        return [pictures] if one else list(pictures)
    if isinstance(pictures, str | Path | bytes | Image.Image):
        return [pictures]
    return pictures


def _feed(
    pictures: Iterable[Picture | DataError],
    read: Callable[[Picture | DataError], tuple[np.ndarray | DataError, tuple[str, ...]]],
    workers: int,
    found: queue.Queue,
    stop: threading.Event,
) -> None:
    end: BaseException | None = None
    with ThreadPoolExecutor(workers) as pool:
        try:
            for picture in pictures:
                if not _put(found, CUT if picture is CUT else (picture, pool.submit(read, picture)), stop):
                    return
        except BaseException as e:
            end = e
        _put(found, end, stop)


def _read(
    picture: Picture | DataError, size: int, fit: str, limits: Mapping[str, float] | None
) -> tuple[np.ndarray | DataError, tuple[str, ...]]:
    if isinstance(picture, DataError):
        return picture, ()
    try:
        found = _decoded(picture)
        small = np.asarray(resize(found.grey, size, fit))
        return small, (
            *(words for _, words in unusual(found, small)),
            *(quality_notes(small, limits) if limits else ()),
        )
    except DataError as e:
        return e, ()


def _put(found: queue.Queue, item: Any, stop: threading.Event) -> bool:
    """Put an item into the queue; False where nobody takes any more."""
    while not stop.is_set():
        try:
            found.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def _collect(found: queue.Queue, bs: int, max_wait: float | None) -> tuple[list[tuple[Any, Future]], Any]:
    """The next batch, and `_END` or the source's own exception where there is no more after it."""
    batch: list[tuple[Any, Future]] = []
    while len(batch) < bs:
        try:
            # Never without a time-out, since Windows does not hear Ctrl-C meanwhile.
            item = found.get(timeout=max_wait if batch and max_wait else 1.0)
        except queue.Empty:
            if batch and max_wait:
                break
            continue
        if item is None:
            return batch, _END
        if isinstance(item, BaseException):
            return batch, item
        if item is not CUT:
            batch.append(item)
        elif batch:
            break
    return batch, None
