from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from octfast.errors import BundleError
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.info import INFO_FILE, MODEL_FILE, BundleInfo
from octfast.model.bundle.read import load_bundle, read_info
from octfast.model.bundle.write import save_bundle, update_info
from octfast.model.heads import body_and_head


def info(arch="test_resnet", head="octfast", **fields) -> BundleInfo:
    known = {"classes": ("CNV", "DME", "NORMAL"), "size": 64, "mean": (0.4,) * 3, "std": (0.2,) * 3}
    return BundleInfo(arch, head, **{**known, **fields})


def model_of(about: BundleInfo) -> nn.Sequential:
    arch = find_arch(about.arch)
    torch.manual_seed(3)
    return nn.Sequential(*body_and_head(make_network(arch, about.size), arch, about.head, len(about.classes))).eval()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    about = info(training={"seed": 3}, weights={"source": "none"}, synthetic=True, temperature=1.5)
    return save_bundle(tmp_path_factory.mktemp("bundle") / "model", model_of(about), about)


@pytest.mark.parametrize(
    "arch, head",
    [
        ("test_resnet", "octfast"),
        ("test_vit", "octfast"),
        ("test_vit", "fastai"),
        ("resnet18", "fastai"),
        ("squeezenet1_1", "octfast"),
    ],
)
def test_what_is_saved_comes_back(tmp_path, arch, head):
    about = info(arch, head, training={"note": "äöü"}, temperature=0.7)
    model = model_of(about)
    loaded, found = load_bundle(save_bundle(tmp_path / "a" / "b", model, about))
    assert found == about
    assert not loaded.training and next(loaded.parameters()).device.type == "cpu"
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), loaded(x))


def test_the_files_of_a_bundle(bundle):
    assert sorted(p.name for p in bundle.iterdir()) == [MODEL_FILE, INFO_FILE] == ["model.safetensors", "octfast.json"]
    said = json.loads((bundle / INFO_FILE).read_text())
    assert said["format"] == "octfast-bundle" and said["version"] == 2
    assert said["classes"] == ["CNV", "DME", "NORMAL"] and said["synthetic"] is True and said["temperature"] == 1.5


def test_tensors_on_other_strides_and_shared_ones_are_saved(tmp_path):
    about = info("resnet18")
    model = model_of(about).to(memory_format=torch.channels_last)
    loaded, _ = load_bundle(save_bundle(tmp_path, model, about))
    assert torch.equal(loaded[0][0][0].weight, model[0][0][0].weight)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for i in range(4):
        save_bundle(tmp_path / str(i), model_of(info()), info())
    assert len({(tmp_path / str(i) / name).read_bytes() for i in range(4) for name in (MODEL_FILE, INFO_FILE)}) == 2


def test_saving_again_replaces(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "model")
    about = info(classes=("B", "A"))
    save_bundle(folder, model_of(about), about)
    assert read_info(folder).classes == ("B", "A")
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("name", [MODEL_FILE, INFO_FILE])
def test_a_missing_file_is_named(bundle, tmp_path, name):
    folder = shutil.copytree(bundle, tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing") as e:
        load_bundle(folder)
    assert e.value.hint


def test_no_folder_at_all(tmp_path):
    for where in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(BundleError, match="no trained model"):
            load_bundle(where)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": "other"}, "not a bundle's"),
        ({"version": 6}, "version 6, newer than 5"),
        ({"version": 3}, "missing: fit"),
        ({"fit": "crop"}, "unknown or missing: fit"),
        ({"version": 3, "fit": "stretch"}, "fit is not one of squeeze, crop"),
        ({"version": 3, "fit": None}, "fit is not one of"),
        ({"version": None}, "version"),
        ({"classes": ["A"]}, "two or more"),
        ({"classes": ["A", "A", "B"]}, "twice"),
        ({"version": True}, "no version"),
        ({"version": 0}, "no version"),
        ({"version": 2.0}, "no version"),
        ({"classes": [["A"], ["B"], ["C"]]}, "classes"),
        ({"classes": ["A", "", "B"]}, "no name of a class"),
        ({"classes": ["A", "B\x1b[2J", "C"]}, "no name of a class"),
        ({"classes": ["A", "x" * 300, "C"]}, "no name of a class"),
        ({"classes": {"A": 1}}, "not a list"),
        ({"classes": ["CNV", "DME"]}, "differs"),
        ({"size": "64"}, "size"),
        ({"size": 0}, "size"),
        ({"size": 1e9}, "size"),
        ({"size": 64.0}, "size"),
        ({"size": True}, "size"),
        ({"mean": [1, 2]}, "mean"),
        ({"mean": [float("nan")] * 3}, "NaN is not a number"),
        ({"mean": [0.4, 0.4, True]}, "mean"),
        ({"mean": [1e9, 0, 0]}, "mean"),
        ({"std": [0, 1, 1]}, "std"),
        ({"std": [1e-30, 1, 1]}, "std"),
        ({"std": ["a", 1, 1]}, "std"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": None}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 1e30}, "temperature"),
        ({"temperature": float("inf")}, "Infinity is not a number"),
        ({"synthetic": 1}, "synthetic"),
        ({"weights": []}, "not an object"),
        ({"training": "yes"}, "not an object"),
        ({"calibration": None}, "not an object"),
        ({"calibration": {"operating": {"urgent": ["OTHER"], "threshold": 0.5}}}, "urgent classes"),
        ({"calibration": {"operating": {"urgent": ["CNV"], "threshold": "0.5"}}}, "no threshold"),
        ({"calibration": {"conformal": {"threshold": True}}}, "no threshold"),
        ({"calibration": {"conformal": {"threshold": -3}}}, "not a probability"),
        ({"calibration": {"operating": {"urgent": ["CNV"], "threshold": 1.5}}}, "not a probability"),
        ({"calibration": {"operating": {"urgent": ["CNV", "CNV"], "threshold": 0.5}}}, "twice"),
        ({"calibration": {"operating": {"urgent": ["CNV", "DME", "NORMAL"], "threshold": 0.5}}}, "all classes"),
        ({"tensors": "float64"}, "tensors"),
        ({"tensors": "float16"}, "float32 instead of float16"),
        ({"base": {"source": "timm"}}, "base"),
        ({"base": {"source": "https://example.org", "sha256": "0" * 64}}, "base"),
        ({"arch": "hf-hub:timm/resnet18.a1_in1k"}, "plain name"),
        ({"arch": "local-dir:/tmp"}, "plain name"),
        ({"arch": "../resnet18"}, "plain name"),
        ({"training": {"note": "\ud800"}}, "surrogate"),
        ({"training": {"note": "x" * 20_000}}, "more than 10,000 characters"),
        ({"training": {"deep": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}}, "nested more than 16 deep"),
        ({"training": {"n": 10**30}}, "too large a number"),
        ({"arch": "os.system"}, "no architecture"),
        ({"arch": 7}, "names"),
        ({"arch": "resnet18"}, "differs"),
        ({"head": "nose"}, "no head"),
        ({"head": "article"}, "VGG"),
        ({"head": "fastai"}, "differs"),
        ({"__class__": "x"}, "unknown or missing: __class__"),
    ],
)
def test_what_cannot_be_is_refused(bundle, tmp_path, changes, message):
    folder = shutil.copytree(bundle, tmp_path / "model")
    raw = json.loads((folder / INFO_FILE).read_text()) | changes
    (folder / INFO_FILE).write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=message) as e:
        load_bundle(folder)
    assert "\n" not in e.value.message and e.value.hint


@pytest.mark.parametrize("key", ["arch", "head", "classes", "size", "mean", "std"])
def test_what_is_needed_must_be_there(bundle, tmp_path, key):
    folder = shutil.copytree(bundle, tmp_path / "model")
    raw = json.loads((folder / INFO_FILE).read_text())
    del raw[key]
    (folder / INFO_FILE).write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=f"unknown or missing: {key}"):
        read_info(folder)


def test_a_fit_that_older_versions_do_not_know_makes_a_newer_version(bundle, tmp_path):
    """They would squeeze what is to be cut, and answer wrongly without a word."""
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    assert "fit" not in json.loads((folder / INFO_FILE).read_text())
    update_info(folder, fit="crop")
    raw = json.loads((folder / INFO_FILE).read_text())
    assert (raw["version"], raw["fit"]) == (3, "crop")
    assert load_bundle(folder)[1].fit == "crop" and load_bundle(bundle)[1].fit == "squeeze"


def test_a_bundle_of_version_1_is_read(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "model")
    raw = json.loads((folder / INFO_FILE).read_text()) | {"version": 1}
    for key in ("calibration", "tensors", "base"):
        del raw[key]
    (folder / INFO_FILE).write_text(json.dumps(raw))
    model, about = load_bundle(folder)
    assert about == load_bundle(bundle)[1] and about.calibration == {} and not model.training
    (folder / INFO_FILE).write_text(json.dumps(raw | {"calibration": {}}))
    with pytest.raises(BundleError, match="unknown or missing: calibration"):
        read_info(folder)


def test_a_key_twice_is_refused(bundle, tmp_path):
    text = (bundle / INFO_FILE).read_text().replace('"size": 64,', '"size": 64, "size": 64,')
    (tmp_path / INFO_FILE).write_text(text)
    with pytest.raises(BundleError, match="'size' stands twice"):
        read_info(tmp_path)


def test_fields_are_replaced_and_nothing_else(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "model")
    about = update_info(folder, temperature=2.5, calibration={"scans": np.int64(7), "nll": np.float32(0.5)})
    assert read_info(folder) == replace(load_bundle(bundle)[1], temperature=2.5, calibration={"scans": 7, "nll": 0.5})
    assert about.temperature == 2.5
    assert (folder / MODEL_FILE).read_bytes() == (bundle / MODEL_FILE).read_bytes()
    before = (folder / INFO_FILE).read_bytes()
    for wrong in ({"temperature": -1.0}, {"training": {"loss": float("nan")}}, {"training": {"note": "\ud800"}}):
        with pytest.raises(BundleError):
            update_info(folder, **wrong)
    assert (folder / INFO_FILE).read_bytes() == before


@pytest.mark.parametrize("arch, size", [("test_vit", 64), ("test_byobnet", 64), ("vgg11_bn", 32), ("densenet121", 32)])
def test_a_network_built_around_its_tensors_is_the_same(tmp_path, arch, size):
    """The network is made without memory and takes the tensors of the file; buffers that no file has are made."""
    about = info(arch, size=size)
    model = model_of(about)
    loaded, _ = load_bundle(save_bundle(tmp_path, model, about))
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(model(x), loaded(x))


def test_loading_draws_nothing_from_the_callers_state(bundle):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_bundle(bundle)
    assert torch.equal(torch.rand(1), expected)


def test_an_enormous_file_is_not_read(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "model")
    (folder / INFO_FILE).write_bytes(b" " * (5 << 20))
    with pytest.raises(BundleError, match="too large"):
        read_info(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["version", *asdict(info())]), JSON, min_size=1, max_size=3))
@settings(max_examples=150)
def test_any_other_value_is_a_bundle_or_a_bundle_error(bundle, tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("changed")
    (folder / INFO_FILE).write_text(json.dumps(json.loads((bundle / INFO_FILE).read_text()) | changes))
    try:
        found = read_info(folder)
    except BundleError as e:
        assert "\n" not in e.message and e.hint
    else:
        assert len(found.classes) >= 2 and 16 <= found.size <= 2048


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"x"', "[" * 100_000, "\ufeff{}", "{}"])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / INFO_FILE).write_text(text)
    with pytest.raises(BundleError):
        read_info(tmp_path)


@given(st.data())
@settings(max_examples=40)
def test_a_damaged_file_is_a_bundle_error_or_has_the_right_tensors(bundle, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    for name in (MODEL_FILE, INFO_FILE):
        (folder / name).write_bytes((bundle / name).read_bytes())
    name = data.draw(st.sampled_from([MODEL_FILE, INFO_FILE]))
    content = bytearray((folder / name).read_bytes())
    # The start of either file holds what is parsed.
    at = data.draw(st.integers(0, min(len(content), 2000) - 1))
    if data.draw(st.booleans()):
        content = content[:at]
    else:
        content[at : at + 4] = data.draw(st.binary(min_size=1, max_size=8))
    (folder / name).write_bytes(content)
    try:
        model, about = load_bundle(folder)
    except BundleError as e:
        assert "\n" not in e.message
    else:
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 64, 64)).shape == (1, len(about.classes))


def test_nothing_in_a_bundle_is_unpickled(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "model")
    torch.save({"a": torch.zeros(2)}, folder / MODEL_FILE)
    with pytest.raises(BundleError, match="is a pickle"):
        load_bundle(folder)


def test_an_info_that_cannot_be_is_not_made():
    with pytest.raises(BundleError, match="temperature"):
        replace(info(), temperature=0.0)
