"""A table of a network's layers with their output shapes and parameters, as `octfast model summary` prints it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from octfast.model.arch import find_arch, make_network
from octfast.model.heads import body_and_head


@dataclass(frozen=True)
class ModelSummary:
    """A network's layers in the order they run: `layer`, `kind`, `output`, `parameters`, `trainable`; and the sums."""

    arch: str
    head: str
    layers: pd.DataFrame
    total: int
    trainable: int
    convolutions: int


def summarise(arch: str = "vgg16_bn", head: str = "linear", n_classes: int = 4, size: int = 224) -> ModelSummary:
    """Summarise the network that `oct_learner` makes, its body frozen; no weights are needed.

    Parameters
    ----------
    n_classes : classes of the head.
    size : side of the scans, in pixels.

    Raises
    ------
    UsageError : an unknown architecture or head.
    """
    found = find_arch(arch)
    with torch.random.fork_rng(devices=[]):
        body, top = body_and_head(make_network(found, size), found, head, n_classes)
    model = nn.Sequential(body.requires_grad_(False), top).eval()
    rows: list[dict[str, object]] = []
    hooks = [
        m.register_forward_hook(_row(rows, name.replace("0.", "body.", 1) if name[0] == "0" else f"head{name[1:]}"))
        for name, m in model.named_modules()
        if name and not any(True for _ in m.children())
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    params = list(model.parameters())
    # Parameters outside any layer, such as those of timm's pooling, have no row but count in the totals.
    return ModelSummary(
        arch=arch,
        head=head,
        layers=pd.DataFrame(rows),
        total=sum(p.numel() for p in params),
        trainable=sum(p.numel() for p in params if p.requires_grad),
        convolutions=sum(p.numel() for m in model.modules() if isinstance(m, nn.Conv2d) for p in m.parameters()),
    )


def _row(rows: list[dict[str, object]], name: str):
    def hook(module: nn.Module, _, output):
        shape = output.shape if isinstance(output, torch.Tensor) else output[0].shape
        own = list(module.parameters(recurse=False))
        rows.append(
            {
                "layer": name,
                "kind": type(module).__name__,
                "output": " x ".join(str(n) for n in shape[1:]),
                "parameters": sum(p.numel() for p in own),
                "trainable": sum(p.numel() for p in own if p.requires_grad),
            }
        )

    return hook
