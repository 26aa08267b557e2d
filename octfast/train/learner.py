"""oct_learner: fastai's vision_learner on a frozen pretrained body, with the batch norm truly frozen."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fastai.callback.schedule  # noqa: F401  (gives Learner fit_one_cycle and lr_find)
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.fp16 import MixedPrecision
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.losses import BaseLoss, CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
from fastai.vision.learner import model_meta, vision_learner
from torch import nn

from octfast.data.loaders import Squeeze
from octfast.errors import UsageError, WeightsError
from octfast.model.arch import Arch, body_groups, check_patches, drop_classifier, find_arch, make_network
from octfast.model.bundle.info import BundleInfo
from octfast.model.engine import half_where_fast
from octfast.model.heads import body_and_head, check_head
from octfast.model.pooling import bag_head, pooling_of
from octfast.model.weights.load import WeightsReport, load_weights
from octfast.model.weights.untrained import calibrate_batch_norm
from octfast.train.alone import OneProcess
from octfast.train.callbacks import EpochLog, FrozenEval

log = logging.getLogger("octfast")


@dataclass(frozen=True)
class OctParts:
    """What the model of a Learner is made of; a Learner of octfast keeps it as its attribute `oct`.

    Attributes
    ----------
    arch : the network that the body was cut from.
    head : the head's name, see `octfast.model.heads`.
    weights : where the body's weights came from, and which of them.
    level : what has one answer, one of `octfast.data.units.LEVELS`.
    pooling : how the scans of a unit become its answer, see `octfast.model.pooling.pooling_of`; None at the level of
        scans.
    """

    arch: Arch
    head: str
    weights: WeightsReport
    level: str = "scan"
    pooling: dict[str, Any] | None = None


class NLLLossFlat(BaseLoss):
    """Negative log-likelihood of a model that gives log-probabilities, as the article's head does."""

    def __init__(self, *args, axis: int = -1, **kwargs):
        super().__init__(nn.NLLLoss, *args, axis=axis, **kwargs)

    def decodes(self, x):
        """The class index of each row."""
        return x.argmax(dim=self.axis)

    def activation(self, x):
        """The probabilities."""
        return torch.exp(x)


def oct_learner(
    dls: DataLoaders,
    arch: str = "vgg16_bn",
    *,
    head: str = "linear",
    weights: str | Path = "auto",
    metrics: Callable | Sequence[Callable] = accuracy,
    seed: int = 0,
    unfreeze: str = "head",
    random_layers: bool = False,
    **kwargs,
) -> Learner:
    """A fastai Learner that trains a new head on a pretrained body.

    The body is frozen, its batch norms and dropouts always in eval mode. On a GPU the Learner works in mixed precision
    and channels last. The parameter groups are the body up to its last block, that block, and the head.

    Parameters
    ----------
    dls : from `oct_dataloaders`.
    arch : a torchvision name that fastai knows, or any timm name.
    head : "linear", "root", "octfast" (two layers), "fastai" or "article" (see `octfast.model.heads`).
    weights : "auto" takes those that torch or timm have stored, else downloads them; or a file; or "none", which leaves
        the body untrained and sets its batch norms to the training scans.
    seed : of the untrained weights.
    unfreeze : "head", "block5" (the last block too) or "all".
    random_layers : whether the article's two frozen 4096-wide layers may stay random where the weights lack them.
    kwargs : for `vision_learner`: loss_func, opt_func, wd, path, model_dir, cbs ...

    Returns
    -------
    The Learner; `learn.oct` says what its model is made of, see `OctParts`.

    Raises
    ------
    UsageError : an unknown architecture or head, or nothing to unfreeze as asked.
    WeightsError : no weights, a file of another architecture, or one without layers that the head needs.
    """
    found = find_arch(arch)
    check_head(head, found)
    size = _size(dls)
    set_seed(seed)
    network = make_network(found, size)
    check_patches(network, found, size)
    if head != "article":
        drop_classifier(network)
    needed = ("features.",) if found.is_vgg else ()
    report = load_weights(network, found.own_name, weights, needed=needed)
    if head == "article" and any(name.startswith(("classifier.0", "classifier.3")) for name in report.missing):
        said = f"the two frozen 4096-wide layers of --head article, which {report.file} lacks"
        if not random_layers:
            raise WeightsError(
                f"no weights for {said}",
                f"give a file of the whole {found.name}, another --head, or --random-layers to leave them random",
            )
        log.warning("random weights in %s: expect a low accuracy", said)
    match_normalisation(dls, found)
    set_seed(seed)
    body, top = body_and_head(network, found, head, len(dls.vocab))
    kwargs = _settings(head, {"metrics": metrics, **kwargs})
    with _in_model_meta(body) as made:
        learn = vision_learner(
            dls,
            made,
            pretrained=False,
            normalize=False,
            custom_head=top,
            # The other heads come initialised; fastai would overwrite what they start from.
            init=None if head != "octfast" else nn.init.kaiming_normal_,
            train_bn=False,
            **{**kwargs, "cbs": [FrozenEval(), EpochLog(), *_listed(kwargs.get("cbs"))]},
        )
    if report.source == "none":
        _calibrate(learn)
    else:
        log.info("%s", report.describe())
    _on_its_device(learn)
    learn.add_cb(OneProcess())
    learn.oct = OctParts(found, head, report)
    return unfreeze_to(learn, unfreeze)


def plain_learner(dls: DataLoaders, model: nn.Sequential, head: str, **kwargs: Any) -> Learner:
    """A Learner that trains a model as one of `oct_learner` does; nothing is frozen yet.

    Parameters
    ----------
    model : of body and head, all of it to be trained.
    head, kwargs : see `oct_learner`.
    """
    settings = _settings(head, {"metrics": accuracy, **kwargs})
    return _on_its_device(Learner(dls, model, splitter=oct_splitter, train_bn=False, cbs=[FrozenEval()], **settings))


def _settings(head: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a Learner trains a head by, where `kwargs` do not say otherwise."""
    loss = NLLLossFlat() if head == "article" else CrossEntropyLossFlat()
    decay = {"wd": 0.1} if head in ("linear", "root") else {}
    return {"loss_func": loss, "opt_func": Adam, **decay, **kwargs}


def _on_its_device(learn: Learner) -> Learner:
    if torch.device(learn.dls.device).type == "cuda":
        learn.add_cbs([ChannelsLast(), MixedPrecision()])
    return learn


def oct_splitter(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """Parameter groups: the body up to its last block, that block (where the body can be cut), and the head."""
    return [*body_groups(model[0]), list(model[1].parameters())]


def unfreeze_to(learn: Learner, what: str) -> Learner:
    """Freeze all but the head, all but the last block and the head, or nothing.

    The batch norms of the last block stay as its weights have them, since a batch of scans says less than what they
    were trained on; so were the rates of its training measured (docs/accuracy.md).

    Raises
    ------
    UsageError : another word, or "block5" of a body that cannot be cut.
    """
    if what == "head":
        learn.freeze()
    elif what == "block5":
        if len(learn.splitter(learn.model)) < 3:
            raise UsageError("this architecture has no last block to unfreeze", "use --unfreeze head or all")
        learn.freeze_to(-2)
        for m in learn.model[0].modules():
            if isinstance(m, nn.BatchNorm2d):
                m.requires_grad_(False)
    elif what == "all":
        learn.unfreeze()
    else:
        raise UsageError(f"cannot unfreeze {what!r}", "one of head, block5, all")
    return learn


def answer_for(learn: Learner, level: str, pooling: str = "attention", k: int | None = None) -> Learner:
    """Let a new Learner's head answer for all scans of a unit together.

    Such a head is trained by `frozen_learner` with `units`, and gives a number a scan more than there are classes.

    Parameters
    ----------
    level : what has one answer: "volume", "eye" or "patient".
    pooling, k : how the scans of a unit become its answer, see `octfast.model.pooling.pooling_of`.

    Raises
    ------
    UsageError : the head is none on pooled features, or there is no such pooling.
    """
    head = bag_head(learn.model[1], learn.oct.head, pooling_of(pooling, k))
    learn.model[1] = head.to(next(learn.model.parameters()).device)
    learn.oct = replace(learn.oct, level=level, pooling=head.pooling)
    # It was made of the parameters of before.
    learn.opt = None
    learn.freeze()
    return learn


def bundle_info(learn: Learner, *, training: dict | None = None, synthetic: bool = False) -> BundleInfo:
    """What a bundle says of this Learner's model."""
    norm = _normalisation(learn.dls)
    parts: OctParts = learn.oct
    return BundleInfo(
        arch=parts.arch.name,
        head=parts.head,
        classes=tuple(learn.dls.vocab),
        size=_size(learn.dls),
        fit=fit_of(learn.dls),
        mean=tuple(round(v, 6) for v in norm.mean.flatten().tolist()),
        std=tuple(round(v, 6) for v in norm.std.flatten().tolist()),
        # A bundle is passed on, and a path on this machine means nothing elsewhere.
        weights={k: v for k, v in parts.weights.to_dict().items() if k != "path"},
        training=training or {},
        synthetic=synthetic,
        level=parts.level,
        pooling=parts.pooling,
    )


@contextmanager
def _in_model_meta(body: nn.Module) -> Iterator[Callable]:
    """An architecture that `vision_learner` makes this body of.

    It ignores its argument `cut` (fastai 2.8.12), but it looks into fastai's table of architectures.
    """

    def made(pretrained):
        return body

    model_meta[made] = {"cut": lambda body: body, "split": oct_splitter}
    try:
        yield made
    finally:
        del model_meta[made]


def _size(dls: DataLoaders) -> int:
    for tfm in dls.valid.after_item.fs:
        if hasattr(tfm, "size") and tfm.split_idx != 0:
            return tfm.size if isinstance(tfm.size, int) else tfm.size[0]
    return dls.one_batch()[0].shape[-1]


def fit_of(dls: DataLoaders) -> str:
    """How the scans of DataLoaders become squares, as `octfast.data.fit` has it."""
    found = (tfm.fit for tfm in dls.valid.after_item.fs if isinstance(tfm, Squeeze) and tfm.split_idx != 0)
    return next(found, "squeeze")


def _normalisation(dls: DataLoaders) -> Normalize:
    return next(tfm for tfm in dls.train.after_batch.fs if isinstance(tfm, Normalize))


def match_normalisation(dls: DataLoaders, arch: Arch) -> None:
    """Normalise as the weights were trained: those of some timm architectures have statistics other than ImageNet's."""
    for dl in dls.loaders:
        norm = next((tfm for tfm in dl.after_batch.fs if isinstance(tfm, Normalize)), None)
        if norm is not None:
            norm.mean = torch.tensor(arch.mean, device=norm.mean.device).view(1, 3, 1, 1)
            norm.std = torch.tensor(arch.std, device=norm.std.device).view(1, 3, 1, 1)


def _calibrate(learn: Learner, scans: int = 96) -> None:
    """Set the batch norms of an untrained body to the training scans, which are not augmented for it."""
    bs = min(16, len(learn.dls.train_ds))
    n = min(scans, len(learn.dls.train_ds)) // bs * bs
    # Every k-th scan: the table is sorted by path, so the first ones are all of one class.
    rows = [round(i * len(learn.dls.train_ds) / n) for i in range(n)]
    table = learn.dls.train.items
    dl = learn.dls.test_dl(table.iloc[rows] if hasattr(table, "iloc") else [table[i] for i in rows], bs=bs)
    device = next(learn.model.parameters()).device
    body = learn.model[0].to(dl.device or device, memory_format=torch.channels_last)
    batches = (b[0].as_subclass(torch.Tensor) for b in itertools.islice(dl, n // bs))
    on_cpu = torch.device(dl.device or device).type == "cpu"
    with half_where_fast() if on_cpu else nullcontext():
        found = calibrate_batch_norm(body, (x.contiguous(memory_format=torch.channels_last) for x in batches))
    body.to(memory_format=torch.contiguous_format)
    if found:
        log.warning(
            "the body is untrained (random weights); its %d batch norms were set to %d training scans", found, n
        )
    else:
        log.warning("the body is untrained (random weights) and has no batch norms to set: expect little of it")


def _listed(cbs) -> list:
    return [] if cbs is None else list(cbs) if isinstance(cbs, list | tuple) else [cbs]
