from __future__ import annotations

import pytest
import torch
from torch import nn

from octfast.errors import UsageError
from octfast.model.arch import check_patches, find_arch, make_network
from octfast.model.engine import make_engine
from octfast.model.heads import body_and_head
from octfast.model.weights.load import load_weights, weights_url
from tests.conftest import SHARED as FOLDER

SHARED = FOLDER / "weights"


def made(name: str, size: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    torch.manual_seed(0)
    arch = find_arch(name)
    network = make_network(arch, size).eval()
    return network, *(m.eval() for m in body_and_head(network, arch, "linear", 4))


@pytest.mark.parametrize(
    "name, size",
    [("test_vit", 96), ("test_efficientnet", 64), ("test_resnet", 64), ("test_convnext", 64), ("test_byobnet", 64)],
)
def test_the_head_fits_and_the_engine_gives_the_same(name, size):
    _, body, head = made(f"{name}+depths", size)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        features = body(x)
        assert head(features).shape == (2, 4)
    torch.testing.assert_close(make_engine(body, precision="fp32")(x), features, atol=1e-4, rtol=1e-4)


def test_tokens_of_three_depths_by_their_definition():
    network, body, _ = made("test_vit+depths", 96)
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        tokens, wanted = network.norm_pre(network._pos_embed(network.patch_embed(x))), []
        depth = len(network.blocks)
        for i, block in enumerate(network.blocks, 1):
            tokens = block(tokens)
            if i in (depth // 2, depth * 3 // 4, depth):
                patches = network.norm(tokens)[:, 1:]
                wanted += [patches.mean(1), patches.std(1, correction=0)]
        wanted = torch.cat([network.norm(tokens)[:, 0], *wanted], 1)
        torch.testing.assert_close(body(x), wanted, atol=1e-4, rtol=1e-4)


def test_maps_of_three_depths_by_their_definition():
    network, body, _ = made("test_resnet+depths", 64)
    x, wanted = torch.randn(2, 3, 64, 64), []
    with torch.no_grad():
        m = network.maxpool(network.act1(network.bn1(network.conv1(x))))
        for i in range(1, 5):
            m = getattr(network, f"layer{i}")(m)
            wanted += [m.mean((2, 3)), m.std((2, 3), correction=0)]
        torch.testing.assert_close(body(x), torch.cat(wanted[2:], 1), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "name, words", [("vgg16+depths", "networks of timm"), ("no_such_net+depths", "no architecture")]
)
def test_depths_that_there_are_not(name, words):
    with pytest.raises(UsageError, match=words):
        find_arch(name)


def test_its_weights_are_those_of_the_network():
    assert weights_url("resnet10t+depths") == weights_url("resnet10t")


def test_fastai_s_head_on_several_depths_is_refused():
    arch = find_arch("test_vit+depths")
    with pytest.raises(UsageError, match="one map") as e:
        body_and_head(make_network(arch, 96), arch, "fastai", 4)
    assert "--arch test_vit" in e.value.hint


def test_a_size_of_which_a_part_would_not_be_seen_is_refused():
    arch = find_arch("vit_small_patch14_dinov2")
    with torch.device("meta"):
        check_patches(make_network(arch, 224), arch, 224)
        with pytest.raises(UsageError, match="patches of 14 pixels, and 230") as e:
            check_patches(make_network(arch, 230), arch, 230)
    assert "224 or 238" in e.value.hint


@pytest.mark.realdata
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real weights are not here")
@pytest.mark.parametrize(
    "name, sizes", [("tf_efficientnet_lite0", (224, 320)), ("vit_small_patch14_dinov2", (224, 336))]
)
def test_real_weights_at_several_sizes(name, sizes):
    for size in sizes:
        arch = find_arch(f"{name}+depths")
        network = make_network(arch, size).eval()
        report = load_weights(network, arch.own_name, SHARED / f"{name}.safetensors")
        assert report.missing == ()
        body, _ = body_and_head(network, arch, "linear", 4)
        with torch.no_grad():
            features = body.eval()(torch.randn(2, 3, size, size))
        assert features.isfinite().all() and features.std() > 0.1
