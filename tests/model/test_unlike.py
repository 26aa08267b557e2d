"""The distance to the training scans: what it calls unlike, its threshold by patient, its file in the bundle."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from torch import nn

from octfast.errors import BundleError
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.distance import load_distance, save_distance
from octfast.model.bundle.info import UNLIKE_FILE, BundleInfo
from octfast.model.bundle.read import read_info
from octfast.model.bundle.write import save_bundle
from octfast.model.heads import body_and_head
from octfast.model.unlike import Unlike, fit_distance, patient_threshold, shapes_of, shrinkage_of


def of(unlike: Unlike, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return unlike(torch.from_numpy(x.astype(np.float32))).numpy()


def test_it_is_the_mahalanobis_distance_of_the_shrunk_covariance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12)) + 5
    found = fit_distance(x)
    scale = x.std(0)
    z = ((x - x.mean(0)) / scale).astype(np.float32)
    alpha = shrinkage_of(z)
    sample = np.cov(z.T, bias=True)
    inverse = np.linalg.inv((1 - alpha) * sample + alpha * np.trace(sample) / 12 * np.eye(12))
    far = rng.normal(size=(5, 12)) * 4
    expected = [mahalanobis((row - x.mean(0)) / scale, np.zeros(12), inverse) for row in far]
    assert np.allclose(of(found, far), expected, rtol=1e-3)


def test_what_leaves_the_kept_directions_counts():
    rng = np.random.default_rng(1)
    x = np.hstack([rng.normal(size=(300, 3)), rng.normal(scale=0.01, size=(300, 40))])
    x[:, 3:] += x[:, :1]
    few = fit_distance(x, most=3)
    assert len(few.weights) == 3
    away = x[:20].copy()
    away[:, 3::2] += 2
    assert of(few, away).min() > of(few, x).max()


def test_a_map_counts_as_its_mean():
    x = np.random.default_rng(2).normal(size=(50, 6))
    found = fit_distance(x)
    maps = torch.from_numpy(x.astype(np.float32))[:, :, None, None].repeat(1, 1, 2, 3)
    with torch.no_grad():
        assert np.allclose(found(maps).numpy(), of(found, x), rtol=1e-4)


def test_the_threshold_counts_every_patient_alike():
    distances = np.r_[np.full(5000, 9.0), np.linspace(1, 2, 199)]
    patients = ["many"] * 5000 + [f"p{n}" for n in range(199)]
    assert patient_threshold(distances, patients) < 2
    assert patient_threshold(distances, list(range(len(distances)))) == 9


def test_few_patients_make_a_wide_threshold():
    rng = np.random.default_rng(3)
    draws = [np.exp(rng.normal(0, 0.1, 30)) for _ in range(200)]
    new = np.exp(rng.normal(0, 0.1, 2000))
    passed = np.mean([(new > patient_threshold(d, list(range(30)))).mean() for d in draws])
    of_the_largest = np.mean([(new > d.max()).mean() for d in draws])
    assert passed < 0.015 < of_the_largest


@pytest.fixture
def bundle(tmp_path):
    arch = find_arch("test_resnet")
    model = nn.Sequential(*body_and_head(make_network(arch, 32), arch, "linear", 2))
    info = BundleInfo("test_resnet", "linear", ("a", "b"), 32, (0.5,) * 3, (0.2,) * 3)
    return save_bundle(tmp_path / "model", model, info)


def test_a_bundle_keeps_it_and_older_ones_have_none(bundle):
    assert load_distance(bundle, read_info(bundle)) is None
    found = fit_distance(np.random.default_rng(4).normal(size=(40, 7)))
    found.threshold.fill_(3.5)
    info = save_distance(bundle, found, {"share": 0.01, "scans": 40, "patients": 40})
    again = load_distance(bundle, info)
    assert again is not None
    assert all(torch.equal(a, b) for a, b in zip(found.buffers(), again.buffers(), strict=True))
    assert info.calibration["unlike"]["patients"] == 40


@pytest.mark.parametrize("how", ["missing", "other", "negative", "shape", "link", "no digest"])
def test_another_file_in_its_place_is_refused(bundle, how, tmp_path):
    from safetensors.torch import load_file, save_file

    x = np.random.default_rng(5).normal(size=(40, 7))
    info = save_distance(bundle, fit_distance(x), {})
    file = bundle / UNLIKE_FILE
    state = load_file(file)
    if how == "missing":
        file.unlink()
    elif how == "other":
        save_file(fit_distance(x + 1).state_dict(), file)
    elif how == "negative":
        save_file({**state, "threshold": torch.tensor(-1.0)}, file)
    elif how == "shape":
        save_file({**state, "centre": torch.ones(8)}, file)
    elif how == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        about = json.loads(json.dumps(info.calibration))
        del about["unlike"]["sha256"]
        info = replace(info, calibration=about)
    with pytest.raises(BundleError):
        load_distance(bundle, info)


def test_the_shapes_are_those_of_the_module():
    assert {n: tuple(t.shape) for n, t in Unlike(9, 4).named_buffers()} == shapes_of(9, 4)
