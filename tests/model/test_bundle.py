from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from octfast.errors import BundleError
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle import INFO_FILE, MODEL_FILE, BundleInfo, load_bundle, read_info, save_bundle
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
    assert said["format"] == "octfast-bundle" and said["version"] == 1
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
        ({"version": 2}, "newer than 1"),
        ({"version": None}, "version"),
        ({"classes": ["A"]}, "two or more"),
        ({"classes": ["A", "A", "B"]}, "twice"),
        ({"classes": [["A"], ["B"], ["C"]]}, "classes"),
        ({"classes": {"A": 1}}, "not a list"),
        ({"classes": ["CNV", "DME"]}, "differs"),
        ({"size": "64"}, "size"),
        ({"size": 0}, "size"),
        ({"size": 1e9}, "size"),
        ({"mean": [1, 2]}, "mean"),
        ({"mean": [float("nan")] * 3}, "mean"),
        ({"std": [0, 1, 1]}, "std"),
        ({"std": ["a", 1, 1]}, "std"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": None}, "temperature"),
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
        assert len(found.classes) >= 2 and 16 <= found.size <= 4096


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
    with pytest.raises(BundleError, match="cannot read"):
        load_bundle(folder)


def test_an_info_that_cannot_be_is_not_made():
    with pytest.raises(BundleError, match="temperature"):
        replace(info(), temperature=0.0)
