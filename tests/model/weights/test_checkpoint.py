"""Checkpoints as RETFound's authors publish them: made up here, of the same layout, from a tiny transformer."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from octfast.errors import WeightsError
from octfast.model import arch as arch_module
from octfast.model.arch import FOUNDATIONS, Arch, find_arch, make_network
from octfast.model.weights.load import load_weights

# A transformer as small as timm has one, in the place of ViT-L.
TINY = Arch("tiny_found", "timm", timm_name="test_vit", pool="avg", page="https://example.org", licence="CC BY-NC 4.0")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(arch_module.FOUNDATIONS, "tiny_found", TINY)


def pretrained(size: int = 160, **kwargs) -> nn.Module:
    torch.manual_seed(1)
    made = timm.create_model("test_vit", num_classes=0, img_size=size, **kwargs)
    for p in made.parameters():
        nn.init.normal_(p, std=0.05)
    return made.eval()


def masked_autoencoder(path: Path, **more: object) -> nn.Module:
    """A checkpoint of a masked autoencoder's training at `path`; gives its encoder."""
    encoder = pretrained()
    decoder = {
        "mask_token": torch.randn(1, 1, 32),
        "decoder_embed.weight": torch.randn(32, 64),
        "decoder_pos_embed": torch.randn(1, 101, 32),
        "decoder_blocks.0.norm1.weight": torch.randn(32),
        "decoder_norm.weight": torch.randn(32),
        "decoder_pred.weight": torch.randn(768, 32),
    }
    state = torch.optim.AdamW(encoder.parameters()).state_dict()
    args = argparse.Namespace(batch_size=16, lr=None, output_dir="./out", blr=5e-3, resume="", distributed=False)
    torch.save(
        {"model": {**encoder.state_dict(), **decoder}, "optimizer": state, "epoch": 799, "scaler": {}, "args": args}
        | more,
        path,
    )
    return encoder


def averaged(encoder: nn.Module, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """What the authors compute where they fine-tune: the patches' mean, without the class token, normalised."""
    tokens = encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(x)))
    return norm(encoder.blocks(tokens)[:, 1:].mean(1))


def test_a_masked_autoencoder_becomes_a_body_that_averages_its_patches(tmp_path):
    encoder = masked_autoencoder(tmp_path / "mae.pth")
    network = make_network(find_arch("tiny_found"), 160).eval()
    report = load_weights(network, "tiny_found", tmp_path / "mae.pth")
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(network(x), averaged(encoder, x, encoder.norm))
    assert report.missing == report.unused == () and report.licence == "CC BY-NC 4.0"
    for words in ("6 tensors of its decoder left out", "norm stands in for fc_norm", "licence", "CC BY-NC 4.0"):
        assert words in report.describe()


def test_a_fine_tuned_one_brings_its_own_norm_and_leaves_its_classes(tmp_path):
    torch.manual_seed(2)
    tuned = timm.create_model("test_vit", num_classes=5, global_pool="avg").eval()
    args = argparse.Namespace(nb_classes=5, global_pool=True)
    torch.save({"model": tuned.state_dict(), "args": args}, tmp_path / "checkpoint-best.pth")
    network = make_network(find_arch("tiny_found"), 160).eval()
    report = load_weights(network, "tiny_found", tmp_path / "checkpoint-best.pth")
    tuned.reset_classifier(0)
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(network(x), tuned(x))
    assert set(report.unused) == {"head.weight", "head.bias"} and "stands in" not in report.describe()


def test_a_teacher_gives_its_backbone(tmp_path):
    teacher = pretrained()
    state = {f"backbone.{k}": v for k, v in teacher.state_dict().items()}
    state |= {"backbone.mask_token": torch.randn(1, 64), "dino_head.mlp.0.weight": torch.randn(8, 64)}
    torch.save({"teacher": {**state, "ibot_head.last_layer.weight_g": torch.randn(8, 1)}}, tmp_path / "teacher.pth")
    network = make_network(find_arch("test_vit"), 160).eval()
    report = load_weights(network, "test_vit", tmp_path / "teacher.pth")
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(network(x), teacher(x))
    assert report.missing == () and "2 tensors beside it left out" in report.describe()


def test_positions_are_resampled_to_another_size(tmp_path):
    encoder = masked_autoencoder(tmp_path / "mae.pth")
    network = make_network(find_arch("tiny_found"), 96)
    load_weights(network, "tiny_found", tmp_path / "mae.pth")
    wanted = timm.layers.resample_abs_pos_embed(encoder.pos_embed, [6, 6], num_prefix_tokens=1)
    torch.testing.assert_close(network.pos_embed, wanted)


class Malice:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["beside", "inside"])
def test_nothing_but_a_namespace_is_read_beside_tensors(tmp_path, where):
    bad = Malice(tmp_path / "made")
    masked_autoencoder(
        tmp_path / "evil.pth", **({"x": bad} if where == "beside" else {"args": argparse.Namespace(x=bad)})
    )
    network = make_network(find_arch("tiny_found"), 160)
    with pytest.raises(WeightsError, match="mkdir") as e:
        load_weights(network, "tiny_found", tmp_path / "evil.pth")
    assert not (tmp_path / "made").exists() and "unsafe pickles" in e.value.hint
    # What is allowed while one file is read is not allowed afterwards.
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("name, patch", [("retfound", 16), ("retfound_dinov2", 14)])
def test_the_real_names_have_the_sizes_that_are_published(name, patch):
    with torch.device("meta"):
        network = make_network(find_arch(name), 224)
    state = network.state_dict()
    assert state["patch_embed.proj.weight"].shape == (1024, 3, patch, patch) and "blocks.23.mlp.fc2.bias" in state
    assert state["pos_embed"].shape == (1, (224 // patch) ** 2 + 1, 1024)
    assert ("fc_norm.weight" in state) == (name == "retfound") and ("norm.weight" in state) != (name == "retfound")
    assert find_arch(name).mean == (0.485, 0.456, 0.406) and "CC BY-NC" in FOUNDATIONS[name].licence
    with pytest.raises(WeightsError, match="authors alone") as e:
        load_weights(network, name)
    assert FOUNDATIONS[name].page in e.value.hint


def test_a_file_of_retfound_for_another_network_is_told(tmp_path):
    torch.save({"model": {"patch_embed.proj.weight": torch.zeros(1024, 3, 16, 16)}}, tmp_path / "big.pth")
    with pytest.raises(WeightsError) as e:
        load_weights(make_network(find_arch("test_vit"), 160), "test_vit", tmp_path / "big.pth")
    assert "--arch retfound" in e.value.hint
