"""What the frozen part gives of blocks of scans, computed here or dealt to several processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from fastai.learner import Learner
from torch import Tensor

from octfast.data.prepare import Prepared
from octfast.model.bundle.carry import packed
from octfast.model.engine import Engine
from octfast.model.memory import Passes
from octfast.processes import Content, Group, current
from octfast.train.config import TrainConfig
from octfast.train.frozen.views import Views
from octfast.train.learner import bundle_info

log = logging.getLogger("octfast")

# What is told of a scan; the rest of a Scans table is process 0's.
COLUMNS = ("path", "label", "patient", "split")
_PACKAGES = ("torch", "torchvision", "fastai", "pillow", "numpy", "timm")


def share(learn: Learner, prepared: Prepared, config: TrainConfig) -> None:
    """Let the other processes, where there are any, make what this Learner reads and runs."""
    group = current()
    if group is None:
        return
    about, arrays = packed(learn.model, bundle_info(learn))
    table = {name: prepared.scans[name].tolist() for name in COLUMNS}
    about |= {"config": asdict(config), "scans": table, "root": str(prepared.root), "versions": versions()}
    group.tell("scans", about, arrays)
    group.shared = learn


def versions() -> dict[str, str]:
    """Of what the activations depend on."""
    return {name: version(name) for name in _PACKAGES}


def activations(
    learn: Learner,
    source: Views,
    engine: Callable,
    wanted: Sequence[int],
    *,
    training: bool,
    modules: int,
    body: str,
    dtype: str,
) -> Generator[np.ndarray, None, None]:
    """What the frozen part gives of the scans asked for, a block of them at a time, of shape (n, views, dim).

    Parameters
    ----------
    source : of the Learner's training or validation scans.
    training : which of them.
    modules : how many the frozen part has.
    body : its digest.
    dtype : that the numbers will be stored in.
    """
    blocks = source.blocks(wanted)
    if (group := _helpers(learn, engine)) is None or len(blocks) < 2:
        yield from run_blocks(source, engine, blocks)
        return
    about = {
        "training": training,
        "views": source.views,
        "seed": source.seed,
        "device": source.device.type,
        "block": source.block,
        "workers": source.workers,
        "precision": getattr(engine, "precision", "fp32"),
        "compiled": bool(getattr(engine, "key", {}).get("compiled")),
        "modules": modules,
        "body": body,
        "dtype": dtype,
    }

    def own(claims: Iterator[int]) -> Iterator[Content]:
        return (({}, {"values": v}) for v in run_blocks(source, engine, (blocks[k] for k in claims)))

    given = {"digests": source.digests, "wanted": np.asarray(wanted, dtype=np.int64)}
    for _, arrays in group.deal("activations", about, len(blocks), own, given):
        yield arrays["values"]


def run_blocks(source: Views, engine: Callable, blocks: Iterable[list[int]]) -> Iterator[np.ndarray]:
    """What an engine gives of blocks of scans, of shape (n, views, dim) each."""
    passes = Passes("the frozen part")
    before: Tensor | None = None
    for rows, batch in source.prefetch_blocks(blocks):
        # Bound here, as a pass runs before the next block comes.
        def part(which: slice, rows: list[int] = rows, batch: Any = batch) -> Tensor:
            here, size = rows[which], source.block if passes.most is None else which.stop - which.start
            some = batch if batch is None or passes.most is None else batch[which]
            return torch.stack([flat(engine(x))[: len(here)] for x in source.each_view(some, here, size)], 1)

        block = torch.cat(passes(len(rows), part))
        if source.device.type != "cuda":
            yield block.cpu().numpy()
            continue
        # A block is fetched when the GPU has got the next one, so that it does not wait for the disk.
        if before is not None:
            yield before.cpu().numpy()
        before = block
    if before is not None:
        yield before.cpu().numpy()


def flat(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """What a network gave, a row a scan."""
    return torch.cat([o.flatten(1) for o in (out if isinstance(out, tuple) else (out,))], 1)


def _helpers(learn: Learner, engine: Callable) -> Group | None:
    group = current()
    if group is None or group.rank or group.shared is not learn:
        return None
    if not isinstance(engine, Engine):
        log.info("OpenVINO runs in process 0 alone; --engine torch is divided among all %d", group.size)
        return None
    return group
