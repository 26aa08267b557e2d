from __future__ import annotations

import pytest
import torch
from torch import nn

from octfast.errors import UsageError
from octfast.model.arch import TORCHVISION_ARCHS, body_groups, find_arch, make_body, make_network
from octfast.model.engine import Engine
from octfast.model.heads import HEADS, body_and_head, check_head
from octfast.model.summary import summarise
from octfast.model.weights.untrained import calibrate_batch_norm

# Of timm: one with a layer behind its pooling, one with channels last, a transformer.
SMALL = ("resnet18", "vgg11_bn", "densenet121", "squeezenet1_1", "test_resnet", "test_mambaout", "test_vit")


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


@pytest.mark.parametrize("head, near", [("octfats", "octfast"), ("articel", "article"), ("fast-ai", "fastai")])
def test_an_unknown_head_gives_the_nearest(head, near):
    with pytest.raises(UsageError, match="did you mean") as e:
        check_head(head, find_arch("vgg16"))
    assert near in e.value.hint


def test_the_articles_head_needs_a_vgg():
    with pytest.raises(UsageError, match="needs a VGG network, not resnet18"):
        check_head("article", find_arch("resnet18"))


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
    assert HEADS == ("octfast", "fastai", "article")


@pytest.mark.parametrize("name, size", [("test_vit", 33), ("test_vit", 200), ("alexnet", 32)])
def test_a_network_that_cannot_take_the_size(name, size):
    with pytest.raises(UsageError, match=f"{name} cannot take scans of {size} x {size}") as e:
        summarise(name, size=size)
    assert "\n" not in e.value.message


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


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "test_resnet", "densenet121"])
def test_calibrated_batch_norms_have_zero_mean_and_unit_variance(name):
    _, body, _ = made(name)
    # Pictures of other statistics than a network's random weights expect.
    pictures = 3 + 2 * torch.randn(24, 3, 64, 64)
    seen: dict[str, list[torch.Tensor]] = {}
    norms = {n: m for n, m in body.named_modules() if isinstance(m, nn.BatchNorm2d)}

    def note(where, module, args):
        x = args[0]
        normal = (x - module.running_mean[:, None, None]) / (module.running_var[:, None, None] + module.eps).sqrt()
        seen.setdefault(where, []).append(normal.detach())

    before = [m.momentum for m in norms.values()]
    weights = {n: p.clone() for n, p in body.named_parameters()}
    assert calibrate_batch_norm(body, [pictures]) == len(norms) > 3
    assert [m.momentum for m in norms.values()] == before
    assert all(torch.equal(p, weights[n]) for n, p in body.named_parameters())
    hooks = [m.register_forward_pre_hook(lambda m, a, n=n: note(n, m, a)) for n, m in norms.items()]
    with torch.no_grad():
        body.eval()(pictures)
    for hook in hooks:
        hook.remove()
    for where, parts in seen.items():
        x = torch.cat(parts).transpose(0, 1).flatten(1)
        if x.shape[1] < 200:
            continue
        alive = x.std(1) > 1e-3
        assert x.mean(1).abs().max() < 0.05, where
        assert (x.std(1)[alive] - 1).abs().max() < 0.05, where


def test_several_batches_are_averaged_and_the_mode_is_kept():
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    body.train()
    batches = [torch.full((4, 3, 8, 8), 2.0) + torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)]
    with torch.no_grad():
        means = torch.stack([body[0](b).mean((0, 2, 3)) for b in batches])
    calibrate_batch_norm(body, batches)
    torch.testing.assert_close(body[1].running_mean, means.mean(0))
    assert body.training and body[1].training


def test_a_body_without_batch_norm_is_left_alone():
    body = nn.Sequential(nn.Conv2d(3, 4, 1))
    assert calibrate_batch_norm(body, iter(())) == 0
