"""Heat maps of transformers: by their definition, and the network left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from octfast.assess.interpret.heatmap import HeatMaps, heat_map, heat_maps
from octfast.data.preprocess import preprocess
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.info import BundleInfo
from octfast.model.heads import body_and_head
from tests.pictures import scan

SIZE = 96


def made(arch: str) -> tuple[nn.Sequential, BundleInfo]:
    torch.manual_seed(0)
    found = find_arch(arch)
    model = nn.Sequential(*body_and_head(make_network(found, SIZE), found, "octfast", 3)).eval()
    return model, BundleInfo(arch, "octfast", ("CNV", "DME", "NORMAL"), SIZE, (0.5,) * 3, (0.5,) * 3)


def stretched(values: torch.Tensor, height: int, width: int) -> np.ndarray:
    coarse = values.reshape(1, 1, 6, 6).relu().detach()
    fine = nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
    return fine / fine.max() if fine.max() > 0 else fine


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_maps_of_tokens_by_their_definition(method):
    model, about = made("test_vit")
    vit, head = model[0][0], model[1]
    grey = Image.fromarray(scan(60, 90, 0))
    with torch.no_grad():
        before = vit.norm_pre(vit._pos_embed(vit.patch_embed(preprocess(grey, SIZE, about.mean, about.std)[None])))
        for block in vit.blocks[:-1]:
            before = block(before)
        tokens = vit.blocks[-1].norm1(before)
    tokens.requires_grad_()
    last = vit.blocks[-1]
    out = before + last.ls1(last.attn(tokens))
    out = out + last.ls2(last.mlp(last.norm2(out)))
    logits = head(vit.norm(out)[:, 0])
    for target in range(3):
        (slope,) = torch.autograd.grad(logits[0, target], tokens, retain_graph=True)
        slope = slope[:, 1:].mean(1, keepdim=True) if method == "gradcam" else slope[:, 1:]
        wanted = stretched((slope * tokens[:, 1:]).sum(2), 60, 90)
        np.testing.assert_allclose(heat_map(model, about, grey, target, method), wanted, atol=1e-4)


def test_attention_by_its_definition():
    """Chefer, Gur and Wolf 2021, equations 5 and 6, written out."""
    model, about = made("test_vit")
    vit, head = model[0][0], model[1]
    grey = Image.fromarray(scan(60, 90, 1))
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(preprocess(grey, SIZE, about.mean, about.std)[None])))
    seen = []
    for block in vit.blocks:
        attn, y = block.attn, block.norm1(x)
        q, k, v = attn.qkv(y).reshape(1, 37, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (attn.q_norm(q) * attn.scale @ attn.k_norm(k).transpose(-2, -1)).softmax(-1)
        seen.append(weights)
        x = x + block.ls1(attn.proj((weights @ v).transpose(1, 2).reshape(1, 37, -1)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    slopes = torch.autograd.grad(head(vit.norm(x)[:, 0])[0, 2], seen)
    relevance = torch.eye(37)
    for weights, slope in zip(seen, slopes, strict=True):
        relevance = relevance + (weights * slope).relu().mean(1)[0] @ relevance
    wanted = stretched(relevance[0, 1:], 60, 90)
    np.testing.assert_allclose(heat_map(model, about, grey, 2, "attention"), wanted, atol=1e-3)


@pytest.mark.parametrize("arch", ["test_vit", "test_vit+depths"])
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "attention"])
def test_many_at_once_are_each_alone_and_the_model_is_left_as_it_was(arch, method):
    model, about = made(arch)
    model.train()
    pictures = [Image.fromarray(scan(60 + 9 * i, 90, i)) for i in range(3)]
    HeatMaps(model, about, method)
    with torch.no_grad():
        together = heat_maps(model, about, pictures, [0, None, 2], method, bs=2)
        alone = [heat_map(model, about, p, t, method) for p, t in zip(pictures, [0, None, 2], strict=True)]
    for one, other, p in zip(together, alone, pictures, strict=True):
        assert one.shape == (p.height, p.width) and one.max() == 1
        np.testing.assert_allclose(one, other, atol=1e-3)
    assert all(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(m.fused_attn for m in model.modules() if hasattr(m, "fused_attn"))
