"""Rows of answers by several processes: each reads and answers for a few files at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from octfast.data.scans import IMAGE_SUFFIXES
from octfast.data.volumes.reader import VolumeReader
from octfast.deploy.predict.inputs import Item
from octfast.deploy.predict.rows import Row, Table, Wanted, stream_rows
from octfast.deploy.predictor import Predictor
from octfast.model.bundle.carry import packed, unpacked
from octfast.model.forward import batch_of
from octfast.processes import Computed, Content, Kinds, current

Numbered = list[tuple[int, Item]]


def kinds() -> Kinds:
    """The questions of a prediction that another process answers, see `octfast.processes.Group.assist`."""
    return {"rows": _answer}


def rows_of(
    table: Table, items: Iterable[tuple[int, Item]], reader: VolumeReader, bs: int = 16
) -> Generator[Row, None, None]:
    """As `stream_rows`, divided among the processes that work together, where there are several."""
    group = current()
    if group is None:
        yield from stream_rows(table, items, reader, bs)
        return
    predictor = table.predictor
    chunks = _chunks(items, batch_of(predictor.info, bs) * (8 if predictor.device.type == "cuda" else 1))
    about, arrays = packed(predictor.model, predictor.info, predictor.unlike)
    about |= {
        "wanted": asdict(table.wanted),
        "chunks": [[[n, *asdict(item).values()] for n, item in chunk] for chunk in chunks],
        "memory": reader.memory,
        "any_modality": reader.any_modality,
        "bs": bs,
        "precision": predictor.precision,
        "device": predictor.device.type,
    }

    def own(claims: Iterator[int]) -> Iterator[Content]:
        return _computed(table, (chunks[k] for k in claims), reader, bs)

    for given, pixels in group.deal("rows", about, len(chunks), own, arrays):
        for i, (item, values, last, of_volume) in enumerate(given["rows"]):
            yield Row(item, values, last, of_volume, pixels.get(str(i), values["path"]))


def _chunks(items: Iterable[tuple[int, Item]], each: int) -> list[Numbered]:
    """So many pictures one after the other, and every other file alone: a volume holds many."""
    chunks: list[Numbered] = []
    pictures = False
    for n, item in items:
        is_picture = bool(item.problem) or item.path.lower().endswith(tuple(IMAGE_SUFFIXES))
        if not (chunks and pictures and is_picture and len(chunks[-1]) < each):
            chunks.append([])
        chunks[-1].append((n, item))
        pictures = is_picture
    return chunks


def _answer(about: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Computed:
    model, info, unlike = unpacked(about, arrays)
    predictor = Predictor(model, info, precision=about["precision"], device=about["device"], unlike=unlike)
    table = Table(predictor, Wanted(**about["wanted"]))
    chunks = [[(n, Item(*item)) for n, *item in chunk] for chunk in about["chunks"]]

    def compute(claims: Iterator[int]) -> Iterator[Content]:
        with VolumeReader(memory=about["memory"], any_modality=about["any_modality"]) as reader:
            yield from _computed(table, (chunks[k] for k in claims), reader, about["bs"])

    return compute


def _computed(table: Table, chunks: Iterable[Numbered], reader: VolumeReader, bs: int) -> Iterator[Content]:
    """The rows of each chunk, with the pixels of B-scans over which a heat map is to be laid."""
    for chunk in chunks:
        rows = list(stream_rows(table, chunk, reader, bs))
        pixels = {str(i): row.picture for i, row in enumerate(rows) if isinstance(row.picture, np.ndarray)}
        about = [[row.item, row.values, row.last, row.of_volume] for row in rows]
        yield {"rows": about}, pixels if table.wanted.heat_maps else {}
