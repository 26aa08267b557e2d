"""A batch that memory is too small for is run in halves; what is injected is the failure, above a number of scans."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from octfast.assess.interpret.heatmap import heat_maps
from octfast.errors import OctfastError
from octfast.model.bundle.info import BundleInfo
from octfast.model.engine import Engine
from octfast.model.memory import Passes, out_of_memory

FAILURES = (
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    MemoryError(),
)


class Small(nn.Module):
    """Gives its input, and fails as where memory is too small above so many scans."""

    def __init__(self, most: int, failure: Exception = FAILURES[0], module: nn.Module | None = None):
        super().__init__()
        self.most, self.failure, self.module = most, failure, module or nn.Identity()
        self.register_buffer("here", torch.zeros(1))
        self.asked: list[int] = []

    def forward(self, x):
        self.asked.append(len(x))
        if len(x) > self.most:
            raise self.failure
        return self.module(x)


@pytest.mark.parametrize("failure", FAILURES, ids=["gpu", "cpu", "python"])
def test_what_says_that_memory_is_too_small_is_told_from_other_errors(failure):
    assert out_of_memory(failure)
    assert not out_of_memory(RuntimeError("shapes differ")) and not out_of_memory(ValueError("out of memory"))


@given(scans=st.integers(1, 70), most=st.integers(1, 70))
def test_every_scan_comes_once_and_in_order(scans, most):
    passes, sizes = Passes("the test"), []

    def run(part: slice) -> list[int]:
        sizes.append(part.stop - part.start)
        if sizes[-1] > most:
            raise FAILURES[0]
        return list(range(scans))[part]

    assert [n for part in passes(scans, run) for n in part] == list(range(scans))
    assert passes.most is None or most / 2 - 1 < passes.most <= most
    # What was found is not sought again.
    sizes.clear()
    passes(scans, run)
    assert max(sizes) <= most


def test_a_single_scan_that_does_not_fit_is_an_error_in_words():
    def never(part: slice):
        raise FAILURES[0]

    with pytest.raises(OctfastError, match="memory is too small for heat maps of a single scan") as e:
        Passes("heat maps")(4, never)
    assert "--size" in e.value.hint
    with pytest.raises(torch.cuda.OutOfMemoryError):
        Passes("the network", last=False)(4, never)


def test_an_engine_gives_the_same_in_smaller_passes_and_says_so(said):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.randn(13, 3, 16, 16)
    whole = Engine(network, "fp32")(x)
    engine = Engine(nn.Sequential(network, Small(4)), "fp32")
    torch.testing.assert_close(engine(x), whole, rtol=1e-5, atol=1e-6)
    assert engine.passes.most == 3
    assert said() == [
        "memory is too small for the network of 13 scans at once: 6 at a time",
        "memory is too small for the network of 6 scans at once: 3 at a time",
    ]
    pair = Engine(Small(4, module=Twice()), "fp32", "cpu")
    for out, wanted in zip(pair(x), (x, 2 * x), strict=True):
        torch.testing.assert_close(out, wanted)


class Twice(nn.Module):
    def forward(self, x):
        return x, 2 * x


def test_heat_maps_are_drawn_in_smaller_passes(said):
    torch.manual_seed(0)
    info = BundleInfo(arch="test_resnet", head="linear", classes=("A", "B"), size=32, mean=(0.5,) * 3, std=(0.2,) * 3)
    body, head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head.append(nn.Linear(4, 2))
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)) for _ in range(5)]
    whole = heat_maps(nn.Sequential(body, head), info, pictures)
    parts = heat_maps(nn.Sequential(nn.Sequential(body, Small(2)), head), info, pictures)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert any("heat maps of 5 scans at once: 2 at a time" in line for line in said())
