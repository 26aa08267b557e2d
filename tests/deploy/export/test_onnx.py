import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from octfast.data.preprocess import decode_grey, preprocess, resize
from octfast.deploy.export import classifier as module
from octfast.deploy.export.agreement import compare
from octfast.deploy.export.export import export_bundle
from octfast.deploy.predictor import load
from octfast.errors import BundleError, DataError, UsageError
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import save_bundle, update_info
from octfast.model.heads import body_and_head
from tests.pictures import scan

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (70, 90, 3), dtype=np.uint8)


def run(file, pictures):
    return ort.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"picture": pictures})[0]


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    return export_bundle(trained.bundle, out=tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    """A bundle, in no run, whose body pools several moments of its map."""
    arch = find_arch("squeezenet1_1")
    torch.manual_seed(0)
    model = torch.nn.Sequential(*body_and_head(make_network(arch, 64), arch, "octfast", 3)).eval()
    info = BundleInfo(arch.name, "octfast", ("a", "b", "c"), 64, arch.mean, arch.std, temperature=1.7)
    return save_bundle(tmp_path_factory.mktemp("pooled") / "bundle", model, info)


@settings(max_examples=100)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(16, 300), st.integers(0, 9))
def test_the_resize_is_pillows(height, width, size, seed):
    grey = scan(height, width, seed)
    with torch.inference_mode():
        found = module.resize(torch.from_numpy(grey)[None].float(), size, "squeeze")[0].numpy()
    expected = np.asarray(resize(Image.fromarray(grey), size, "squeeze"))
    # Newer versions of Pillow begin with the columns of tall pictures, and round elsewhere.
    assert np.array_equal(found, expected) if width >= height else np.abs(found - expected).max() <= 1


def test_grey_of_colour_is_pillows():
    levels = np.arange(256, dtype=np.uint8)
    dense = np.stack(np.meshgrid(levels[::5], levels[::5], levels[::5]), -1).reshape(1, 52, -1, 3)
    for colour in (dense[0], COLOUR):
        found = module.luma(torch.from_numpy(colour)[None])[0].numpy()
        assert np.array_equal(found, np.asarray(decode_grey(Image.fromarray(colour))))
    grey = scan()
    for channels in (1, 3, 4):
        again = np.repeat(grey[..., None], channels, 2)
        assert np.array_equal(module.luma(torch.from_numpy(again)[None])[0].numpy(), grey)


def test_the_same_scan_has_the_same_probabilities_everywhere(exported, trained):
    table = trained.predictions("valid")
    classes = list(exported.classes)
    predictor = load(trained.bundle, precision="fp32")
    learner = predictor.to_learner()
    for row in table.head(4).itertuples():
        picture = np.asarray(Image.open(row.path).convert("L"))
        by_onnx = run(exported.file, picture[None, :, :, None])[0]
        by_learner = np.asarray(learner.predict(row.path)[2])
        in_table = [getattr(row, f"p_{c}") for c in classes]
        for other in (predictor.probabilities([row.path])[0], by_learner, in_table):
            np.testing.assert_allclose(by_onnx, other, atol=1e-3)


def test_pictures_of_any_size_grey_or_colour_and_many_at_once(exported, trained):
    predictor = load(trained.bundle, precision="fp32")
    for shape in ((1, 1), (16, 300), (64, 64), (496, 768)):
        grey = scan(*shape)
        np.testing.assert_allclose(
            run(exported.file, grey[None, :, :, None])[0], predictor.probabilities([grey])[0], atol=1e-3
        )
    np.testing.assert_allclose(run(exported.file, COLOUR[None])[0], predictor.probabilities([COLOUR])[0], atol=1e-3)
    many = np.stack([scan(60, 80, seed) for seed in range(5)])
    p = run(exported.file, many[..., None])
    assert p.shape == (5, 4) and p.dtype == np.float32
    np.testing.assert_allclose(p, predictor.probabilities(list(many)), atol=1e-3)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)


def test_what_the_export_says(exported, trained):
    found = exported.agreement
    valid = trained.predictions("valid")
    assert found.scans == len(valid) and "validation scans of" in found.source
    assert found.largest < 1e-3 and found.same == 1
    assert found.accuracy == pytest.approx((valid["label"] == valid["predicted"]).mean())
    assert exported.bytes == exported.file.stat().st_size


def test_the_file_says_what_it_is_and_nothing_of_this_machine(exported, trained):
    session = ort.InferenceSession(str(exported.file), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(exported.classes)
    assert about["arch"] == "test_resnet" and about["precision"] == "fp32"
    assert "Not a medical device" in about["notice"]
    assert json.loads(about["training"]).keys() == load(trained.bundle).info.training.keys()
    (given,) = session.get_inputs()
    assert given.name == "picture" and given.type == "tensor(uint8)"
    assert given.shape == ["batch", "height", "width", "channels"]
    content = exported.file.read_bytes()
    assert b"site-packages" not in content and b".py" not in content


def test_the_printed_lines_run_without_octfast(exported, trained, tmp_path):
    shutil.copy(exported.file, tmp_path)
    path = trained.predictions("valid")["path"][0]
    shutil.copy(path, tmp_path / "scan.jpeg")
    lines = "import sys; sys.modules['octfast'] = sys.modules['torch'] = None\n" + exported.usage()
    done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, p in zip(exported.classes, load(trained.bundle, "fp32").probabilities([path])[0], strict=True):
        assert f"'{name}'" in done.stdout
        assert f"{p:.2f}"[:3] in done.stdout


def test_half(exported, trained, tmp_path):
    half = export_bundle(trained.bundle, out=tmp_path / "half.onnx", half=True)
    assert half.precision == "fp16" and half.agreement.largest < 0.02
    weights = load_file(trained.bundle / "model.safetensors")
    body = sum(t.numel() for k, t in weights.items() if k.startswith("0.") and t.ndim == 4)
    assert exported.bytes - half.bytes > 1.5 * body
    assert asks_for_the_oldest(half)


def test_pooled_moments_and_temperature(pooled, tmp_path, said):
    found = export_bundle(pooled, out=tmp_path / "m.onnx")
    assert "phantoms" in found.agreement.source and found.agreement.accuracy is None
    assert any("no validation scans at hand" in line for line in said())
    predictor = load(pooled, precision="fp32")
    pictures = [scan(100, 120, seed) for seed in range(3)]
    expected = predictor.probabilities(pictures)
    np.testing.assert_allclose(run(found.file, np.stack(pictures)[..., None]), expected, atol=1e-4)
    plain = torch.softmax(predictor.model(preprocess(Image.fromarray(pictures[0]), 64)[None]) / 1.7, 1)
    np.testing.assert_allclose(expected[0], plain[0].detach().numpy(), atol=1e-5)


def test_another_runtime_agrees(pooled, tmp_path):
    """OpenVINO holds whole numbers in 32 bits, in which the arithmetic of the resize has to fit."""
    # Nothing is to be reported to anybody.
    sys.modules.setdefault("openvino_telemetry", None)
    openvino = pytest.importorskip("openvino")
    file = export_bundle(pooled, out=tmp_path / "m.onnx", scans=2).file
    model = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for picture in (scan(100, 120), scan(496, 768), scan(1200, 3000), COLOUR):
        given = picture[None] if picture.ndim == 3 else picture[None, :, :, None]
        np.testing.assert_allclose(model(given)[0], run(file, given), atol=1e-3)


def test_int8_has_the_layers_in_8_bits_and_leaves_the_rest_alone(pooled, tmp_path):
    onnx = pytest.importorskip("onnx")
    found = export_bundle(pooled, out=tmp_path / "m.onnx", int8=True)
    assert asks_for_the_oldest(found)
    assert found.precision == "int8" and found.agreement.same >= 0.9 and "phantoms" in found.calibration
    model = onnx.load(found.file)
    assert {p.key for p in model.metadata_props} >= {"classes", "notice", "int8_calibration"}
    weights = {t.name: t for t in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    assert len(convolutions) == 25
    for node in convolutions:
        picture, weight = (made_by[i] for i in node.input[:2])
        assert picture.op_type == weight.op_type == "DequantizeLinear"
        assert weights[weight.input[0]].data_type == onnx.TensorProto.INT8
    # Pooled moments, the head and the preprocessing: nothing that they give is rounded to 8 bits.
    plain = ("ReduceMean", "Sqrt", "Gemm", "MatMul", "Floor", "Softmax")
    rounded = {made_by[n.input[0]].op_type for n in model.graph.node
               if n.op_type == "QuantizeLinear" and n.input[0] in made_by}  # fmt: skip
    assert rounded and not rounded & set(plain)
    assert not [n for n in model.graph.node if n.op_type in ("Gemm", "MatMul")
                and any(i in made_by and made_by[i].op_type == "DequantizeLinear" for i in n.input)]  # fmt: skip


def test_other_opsets(pooled, tmp_path):
    onnx = pytest.importorskip("onnx")
    found = export_bundle(pooled, out=tmp_path / "m.onnx", opset=21, scans=2)
    assert [o.version for o in onnx.load(found.file).opset_import if o.domain == ""] == [21]
    assert found.onnxruntime == "1.18"


def asks_for_the_oldest(found) -> bool:
    """Whether a file is written in operators and a format that go far back, and says so."""
    import onnx

    model = onnx.load(found.file)
    said = {p.key: p.value for p in model.metadata_props}["onnxruntime"]
    return (model.opset_import[0].version, model.ir_version, found.onnxruntime, said) == (15, 7, "1.10", "1.10")


def test_the_file_asks_for_the_oldest_runtime_that_serves(exported):
    assert asks_for_the_oldest(exported)


def test_operators_that_an_opset_lacks():
    onnx = pytest.importorskip("onnx")
    from octfast.deploy.export.oldest import least_runtime, lowered

    def model() -> onnx.ModelProto:
        """Layer norm is an operator from opset 17 on."""
        tensor = onnx.helper.make_tensor_value_info
        nodes = [
            onnx.helper.make_node("Cast", ["picture"], ["x"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("LayerNormalization", ["x", "scale"], ["probabilities"]),
        ]
        graph = onnx.helper.make_graph(
            nodes,
            "g",
            [tensor("picture", onnx.TensorProto.UINT8, [1, 4])],
            [tensor("probabilities", onnx.TensorProto.FLOAT, [1, 4])],
            [onnx.numpy_helper.from_array(np.ones(4, np.float32), "scale")],
        )
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)

    picture = np.array([[1, 2, 3, 9]], np.uint8)
    assert least_runtime(lowered(model(), None, picture)) == least_runtime(lowered(model(), 17, picture)) == "1.12"
    assert least_runtime(lowered(model(), 18, picture)) == "1.14"
    with pytest.raises(UsageError, match="--opset 16: this network has operators that it lacks"):
        lowered(model(), 16, picture)


@pytest.mark.parametrize("half", [False, True])
def test_torch_export(trained, tmp_path, half):
    found = export_bundle(trained.bundle, "torch", tmp_path / "m.pt2", half=half)
    assert found.agreement.largest < (0.02 if half else 1e-3)
    extra = {"octfast.json": ""}
    network = torch.export.load(found.file, extra_files=extra).module()
    assert json.loads(json.loads(extra["octfast.json"])["classes"]) == list(found.classes)
    expected = load(trained.bundle, "fp32").probabilities([scan(), COLOUR])
    for picture, p in ((scan()[..., None], expected[0]), (COLOUR, expected[1])):
        np.testing.assert_allclose(network(torch.from_numpy(picture)[None])[0], p, atol=0.02 if half else 1e-3)


def test_a_file_that_does_not_agree_is_not_kept(own_run, tmp_path):
    """Weights beyond float16's range: in half precision no number comes out."""
    file = own_run.bundle / "model.safetensors"
    state = load_file(file)
    name = next(k for k in state if k.startswith("0.") and state[k].ndim == 4)
    state[name] *= 1e6
    norm = name.replace("conv1.weight", "bn1.running_var")
    state[norm] = state[norm].clamp(min=1e-3)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"differ from torch's.*nothing was written"):
        export_bundle(own_run.bundle, out=tmp_path / "half.onnx", half=True)
    assert list(tmp_path.glob("*.onnx*")) == [] and list(tmp_path.glob(".*.part")) == []


def test_another_model_is_told_apart(exported, own_run):
    """The comparison is made with the bundle's model, temperature and all."""
    update_info(own_run.bundle, temperature=3.0)
    from octfast.deploy.export.onnx import onnx_outputs
    from octfast.deploy.export.scans import check_sample
    from octfast.model.bundle.read import load_bundle

    model, info = load_bundle(own_run.bundle)
    found = compare(onnx_outputs(exported.file), model, info, check_sample(own_run.bundle, info, None, 8))
    assert found.largest > 0.01


def test_folders_to_compare_and_calibrate_on(pooled, phantoms, tmp_path, said):
    flat = tmp_path / "flat"
    flat.mkdir()
    for n, file in enumerate(sorted(phantoms.rglob("*.jpeg"))[:3]):
        shutil.copy(file, flat / f"{n}.jpeg")
    Image.fromarray(COLOUR).save(flat / "colour.png")
    (flat / "broken.png").write_bytes(b"not a picture")
    found = export_bundle(pooled, out=tmp_path / "m.onnx", check=flat)
    assert found.agreement.scans == 4 and str(flat) in found.agreement.source
    assert found.agreement.accuracy is None
    assert any("cannot be read: 1" in line for line in said())
    with pytest.raises(DataError, match="no such folder"):
        export_bundle(pooled, out=tmp_path / "n.onnx", check=tmp_path / "nowhere")
    with pytest.raises(DataError, match="address on the web"):
        export_bundle(pooled, out=tmp_path / "n.onnx", check="https://example.org/scans")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture"):
        export_bundle(pooled, out=tmp_path / "n.onnx", int8=True, calibration=tmp_path / "empty")
    assert not (tmp_path / "n.onnx").exists()


def test_a_folder_to_compare_on_is_read_as_training_reads_it(phantoms, tmp_path):
    """Through links, with every ending and by the class folders, patients between or not."""
    from octfast.deploy.export.scans import _files_of

    for label in ("CNV", "DME"):
        for n, file in enumerate(sorted((phantoms / "train" / label).iterdir())[:2]):
            at = tmp_path / "data" / label / f"p{n}"
            at.mkdir(parents=True)
            Image.open(file).save(at / f"{label}{n}.tga")
    more = tmp_path / "more"
    more.mkdir()
    shutil.copy(file, more / "x.jpeg")
    (tmp_path / "data" / "DME" / "linked").symlink_to(more)
    assert _files_of(tmp_path / "data")["label"].tolist() == ["CNV", "CNV", "DME", "DME", "DME"]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"format": "onx"}, "no format named"),
        ({"half": True, "int8": True}, "do not go together"),
        ({"int8": True, "format": "torch"}, "ONNX alone"),
        ({"calibration": "x"}, "--int8 alone"),
        ({"opset": 3}, "--opset 3"),
        ({"out": "model.pt"}, "does not end in .onnx"),
        ({"out": "nowhere/model.onnx"}, "no such folder"),
        ({"scans": 0}, "--scans 0"),
    ],
)
def test_what_cannot_be(pooled, given, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=match):
        export_bundle(pooled, **{"out": "model.onnx", **given})
    assert list(tmp_path.iterdir()) == []


def test_no_file_is_overwritten_unasked(pooled, tmp_path):
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        export_bundle(pooled, out=tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "mine"
    export_bundle(pooled, out=tmp_path / "m.onnx", overwrite=True)
    assert len((tmp_path / "m.onnx").read_bytes()) > 1000
    with pytest.raises(BundleError):
        export_bundle(tmp_path, out=tmp_path / "n.onnx")


def test_the_command(octfast, own_run):
    done = octfast("export", own_run.path)
    assert done.code == 0, done.err
    assert (own_run.path / "model.onnx").is_file()
    assert "same class for 100.0%" in done.out and "validation scans" in done.out
    assert "onnxruntime.InferenceSession" in done.out and "Not a medical device." in done.out
    again = octfast("export", own_run.path)
    assert again.code == 2 and "exists" in again.err
    update_info(own_run.bundle, synthetic=True)
    done = octfast("export", own_run.path, "--half", "--json")
    found = json.loads(done.out)
    assert found["file"].endswith("model-half.onnx") and found["agreement"]["largest"] < 0.02 and found["synthetic"]


def test_bytes_of_a_picture_go_the_same_way(exported, trained):
    """A JPEG decoded by whoever uses the file is what octfast decodes."""
    out = io.BytesIO()
    Image.fromarray(COLOUR).save(out, "JPEG")
    picture = np.asarray(Image.open(io.BytesIO(out.getvalue())))
    expected = load(trained.bundle, "fp32").probabilities([out.getvalue()])[0]
    np.testing.assert_allclose(run(exported.file, picture[None])[0], expected, atol=1e-3)
