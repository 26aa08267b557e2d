from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from octfast.assess.interpret.heatmap import METHODS, HeatMaps, heat_map, heat_maps, last_map, overlay, wedges_in_words
from octfast.data.preprocess import preprocess
from octfast.errors import UsageError
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.info import BundleInfo
from octfast.model.heads import body_and_head
from tests.pictures import scan, write_broken

CLASSES = ("CNV", "DME", "NORMAL")
OF_MAPS = tuple(m for m in METHODS if m != "attention")


def info(size: int = 64, arch: str = "vgg11_bn", head: str = "octfast") -> BundleInfo:
    return BundleInfo(arch, head, CLASSES, size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def network(arch: str = "vgg11_bn", head: str = "octfast", size: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    found = find_arch(arch)
    return nn.Sequential(*body_and_head(make_network(found, size), found, head, len(CLASSES))).eval()


def picture(height: int = 60, width: int = 90, seed: int = 0) -> Image.Image:
    return Image.fromarray(scan(height, width, seed))


class Corner(nn.Module):
    """A body whose one channel is the brightness of 8 x 8 fields, so that what raises a score is known."""

    def __init__(self):
        super().__init__()
        self.look = nn.Conv2d(3, 1, 8, stride=8, bias=False)
        nn.init.constant_(self.look.weight, 1 / 192)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return self.pool(self.act(self.look(x))).flatten(1)


def bright_spot() -> tuple[nn.Sequential, BundleInfo, Image.Image]:
    """A network whose class 0 likes brightness and class 1 dislikes it, and a dark scan with one bright field."""
    head = nn.Linear(1, 2)
    with torch.no_grad():
        head.weight[:] = torch.tensor([[1.0], [-1.0]])
        head.bias.zero_()
    grey = np.zeros((128, 192), np.uint8)
    grey[20:44, 130:160] = 255
    about = BundleInfo("vgg11_bn", "octfast", ("bright", "dark"), 64, (0.0,) * 3, (1.0,) * 3)
    return nn.Sequential(Corner(), head).eval(), about, Image.fromarray(grey)


@pytest.mark.parametrize("method", OF_MAPS)
def test_the_heat_is_where_the_score_comes_from(method):
    model, about, spot = bright_spot()
    heat = heat_map(model, about, spot, 0, method)
    assert heat.shape == (128, 192) and heat.dtype == np.float32 and heat.min() == 0 and heat.max() == 1
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert 16 <= y <= 48 and 124 <= x <= 166
    inside = heat[12:52, 118:172].sum()
    assert inside > 0.9 * heat.sum()


@pytest.mark.parametrize("method", OF_MAPS)
def test_without_a_class_that_of_the_prediction_is_shown(method):
    model, about, spot = bright_spot()
    # The score of the other is below zero.
    np.testing.assert_array_equal(heat_map(model, about, spot, None, method), heat_map(model, about, spot, 0, method))


def test_where_nothing_raises_the_score_the_map_is_zero():
    model, about, spot = bright_spot()
    assert not heat_map(model, about, spot, 1).any()
    # Where all is of one grey, nothing can be taken away.
    plain = Image.new("L", (90, 60), 77)
    assert not heat_map(model, about, plain, 0, "occlusion").any()
    assert not heat_map(network("test_resnet"), info(64, "test_resnet"), plain, 0, "occlusion").any()


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_the_maps_by_their_definition(method):
    """Selvaraju and others 2017, equations 1 and 2, and Draelos and Carin 2020, written out for VGG's last map."""
    model, about, grey = network(), info(), picture()
    stages = model[0]
    x = preprocess(grey, 64)[None]
    inner = list(stages[4].stage.children())
    assert isinstance(inner[-1], nn.MaxPool2d)
    with torch.no_grad():
        state = x
        for stage in list(stages)[:4]:
            state = stage(state)
        below, *pooled = state
        fmap = nn.Sequential(*inner[:-1])(below)
    fmap = fmap.detach().requires_grad_()
    last = inner[-1](fmap)
    variance, mean = torch.var_mean(last, (2, 3), correction=0)
    vectors = [*pooled, torch.cat([mean, (variance + 1e-6).sqrt()], 1)]
    out = model[1](torch.cat(vectors, 1))
    for target in range(3):
        (slope,) = torch.autograd.grad(out[0, target], fmap, retain_graph=True)
        weight = slope.mean((2, 3), keepdim=True) if method == "gradcam" else slope
        raw = (weight * fmap).sum(1, keepdim=True).relu().detach()
        fine = nn.functional.interpolate(raw, (60, 90), mode="bilinear", align_corners=False)[0, 0].numpy()
        wanted = fine / fine.max() if fine.max() > 0 else fine
        np.testing.assert_allclose(heat_map(model, about, grey, target, method), wanted, atol=1e-4)


def test_many_at_once_are_each_alone():
    model, about = network(), info()
    pictures = [picture(60 + 7 * i, 90 - 5 * i, i) for i in range(5)]
    targets = [0, None, 2, 1, None]
    together = heat_maps(model, about, pictures, targets, bs=2)
    assert [h.shape for h in together] == [(p.height, p.width) for p in pictures]
    for found, one, target in zip(together, pictures, targets, strict=True):
        np.testing.assert_allclose(found, heat_map(model, about, one, target), atol=1e-4)
    assert heat_maps(model, about, []) == []


@pytest.mark.parametrize("method", OF_MAPS)
@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_is_left_as_it_was(method, switch):
    model, about = network("test_resnet"), info(64, "test_resnet")
    model[0].requires_grad_(False)
    model.train()
    model[0][0].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    with switch():
        heat_map(model, about, picture(), 1, method)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    "arch, head, shape",
    [
        ("vgg11_bn", "octfast", (512, 4, 4)),
        ("vgg11_bn", "fastai", (512, 4, 4)),
        ("vgg11", "article", (512, 4, 4)),
        ("resnet18", "octfast", (512, 2, 2)),
        ("resnet18", "fastai", (512, 2, 2)),
        ("densenet121", "octfast", (1024, 2, 2)),
        ("squeezenet1_1", "octfast", (512, 3, 3)),
        ("alexnet", "octfast", (256, 3, 3)),
        ("test_resnet", "octfast", None),
        ("test_convnext", "octfast", None),
        ("test_efficientnet", "fastai", None),
        ("mobilenetv3_small_050", "octfast", (288, 2, 2)),
        ("resnetv2_50", "octfast", (2048, 2, 2)),
    ],
)
def test_the_last_map_of_a_network(arch, head, shape):
    model = network(arch, head)
    kept = []
    hook = last_map(model, 64).register_forward_hook(lambda m, given, out: kept.append(out))
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    hook.remove()
    (found,) = kept
    assert found.ndim == 4 and found.shape[2] == found.shape[3] > 1
    assert shape is None or tuple(found.shape[1:]) == shape
    heat = heat_map(model, info(64, arch, head), picture(), 1)
    assert heat.shape == (60, 90) and np.isfinite(heat).all()


def test_a_network_without_a_map_says_what_to_do():
    arch = "swin_tiny_patch4_window7_224"
    model = network(arch, size=224)
    with pytest.raises(UsageError, match="ends in a map") as e:
        heat_map(model, info(224, arch), picture(), 0)
    assert "occlusion" in e.value.hint
    with pytest.raises(UsageError):
        HeatMaps(model, info(224, arch))


def test_attention_is_of_transformers_alone():
    with pytest.raises(UsageError, match="transformers alone") as e:
        HeatMaps(network(), info(), "attention")
    assert "gradcam" in e.value.hint


def test_occlusion_works_with_any_network():
    model = network("test_vit", size=160)
    heat = heat_map(model, info(160, "test_vit"), picture(), 0, "occlusion")
    assert heat.shape == (60, 90) and heat.min() >= 0 and heat.max() in (0, 1)


def test_an_unknown_method():
    with pytest.raises(UsageError, match="no heat map by 'gradcan'") as e:
        heat_map(network(), info(), picture(), 0, "gradcan")
    assert "gradcam" in e.value.hint


def test_the_overlay_leaves_the_scan_where_there_is_no_heat():
    grey = picture()
    heat = np.zeros((60, 90), np.float32)
    heat[:, 45:] = np.linspace(0.2, 1, 45)
    drawn = overlay(grey, heat)
    assert drawn.mode == "RGB" and drawn.size == grey.size
    samples, plain = np.asarray(drawn), np.asarray(grey)
    for channel in range(3):
        np.testing.assert_array_equal(samples[:, :45, channel], plain[:, :45])
    assert (samples[:, 45:] != plain[:, 45:, None]).any(axis=2).mean() > 0.9
    with pytest.raises(ValueError, match="heat map of"):
        overlay(grey, heat.T)


def test_each_map_is_computed_once(tmp_path):
    model, about = network(), info()
    for i in range(3):
        picture(seed=i).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    seen = []
    maps = HeatMaps(model, about, bs=2)
    hook = model[0].register_forward_hook(lambda m, given, out: seen.append(len(given[0])))
    maps.compute(paths, ["CNV"] * 3)
    assert sum(seen) == 3
    maps.compute([*paths, paths[0]], ["CNV", "CNV", "DME", "CNV"])
    first = maps.get(paths[0], "CNV")
    assert sum(seen) == 4 and len(maps) == 4
    hook.remove()
    np.testing.assert_allclose(first, heat_map(model, about, picture(seed=0), 0), atol=1e-4)


def test_a_scan_that_cannot_be_read_is_a_reason(tmp_path):
    broken = str(write_broken(tmp_path)["truncated.jpeg"])
    maps = HeatMaps(network(), info())
    maps.compute([broken, "/nowhere/gone.png"], ["CNV", "CNV"])
    assert "truncated" in maps.get(broken, "CNV") and "no such file" in maps.get("/nowhere/gone.png", "CNV")
    assert len(maps) == 0


def test_no_colour_is_drawn_over_a_white_wedge():
    grey = np.full((100, 150), 60, np.uint8)
    corner = np.add.outer(np.arange(100), np.arange(150)) < 50
    grey[corner] = 255
    heat = np.ones((100, 150), np.float32)
    drawn = np.asarray(overlay(Image.fromarray(grey), heat))
    assert wedges_in_words(Image.fromarray(grey), np.where(corner, 1, 0)).startswith("100% of it lies in white wedges")
    assert wedges_in_words(Image.fromarray(grey), np.where(corner, 0, heat)) == ""
    assert (drawn[corner] == 255).all()
    assert (drawn[60:, 60:] == drawn[-1, -1]).all() and len(set(drawn[-1, -1].tolist())) > 1
