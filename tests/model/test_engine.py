"""Engines: folding is exact, few bits cost little, and OpenVINO gives what torch gives and tells nobody."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from octfast.errors import UsageError
from octfast.model.arch import drop_classifier, find_arch, make_body, make_network
from octfast.model.engine import Engine, _has_bf16, check_engine, choose_precision, fold, make_engine
from octfast.model.weights.untrained import calibrate_batch_norm
from tests.conftest import SHARED

# Looked for and not imported: OpenVINO's import reports to Google Analytics, unless octfast imports it.
openvino = pytest.mark.skipif(
    not all(importlib.util.find_spec(p) for p in ("openvino", "nncf")), reason="needs octfast[openvino]"
)
# OpenVINO has bf16 only where the CPU has; torch does without.
in_bf16 = pytest.mark.skipif(not _has_bf16(), reason="needs a CPU with bf16")


def pictures(n: int, seed: int = 0, size: int = 64) -> Tensor:
    """Smooth pictures of one grey channel, as normalised ones are, float32 of shape (n, 3, size, size)."""
    rough = torch.randn(n, 1, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(rough, (size, size), mode="bilinear").repeat(1, 3, 1, 1)


def body_of(name: str) -> nn.Module:
    """A body of random weights whose batch norms have statistics, scales and shifts that are not the default."""
    torch.manual_seed(0)
    arch = find_arch(name)
    network = make_network(arch, 64)
    drop_classifier(network)
    body = make_body(network, arch)
    for m in body.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, std=0.2)
    calibrate_batch_norm(body, [pictures(8, 1)])
    return body.eval()


@pytest.fixture(scope="module")
def vgg() -> nn.Module:
    return body_of("vgg11_bn")


@pytest.fixture(scope="module")
def calibration():
    return lambda: [pictures(8, 2), pictures(8, 3)]


@pytest.fixture(scope="module")
def int8(vgg, calibration):
    engine = make_engine(vgg, precision="int8", calibration=calibration)
    return engine, engine(pictures(8, 4))


def exact(network: nn.Module, x: Tensor):
    with torch.no_grad():
        return network(x)


def error(given: Tensor, expected: Tensor) -> float:
    assert given.dtype == torch.float32 and given.shape == expected.shape
    return float((given - expected).norm() / expected.norm())


def cosine(given: Tensor, expected: Tensor) -> float:
    return float(nn.functional.cosine_similarity(given.flatten(1), expected.flatten(1)).min())


# How many batch norms are left: one before its convolution (densenet) cannot be folded, one with an activation of its
# own (efficientnet) can.
LEFT = {"vgg11_bn": 0, "resnet18": 0, "densenet121": 62, "efficientnet_b0": 0, "convnext_atto": 0, "squeezenet1_1": 0}


@pytest.mark.parametrize(("name", "left"), LEFT.items())
def test_folding_is_exact_up_to_rounding(name, left):
    body, x = body_of(name), pictures(2)
    engine = Engine(body, "fp32")
    assert sum(isinstance(m, nn.BatchNorm2d) for m in engine._net.modules()) == left
    # What rounding does to the network as it is, which differs from processor to processor, folding may do as well.
    unfolded = exact(body, x)
    true = exact(copy.deepcopy(body).double(), x.double()).float()
    assert error(engine(x), true) < max(1e-5, 3 * error(unfolded, true))


def test_folding_keeps_the_activation_of_a_batch_norm_that_has_one():
    timm_layers = pytest.importorskip("timm.layers")
    body = nn.Sequential(nn.Conv2d(3, 4, 3), timm_layers.BatchNormAct2d(4)).eval()
    assert error(Engine(body, "fp32")(pictures(2)), exact(body, pictures(2))) < 1e-5


def test_what_cannot_be_traced_is_run_as_it_is():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x):
            x = self.norm(self.conv(x))
            return self.inner(x if x.sum() > 0 else -x)

    body = Fickle().eval()
    folded = fold(Fickle().eval())
    assert isinstance(folded.norm, nn.BatchNorm2d) and len(folded.inner) == 1
    assert error(Engine(body, "fp32")(pictures(2)), exact(body, pictures(2))) < 1e-5


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=(openvino, in_bf16))])
def test_bf16_is_near(engine, vgg):
    ran = make_engine(vgg, engine=engine, precision="bf16")
    assert ran.precision == "bf16"
    assert cosine(ran(pictures(4)), exact(vgg, pictures(4))) > 0.999


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ("torch", "fp32"),
        ("torch", "bf16"),
        pytest.param("openvino", "fp32", marks=openvino),
        pytest.param("openvino", "bf16", marks=(openvino, in_bf16)),
        pytest.param("openvino", "int8", marks=openvino),
    ],
)
def test_a_tuple_comes_back_as_one(engine, precision, vgg, calibration):
    prefix = nn.Sequential(*list(vgg.children())[:4])
    given = make_engine(prefix, engine=engine, precision=precision, calibration=calibration)(pictures(3))
    expected = exact(prefix, pictures(3))
    assert isinstance(given, tuple) and len(given) == len(expected) == 3
    for g, e in zip(given, expected, strict=True):
        assert g.dtype == torch.float32 and g.shape == e.shape
        # Maps of random weights; their means over the picture are nearer.
        assert cosine(g, e) > (0.97 if precision == "int8" else 0.999)


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=(openvino, in_bf16))])
def test_the_tail_runs_in_float32(engine, vgg):
    seen = []
    width = exact(vgg, pictures(1)).shape[1]
    tail = nn.Sequential(nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 3))
    tail.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    out = make_engine(vgg, engine=engine, precision="bf16", tail=tail)(pictures(2))
    assert seen == [torch.float32] and out.dtype == torch.float32 and out.shape == (2, 3)
    assert tail.training and error(out, exact(tail.eval(), exact(vgg, pictures(2)))) < 0.05


@pytest.mark.parametrize(("engine", "precision"), [("torch", "bf16"), pytest.param("openvino", "int8", marks=openvino)])
def test_the_callers_network_is_left_alone(engine, precision, calibration):
    body = body_of("vgg11_bn").train()
    body.requires_grad_(True)
    before = {k: v.clone() for k, v in body.state_dict().items()}
    shown = repr(body)
    make_engine(body, engine=engine, precision=precision, calibration=calibration)(pictures(2))
    assert repr(body) == shown
    assert all(m.training for m in body.modules()) and all(p.requires_grad for p in body.parameters())
    after = body.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) and v.dtype == after[k].dtype for k, v in before.items())


def test_torch_says_what_it_is(vgg):
    engine = make_engine(vgg, precision="fp32")
    assert (engine.name, engine.precision, engine.device) == ("torch", "fp32", torch.device("cpu"))
    assert engine.description.startswith("fp32 by torch 2.") and engine.description.endswith("on cpu")
    assert engine.key == {"name": "torch", "precision": "fp32", "version": torch.__version__}


@pytest.mark.parametrize(
    ("wrong", "message", "hint"),
    [
        ({"precision": "fp8"}, "no precision named 'fp8'", "did you mean"),
        ({"precision": "half"}, "no precision named 'half'", "one of auto, fp32"),
        ({"engine": "openvin"}, "no engine named 'openvin'", "did you mean openvino?"),
        ({"precision": "fp16"}, "bf16, not fp16", "--precision bf16"),
        ({"precision": "fp16", "engine": "openvino"}, "bf16, not fp16", "--precision bf16"),
        ({"precision": "int8", "engine": "torch"}, "int8 is run by OpenVINO", "--engine"),
        ({"precision": "int8", "device": "cuda"}, "runs on a CPU, not on cuda", "--engine torch"),
        ({"engine": "openvino", "device": "cuda"}, "runs on a CPU, not on cuda", "--engine torch"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message, hint, vgg):
    with pytest.raises(UsageError) as e:
        make_engine(vgg, **wrong)
    assert message in e.value.message and hint in e.value.hint


def test_class_engine_refuses_too(vgg):
    for precision in ("fp16", "int8", "no"):
        with pytest.raises(UsageError):
            Engine(vgg, precision)
        with pytest.raises(UsageError):
            choose_precision(vgg, precision, torch.device("cpu"))


@pytest.mark.parametrize(
    ("asked", "missing"),
    [({"engine": "openvino"}, "openvino"), ({"precision": "int8"}, "openvino"), ({"precision": "int8"}, "nncf")],
)
@pytest.mark.parametrize("ask", [lambda body, **k: make_engine(body, **k), lambda _, **k: _check(**k)])
def test_openvino_is_an_extra(ask, asked, missing, vgg, calibration, monkeypatch):
    for package in ("openvino", "nncf"):
        monkeypatch.setitem(sys.modules, package, None if package == missing else _there(package))
    with pytest.raises(UsageError) as e:
        ask(vgg, **asked)
    assert missing in e.value.message and "not installed" in e.value.message
    assert e.value.hint == "pip install 'octfast[openvino]'"


def _check(engine: str = "auto", precision: str = "auto") -> str:
    return check_engine(engine, precision)


def _there(name: str):
    module = type(sys)(name)
    module.__spec__ = importlib.util.spec_from_loader(name, None)
    return module


def test_auto_is_torch_whatever_is_installed():
    assert check_engine("auto", "auto") == "torch"
    assert check_engine("auto", "bf16", "cuda") == "torch"


@openvino
def test_openvino_in_float32_is_torch(vgg):
    engine = make_engine(vgg, engine="openvino", precision="fp32")
    assert error(engine(pictures(4)), exact(vgg, pictures(4))) < 1e-4
    assert (engine.name, engine.precision, engine.device) == ("openvino", "fp32", torch.device("cpu"))
    assert engine.description.startswith("fp32 by OpenVINO 20") and engine.description.endswith("on cpu")
    assert set(engine.key) == {"name", "precision", "version"}


@openvino
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_row_is_the_same_in_any_batch(precision, vgg, calibration, int8):
    engine = int8[0] if precision == "int8" else make_engine(vgg, engine="openvino", precision=precision)
    x = pictures(8, 4)
    full = engine(x)
    kept = full.clone()
    for part in (x[:1], x[:3], x[5:]):
        assert error(engine(part), full[:3][: len(part)] if part.data_ptr() == x.data_ptr() else full[5:]) < 1e-5
    assert torch.equal(full, kept)


@openvino
def test_int8_is_near_and_the_same_each_time(vgg, calibration, int8):
    engine, given = int8
    expected = exact(vgg, pictures(8, 4))
    assert cosine(given, expected) > 0.99 and error(given, expected) < 0.15
    again = make_engine(vgg, precision="int8", calibration=calibration)
    assert torch.equal(again(pictures(8, 4)), given) and again.key == engine.key
    assert {"name", "precision", "version", "nncf", "calibration"} == set(engine.key)
    other = make_engine(vgg, precision="int8", calibration=lambda: [pictures(16, 9)])
    assert other.key["calibration"] != engine.key["calibration"]


@openvino
def test_int8_is_int8(int8):
    kinds = {str(op.get_rt_info()["runtimePrecision"].astype(str)) for op in _ran(int8[0], "Convolution")}
    assert kinds <= {"u8", "i8"}


def _ran(engine, kind: str):
    ops = [
        op for op in engine._compiled.get_runtime_model().get_ops() if op.get_rt_info()["layerType"].astype(str) == kind
    ]
    assert ops
    return ops


@openvino
def test_pooling_is_not_in_int8(vgg):
    """Its standard deviations were spoilt by 8 bits: a small difference of large numbers."""
    from octfast.model.openvino import _after_the_layers, convert, quantise

    body = fold(copy.deepcopy(vgg))
    model = quantise(convert(body, pictures(1)), pictures(4, 2))
    ops = {op.get_friendly_name(): op for op in model.get_ops()}
    pooling = _after_the_layers(model)
    assert {ops[name].get_type_name() for name in pooling} >= {"ReduceMean", "Sqrt", "Subtract", "Concat"}
    for name in pooling:
        for given in ops[name].inputs():
            assert given.get_source_output().get_node().get_type_name() != "FakeQuantize", name
    kinds = [op.get_type_name() for op in ops.values()]
    assert kinds.count("FakeQuantize") >= kinds.count("Convolution") == 8


@openvino
def test_int8_wants_pictures_of_the_right_size(vgg, calibration):
    for none in (None, list):
        with pytest.raises(UsageError, match="pictures to be calibrated on"):
            make_engine(vgg, precision="int8", calibration=none)
    engine = make_engine(vgg, precision="int8", calibration=calibration)
    with pytest.raises(UsageError, match="calibrated on pictures of"):
        engine(pictures(1, size=96))
    engine = make_engine(vgg, engine="openvino", precision="fp32")
    engine(pictures(1))
    with pytest.raises(UsageError, match="made for pictures of"):
        engine(pictures(1, size=96))


@openvino
def test_calibration_takes_no_more_pictures_than_it_needs(vgg):
    from octfast.model.openvino import CALIBRATION_PICTURES, _first_pictures

    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield pictures(10, size=8)

    assert _first_pictures(endless).shape == (CALIBRATION_PICTURES, 3, 8, 8)
    assert len(drawn) == -(-CALIBRATION_PICTURES // 10)


@openvino
def test_openvino_says_which_network_it_cannot_run():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            # torch.export refuses it, and torch.jit takes what it gave once for a constant.
            return torch.from_numpy(self.conv(x).numpy() * 2)

    with pytest.raises(UsageError, match="OpenVINO cannot convert") as e:
        make_engine(Odd(), engine="openvino", precision="fp32")(pictures(1))
    assert e.value.hint == "use --engine torch"


@openvino
@pytest.mark.parametrize("first", ["", "import openvino"])
def test_openvino_and_nncf_report_to_nobody_and_print_nothing(first, tmp_path):
    """In a new process, with a home of its own and no connection allowed; a file counts, as they fork to report."""
    script = f"""
        import pathlib, socket
        tried = pathlib.Path({str(tmp_path / "tried")!r})
        tried.touch()
        def refuse(*args, **kwargs):
            with tried.open("a") as f:
                f.write("x")
            raise OSError("no connection in this test")
        socket.socket.connect = socket.socket.sendto = socket.getaddrinfo = refuse
        {first}
        import time
        time.sleep(0.5)
        before = len(tried.read_text())
        import torch
        from torch import nn
        from octfast.model.engine import make_engine
        body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        make_engine(body, precision="int8", calibration=lambda: [torch.randn(4, 3, 16, 16)])(torch.randn(2, 3, 16, 16))
        time.sleep(0.5)
        print("tried", len(tried.read_text()) - before)
    """
    # As on a user's machine: with CI or NNCF_CI set both would be silent anyway.
    environment = {
        k: v for k, v in os.environ.items() if k not in ("CI", "TF_BUILD", "JENKINS_URL", "NNCF_CI", "NNCF_DEV")
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**environment, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tried 0\n"
    if not first:
        assert not (tmp_path / "intel").exists()


@pytest.mark.realdata
@openvino
def test_int8_is_near_on_real_scans_and_weights():
    from octfast.data.preprocess import preprocess

    weights, folder = SHARED / "weights" / "vgg16_bn_features.safetensors", SHARED / "data" / "oct2017-sample"
    if not weights.exists() or not folder.exists():
        pytest.skip("no real scans or weights")
    arch = find_arch("vgg16_bn")
    network = make_network(arch)
    network.load_state_dict(load_file(weights), strict=False)
    drop_classifier(network)
    body = make_body(network, arch).eval()
    scans = torch.stack([preprocess(p, 96) for p in sorted(folder.glob("*/*.jpeg"))])
    given = make_engine(body, precision="int8", calibration=lambda: [scans[::2]])(scans[1::2])
    assert cosine(given, exact(body, scans[1::2])) > 0.99
