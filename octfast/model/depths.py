"""Means and standard deviations of the maps or tokens of a timm network at three depths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from octfast.errors import UsageError

# Behind a timm name: these statistics in place of what timm pools.
DEPTHS = "+depths"


class Depths(nn.Module):
    """A timm network that gives statistics of three depths, float32 of shape (B, C): its own end sees too little.

    Of a transformer the class token, then mean and standard deviation of the patches after half of its blocks, after
    three quarters and at the end, each normalised as the end is. Of a network of maps mean and standard deviation of
    its last three maps, as timm counts them, before any layers behind the last.

    Raises
    ------
    UsageError : timm cannot give them.
    """

    def __init__(self, network: Any):
        super().__init__()
        if not hasattr(network, "forward_intermediates"):
            raise UsageError(f"timm gives no maps of {type(network).__name__}", f"leave {DEPTHS} out")
        self.network = network
        # Whether it is a transformer, which has tokens in place of maps
        self.tokens = hasattr(network, "blocks") and getattr(network, "num_prefix_tokens", None) is not None
        self.at = [-3, -2, -1]
        if self.tokens:
            depth = len(network.blocks)
            self.at = sorted({depth // 2 - 1, depth * 3 // 4 - 1, depth - 1} - {-1})

    def forward(self, x: Tensor) -> Tensor:
        # What timm averages before its norm has none on single tokens; that of the average stands in.
        how = {"indices": self.at if self.tokens else len(self.at), "intermediates_only": True}
        if not self.tokens:
            return torch.cat([moments(m, (2, 3)) for m in self.network.forward_intermediates(x, **how)], 1)
        network = self.network
        norm = network.fc_norm if isinstance(network.norm, nn.Identity) else network.norm
        given = network.forward_intermediates(x, **how, output_fmt="NLC", return_prefix_tokens=bool(self.prefix))
        depths = [norm(patches[0] if self.prefix else patches) for patches in given]
        first = [norm(given[-1][1])[:, 0].float()] if self.prefix else []
        return torch.cat([*first, *(moments(patches, (1,)) for patches in depths)], 1)

    @property
    def width(self) -> int:
        """How many numbers it gives."""
        if self.tokens:
            return int(self.network.embed_dim) * (2 * len(self.at) + bool(self.prefix))
        return 2 * sum(about["num_chs"] for about in list(self.network.feature_info)[-3:])

    @property
    def prefix(self) -> int:
        """How many tokens come before those of the patches."""
        return int(self.network.num_prefix_tokens)


def moments(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Means, then standard deviations, over some dimensions, in float32: of (B, C, H, W) over (2, 3) it is (B, 2 C)."""
    variance, mean = torch.var_mean(x.float(), dims, correction=0)
    # The root of a variance of zero, as of a channel that is zero all over, has no gradient.
    return torch.cat([mean, (variance + 1e-6).sqrt()], 1)
