"""Heat maps of a vision transformer, which has tokens of patches where other networks have maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def transformer_in(model: nn.Module) -> Any | None:
    """The first part of a network that is a transformer of timm's with a token a patch in all its blocks; or None."""
    for module in model.modules():
        blocks = getattr(module, "blocks", None)
        tokens = isinstance(getattr(module, "num_prefix_tokens", None), int) and hasattr(module, "patch_embed")
        if tokens and isinstance(blocks, nn.Sequential | nn.ModuleList) and all(_has_attention(b) for b in blocks):
            return module
    return None


def token_maps(
    score: Callable[[Tensor], Tensor], network: Any, x: Tensor, targets: Tensor, method: str, chosen: Callable
) -> Tensor:
    """Maps of one value a patch, of shape (B, rows, columns); negative ones speak against the class.

    "gradcam" and "hirescam" are those of maps, on the tokens that enter the last attention, normalised: behind it a
    head on the class token depends on no patch. "attention" is the relevance of Chefer, Gur and Wolf (ICCV 2021): in
    every block attention times the gradient of the score, its negative part dropped, averaged over the heads and
    carried on through the blocks, as each adds to what came before.

    Parameters
    ----------
    score : from pictures to the logits of all classes; its parameters need no gradient.
    network : what `transformer_in` gave, a part of it.
    x : pictures, float32 of shape (B, 3, H, W).
    targets : the class of each; see `chosen`.
    method : "gradcam", "hirescam" or "attention".
    chosen : from logits and targets to one score a picture.
    """
    if method == "attention":
        # One picture at a time, as the attention of all blocks is kept.
        maps = [_relevance(score, network, one[None], t[None], chosen) for one, t in zip(x, targets, strict=True)]
        return torch.cat(maps)
    with _noted(network.blocks[-1].norm1) as kept:
        logits = score(x.clone().requires_grad_())
    (tokens,) = kept
    (slope,) = torch.autograd.grad(chosen(logits, targets).sum(), tokens)
    first = network.num_prefix_tokens
    tokens, slope = tokens.detach()[:, first:], slope[:, first:]
    if method == "gradcam":
        slope = slope.mean(1, keepdim=True)
    return _as_map((slope * tokens).sum(2), network)


def _relevance(score: Callable, network: Any, x: Tensor, target: Tensor, chosen: Callable) -> Tensor:
    with _attention_shown(network), _noted(*(b.attn.attn_drop for b in network.blocks)) as kept:
        logits = score(x.clone().requires_grad_())
    # Blocks that the score does not depend on have no gradient.
    slopes = torch.autograd.grad(chosen(logits, target).sum(), kept, allow_unused=True)
    tokens = kept[0].shape[-1]
    start = torch.eye(tokens, device=x.device)
    relevance = start
    for attention, slope in zip(kept, slopes, strict=True):
        if slope is not None:
            relevance = relevance + (slope * attention.detach()).relu().mean(1)[0] @ relevance
    gained, first = relevance - start, network.num_prefix_tokens
    # What a head on the class token sees is its row; else all tokens are seen.
    own = first and getattr(network, "global_pool", "") == "token"
    return _as_map((gained[0] if own else gained.mean(0))[None, first:], network)


def _as_map(values: Tensor, network: Any) -> Tensor:
    rows, columns = network.patch_embed.grid_size
    return values.reshape(len(values), rows, columns)


def _has_attention(block: nn.Module) -> bool:
    return hasattr(block, "norm1") and hasattr(getattr(block, "attn", None), "attn_drop")


@contextmanager
def _noted(*modules: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of modules, in the order they run."""
    kept: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda module, given, out: kept.append(out)) for m in modules]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _attention_shown(network: Any) -> Iterator[None]:
    """Every block computes its attention step by step, so that it can be seen; then as before."""
    layers = [block.attn for block in network.blocks]
    before = [layer.fused_attn for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.fused_attn = was
