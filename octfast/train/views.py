"""The augmented views of the scans of a fastai DataLoader, block by block, and a key of all that determines them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.torch_core import to_device
from fastai.vision.augment import RandTransform
from torch import Tensor

from octfast.files import sha256_of, usable_cores


class Views:
    """The scans of a fastai DataLoader in the order of its data set, block by block, each in several augmented views.

    Parameters
    ----------
    dl : its own transforms make the views.
    views : of each scan.
    seed : of the augmentation; each view of each block draws from a seed of its own, made of this one.
    device : that batch transforms run on.
    workers : threads that decode; None takes one on a CPU, and beside a GPU one a core, up to 16.
    """

    def __init__(self, dl: Any, views: int, seed: int, device: torch.device, workers: int | None):
        self.dl = dl
        self.views = views
        self.seed = seed
        self.device = device
        self.block = 64 if device.type == "cuda" else 16
        self.workers = max(1, workers or (min(16, usable_cores()) if device.type == "cuda" else 1))
        # fastai tells its transforms which split they belong to only when a loader is first iterated.
        dl.before_iter()
        # Random transforms of single items, such as fastai's Resize with a crop, draw from the global state.
        self.random_items = any(isinstance(t, RandTransform) for t in dl.after_item.fs) and dl.split_idx == 0

    def __len__(self) -> int:
        return len(self.dl.dataset)

    def rows(self, block: int) -> list[int]:
        return list(range(block * self.block, min(len(self), (block + 1) * self.block)))

    def decode(self, rows: Sequence[int]) -> Any:
        """Decode some scans and put them into a batch, before batch transforms."""
        batch = self.dl.do_batch([self.dl.do_item(i) for i in rows])[0]
        return batch.pin_memory() if self.device.type == "cuda" else batch

    def augment(self, batch: Any, block: int) -> list[Tensor]:
        """All views of a decoded block, float32 of shape (B, 3, H, W) each, each drawn from its own seed."""
        if isinstance(batch, Tensor):
            batch = to_device(batch, self.device, non_blocking=True)
        out = []
        for view in range(self.views):
            with seeded(self.seed, block, view):
                x = to_device(self.decode(self.rows(block)), self.device) if self.random_items else batch.clone()
                out.append(self.dl.after_batch((x,))[0].as_subclass(Tensor))
        return out

    def prefetch(self, wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """The blocks asked for, decoded by threads while the caller computes; None in place of one that draws anew."""
        if self.random_items:
            yield from ((b, None) for b in wanted)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            ahead: deque[tuple[int, Future]] = deque()
            left = iter(wanted)
            try:
                while True:
                    while len(ahead) < self.workers + 1 and (b := next(left, None)) is not None:
                        ahead.append((b, pool.submit(self.decode, self.rows(b))))
                    if not ahead:
                        return
                    b, future = ahead.popleft()
                    yield b, future.result()
            finally:
                for _, future in ahead:
                    future.cancel()

    def key(self) -> dict[str, Any]:
        """What determines the views: the files, the transforms (by what they make of the first block), versions."""
        first = self.augment(self.decode(self.rows(0)), 0)
        # A transform may depend on more than the parameters it was made with, which shows in what it makes of scans.
        made = hashlib.sha256()
        for x in first:
            made.update(x.cpu().numpy().tobytes())
        return {
            "scans": _hash_of_items(self.dl, self.workers),
            "views": self.views,
            "seed": self.seed if self.dl.split_idx == 0 else 0,
            "transforms": describe([*self.dl.after_item.fs, *self.dl.after_batch.fs]),
            "first_pictures": made.hexdigest()[:20],
            "device": self.device.type,
            "versions": {p: version(p) for p in ("torch", "fastai", "pillow", "numpy")},
        }


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


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Inside, Python, numpy and torch draw from a seed made of these numbers; afterwards they go on as before."""
    words = np.random.SeedSequence(entropy).generate_state(3)
    python, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(int(words[0]))
        np.random.seed(int(words[1]))
        torch.manual_seed(int(words[2]))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


def _hash_of_items(dl: Any, workers: int) -> str:
    """A digest of the contents of all scans, in order; where they lie on the disk plays no part."""
    items = dl.items
    if hasattr(items, "columns"):
        items = list(items["path"]) if "path" in items.columns else items.to_json(orient="values").split("],")

    def one(item: Any) -> bytes:
        if isinstance(item, str | Path) and Path(item).is_file():
            return bytes.fromhex(sha256_of(Path(item)))
        return hashlib.sha256(json.dumps(item, default=repr).encode()).digest()

    digest = hashlib.sha256()
    with ThreadPoolExecutor(max(2, workers)) as pool:
        for part in pool.map(one, items):
            digest.update(part)
    return digest.hexdigest()
