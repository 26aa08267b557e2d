"""Builds the network that a bundle names: first without memory for its tensors, then with those of the bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octfast.errors import BundleError
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.info import BundleInfo
from octfast.model.heads import body_and_head
from octfast.model.pooling import bag_head


def empty_network(info: BundleInfo) -> nn.Sequential:
    """Body and head on the meta device: names and shapes, however large, without memory for them.

    Raises
    ------
    UsageError : there is no such architecture or head, or it cannot take scans of that size.
    BundleError : the architecture cannot be built like that.
    """
    try:
        with torch.device("meta"):
            return _network(info)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as e:
        reason = " ".join(str(e).split())[:200]
        raise BundleError(f"{info.arch} cannot be built to look at its shapes: {reason}", "update timm") from e


def filled(model: nn.Sequential, info: BundleInfo, state: Mapping[str, Tensor]) -> nn.Sequential:
    """The network with its tensors, in float32 and eval mode.

    Parameters
    ----------
    model : what `empty_network` gave; it takes over the tensors, unless it has others that no state dict holds.
    state : every tensor of the model by name.
    """
    whole = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    model.load_state_dict(whole, assign=True)
    if any(t.is_meta for t in _tensors(model)):
        # Positions and masks are computed when a network is made; its random weights must not move the caller's seed.
        with torch.random.fork_rng(devices=[]):
            model = _network(info)
        model.load_state_dict(whole)
    return model.eval()


def _network(info: BundleInfo) -> nn.Sequential:
    arch = find_arch(info.arch)
    body, head = body_and_head(make_network(arch, info.size), arch, info.head, len(info.classes))
    return nn.Sequential(body, head if info.pooling is None else bag_head(head, info.head, info.pooling))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor in a model, also those that it holds as plain attributes."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from _inside(value, 3)


def _inside(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, list | tuple | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _inside(inner, depth - 1)
