"""A model that sees the square in the middle of a scan gives the same answers through every door."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from octfast.assess.interpret.heatmap import HeatMaps, overlay
from octfast.data.fit import box_of
from octfast.data.loaders import oct_dataloaders
from octfast.deploy.app.answers import Answers
from octfast.deploy.export.classifier import WholeClassifier
from octfast.deploy.export.classifier import resize as graph_resize
from octfast.deploy.export.export import export_bundle
from octfast.deploy.predictor import Predictor, load
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import save_bundle
from octfast.model.heads import body_and_head
from octfast.train.learner import bundle_info
from tests.pictures import scan

SHAPES = [(60, 60), (60, 200), (200, 60), (61, 90), (1, 70), (70, 1), (1, 1), (31, 32)]


@cache
def crop() -> Predictor:
    """A small untrained model, its answers spread by a low temperature."""
    torch.manual_seed(0)
    arch = find_arch("test_resnet")
    model = nn.Sequential(*body_and_head(make_network(arch, 64), arch, "octfast", 3)).eval()
    info = BundleInfo("test_resnet", "octfast", ("a", "b", "c"), 64, (0.5,) * 3, (0.2,) * 3, temperature=0.2)
    return Predictor(model, replace(info, fit="crop"), precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return save_bundle(tmp_path_factory.mktemp("crop") / "bundle", crop().model, crop().info)


def pictures() -> list[np.ndarray]:
    return [scan(h, w, n) for n, (h, w) in enumerate(SHAPES)]


def middle(picture: np.ndarray) -> np.ndarray:
    left, top, right, bottom = box_of(picture.shape[1], picture.shape[0], "crop")
    return picture[top:bottom, left:right]


def test_they_are_those_of_a_model_that_squeezes_pictures_cut_by_hand(bundle):
    squeezing = Predictor(crop().model, replace(crop().info, fit="squeeze"), precision="fp32", device="cpu")
    found = load(bundle, precision="fp32", device="cpu").probabilities(pictures())
    assert np.array_equal(found, squeezing.probabilities([middle(p) for p in pictures()]))
    assert np.abs(found - squeezing.probabilities(pictures())).max() > 0.01


@settings(max_examples=25)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(0, 5))
def test_what_lies_outside_changes_no_bit(height, width, seed):
    one, other = scan(height, width, seed), scan(height, width, seed + 10)
    left, top, right, bottom = box_of(width, height, "crop")
    other[top:bottom, left:right] = one[top:bottom, left:right]
    assert np.array_equal(*crop().probabilities([one, other]))


def test_a_learner_gives_them_and_trains_on(phantoms):
    predictor = crop()
    learn = predictor.to_learner()
    assert bundle_info(learn).fit == "crop"
    p, _ = learn.get_preds(dl=learn.dls.test_dl(pictures()))
    np.testing.assert_allclose(p.numpy(), predictor.probabilities(pictures()), atol=1e-5)


def test_a_learner_of_other_dataloaders_is_told(tmp_path, said):
    for label in ("a", "b", "c"):
        (tmp_path / label).mkdir()
        for n in range(4):
            Image.fromarray(scan(20, 20, n)).save(tmp_path / label / f"{label}-{n}-1.png")
    given = {"size": 64, "bs": 2, "valid": 0.25, "num_workers": 0, "device": "cpu"}
    crop().to_learner(oct_dataloaders(tmp_path, fit="crop", **given))
    assert not any("oct_dataloaders(fit=)" in line for line in said())
    crop().to_learner(oct_dataloaders(tmp_path, **given))
    assert any("oct_dataloaders(fit=)" in line for line in said())


def test_the_page_gives_them():
    answers = Answers(crop())
    for picture in pictures():
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        found = answers.answer(file.getvalue(), heat_map=True)
        expected = crop().probabilities([picture])[0]
        np.testing.assert_allclose(list(found["probabilities"].values()), expected, atol=1e-6)
        assert found["seen"] == list(box_of(picture.shape[1], picture.shape[0], "crop"))
    assert "sees the square in the middle" in answers.about()["heat_map_caution"]


@settings(max_examples=60)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(16, 100), st.integers(0, 9))
def test_the_graph_of_an_export_cuts_to_the_bit(height, width, size, seed):
    from octfast.data.preprocess import resize

    grey = scan(height, width, seed)
    with torch.inference_mode():
        found = graph_resize(torch.from_numpy(grey)[None].float(), size, "crop")[0].numpy()
    assert np.array_equal(found, np.asarray(resize(Image.fromarray(grey), size, "crop")))


def test_an_exported_program_gives_them(bundle, tmp_path):
    found = export_bundle(bundle, "torch", tmp_path / "m.pt2", scans=2)
    assert found.agreement.largest < 1e-3
    network = torch.export.load(found.file).module()
    for picture in pictures():
        p = network(torch.from_numpy(picture)[None, :, :, None])[0].numpy()
        np.testing.assert_allclose(p, crop().probabilities([picture])[0], atol=1e-4)


@pytest.mark.parametrize("opset", [None, 18])
def test_onnx_gives_them(bundle, tmp_path, opset):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    found = export_bundle(bundle, out=tmp_path / "m.onnx", scans=2, opset=opset)
    assert found.agreement.largest < 1e-3
    session = onnxruntime.InferenceSession(str(found.file))
    assert session.get_modelmeta().custom_metadata_map["fit"] == "crop"
    for picture in pictures():
        p = session.run(None, {"picture": picture[None, :, :, None]})[0][0]
        np.testing.assert_allclose(p, crop().probabilities([picture])[0], atol=1e-4)


def test_an_export_that_would_squeeze_is_refused(bundle, tmp_path, monkeypatch):
    """Also where the scans that it is compared on are squares."""
    from octfast.errors import DataError

    made = WholeClassifier.__init__

    def squeezing(self, model, info, **kwargs):
        made(self, model, replace(info, fit="squeeze"), **kwargs)

    monkeypatch.setattr(WholeClassifier, "__init__", squeezing)
    (tmp_path / "squares").mkdir()
    Image.fromarray(scan(90, 90)).save(tmp_path / "squares" / "a.png")
    with pytest.raises(DataError, match="differ from torch's"):
        export_bundle(bundle, "torch", tmp_path / "m.pt2", check=tmp_path / "squares")
    assert not (tmp_path / "m.pt2").exists()


@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
@pytest.mark.parametrize("shape", [(60, 150), (150, 60), (60, 60)])
def test_a_heat_map_lies_in_the_box(method, shape):
    picture = scan(*shape)
    found = crop().heat_map(picture, 1, method)
    alone = crop().heat_map(middle(picture), 1, method)
    assert found.shape == shape
    np.testing.assert_array_equal(middle(found), alone)
    assert found.sum() == alone.sum()


def test_heat_maps_of_files_do_too(tmp_path):
    Image.fromarray(scan(40, 100)).save(tmp_path / "a.png")
    found = HeatMaps(crop().model, crop().info).get(str(tmp_path / "a.png"), "b")
    np.testing.assert_array_equal(found, crop().heat_map(tmp_path / "a.png", 1))


def test_what_is_not_seen_is_dark_in_an_overlay():
    picture = Image.new("L", (300, 100), 200)
    none = np.zeros((100, 300), np.float32)
    drawn = np.asarray(overlay(picture, none, fit="crop"))
    assert (drawn[:, 100:200] == 200).all()
    assert (drawn[:, :98] == 70).all() and (drawn[:, 202:] == 70).all()
    assert (np.asarray(overlay(picture, none)) == 200).all()
    square = Image.new("L", (100, 100), 200)
    assert (np.asarray(overlay(square, none[:, :100], fit="crop")) == 200).all()
