"""The augmented views of the scans of a fastai DataLoader, block by block, and a key of all that determines them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.torch_core import to_device
from fastai.vision.augment import RandTransform
from torch import Tensor

from octfast.files import in_threads, sha256_of, usable_cores
from octfast.train.frozen.draws import DrawEach, seeded
from octfast.train.store.reuse import PICTURES, SCANS, digest_of

# A block has 64 scans beside a GPU and 16 on a CPU, of scans up to 768 x 768, which augmentation brings down to
# 512 x 512, and fewer of larger ones: what a body keeps of a batch grows with its pixels.
_BLOCK_PIXELS = 768 * 768
# Digests of files by path, size and time of their last change, as several DataLoaders of a process are of the same.
_digests: dict[tuple[str, int, int, int], bytes] = {}
# So many scans, those with the lowest digests, stand in a key with what their views look like.
_PROBES = 16


class Views:
    """The scans of a fastai DataLoader in the order of its data set, block by block, each in several augmented views.

    What a view of a scan looks like depends on the scan's content, the transforms and the seed, not on its place nor on
    other scans.

    Parameters
    ----------
    dl : its own transforms make the views.
    views : of each scan.
    seed : of the augmentation; each view of each scan draws from a seed of its own, made of this one.
    device : that batch transforms run on.
    workers : threads that decode; None takes one on a CPU, and beside a GPU one a core, up to 16.
    """

    def __init__(self, dl: Any, views: int, seed: int, device: torch.device, workers: int | None):
        self.dl = dl
        self.views = views
        self.seed = seed
        self.device = device
        self.workers = max(1, workers or (min(16, usable_cores()) if device.type == "cuda" else 1))
        # fastai tells its transforms which split they belong to only when a loader is first iterated.
        dl.before_iter()
        # Random transforms of single items, such as fastai's Resize with a crop, draw from the global state.
        self.random_items = any(isinstance(t, RandTransform) for t in dl.after_item.fs) and dl.split_idx == 0
        self.block = block_of(self._pixels(), device)

    def __len__(self) -> int:
        return len(self.dl.dataset)

    def rows(self, block: int) -> list[int]:
        return list(range(block * self.block, min(len(self), (block + 1) * self.block)))

    @functools.cached_property
    def digests(self) -> np.ndarray:
        """The SHA-256 of each scan's content, uint8 of shape (scans, 32)."""
        return _digests_of_items(self.dl, self.workers)

    @functools.cached_property
    def one_by_one(self) -> bool:
        """Whether batch transforms draw what is not a number a scan, so that each scan must be transformed alone."""
        rows = self._probes[:1]
        with seeded(0):
            before = random.getstate(), repr(np.random.get_state())
            with DrawEach([(0,)] * self.block) as draws:
                self.dl.after_batch((self._on_device(self.decode(rows)).clone(),))
            return bool(draws.others) or before != (random.getstate(), repr(np.random.get_state()))

    def decode(self, rows: Sequence[int]) -> Any:
        """Decode at most a block of scans and put them into a batch, before batch transforms.

        The last is repeated until the block is full: what a network gives of a scan may depend on the batch's size.
        """
        return self._batch([self.dl.do_item(i) for i in rows])

    def augment(self, batch: Any, rows: Sequence[int], size: int | None = None) -> list[Tensor]:
        """All views of decoded scans, float32 of shape (block, 3, H, W) each, of which the first len(rows) count.

        batch : of `decode`, or its first `size` scans; None where items draw at random, which are decoded anew for each
            view.
        size : so many scans in place of a block.
        """
        return list(self.each_view(batch, rows, size))

    def each_view(self, batch: Any, rows: Sequence[int], size: int | None = None) -> Iterator[Tensor]:
        """The views of `augment`, each made when the one before has been taken."""
        size = size or self.block
        if batch is not None:
            batch = self._on_device(batch)
        for view in range(self.views):
            seeds = [(self.seed, *words, view) for words in self.digests[rows].view("<u4")[:, :4].tolist()]
            if self.random_items:
                items = []
                for row, seed in zip(rows, seeds, strict=True):
                    with seeded(*seed):
                        items.append(self.dl.do_item(row))
                x = self._on_device(self._batch(items, size))
            else:
                x = batch.clone()
            if self.one_by_one:
                x = self._each_alone(x, seeds, size)
            else:
                seeds += seeds[-1:] * (size - len(seeds))
                with seeded(self.seed, view), DrawEach(seeds):
                    x = self.dl.after_batch((x,))[0]
            yield x.as_subclass(Tensor)

    def prefetch(self, wanted: Sequence[int]) -> Iterator[tuple[list[int], Any]]:
        """The scans asked for, a block at a time, decoded by threads while the caller computes.

        Gives (rows, batch); None in place of a batch that is drawn anew for each view.
        """
        yield from self.prefetch_blocks(self.blocks(wanted))

    def blocks(self, wanted: Sequence[int]) -> list[list[int]]:
        """The scans asked for, a block at a time."""
        return [list(wanted[i : i + self.block]) for i in range(0, len(wanted), self.block)]

    def prefetch_blocks(self, blocks: Iterable[list[int]]) -> Iterator[tuple[list[int], Any]]:
        """As `prefetch`, of blocks that are taken as they are needed."""
        if self.random_items:
            yield from ((rows, None) for rows in blocks)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            ahead: deque[tuple[list[int], Future]] = deque()
            left = iter(blocks)
            try:
                while True:
                    while len(ahead) < self.workers + 1 and (rows := next(left, None)) is not None:
                        ahead.append((rows, pool.submit(self.decode, rows)))
                    if not ahead:
                        return
                    rows, future = ahead.popleft()
                    yield rows, future.result()
            finally:
                for _, future in ahead:
                    future.cancel()

    def key(self) -> dict[str, Any]:
        """What determines the views: the scans, the transforms (by what they make of a few scans), versions."""
        # A transform may depend on more than the parameters it was made with, which shows in what it makes of scans.
        views = self.augment(None if self.random_items else self.decode(self._probes), self._probes)
        made = [hashlib.sha256() for _ in self._probes]
        for x in views:
            for digest, picture in zip(made, x.cpu().numpy(), strict=False):
                digest.update(picture.tobytes())
        names = [self.digests[row].tobytes().hex()[:20] for row in self._probes]
        return {
            SCANS: digest_of(self.digests),
            PICTURES: {name: digest.hexdigest()[:20] for name, digest in zip(names, made, strict=True)},
            "views": self.views,
            "seed": self.seed if self.dl.split_idx == 0 else 0,
            "transforms": describe([*self.dl.after_item.fs, *self.dl.after_batch.fs]),
            "device": self.device.type,
            "versions": {p: version(p) for p in ("torch", "fastai", "pillow", "numpy")},
        }

    @functools.cached_property
    def _probes(self) -> list[int]:
        """Scans that most sets with some of the same scans would choose as well."""
        first = np.ascontiguousarray(self.digests[:, :8]).view(">u8")[:, 0]
        return [int(row) for row in np.argsort(first, kind="stable")[:_PROBES]]

    def _pixels(self) -> int:
        """Of the first scan as it is decoded."""
        if not len(self):
            return 1
        with seeded(0):
            item = self.dl.do_item(0)
        shape = getattr(item[0] if isinstance(item, tuple) else item, "shape", ())
        return int(np.prod(tuple(shape)[-2:])) if len(shape) >= 2 else 1

    def _batch(self, items: list[Any], size: int | None = None) -> Any:
        batch = self.dl.do_batch(items + items[-1:] * ((size or self.block) - len(items)))[0]
        return batch.pin_memory() if self.device.type == "cuda" else batch

    def _on_device(self, batch: Any) -> Any:
        return to_device(batch, self.device, non_blocking=True) if isinstance(batch, Tensor) else batch

    def _each_alone(self, batch: Any, seeds: Sequence[Sequence[int]], size: int) -> Tensor:
        out = []
        for i, seed in enumerate(seeds):
            with seeded(*seed):
                out.append(self.dl.after_batch((batch[i : i + 1],))[0])
        return torch.cat(out + out[-1:] * (size - len(out)))


def block_of(pixels: int, device: torch.device) -> int:
    """How many scans make a block, by the pixels of one as it is decoded, before augmentation."""
    most = 64 if device.type == "cuda" else 16
    return max(1, min(most, most * _BLOCK_PIXELS // pixels))


def describe(value: Any) -> Any:
    """A transform's class, the parameters it was made with and, likewise, what it contains, as JSON takes them."""
    if value is None or isinstance(value, bool | int | float | str):
        return value if not isinstance(value, float) else repr(float(value))
    if isinstance(value, np.generic):
        return describe(value.item())
    if isinstance(value, Tensor | np.ndarray):
        return describe(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [describe(v) for v in value]
    if isinstance(value, functools.partial):
        return [describe(value.func), describe(value.args), describe(value.keywords)]
    if isinstance(value, type) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    # Other attributes hold what a transform last drew.
    names = {
        n
        for c in type(value).__mro__
        if "__init__" in vars(c)
        for n in inspect.signature(vars(c)["__init__"]).parameters
    }
    given = {n: v for n, v in getattr(value, "__dict__", {}).items() if n in names - {"split_idx"}}
    return {"class": describe(type(value)), **{n: describe(given[n]) for n in sorted(given)}}


def _digests_of_items(dl: Any, workers: int) -> np.ndarray:
    """A digest of the content of each scan, in order; where they lie on the disk plays no part."""
    items = dl.items
    if hasattr(items, "columns"):
        items = list(items["path"]) if "path" in items.columns else items.to_json(orient="values").split("],")

    def one(item: Any) -> bytes:
        if isinstance(item, str | Path) and Path(item).is_file():
            return digest_of_file(item)
        return hashlib.sha256(json.dumps(item, default=repr).encode()).digest()

    return np.frombuffer(b"".join(in_threads(one, items, max(2, workers))), dtype=np.uint8).reshape(-1, 32)


def digest_of_file(path: str | Path) -> bytes:
    """The SHA-256 of a file's content; read once in a process, unless it has changed since."""
    about = Path(path).stat()
    # A file that is put in another's place may bring its date along.
    key = (str(path), about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    if key not in _digests:
        _digests[key] = bytes.fromhex(sha256_of(Path(path)))
    return _digests[key]
