"""The heads of a cross-validation computed as one: what is the same for all of them is done once, not once a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from octfast.model.heads import RootNorm


class HeadsTogether(nn.Module):
    """Copies of a head, one a fold, each of which learns from the scans outside of its fold.

    As `octfast.train.frozen.folds.FoldHeads`, but for the head that learns from all scans, which is left out, and for
    the dropout of the features, which is the same for all heads. The first norm and layer are two matrix products for
    all heads together: features have no gradient, so that their norm is but a scale and a shift of the layer's weights.

    Parameters
    ----------
    head : of `octfast.model.heads.POOLED`: norm, dropout and layer, and perhaps more of them behind.
    folds : how many.
    """

    def __init__(self, head: nn.Sequential, folds: int):
        super().__init__()
        self.root = isinstance(head[0], RootNorm)
        self.layers = nn.ModuleList(_stacked(layer, folds) for layer in head)

    def forward(self, x: Tensor, fold: Tensor) -> Tensor:
        """Logits of every head, of shape (B, folds, classes), for features (B, dim) and the fold of each, (B,).

        In training a head does not see the scans of its fold, not even to normalise by; its logits of them are not to
        be used.
        """
        norm, dropout, linear, *rest = self.layers
        assert isinstance(norm, StackedNorm) and isinstance(linear, StackedLinear)
        seen = (fold[:, None] != torch.arange(norm.heads, device=x.device)).float()
        # A norm needs two scans; the targets of those that are held out are ignored in any case.
        seen = torch.where(seen.sum(0) < 2, torch.ones_like(seen), seen)
        if self.root:
            x = RootNorm.root(x)
        centre = x.mean(0)
        x = x - centre
        scale, shift = norm.scale_and_shift((seen.t() @ x, seen.t() @ (x * x)), seen, centre)
        kept = dropout(torch.ones_like(x))
        heads, classes, width = linear.weight.shape
        scaled = (linear.weight * scale[:, None]).reshape(heads * classes, width)
        shifted = (linear.weight * shift[:, None]).reshape(heads * classes, width)
        h = ((x * kept) @ scaled.t() + kept @ shifted.t()).view(len(x), heads, classes) + linear.bias
        for layer in rest:
            h = layer.normalised(h, seen) if isinstance(layer, StackedNorm) else layer(h)
        if h.requires_grad:
            # The loss is the mean over the heads, but each is to learn as it would alone.
            h.register_hook(lambda gradient: gradient * heads)
        return h


class StackedNorm(nn.BatchNorm1d):
    """The batch norms of several heads; fastai knows it as a norm, whose parameters do not decay."""

    def __init__(self, norm: nn.BatchNorm1d, heads: int):
        super().__init__(norm.num_features * heads, norm.eps, norm.momentum)
        self.heads = heads
        for mine, given in zip(self.parameters(), norm.parameters(), strict=True):
            mine.data = given.data.repeat(heads)

    def scale_and_shift(
        self, sums: tuple[Tensor, Tensor], seen: Tensor, centre: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """By what each head multiplies features, and what it adds to them then, (heads, dim) each.

        Parameters
        ----------
        sums : of the features that each head sees, less `centre`, and of their squares, (heads, dim) each.
        seen : 1 where a head sees a scan, else 0, (B, heads).
        centre : what the features to be normalised have been made less by, (dim,).
        """
        dim = self.num_features // self.heads
        running = [self.running_mean.view(self.heads, dim), self.running_var.view(self.heads, dim)]  # type: ignore[union-attr]
        if self.training:
            n = seen.sum(0)[:, None]
            mean = sums[0] / n
            variance = (sums[1] / n - mean * mean).clamp(min=0)
            with torch.no_grad():
                for kept, new in zip(running, (mean + centre, variance * n / (n - 1).clamp(min=1)), strict=True):
                    kept.lerp_(new, self.momentum or 0.1)
        else:
            mean, variance = running[0] - centre, running[1]
        scale = self.weight.view(self.heads, dim) * torch.rsqrt(variance + self.eps)
        return scale, self.bias.view(self.heads, dim) - mean * scale

    def normalised(self, h: Tensor, seen: Tensor) -> Tensor:
        """Of shape (B, heads, dim), normalised by the scans that each head sees."""
        weighed = h * seen[..., None]
        scale, shift = self.scale_and_shift((weighed.sum(0), (weighed * h).sum(0)), seen)
        return h * scale + shift


class StackedLinear(nn.Module):
    """The layers of several heads: (B, heads, dim) becomes (B, heads, units)."""

    def __init__(self, linear: nn.Linear, heads: int):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.data.repeat(heads, 1, 1))
        self.bias = nn.Parameter(linear.bias.data.repeat(heads, 1))

    def forward(self, h: Tensor) -> Tensor:
        return torch.einsum("bkd,kcd->bkc", h, self.weight) + self.bias


def _stacked(layer: nn.Module, heads: int) -> nn.Module:
    if isinstance(layer, nn.BatchNorm1d):
        return StackedNorm(layer, heads)
    if isinstance(layer, nn.Linear):
        return StackedLinear(layer, heads)
    if isinstance(layer, nn.Dropout):
        return nn.Dropout(layer.p)
    if isinstance(layer, nn.ReLU):
        return nn.ReLU()
    raise TypeError(f"a head of octfast's own has no {type(layer).__name__}")
