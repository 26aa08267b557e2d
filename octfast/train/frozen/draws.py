"""Seeds of their own for what draws at random: for all that is called, or for each scan of a batch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


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


class DrawEach(TorchDispatchMode):
    """Inside, each row of a tensor of B rows that torch fills at random is drawn from a generator of the row's own.

    So draw fastai's transforms of batches, a number a scan: the scans are still transformed at once, and what becomes
    of one depends on no other. Rows are drawn on the CPU for every device.

    Parameters
    ----------
    seeds : of each row.

    Attributes
    ----------
    others : how many draws were of another kind, and came from the global state.
    """

    def __init__(self, seeds: Sequence[Sequence[int]]):
        super().__init__()
        words = [np.random.SeedSequence(tuple(seed)).generate_state(1, np.uint64)[0] for seed in seeds]
        self._generators = [torch.Generator().manual_seed(int(word >> np.uint64(1))) for word in words]
        self.others = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        x = args[0] if args else None
        # Functions such as uniform_ and bernoulli_, which fill a tensor in place.
        fills = func.overloadpacket.__name__.endswith("_")
        if not (fills and isinstance(x, Tensor)) or x.shape[:1] != (len(self._generators),) or kwargs:
            self.others += 1
            return func(*args, **kwargs)
        rows = torch.empty(x.shape, dtype=x.dtype)
        for i, generator in enumerate(self._generators):
            func(rows[i], *args[1:], generator=generator)
        return x.copy_(rows)
