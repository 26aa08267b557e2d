"""The heads: one or two layers on pooled features, fastai's, and the article's on VGG's two 4096-wide layers."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from octfast.errors import UsageError
from octfast.model.arch import Arch, make_body

HEADS = ("linear", "root", "octfast", "fastai", "article")
# Heads on pooled features, which can be trained again and again on what is stored of them.
POOLED = ("linear", "root", "octfast")


def check_head(head: str, arch: Arch) -> None:
    """
    Raises
    ------
    UsageError : an unknown head, the article's on another family than VGG, or fastai's on several depths.
    """
    if head not in HEADS:
        near = difflib.get_close_matches(head, HEADS, n=1, cutoff=0.3)
        raise UsageError(
            f"no head named {head!r}", f"did you mean {near[0]}?" if near else f"one of {', '.join(HEADS)}"
        )
    if head == "article" and not arch.is_vgg:
        raise UsageError(f"the article's head needs a VGG network, not {arch.name}", "try --arch vgg16")
    if head == "fastai" and arch.depths:
        raise UsageError(f"fastai's head sees one map, not several: not {arch.name}", f"use --arch {arch.own_name}")


def body_and_head(network: Any, arch: Arch, head: str, n_classes: int) -> tuple[nn.Module, nn.Module]:
    """Cut a network into the body and head that `head` names.

    Parameters
    ----------
    network : what `make_network` gave, with its weights.
    n_classes : how many classes the head distinguishes.

    Returns
    -------
    (body, head), to be run one after the other. The head gives logits, of shape (B, n_classes); the article's gives
    log-probabilities.

    Raises
    ------
    UsageError : see `check_head`.
    """
    check_head(head, arch)
    if head == "article":
        return _article(network, arch, n_classes)
    if head == "fastai":
        return _fastai(network, arch, n_classes)
    body = make_body(network, arch)
    if arch.depths:
        return body, pooled_head(head, int(body[0].width), n_classes)  # type: ignore[index, arg-type]
    width = _timm_width(network) if arch.library == "timm" else _width(body)
    return body, pooled_head(head, width, n_classes)


def pooled_head(head: str, width: int, n_classes: int) -> nn.Sequential:
    """A head of `POOLED`, for features of this width."""
    if head == "octfast":
        return two_layer_head(width, n_classes)
    linear = linear_head(width, n_classes)
    return linear if head == "linear" else nn.Sequential(RootNorm(width), *linear[1:])


def set_dropout(head: nn.Module, share: float) -> None:
    """Let every dropout of a head leave out this share."""
    for module in head.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


@torch.no_grad()
def shift_logits(head: nn.Module, shift: Tensor) -> None:
    """Add a constant to each class's logit, in the head's last layer, so that the network stays what its name says.

    Parameters
    ----------
    shift : of shape (n_classes,).
    """
    linear = [m for m in head.modules() if isinstance(m, nn.Linear)][-1]
    if linear.bias is not None:
        linear.bias.add_(shift.to(linear.bias))
        return
    # The layer of fastai's head has no bias; what is added to the batch norm before it reaches each class through it.
    norm = [m for m in head.modules() if isinstance(m, nn.BatchNorm1d)][-1]
    norm.bias.add_(torch.linalg.pinv(linear.weight.float()) @ shift.to(linear.weight))


class RootNorm(nn.BatchNorm1d):
    """Batch norm of the square root of each feature, which keeps its sign.

    Means and deviations of activations have long tails, and a root draws large ones in. It is one module with the norm,
    as what has nothing to train would be taken for a part of the frozen body.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.root(x))

    @staticmethod
    def root(x: Tensor) -> Tensor:
        """The square root of each feature, with its sign."""
        # The small number keeps the slope finite at zero, for a body that is trained too.
        return torch.sign(x) * (torch.sqrt(x.abs() + 1e-6) - 1e-3)


def two_layer_head(width: int, n_classes: int) -> nn.Sequential:
    """The head of two layers, of 256 and `n_classes` units."""
    return nn.Sequential(
        nn.BatchNorm1d(width),
        nn.Dropout(0.1),
        nn.Linear(width, 256),
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(256),
        nn.Dropout(0.25),
        nn.Linear(256, n_classes),
    )


def linear_head(width: int, n_classes: int) -> nn.Sequential:
    """One layer that starts at zero, so that every class is as probable as another before the first step.

    In the few hundred steps that a small set allows, a layer that starts at random keeps much of its chance.
    """
    linear = nn.Linear(width, n_classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width), nn.Dropout(0.25), linear)


def _article(network: Any, arch: Arch, n_classes: int) -> tuple[nn.Module, nn.Module]:
    frozen = list(network.classifier.children())[:6]
    body = nn.Sequential(*make_body(network, arch, pool=False), network.avgpool, nn.Flatten(), *frozen)
    head = nn.Sequential(
        nn.Linear(4096, 256), nn.ReLU(inplace=True), nn.Dropout(0.4), nn.Linear(256, n_classes), nn.LogSoftmax(dim=1)
    )
    return body, head


def _fastai(network: Any, arch: Arch, n_classes: int) -> tuple[nn.Module, nn.Module]:
    if arch.library == "timm":
        # fastai's own TimmBody calls forward_features, which tracing loses; so the pooling is taken off instead.
        maps = _gives_maps(network)
        if maps:
            network.reset_classifier(0, "")
        return nn.Sequential(network), _fastai_head(_timm_width(network), n_classes, pool=maps)
    body = make_body(network, arch, pool=False)
    return body, _fastai_head(_width(body), n_classes, pool=True)


class AdaptiveConcatPool2d(nn.Module):
    """The maximum and the mean of each channel of a map side by side, as fastai pools."""

    def __init__(self):
        super().__init__()
        self.ap, self.mp = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.mp(x), self.ap(x)], 1)


def _fastai_head(width: int, n_classes: int, pool: bool) -> nn.Sequential:
    """The same as fastai's create_head, so that a trained model can answer without importing fastai."""
    if pool:
        width *= 2
    norms = nn.BatchNorm1d(width), nn.BatchNorm1d(512)
    for norm in norms:
        nn.init.constant_(norm.bias, 1e-3)
    return nn.Sequential(
        *([AdaptiveConcatPool2d(), nn.Flatten()] if pool else []),
        norms[0],
        nn.Dropout(0.25),
        nn.Linear(width, 512, bias=False),
        nn.ReLU(inplace=True),
        norms[1],
        nn.Dropout(0.5),
        nn.Linear(512, n_classes, bias=False),
    )


def _timm_width(network: Any) -> int:
    """How many features a timm network without its classifier gives: some have a layer after their last map."""
    return getattr(network, "head_hidden_size", None) or network.num_features


def _gives_maps(network: Any) -> bool:
    """Whether a timm network pools maps of shape (B, C, H, W) itself; transformers have tokens, or channels last."""
    cfg = network.pretrained_cfg
    if cfg.get("pool_size") is None or cfg.get("fixed_input_size"):
        return False
    training = network.training
    with torch.no_grad():
        shape = network.eval().forward_features(torch.zeros(1, *cfg["input_size"])).shape
    network.train(training)
    return len(shape) == 4 and shape[1] == network.num_features


def _width(body: nn.Module) -> int:
    """How many features or channels a body gives."""
    training = body.training
    with torch.no_grad():
        width = body.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    body.train(training)
    return width
