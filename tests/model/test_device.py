"""The device of a name, its precision, and what config.json says of it."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import octfast.model.compiler as compiler
from octfast.errors import UsageError
from octfast.model.device import describe_device, find_device, half_of
from octfast.model.engine import Engine, make_engine

CUDA = torch.cuda.is_available()


def test_auto_is_a_gpu_where_there_is_one_and_the_cpu_is_had_everywhere():
    assert find_device().type == find_device("auto").type == ("cuda" if CUDA else "cpu")
    assert find_device("cpu") == torch.device("cpu") and describe_device(torch.device("cpu")) == {}


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("cdua", "no device named 'cdua'", "did you mean cuda"),
        ("gpu", "no device named 'gpu'", "did you mean cuda"),
        ("cuda:x", "no device named 'cuda:x'", "did you mean cuda"),
        ("meta", "no device named 'meta'", "auto, cpu, cuda"),
        ("xpu:0", "no device named 'xpu:0'", ""),
        *([] if CUDA else [("cuda", "--device cuda: ", "octfast doctor"), ("cuda:1", "--device cuda:1: ", "")]),
        *([("cuda:99", "GPUs, numbered from 0", "cuda:0 to")] if CUDA else []),
        *([] if sys.platform == "darwin" else [("mps", "there is no Apple GPU", "auto")]),
    ],
)
def test_a_device_that_is_not_there_is_said_in_a_sentence(name, message, hint):
    with pytest.raises(UsageError, match=message) as e:
        find_device(name)
    assert hint in e.value.hint


def test_half_precision_goes_by_what_a_gpu_multiplies_fast():
    # GTX 1080 Ti, P100; V100, T4; A100, RTX 4090, H100, B200.
    assert [half_of(c) for c in ((6, 1), (6, 0))] == ["fp32", "fp32"]
    assert [half_of(c) for c in ((7, 0), (7, 5))] == ["fp16", "fp16"]
    assert [half_of(c) for c in ((8, 0), (8, 9), (9, 0), (10, 0))] == ["bf16"] * 4


def test_compiling_is_refused_where_there_is_no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="--compile needs a C\\+\\+ compiler") as e:
        make_engine(nn.Sequential(nn.Conv2d(3, 4, 3)), compiled=True)
    assert "leave --compile out" in e.value.hint
    with pytest.raises(UsageError, match="not for mps"):
        compiler.check_compiler("mps")


def test_what_is_compiled_has_a_key_of_its_own():
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    try:
        compiler.check_compiler("cpu")
    except UsageError as e:
        pytest.skip(e.message)
    keys = [Engine(network, "fp32", compiled=compiled).key for compiled in (False, True)]
    assert keys[1] == {**keys[0], "compiled": True} and "compiled" not in keys[0]


@pytest.mark.gpu
def test_a_gpu_says_what_decides_the_last_digits():
    about = describe_device(find_device("cuda"))
    assert about["gpu"] and about["cudnn"] and about["deterministic"] is False
    assert find_device("cuda:0").index == 0


@pytest.mark.gpu
def test_float32_on_a_gpu_is_no_tf32():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3)), torch.randn(8, 3, 64, 64)
    there, here = Engine(network, "fp32", "cuda")(x).cpu(), Engine(network, "fp32", "cpu")(x)
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)
    assert torch.backends.cudnn.allow_tf32  # as it was


@pytest.mark.gpu
def test_a_gpu_s_engine_halves_a_batch_that_is_too_large(said):
    free, _ = torch.cuda.mem_get_info()
    side = 512
    network = nn.Sequential(nn.Conv2d(3, 256, 3, padding=1), nn.ReLU())
    # So many scans that their maps take more than there is.
    scans = int(2 * free / (256 * side * side * 2)) + 2
    x = torch.zeros(1, 3, side, side).expand(scans, -1, -1, -1)
    engine = Engine(nn.Sequential(network, nn.AdaptiveAvgPool2d(1)), "fp16", "cuda")
    assert engine(x).shape == (scans, 256, 1, 1)
    assert engine.passes.most and any("at a time" in line for line in said())


@pytest.mark.skipif(not (sys.platform == "darwin" and torch.backends.mps.is_available()), reason="needs Apple's GPU")
def test_apple_s_gpu_gives_what_the_cpu_gives():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.randn(4, 3, 32, 32)
    there = Engine(network, "fp32", find_device("mps"))(x).cpu()
    torch.testing.assert_close(there, Engine(network, "fp32", "cpu")(x), rtol=1e-3, atol=1e-4)
