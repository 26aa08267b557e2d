"""Bodies by name: torchvision's networks that fastai knows, any timm name and RETFound, cut into stages."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from octfast.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from octfast.errors import UsageError
from octfast.model.depths import DEPTHS, Depths, moments

TORCHVISION_ARCHS = (
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *("squeezenet1_0", "squeezenet1_1", "alexnet"),
)
# Logistic regression on frozen VGG16 features of 517 real scans: blocks 3, 4 and 5 together had a log-loss of .558,
# block 5 alone .670. Other families have not been measured, and pool their last map alone.
VGG_POOLED_BLOCKS = (2, 3, 4)


@dataclass(frozen=True)
class Arch:
    """A network by name.

    Attributes
    ----------
    library : that makes it, torchvision or timm.
    mean, std : what its weights were trained with.
    timm_name : the network in timm, where `name` is not timm's own.
    pool : how timm pools its tokens, where not by timm's own default.
    page : where its authors hand out its weights, where no library does.
    licence : of these weights, where it forbids a use.
    depths : whether a timm network's maps or tokens of three depths are pooled, see `Depths`.
    """

    name: str
    library: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    timm_name: str = ""
    pool: str = ""
    page: str = ""
    licence: str = ""
    depths: bool = False

    @property
    def own_name(self) -> str:
        """The name that its weights are published under."""
        return self.name.removesuffix(DEPTHS)

    @property
    def is_vgg(self) -> bool:
        return self.library == "torchvision" and self.name.startswith("vgg")


_NOT_FOR_SALE = "CC BY-NC 4.0: no commercial use"
# Zhou and others, Nature 622 (2023) 156, https://doi.org/10.1038/s41586-023-06555-x, and the variant trained by DINOv2.
# The first averages the patches and normalises the average (fc_norm), as its authors do where they fine-tune it.
FOUNDATIONS = {
    "retfound": Arch(
        "retfound",
        "timm",
        timm_name="vit_large_patch16_224",
        pool="avg",
        page="https://huggingface.co/YukunZhou/RETFound_mae_natureOCT",
        licence=_NOT_FOR_SALE,
    ),
    "retfound_dinov2": Arch(
        "retfound_dinov2",
        "timm",
        timm_name="vit_large_patch14_dinov2",
        page="https://huggingface.co/YukunZhou/RETFound_dinov2_meh",
        licence=_NOT_FOR_SALE,
    ),
}


def find_arch(name: str) -> Arch:
    """Look a network up by its torchvision or timm name, torchvision's where both have it; or a foundation model's.

    Behind a timm name "+depths" stands for the statistics of three depths, see `Depths`.

    Raises
    ------
    UsageError : an unknown name; the hint gives the nearest ones.
    """
    if name.endswith(DEPTHS):
        found = find_arch(name.removesuffix(DEPTHS))
        if found.library != "timm":
            raise UsageError(f"{DEPTHS} is for networks of timm, not for {found.name}", f"use --arch {found.name}")
        return replace(found, name=name, depths=True)
    if name in TORCHVISION_ARCHS:
        return Arch(name, "torchvision")
    if name in FOUNDATIONS:
        return FOUNDATIONS[name]
    import timm

    base = name.split(".")[0]
    if not timm.is_model(base):
        known = sorted({*TORCHVISION_ARCHS, *FOUNDATIONS, *timm.list_models()})
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
        raise UsageError(
            f"no architecture named {name!r}",
            f"did you mean {', '.join(near)}?" if near else "see timm.list_models() and torchvision.models",
        )
    if "." in name and name not in timm.list_pretrained(f"{base}.*"):
        tags = ", ".join(timm.list_pretrained(f"{base}.*")[:4]) or base
        raise UsageError(f"timm has no weights named {name!r}", f"did you mean {tags}?")
    cfg = timm.get_pretrained_cfg(name)
    return Arch(name, "timm", tuple(cfg.mean), tuple(cfg.std)) if cfg else Arch(name, "timm")


def make_network(arch: Arch, size: int = 224) -> nn.Module:
    """The whole network as its library makes it, untrained; timm's without its classifier.

    Raises
    ------
    UsageError : it cannot be made for scans of `size`, or cannot take them.
    """
    if arch.library == "torchvision":
        network = getattr(torchvision.models, arch.name)(weights=None)
        # AlexNet needs 63 pixels, the others fewer.
        return _checked(network, arch, size) if size < 64 else network
    import timm

    name = arch.timm_name or arch.own_name
    cfg = timm.get_pretrained_cfg(name)
    fixed = cfg and cfg.fixed_input_size and cfg.input_size[-1] != size
    kwargs: dict[str, Any] = {"img_size": size} if fixed else {}
    if arch.pool:
        kwargs["global_pool"] = arch.pool
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
    except (TypeError, RuntimeError, AssertionError, ValueError) as e:
        raise UsageError(f"timm cannot make {arch.name} for scans of {size} x {size}: {e}", "try --size 224") from e
    return _checked(network, arch, size) if fixed or size < 64 else network


def check_patches(network: nn.Module, arch: Arch, size: int) -> None:
    """
    Raises
    ------
    UsageError : a transformer would not see the last rows and columns of a scan, which make no whole patch.
    """
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    if isinstance(side, int) and size % side:
        near = sorted({max(1, size // side) * side, -(-size // side) * side})
        raise UsageError(
            f"{arch.name} looks at whole patches of {side} pixels, and {size} is no multiple of that",
            f"try --size {' or '.join(map(str, near))}",
        )


def _checked(network: nn.Module, arch: Arch, size: int) -> nn.Module:
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise UsageError(f"{arch.name} cannot take scans of {size} x {size}: {reason}", "try --size 224") from e
    return network.train(training)


def drop_classifier(network: nn.Module) -> None:
    """Take the classifier off a torchvision network, in place, so that weights without one are complete."""
    for name in ("classifier", "fc"):
        if hasattr(network, name):
            setattr(network, name, nn.Identity())


class PooledStage(nn.Module):
    """A stage of a body that also passes on the mean and standard deviation of its map over the picture.

    The state between stages is a map of shape (B, C, H, W), or a tuple of that map and the pooled vectors so far,
    each of shape (B, 2 C_i), in float32.
    """

    def __init__(self, stage: nn.Module):
        super().__init__()
        self.stage = stage

    def forward(self, state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *pooled = state if isinstance(state, tuple) else (state,)
        x = self.stage(x)
        return (x, *pooled, moments(x, (2, 3)))


class Gather(nn.Module):
    """The end of a body of pooled stages: all pooled vectors side by side, of shape (B, sum of 2 C_i)."""

    def forward(self, state: tuple[Tensor, ...]) -> Tensor:
        return torch.cat(state[1:], 1)


def make_body(network: nn.Module, arch: Arch, *, pool: bool = True) -> nn.Sequential:
    """Cut a network into a body: a Sequential of stages, the last of which is the last that has parameters.

    Parameters
    ----------
    network : what `make_network` gave.
    pool : whether the body ends in pooled features, of shape (B, C), or in a map. A timm network always ends in its
        own pooled features, or in those of `Depths`.
    """
    if arch.depths:
        return nn.Sequential(Depths(network))
    stages = _stages(network, arch)
    if arch.library == "timm" or not pool:
        return nn.Sequential(*stages)
    pooled = VGG_POOLED_BLOCKS if arch.is_vgg else (len(stages) - 1,)
    return nn.Sequential(*(PooledStage(s) if i in pooled else s for i, s in enumerate(stages)), Gather())


def body_groups(body: nn.Module) -> list[list[nn.Parameter]]:
    """The body's parameter groups: before its last stage of convolutions, and from there on; or the body as one."""
    stages = list(body.children()) if type(body) is nn.Sequential else []
    last = max((i for i, s in enumerate(stages) if any(isinstance(m, nn.Conv2d) for m in s.modules())), default=0)
    if last == 0:
        return [list(body.parameters())]
    return [[p for s in part for p in s.parameters()] for part in (stages[:last], stages[last:])]


def _stages(network: Any, arch: Arch) -> list[nn.Module]:
    if arch.library == "timm":
        return [network]
    name = arch.name
    if name.startswith("resnet"):
        early = [m for n, m in network.named_children() if n in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2")]
        return [nn.Sequential(*early), nn.Sequential(network.layer3, network.layer4)]
    features = list(network.features.children())
    if name.startswith("vgg"):
        ends = [i + 1 for i, m in enumerate(features) if isinstance(m, nn.MaxPool2d)]
        return [nn.Sequential(*features[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    at = {"densenet": 7, "squeezenet": 5, "alexnet": 6}[name.rstrip("0123456789_")]
    if name.startswith("densenet"):
        features.append(nn.ReLU(inplace=True))
    return [nn.Sequential(*features[:at]), nn.Sequential(*features[at:])]
