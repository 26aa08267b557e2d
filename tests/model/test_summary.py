from __future__ import annotations

import pytest
import torch

from octfast.model.arch import find_arch, make_network
from octfast.model.heads import body_and_head
from octfast.model.summary import summarise

# Of timm: one with a layer behind its pooling, one with channels last, a transformer.
SMALL = ("resnet18", "vgg11_bn", "densenet121", "squeezenet1_1", "test_resnet", "test_mambaout", "test_vit")


def made(name: str, head: str = "octfast", size: int = 64, classes: int = 4):
    arch = find_arch(name)
    torch.manual_seed(0)
    network = make_network(arch, size).eval()
    return network, *body_and_head(network, arch, head, classes)


@pytest.mark.parametrize("head", ["octfast", "fastai"])
@pytest.mark.parametrize("name", [n for n in SMALL if n not in ("vgg11_bn", "densenet121")])
def test_the_summary_adds_up(name, head):
    found = summarise(name, head, 5, 64)
    torch.manual_seed(0)
    _, body, top = made(name, head, classes=5)
    assert found.trainable == sum(p.numel() for p in top.parameters())
    assert found.total == sum(p.numel() for m in (body, top) for p in m.parameters())
    assert found.layers["parameters"].sum() <= found.total
    assert found.layers["trainable"].sum() == found.trainable
    assert found.layers["output"].iloc[-1] == "5"


def test_the_summary_draws_nothing_from_the_random_state():
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    summarise("test_resnet", size=64)
    assert torch.equal(torch.rand(3), wanted)
