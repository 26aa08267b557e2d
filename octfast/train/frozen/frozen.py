"""Runs the frozen part of a Learner once a view, and trains the rest on its stored activations with fastai."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import BnFreeze
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import ColReader
from fastai.learner import Learner
from fastai.torch_core import trainable_params
from torch import Tensor, nn

from octfast.console import track
from octfast.data.units import Units
from octfast.errors import UsageError
from octfast.model.compiler import compile_in_place
from octfast.model.engine import Engine, half_where_fast, make_engine, one_thread
from octfast.train.alone import OneProcess
from octfast.train.callbacks import EpochLog
from octfast.train.frozen.bags import BagHeads, BagLoader
from octfast.train.frozen.dealt import activations
from octfast.train.frozen.folds import FoldHeads, FoldLoader
from octfast.train.frozen.folds import accuracy as fold_accuracy
from octfast.train.frozen.part import FrozenLearner, StoredLoaders, stored_batch
from octfast.train.frozen.views import Views
from octfast.train.store.files import StoreSpec
from octfast.train.store.loader import StoreLoader
from octfast.train.store.rows import Rows
from octfast.train.store.store import FeatureStore, open_store

log = logging.getLogger("octfast")

# Gives on what it is given: of some scans' activations, block by block.
Follow = Callable[["Frozen", Views, Sequence[np.ndarray], Iterator[np.ndarray]], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Frozen:
    """The frozen part of a Learner and what runs through it: all that its stored activations depend on.

    Attributes
    ----------
    prefix, suffix : the modules before the cut, and those that are trained.
    sources : the views of the training and of the validation scans.
    runner : the engine of the prefix.
    shapes : of what it gives of one scan.
    dtype : of what is stored.
    """

    prefix: list[nn.Module]
    suffix: list[nn.Module]
    sources: tuple[Views, Views]
    runner: Engine
    shapes: list[tuple[int, ...]]
    dtype: str

    @functools.cached_property
    def body(self) -> str:
        """A digest of the prefix."""
        return hash_of_body(self.prefix)

    def spec(self, source: Views) -> StoreSpec:
        """The store of one of the sources."""
        return StoreSpec(
            key={"body": self.body, "engine": self.runner.key, "precision": self.runner.precision, **source.key()},
            scans=len(source),
            views=source.views,
            dim=sum(int(np.prod(s)) for s in self.shapes),
            dtype=self.dtype,
            block=source.block,
        )


def frozen_part(
    learn: Learner,
    *,
    views: int = 1,
    seed: int = 0,
    engine: str = "auto",
    precision: str = "auto",
    cache: str | Path | None = None,
    workers: int | None = None,
    compiled: bool = False,
) -> Frozen:
    """Cut a Learner's model behind what is frozen, and make ready what runs; see `frozen_learner`."""
    if views < 1:
        raise UsageError(f"views is {views}: at least one is needed", "views=0 is the Learner as it is: learn.fit(...)")
    prefix, suffix = cut_model(learn.model)
    dls = learn.dls
    device = torch.device(dls.device or "cpu")
    network = nn.Sequential(*prefix).eval()
    training = dls.train if views > 1 else dls.test_dl(dls.train.items)
    sources = Views(training, views, seed, device, workers), Views(dls.valid, 1, seed, device, workers)
    runner = make_engine(
        network,
        engine=engine,
        precision=precision,
        device=device,
        calibration=lambda: _sample(sources[0], 16),
        cache=cache,
        compiled=compiled,
    )
    with torch.no_grad():
        shapes = _shapes(network.to(device)(sources[0].augment(sources[0].decode([0]), [0])[0][:1]))
    dtype = "float32" if precision == "fp32" else "float16"
    return Frozen(prefix, suffix, sources, cast(Engine, runner), shapes, dtype)  # OpenVINO's has the same attributes


def frozen_learner(
    learn: Learner,
    *,
    views: int = 1,
    seed: int = 0,
    engine: str = "auto",
    precision: str = "auto",
    cache: str | Path | None = None,
    workers: int | None = None,
    bs: int | None = None,
    folds: np.ndarray | None = None,
    units: Units | None = None,
    units_a_batch: int = 4,
    compiled: bool = False,
    follow: Follow | None = None,
) -> FrozenLearner:
    """A Learner that trains the part of another that is not frozen, on stored activations of the frozen part.

    The frozen part, the prefix of the model, is run over the training set once for each view and once over the
    validation set. One view is the set as it is, prepared like validation; more are the set as the Learner's own
    DataLoader augments it. Epoch e trains on view e mod `views`. The
    modules that are trained, the suffix, are the Learner's own, so that its model is trained when the training ends.
    On a GPU a suffix with convolutions, as of "block5", is trained in mixed precision. Give callbacks to `fit`.

        fast = frozen_learner(learn)
        fast.fit_one_cycle(10, 2e-3)
        learn.predict("scan.jpeg")

    Parameters
    ----------
    learn : its model a Sequential, frozen up to a cut.
    views : readings of the training set: 1 as it is, more are augmented.
    seed : of the augmentation of the views.
    engine : that runs the frozen prefix: "auto", "torch" or "openvino" (see `octfast.model.engine`).
    precision : of the frozen prefix: "auto", "fp32", "bf16", "fp16" or, by OpenVINO, "int8". What it gives is stored
        in half precision; with "fp32" in float32.
    cache : folder of the stores; None takes the user's cache folder.
    workers : threads that decode; None takes one on a CPU, and beside a GPU one a core, up to 16.
    bs : batch size of the training; None takes the Learner's.
    folds : the fold, from 0, of each training scan, then of each validation scan. With them the head learns from all
        of these scans, beside it a copy a fold from those outside of the fold; validation loss and accuracy are
        those of each scan by the copy that it is held out from. Only for a head alone, with cross entropy.
    units : of the training scans, then of the validation scans: the head, a `BagHead`, learns one answer for all scans
        of a unit. Needs folds.
    units_a_batch : batch size, in units.
    compiled : whether torch.compile makes kernels of the frozen part, and of what is trained where that convolves.
    follow : is given what is computed, block by block, and gives it on.

    Returns
    -------
    The Learner of the suffix.

    Raises
    ------
    UsageError : nothing is frozen, or nothing is left to train; views below 1.
    OctfastError : see `octfast.train.store.store.open_store`.
    """
    frozen = frozen_part(
        learn,
        views=views,
        seed=seed,
        engine=engine,
        precision=precision,
        cache=cache,
        workers=workers,
        compiled=compiled,
    )
    runner = frozen.runner
    log.info(
        "the frozen part (%.1f million parameters) runs once a view, in %s",
        sum(p.numel() for p in nn.Sequential(*frozen.prefix).parameters()) / 1e6,
        runner.description,
    )
    stores = []
    for what, source in zip(("training", "validation"), frozen.sources, strict=True):
        compute = functools.partial(
            activations,
            learn,
            source,
            runner,
            training=what == "training",
            modules=len(frozen.prefix),
            body=frozen.body,
            dtype=frozen.dtype,
        )
        stores.append(_stored(what, frozen, source, compute, cache, follow))
    fast = learner_on(
        learn,
        stores,
        frozen.shapes,
        precision=precision,
        bs=bs,
        folds=folds,
        units=units,
        units_a_batch=units_a_batch,
        compiled=compiled,
    )
    fast.engine = runner
    return fast


def learner_on(
    learn: Learner,
    stores: Sequence[FeatureStore],
    shapes: Sequence[Sequence[int]],
    *,
    precision: str = "auto",
    bs: int | None = None,
    folds: np.ndarray | None = None,
    units: Units | None = None,
    units_a_batch: int = 4,
    compiled: bool = False,
) -> FrozenLearner:
    """What `frozen_learner` gives, on stores that are open already; it has no `engine`.

    Parameters
    ----------
    stores : of the training and of the validation scans.
    shapes : of what is stored of one scan.
    """
    dls = learn.dls
    prefix, suffix = cut_model(learn.model)
    device = torch.device(dls.device or "cpu")
    bs = bs or dls.train.bs
    part = nn.Sequential(Unpack(shapes), *suffix).to(device)
    targets = [_targets(dls.train), _targets(dls.valid)]
    shown = [functools.partial(stored_batch, learn, training) for training in (True, False)]
    stored = _loaders(
        learn,
        StoreLoader(
            stores[0], targets[0], bs=bs, shuffle=True, drop_last=True, device=device, pictures=shown[0], **_drawn(dls)
        ),
        StoreLoader(stores[1], targets[1], bs=max(bs, 256), device=device, pictures=shown[1]),
    )
    learning = None
    if folds is not None:
        if _drawn(dls):
            raise UsageError("folds need every scan once an epoch", "leave folds out, or dl_type and wgts")
        kind = FoldHeads if units is None else BagHeads
        heads = kind(part[0], part[1:], int(folds.max()) + 1).to(device)
        learning = (_fold_loaders(learn, Rows(stores), torch.cat(targets), folds, units, bs, units_a_batch), heads)
    past = learn._grab_cbs(EpochLog)
    fast = FrozenLearner(
        learn,
        stored,
        part,
        prefix=prefix,
        digest=lambda: hash_of_body(prefix),
        learning=learning,
        loss_func=learn.loss_func,
        opt_func=learn.opt_func,
        lr=learn.lr,
        splitter=(lambda model: _groups(learn, model)) if folds is None else trainable_params,
        metrics=list(learn.metrics) if folds is None else fold_accuracy,
        path=learn.path,
        model_dir=learn.model_dir,
        wd=learn.wd,
        wd_bn_bias=learn.wd_bn_bias,
        train_bn=learn.train_bn,
        moms=learn.moms,
        # The epochs of the part are the whole's.
        cbs=[NextView(), BnFreeze(), EpochLog(past[0].rows if past else None)],
    )
    fast.stores = stores[0], stores[1]
    fast.folds, fast.units = folds, units
    if pays_mixed_precision(suffix, device):
        fast.add_cbs([ChannelsLast(), MixedPrecision()])
    elif device.type == "cpu":
        fast.pace = (half_where_fast if precision != "fp32" else nullcontext) if convolves(suffix) else one_thread
    if compiled and convolves(suffix):
        compile_in_place(part, device)
    fast.add_cb(OneProcess())
    return fast


def pays_mixed_precision(modules: Iterable[nn.Module], device: torch.device) -> bool:
    """Whether modules are trained faster in mixed precision: where they convolve on a GPU.

    A head on stored vectors is a few small matrix products, for which casting and scaling cost more than they save.
    """
    return device.type == "cuda" and convolves(modules)


def convolves(modules: Iterable[nn.Module]) -> bool:
    return any(isinstance(m, nn.modules.conv._ConvNd) for part in modules for m in part.modules())


def _stored(
    what: str, frozen: Frozen, source: Views, compute: Callable, cache: str | Path | None, follow: Follow | None
) -> FeatureStore:
    total = len(source) * source.views

    def fill(wanted: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        made = _activations(compute, wanted)
        return made if follow is None else follow(frozen, source, wanted, made)

    with track(f"frozen part over the {what} scans", total, "pictures") as update:
        return open_store(
            frozen.spec(source),
            fill,
            digests=source.digests,
            cache=cache,
            progress=lambda scans, _: update(scans * source.views, total),
        )


def _sample(source: Views, scans: int = 64) -> Iterator[Tensor]:
    """Batches of augmented scans from all over the training set, to calibrate int8 on."""
    blocks = -(-len(source) // source.block)
    chosen = sorted({round(i * blocks / 16) for i in range(16)} & set(range(blocks)))
    each = -(-scans // len(chosen))
    for block in chosen:
        rows = source.rows(block)
        rows = rows[:: max(1, len(rows) // each)][:each]
        yield source.augment(source.decode(rows), rows)[0][: len(rows)]


def cut_model(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Cut a Sequential before its first module that has anything to train.

    Dropout just before the cut goes with what is trained. Everything before the cut is assumed to be in eval mode.

    Returns
    -------
    (modules of the frozen prefix, modules of the suffix); one after the other they are the model.

    Raises
    ------
    UsageError : nothing is frozen, or all is.
    """
    parts = parts_of(model)
    first = next((i for i, m in enumerate(parts) if any(p.requires_grad for p in m.parameters())), len(parts))
    if first == len(parts):
        raise UsageError("nothing in this model can be trained", "unfreeze its head: learn.freeze()")
    # Batch norms alone may be frozen in what is trained, as those of the last block are.
    norms = {id(p) for part in parts for m in part.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    behind = (p for m in parts[first:] for p in m.parameters() if not p.requires_grad)
    held = sum(p.numel() for p in behind if id(p) not in norms)
    if held and any(True for m in parts[:first] for _ in m.parameters()):
        raise UsageError(
            f"{held:,} frozen parameters stand behind some that are trained: the frozen part is not one piece",
            "make the Learner with train_bn=False, so that the batch norms of its body are frozen with it",
        )
    while first and isinstance(parts[first - 1], nn.modules.dropout._DropoutNd):
        first -= 1
    if not any(True for m in parts[:first] for _ in m.parameters()):
        raise UsageError(
            "nothing at the start of this model is frozen",
            "freeze its body with learn.freeze(), made with train_bn=False so that its batch norms are frozen too",
        )
    return parts[:first], parts[first:]


class Unpack(nn.Module):
    """Turns stored rows, of shape (B, sum of sizes), back into the tensors they were made of: one, or a tuple."""

    def __init__(self, shapes: Sequence[Sequence[int]]):
        super().__init__()
        self.shapes = [tuple(s) for s in shapes]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        parts = x.split([int(np.prod(s)) for s in self.shapes], dim=1)
        out = tuple(p.reshape(-1, *s) for p, s in zip(parts, self.shapes, strict=True))
        return out if len(out) > 1 else out[0]


class NextView(Callback):
    """Epoch e trains on view e mod the number of views."""

    def before_train(self):
        self.dls.train.view = self.epoch % self.dls.train.store.shape[1]


def _activations(compute: Callable, wanted: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """For each array of rows an array of shape (len(rows), views, dim)."""
    computed: Generator[np.ndarray, None, None] = compute(np.concatenate(wanted).tolist())
    try:
        have: list[np.ndarray] = []
        for rows in wanted:
            while sum(map(len, have)) < len(rows):
                have.append(next(computed))
            joined = np.concatenate(have) if len(have) > 1 else have[0]
            yield joined[: len(rows)]
            have = [joined[len(rows) :]]
    finally:
        computed.close()


def parts_of(model: nn.Module) -> list[nn.Module]:
    """The modules that a Sequential of Sequentials runs one after the other."""
    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        return [part for child in model.children() for part in parts_of(child)]
    return [model]


def _shapes(out: Tensor | tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    return [tuple(o.shape[1:]) for o in (out if isinstance(out, tuple) else (out,))]


def _groups(learn: Learner, suffix: nn.Module) -> list[list[nn.Parameter]]:
    """The Learner's parameter groups, reduced to the parameters of the suffix."""
    here = {id(p) for p in suffix.parameters()}
    groups = [[p for p in group if id(p) in here] for group in learn.splitter(learn.model)]
    return [g for g in groups if g]


def _loaders(learn: Learner, *loaders: StoreLoader) -> StoredLoaders:
    made = StoredLoaders(*loaders, path=learn.path, device=loaders[0].device)
    made.whole, made.vocab, made.c = learn, learn.dls.vocab, len(learn.dls.vocab)
    return made


def _fold_loaders(
    learn: Learner, rows: Rows, targets: Tensor, folds: np.ndarray, units: Units | None, bs: int, units_a_batch: int
) -> StoredLoaders:
    """Loaders of scans, or of units, for heads of folds."""
    device = torch.device(learn.dls.device or "cpu")
    if units is None:
        return _loaders(
            learn,
            FoldLoader(rows, targets, folds, True, bs=bs, shuffle=True, drop_last=True, device=device),
            FoldLoader(rows, targets, folds, False, bs=max(bs, 256), device=device),
        )
    of = (rows, units, targets[units.first], folds[units.first])
    return _loaders(
        learn,
        BagLoader(*of, True, bs=units_a_batch, shuffle=True, drop_last=True, device=device),
        BagLoader(*of, False, bs=16, device=device),
    )


def _drawn(dls: DataLoaders) -> dict[str, Any]:
    """How an epoch's scans are drawn where the training DataLoader has its own way, as WeightedDL has."""
    if type(dls.train) is TfmdDL:
        return {}
    # A method would be bound to the new DataLoader.
    return {"get_idxs": lambda: dls.train.get_idxs(), "n": getattr(dls.train, "partial_n", None)}


def _targets(dl: Any) -> Tensor:
    labels = dl.dataset.tls[-1]
    items, reads = labels.items, labels.tfms.fs[0]
    if not (isinstance(items, pd.DataFrame) and isinstance(reads, ColReader) and len(reads.cols) == 1):
        return torch.tensor([int(labels[i]) for i in range(len(labels))])
    # What is read of a row is its class alone, so that one row of each is asked for, not a hundred thousand.
    codes, _ = pd.factorize(items[reads.cols[0]], use_na_sentinel=False)
    _, first = np.unique(codes, return_index=True)
    return torch.tensor([int(labels[int(i)]) for i in first])[torch.from_numpy(codes)]


def hash_of_body(prefix: Sequence[nn.Module]) -> str:
    """A digest of modules: what they are, and every number in them."""
    digest = hashlib.sha256(repr(prefix).encode())
    for name, tensor in nn.Sequential(*prefix).state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
