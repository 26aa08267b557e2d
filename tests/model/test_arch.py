from __future__ import annotations

import pytest
import torch
from torch import nn

from octfast.errors import UsageError
from octfast.model.arch import TORCHVISION_ARCHS, body_groups, find_arch, make_body, make_network
from octfast.model.heads import body_and_head
from octfast.model.summary import summarise


def made(name: str, head: str = "octfast", size: int = 64, classes: int = 4):
    arch = find_arch(name)
    torch.manual_seed(0)
    network = make_network(arch, size).eval()
    return network, *body_and_head(network, arch, head, classes)


def test_names_of_both_libraries():
    assert find_arch("resnet18").library == find_arch("vgg16_bn").library == "torchvision"
    assert find_arch("resnet10t").library == "timm"
    assert find_arch("test_vit.r160_in1k").name == "test_vit.r160_in1k"


def test_a_timm_network_brings_its_own_statistics():
    assert find_arch("test_vit").mean == (0.5, 0.5, 0.5)
    assert find_arch("resnet18").mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    "name, near",
    [("vgg61", "vgg16"), ("resnet8", "resnet18"), ("convnext_tny", "convnext_tiny"), ("vgg16bn", "vgg16_bn")],
)
def test_an_unknown_name_gives_the_nearest(name, near):
    with pytest.raises(UsageError, match=name) as e:
        find_arch(name)
    assert near in e.value.hint.replace("?", "").replace(",", "").split()


@pytest.mark.parametrize("name", ["", "#", "zzzzzzzzzz", "resnet50.no_such_weights", "../resnet18", "hf-hub:a/b"])
def test_no_such_name(name):
    with pytest.raises(UsageError) as e:
        find_arch(name)
    assert e.value.hint


@pytest.mark.parametrize("name", [n for n in TORCHVISION_ARCHS if n not in ("vgg19", "resnet152", "densenet161")])
def test_every_listed_network_can_be_made_and_cut(name):
    with torch.device("meta"):
        network = make_network(find_arch(name))
        body = make_body(network, find_arch(name))
        early, last = body_groups(body)
        assert body(torch.zeros(2, 3, 224, 224)).ndim == 2
    assert early and last and {id(p) for p in body.parameters()} == {id(p) for p in (*early, *last)}
    assert len(early) + len(last) == len({id(p) for p in (*early, *last)})


@pytest.mark.parametrize("name", ["densenet121", "squeezenet1_1", "alexnet", "vgg11_bn"])
def test_a_body_that_is_not_pooled_gives_the_map_of_the_network(name):
    network = make_network(find_arch(name)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = network.features(x)
        wanted = wanted.relu() if name.startswith("densenet") else wanted
        torch.testing.assert_close(make_body(network, find_arch(name), pool=False)(x), wanted)


def test_a_pooled_resnet_gives_the_features_of_the_network_and_their_spread():
    network, body, _ = made("resnet18")
    network.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = body(x)
        torch.testing.assert_close(found[:, :512], network(x))
    assert found.shape == (2, 1024) and (found[:, 512:] > 0).all()


def test_a_pooled_vgg_gives_means_and_standard_deviations_of_blocks_3_4_and_5():
    network, body, _ = made("vgg11_bn")
    x = torch.randn(2, 3, 64, 64)
    maps = []
    with torch.no_grad():
        found = body(x)
        for layer in network.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                maps += [x.mean((2, 3)), x.std((2, 3), correction=0)]
    torch.testing.assert_close(found, torch.cat(maps[4:], 1), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name, size", [("test_vit", 33), ("test_vit", 200), ("alexnet", 32)])
def test_a_network_that_cannot_take_the_size(name, size):
    with pytest.raises(UsageError, match=f"{name} cannot take scans of {size} x {size}") as e:
        summarise(name, size=size)
    assert "\n" not in e.value.message
