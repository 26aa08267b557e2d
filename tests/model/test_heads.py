from __future__ import annotations

import pytest
import torch
from torch import nn

from octfast.errors import UsageError
from octfast.model.arch import find_arch, make_network
from octfast.model.engine import Engine
from octfast.model.heads import HEADS, body_and_head, check_head

# Of timm: one with a layer behind its pooling, one with channels last, a transformer.
SMALL = ("resnet18", "vgg11_bn", "densenet121", "squeezenet1_1", "test_resnet", "test_mambaout", "test_vit")


def made(name: str, head: str = "octfast", size: int = 64, classes: int = 4):
    arch = find_arch(name)
    torch.manual_seed(0)
    network = make_network(arch, size).eval()
    return network, *body_and_head(network, arch, head, classes)


@pytest.mark.parametrize("head, near", [("octfats", "octfast"), ("articel", "article"), ("fast-ai", "fastai")])
def test_an_unknown_head_gives_the_nearest(head, near):
    with pytest.raises(UsageError, match="did you mean") as e:
        check_head(head, find_arch("vgg16"))
    assert near in e.value.hint


def test_the_articles_head_needs_a_vgg():
    with pytest.raises(UsageError, match="needs a VGG network, not resnet18"):
        check_head("article", find_arch("resnet18"))


@pytest.mark.parametrize("head", ["octfast", "fastai"])
@pytest.mark.parametrize("name", [n for n in SMALL if n != "vgg11_bn"])
def test_every_head_fits_every_kind_of_body(name, head):
    _, body, top = made(name, head, classes=3)
    x = torch.randn(2, 3, 64, 64)
    model = nn.Sequential(body, top).eval()
    with torch.no_grad():
        out = model(x)
    assert out.shape == (2, 3) and out.isfinite().all()
    # As it runs when it is frozen: folded.
    torch.testing.assert_close(Engine(body, "fp32", tail=top)(x), out, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_byobnet", "test_efficientnet"])
def test_more_of_timms_networks(name):
    for head in ("octfast", "fastai"):
        test_every_head_fits_every_kind_of_body(name, head)


def test_fastais_head_pools_the_maps_of_a_timm_network():
    network, body, head = made("test_resnet", "fastai")
    with torch.no_grad():
        assert body.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, network.num_features, 2, 2)
    assert type(head[0]).__name__ == "AdaptiveConcatPool2d"


def test_the_articles_head_gives_log_probabilities():
    # Were the 4096-wide layers made with numbers in them, this would take half a gigabyte.
    with torch.device("meta"):
        arch = find_arch("vgg11")
        body, head = body_and_head(make_network(arch), arch, "article", 4)
        assert body(torch.zeros(2, 3, 224, 224)).shape == (2, 4096)
    assert isinstance(head[-1], nn.LogSoftmax) and head[2].p == 0.4
    assert [tuple(m.weight.shape) for m in head if isinstance(m, nn.Linear)] == [(256, 4096), (4, 256)]


def test_heads_are_named():
    assert HEADS == ("linear", "root", "octfast", "fastai", "article")
