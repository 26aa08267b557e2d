"""A training on a device by name, the same each time it is made, and in smaller passes where memory is too small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fastai.torch_core import default_device
from safetensors.torch import load_file
from torch import nn

import octfast.train.job as job
from octfast.data.loaders import oct_dataloaders
from octfast.errors import OctfastError, UsageError
from octfast.model.engine import Engine
from octfast.train.device import computing
from octfast.train.frozen.frozen import frozen_learner
from octfast.train.frozen.views import Views, block_of
from octfast.train.job import train_classifier
from octfast.train.learner import oct_learner
from tests.conftest import quick

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def too_much(*_):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def stored(phantoms, cache) -> tuple[np.ndarray, list[str]]:
    """What is stored of two views of the training scans, and the names of the stores."""
    dls = oct_dataloaders(phantoms, size=32, bs=8, num_workers=0, device="cpu", valid=0.25)
    fast = frozen_learner(oct_learner(dls, "test_resnet", weights="none"), views=2, precision="fp32", cache=cache)
    store = fast.stores[0]
    names = sorted(folder.name for folder in (cache / "features").iterdir())
    return np.stack([store.take(np.arange(len(store)), view) for view in range(2)]), names


def test_smaller_passes_store_the_same_but_for_rounding(phantoms, tmp_path, monkeypatch, said):
    whole, name = stored(phantoms, tmp_path / "a")
    assert not any("memory" in line for line in said())
    one_pass, each_view = Engine._pass, Views.each_view
    monkeypatch.setattr(Engine, "_pass", lambda self, x: too_much() if len(x) > 3 else one_pass(self, x))
    parts, same = stored(phantoms, tmp_path / "b")
    assert same == name and any("the network of 4 scans at once: 2 at a time" in line for line in said())
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
    # Views that are too large to be made are made of fewer scans, which look as they did.
    monkeypatch.setattr(Engine, "_pass", one_pass)

    def large(self, batch, rows, size=None):
        return too_much() if (size or self.block) > 5 and len(rows) > 1 else each_view(self, batch, rows, size)

    monkeypatch.setattr(Views, "each_view", large)
    monkeypatch.setattr(Views, "key", lambda self, key=Views.key: _with(monkeypatch, each_view, large, key, self))
    parts, same = stored(phantoms, tmp_path / "c")
    assert same == name and any("the frozen part of 8 scans at once: 4 at a time" in line for line in said())
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)


def _with(monkeypatch, each_view, large, key, source):
    """The key of a store, of the views that are made of a whole block."""
    monkeypatch.setattr(Views, "each_view", each_view)
    found = key(source)
    monkeypatch.setattr(Views, "each_view", large)
    return found


def test_a_single_scan_that_does_not_fit_ends_the_training_in_words(phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "_pass", too_much)
    with pytest.raises(OctfastError, match="memory is too small for the frozen part of a single scan"):
        stored(phantoms, tmp_path)


def test_a_block_has_fewer_scans_where_they_are_large():
    assert [block_of(side**2, CPU) for side in (224, 336, 768, 1024, 3072)] == [16, 16, 16, 9, 1]
    assert [block_of(side**2, GPU) for side in (336, 768, 1536, 3072)] == [64, 64, 16, 4]


def test_a_batch_that_does_not_fit_is_halved_on_a_cpu_too(phantoms, monkeypatch, said):
    fit_once, asked = job._fit_once, []

    def small(learn, config, run, bs, *rest):
        asked.append(bs)
        if bs > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12345678901 bytes")
        return fit_once(learn, config, run, bs, *rest)

    monkeypatch.setattr(job, "_fit_once", small)
    run = train_classifier(**quick(phantoms, bs=16))
    assert asked == [16, 8, 4] and run.config["chosen"]["bs"] == 4
    assert any("batches of 8 scans: starting again with 4" in note.text for note in run.notes)


@pytest.mark.parametrize("fields", [{"views": 2}, {"views": 0}, {"unfreeze": "all"}], ids=["stored", "stock", "all"])
def test_a_training_repeats_bit_for_bit(phantoms, fields, tmp_path):
    """On a CPU with the option and without."""
    recipe = quick(phantoms, **{"size": 32, "epochs": 1, "workers": 2, "device": "cpu", **fields})
    made = [
        train_classifier(**recipe, deterministic=asked, out=f"runs/{asked}", cache=str(tmp_path / str(asked)))
        for asked in (True, False)
    ]
    one, other = (run.path / "model" / "model.safetensors" for run in made)
    assert one.read_bytes() == other.read_bytes()
    assert made[0].history.drop(columns="seconds").equals(made[1].history.drop(columns="seconds"))
    assert made[0].config["device"] == made[0].config["chosen"]["device"] == "cpu" and made[0].config["deterministic"]
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_cannot_repeat_is_said_in_words():
    with (
        pytest.raises(OctfastError, match="no way to compute adaptive_avg_pool2d_backward_cuda"),
        computing("cpu", deterministic=True),
    ):
        raise RuntimeError(
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'."
        )
    with pytest.raises(RuntimeError, match="another"), computing("cpu", deterministic=True):
        raise RuntimeError("another")


def test_a_device_that_is_not_there_is_refused_before_anything_is_read():
    with pytest.raises(UsageError, match="no device named 'cpuu'"):
        train_classifier(data="nowhere", device="cpuu", out="runs/r")


def test_fastai_computes_where_it_did_before(phantoms):
    before = default_device()
    with computing("cpu"):
        assert default_device() == CPU
    assert default_device() == before


@pytest.mark.gpu
@pytest.mark.parametrize("fields", [{"views": 2}, {"views": 0}, {"unfreeze": "all"}], ids=["stored", "stock", "all"])
def test_a_training_on_a_gpu_repeats_bit_for_bit(phantoms, fields, tmp_path):
    recipe = quick(phantoms, **{"precision": "auto", "device": "cuda", "deterministic": True, "workers": 2, **fields})
    made = [train_classifier(**recipe, out=f"runs/{n}", cache=str(tmp_path / str(n))) for n in range(2)]
    one, other = (load_file(run.path / "model" / "model.safetensors") for run in made)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert made[0].history.drop(columns="seconds").equals(made[1].history.drop(columns="seconds"))
    assert made[0].config["machine"]["deterministic"] is True


@pytest.mark.gpu
@pytest.mark.parametrize("fields", [{"views": 2}, {"views": 0}, {"unfreeze": "block5", "arch": "resnet18"}])
def test_a_gpu_trains_as_a_cpu_does(phantoms, fields, tmp_path):
    def trained(device: str):
        return train_classifier(**quick(phantoms, **{"device": device, "cache": str(tmp_path / device), **fields}))

    here, there = trained("cpu"), trained("cuda")
    np.testing.assert_allclose(here.history["valid_loss"], there.history["valid_loss"], atol=0.05)
    assert there.config["chosen"]["device"].startswith("cuda") and there.config["machine"]["gpu"]


@pytest.mark.gpu
def test_the_frozen_part_of_large_scans_finds_what_fits(phantoms, tmp_path, said):
    """Whatever else holds the GPU's memory: the frozen part runs in passes that fit beside it."""
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(int(free - 1.5e9), dtype=torch.uint8, device="cuda")
    run = train_classifier(**quick(phantoms, size=512, device="cuda", arch="vgg11_bn", cache=str(tmp_path)))
    del held
    assert len(run.history) == 2 and any("at a time" in line for line in said())


@pytest.mark.gpu
def test_what_is_compiled_gives_the_same_but_for_rounding():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()), torch.randn(8, 3, 64, 64)
    plain, compiled = (Engine(network, "fp32", "cuda", compiled=c)(x) for c in (False, True))
    torch.testing.assert_close(plain, compiled, rtol=1e-4, atol=1e-4)
