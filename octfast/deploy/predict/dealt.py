"""Answers by several processes: each reads and answers for a few files at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octfast.data.scans import IMAGE_SUFFIXES
from octfast.data.volumes.reader import VolumeReader
from octfast.deploy.predict.inputs import Item
from octfast.deploy.predict.rows import Origin, Row, Table, Wanted, pictures_of, stream_rows
from octfast.deploy.predictor import Answer, Predictor
from octfast.errors import DataError
from octfast.model.bundle.carry import packed, unpacked
from octfast.model.forward import batch_of
from octfast.model.prefetch import CUT
from octfast.processes import Computed, Content, Kinds, current

Numbered = list[tuple[int, Item]]
Said = tuple[Origin, Answer, Tensor | None]


def kinds() -> Kinds:
    """The questions of a prediction that another process answers, see `octfast.processes.Group.assist`."""
    return dict.fromkeys(_COMPUTED, _answer)


def rows_of(
    table: Table, items: Iterable[tuple[int, Item]], reader: VolumeReader, bs: int = 16
) -> Generator[Row, None, None]:
    """As `stream_rows`, divided among the processes that work together, where there are several."""
    if current() is None:
        yield from stream_rows(table, items, reader, bs)
        return
    chunks = _chunks(items, table.predictor, bs)
    for given, pixels in _dealt("rows", table.predictor, table.wanted, chunks, reader, bs):
        for i, (item, values, last, of_volume) in enumerate(given["rows"]):
            yield Row(item, values, last, of_volume, pixels.get(str(i), values["path"]))


def scans_of(
    predictor: Predictor, wanted: Wanted, items: Numbered, reader: VolumeReader, bs: int = 16, first: int = 0
) -> Iterator[Said]:
    """What a model of whole units says of each scan, and what `Predictor.pooled` takes; divided as `rows_of` is.

    Which scans share a batch, on which the last digits depend, is a matter of all items alone: not of how many
    processes there are, nor of how many items are done.

    Parameters
    ----------
    first : the number of the first item that is not done yet.
    """
    chunks = [chunk for chunk in _chunks(items, predictor, bs) if chunk[-1][0] >= first]
    if current() is None:
        said = _said(predictor, chunks, reader, bs)
    else:
        said = (one for content in _dealt("scans", predictor, wanted, chunks, reader, bs) for one in _received(content))
    yield from (one for one in said if one[0].item >= first)


def _said(predictor: Predictor, chunks: Iterable[Numbered], reader: VolumeReader, bs: int) -> Iterator[Said]:
    """What the model says of the scans of chunks, none of which shares a batch with another."""
    origins: deque[Origin] = deque()

    def pictures() -> Iterator[Any]:
        for k, chunk in enumerate(chunks):
            if k:
                yield CUT
            for n, item in chunk:
                for origin, picture in pictures_of(n, item, reader):
                    # Before the picture is handed on, so that its answer finds it.
                    origins.append(origin)
                    yield picture

    for answer, outputs in predictor.stream_scans(pictures(), bs):
        yield origins.popleft(), answer, outputs


def _chunks(items: Iterable[tuple[int, Item]], predictor: Predictor, bs: int) -> list[Numbered]:
    """A few batches of pictures one after the other, and every other file alone: a volume holds many."""
    each = batch_of(predictor.info, bs) * (8 if predictor.device.type == "cuda" else 1)
    chunks: list[Numbered] = []
    pictures = False
    for n, item in items:
        is_picture = bool(item.problem) or item.path.lower().endswith(tuple(IMAGE_SUFFIXES))
        if not (chunks and pictures and is_picture and len(chunks[-1]) < each):
            chunks.append([])
        chunks[-1].append((n, item))
        pictures = is_picture
    return chunks


def _dealt(
    kind: str, predictor: Predictor, wanted: Wanted, chunks: list[Numbered], reader: VolumeReader, bs: int
) -> Iterator[Content]:
    """What is computed of each chunk, by this process or another."""
    group = current()
    assert group is not None
    about, arrays = packed(predictor.model, predictor.info, predictor.unlike)
    about |= {
        "wanted": asdict(wanted),
        "chunks": [[[n, *asdict(item).values()] for n, item in chunk] for chunk in chunks],
        "memory": reader.memory,
        "any_modality": reader.any_modality,
        "bs": bs,
        "precision": predictor.precision,
        "device": predictor.device.type,
    }

    def own(claims: Iterator[int]) -> Iterator[Content]:
        return _COMPUTED[kind](predictor, wanted, (chunks[k] for k in claims), reader, bs)

    return group.deal(kind, about, len(chunks), own, arrays)


def _answer(about: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Computed:
    model, info, unlike = unpacked(about, arrays)
    predictor = Predictor(model, info, precision=about["precision"], device=about["device"], unlike=unlike)
    chunks = [[(n, Item(*item)) for n, *item in chunk] for chunk in about["chunks"]]
    computed, wanted = _COMPUTED[about["kind"]], Wanted(**about["wanted"])

    def compute(claims: Iterator[int]) -> Iterator[Content]:
        with VolumeReader(memory=about["memory"], any_modality=about["any_modality"]) as reader:
            yield from computed(predictor, wanted, (chunks[k] for k in claims), reader, about["bs"])

    return compute


def _rows(
    predictor: Predictor, wanted: Wanted, chunks: Iterable[Numbered], reader: VolumeReader, bs: int
) -> Iterator[Content]:
    """The rows of each chunk, with the pixels of B-scans over which a heat map is to be laid."""
    table = Table(predictor, wanted)
    for chunk in chunks:
        rows = list(stream_rows(table, chunk, reader, bs))
        about = [[row.item, row.values, row.last, row.of_volume] for row in rows]
        yield {"rows": about}, _pixels([row.picture for row in rows]) if wanted.heat_maps else {}


def _scans(
    predictor: Predictor, wanted: Wanted, chunks: Iterable[Numbered], reader: VolumeReader, bs: int
) -> Iterator[Content]:
    """What is said of the scans of each chunk, as `_received` takes it, with pixels as of rows."""
    for chunk in chunks:
        said = list(_said(predictor, [chunk], reader, bs))
        about, arrays = [], _pixels([answer.picture for _, answer, _ in said]) if wanted.heat_maps else {}
        for i, (origin, answer, outputs) in enumerate(said):
            error = None if answer.error is None else answer.error.message
            about.append([asdict(origin), error, list(map(str, answer.remarks)), answer.distance])
            if answer.probabilities is not None and outputs is not None:
                arrays |= {f"p{i}": answer.probabilities, f"o{i}": outputs.numpy()}
        yield {"scans": about}, arrays


def _received(content: Content) -> Iterator[Said]:
    about, arrays = content
    for i, (place, error, remarks, distance) in enumerate(about["scans"]):
        origin, outputs = Origin(**place), arrays.get(f"o{i}")
        why = None if error is None else DataError(error)
        picture = arrays.get(str(i), origin.path)
        answer = Answer(picture, arrays.get(f"p{i}"), why, tuple(remarks), distance)
        yield origin, answer, None if outputs is None else torch.from_numpy(outputs.copy())


def _pixels(pictures: list[Any]) -> dict[str, np.ndarray]:
    return {str(i): picture for i, picture in enumerate(pictures) if isinstance(picture, np.ndarray)}


_COMPUTED: dict[str, Callable[..., Iterator[Content]]] = {"rows": _rows, "scans": _scans}
