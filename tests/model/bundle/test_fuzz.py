from __future__ import annotations

import shutil
import sys
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.deploy.predictor import load
from octfast.errors import BundleError
from octfast.model.bundle.info import MODEL_FILE
from octfast.model.bundle.write import save_bundle
from tests.model.bundle.hostile import KINDS, header_of, info_of, write_header, write_info
from tests.model.bundle.test_bundle import info, model_of

if sys.platform == "win32":
    pytest.skip("links and pipes of POSIX", allow_module_level=True)

# What no reading of a bundle may ask the interpreter for.
FORBIDDEN = ("pickle.find_class", "os.system", "subprocess.Popen", "socket.connect", "socket.getaddrinfo", "os.mkdir")
_asked: list[str] = []
_watching = [False]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    about = info(
        training={"seed": 3},
        weights={"source": "none"},
        calibration={"operating": {"urgent": ["CNV"], "threshold": 0.5}, "conformal": {"threshold": 0.2}},
    )
    folder = save_bundle(tmp_path_factory.mktemp("good") / "bundle", model_of(about), about)
    load(folder, precision="fp32", device="cpu").probabilities([np.zeros((8, 8), np.uint8)])
    return folder


@pytest.fixture(scope="module", autouse=True)
def watch():
    sys.addaudithook(lambda event, _: _asked.append(event) if _watching[0] and event in FORBIDDEN else None)


@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**32))
@settings(max_examples=120)
def test_a_spoilt_bundle_is_refused_with_a_sentence_or_answers(good, tmp_path_factory, kind, seed):
    work = tmp_path_factory.mktemp("case")
    folder = shutil.copytree(good, work / "bundle")
    KINDS[kind](Random(seed), folder, work / "canary")
    before = sorted(work.rglob("*"))
    _asked.clear()
    _watching[0] = True
    try:
        predictor = load(folder, precision="fp32", device="cpu")
        answer = next(predictor.stream([np.full((80, 90), 120, np.uint8)]))
    except BundleError as e:
        assert e.message.isprintable() and len(e.message) < 1000 and e.hint.isprintable() and e.hint
        assert kind != "whole"
    else:
        assert kind in ("whole", "tensors numbers") or kind.startswith("info") or "outside" not in str(before)
        assert answer.error is not None or answer.probabilities.shape == (len(predictor.classes),)
    finally:
        _watching[0] = False
    assert not _asked
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize("kind", ["pickles", "links", "no files", "tensors cut", "info cut", "info versions", "slim"])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_never_a_bundle_is_never_loaded(good, tmp_path, kind, seed):
    folder = shutil.copytree(good, tmp_path / "bundle")
    KINDS[kind](Random(seed), folder, tmp_path / "canary")
    with pytest.raises(BundleError):
        load(folder)
    assert not (tmp_path / "canary").exists()


def test_a_pickle_is_called_one(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "bundle")
    torch.save({"a": torch.zeros(2)}, folder / MODEL_FILE)
    with pytest.raises(BundleError, match="pickle"):
        load(folder)


def test_a_giant_costs_no_memory(good, tmp_path, monkeypatch):
    """The header is compared with shapes alone: a network of a thousand million numbers is never made."""
    folder = shutil.copytree(good, tmp_path / "bundle")
    absurd = {"arch": "vit_giant_patch14_dinov2", "classes": [f"c{i}" for i in range(10_000)], "calibration": {}}
    write_info(folder, info_of(folder) | absurd)
    made = []
    empty = torch.Tensor.normal_
    monkeypatch.setattr(torch.Tensor, "normal_", lambda x, *a, **k: (made.append(x), empty(x, *a, **k))[1])
    with pytest.raises(BundleError, match="does not hold vit_giant_patch14_dinov2"):
        load(folder)
    assert all(x.is_meta for x in made)


def test_a_header_that_speaks_of_a_giant_tensor_is_refused_before_it_is_made(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "bundle")
    header, rest = header_of(folder)
    name = next(k for k in header if k != "__metadata__")
    header[name] |= {"shape": [2**40, 2**20], "data_offsets": [0, 2**62]}
    write_header(folder, header, rest)
    with pytest.raises(BundleError, match="cannot read"):
        load(folder)
