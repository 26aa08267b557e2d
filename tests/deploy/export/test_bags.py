"""Exported files of models that answer for volumes, and how those of models of scans say what becomes of a volume."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from octfast.deploy.export.agreement import Agreement, refuse
from octfast.deploy.export.export import describe, export_bundle
from octfast.deploy.export.lines import units_of_file, usage
from octfast.deploy.predictor import load
from octfast.errors import DataError
from octfast.model.aggregation import RULES, aggregation_of
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import update_info
from octfast.model.decide import rule_of
from octfast.model.pooling import pooling_of
from tests.bags import bag_bundle, bag_table
from tests.pictures import scan

CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")


@pytest.fixture(scope="module", params=[None, "topk"], ids=["attention", "topk"])
def bundle(tmp_path_factory, request):
    info = {} if request.param is None else {"pooling": pooling_of(request.param)}
    return bag_bundle(tmp_path_factory.mktemp("bags") / "model", **info)


@pytest.fixture(scope="module")
def exported(bundle, tmp_path_factory):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    return export_bundle(bundle, out=tmp_path_factory.mktemp("onnx") / "bag.onnx")


def test_a_bag_of_any_number_of_scans_is_answered_as_octfast_answers(exported, bundle):
    from octfast.deploy.export.onnx import onnx_outputs

    run, predictor = onnx_outputs(exported.file), load(bundle, precision="fp32", device="cpu")
    for n, shape in ((1, (64, 64)), (2, (50, 90)), (7, (120, 80))):
        pictures = [scan(*shape, seed) for seed in range(n)]
        p, attention = run(np.stack(pictures)[..., None])
        answer = predictor.answer_unit(pictures)
        assert p.shape == (1, 4) and attention.shape == (n,)
        np.testing.assert_allclose(p[0], answer.probabilities, atol=1e-4)
        np.testing.assert_allclose(attention, answer.attention, atol=1e-4)


def test_it_is_compared_on_whole_units_and_says_so(exported, bundle):
    found = exported.agreement
    assert (found.units, found.scans, found.same) == (4, 16, 1) and "phantoms" in found.source
    assert found.largest < 1e-4 and found.attention < 1e-4 and exported.onnxruntime == "1.10"
    info = load(bundle).info
    about = describe(info, bundle, "fp32")
    assert (about["level"], json.loads(about["pooling"])) == ("volume", info.pooling)
    assert "all scans of a volume" in about["input"] and "attention" in about
    with pytest.raises(DataError, match="how much a scan counts"):
        refuse(Agreement(scans=4, source="4 scans", largest=0, mean=0, same=1, units=2, attention=0.1), "fp32")


def test_the_printed_lines_answer_for_scans_of_several_sizes(exported, bundle):
    folder = exported.file.parent
    for n, shape in enumerate(((50, 90), (120, 80)), 1):
        Image.fromarray(scan(*shape, n)).save(folder / f"scan-{n}.jpeg")
    lines = "import sys; sys.modules['octfast'] = sys.modules['torch'] = None\n" + exported.usage()
    done = subprocess.run([sys.executable, "-c", lines], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line.partition("{")[2].rstrip("}").split(", ") for line in done.stdout.splitlines()[:2]]
    p, attention = ([float(part.rpartition(": ")[2]) for part in parts] for parts in said)
    answer = load(bundle, "fp32").answer_unit([folder / "scan-1.jpeg", folder / "scan-2.jpeg"])
    np.testing.assert_allclose(p, answer.probabilities, atol=1e-3)
    np.testing.assert_allclose(attention, answer.attention, atol=1e-3)


@pytest.mark.parametrize("how", ["half", "int8", "torch"])
def test_in_fewer_bits_and_by_torch(bundle, tmp_path, how):
    if how != "torch":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    more = {"format": "torch"} if how == "torch" else {how: True}
    found = export_bundle(bundle, out=tmp_path / ("m.pt2" if how == "torch" else "m.onnx"), **more)
    assert found.agreement.units == 4 and found.agreement.same == 1
    assert found.agreement.attention < (0.3 if how == "int8" else 0.02)


def test_units_of_a_table_are_compared_whole(bundle, phantoms, tmp_path):
    table = bag_table(phantoms, tmp_path / "table.csv")
    found = export_bundle(bundle, "torch", tmp_path / "m.pt2", check=table, scans=12).agreement
    assert (found.units, found.scans) == (4, 12) and found.accuracy == found.accuracy_torch is not None


def test_scans_of_which_nothing_is_known_are_of_their_folders_unit(bundle, tmp_path, said):
    for n in range(6):
        (tmp_path / f"{n % 2}").mkdir(exist_ok=True)
        Image.fromarray(scan(seed=n)).save(tmp_path / f"{n % 2}" / f"{n}.png")
    found = export_bundle(bundle, "torch", tmp_path / "m.pt2", check=tmp_path).agreement
    assert (found.units, found.scans) == (2, 6)
    assert any("those of a folder are taken for one" in line for line in said())


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 999), scans=st.integers(1, 9), temperature=st.sampled_from([0.5, 1.0, 2.5]))
def test_the_lines_put_scans_together_as_octfast_does(rule, seed, scans, temperature):
    kept = {"rule": rule, "k": 3 if rule == "top_k" else None, "temperature": temperature, "urgent": ["CNV", "DME"]}
    operating = {"urgent": ["CNV", "DME"], "sensitivity": 0.95, "threshold": 0.25}
    calibration = {"units": {"eye": {**kept, "operating": operating}}}
    info = BundleInfo("test_resnet", "octfast", CLASSES, 64, (0.5,) * 3, (0.2,) * 3, calibration=calibration)
    units = units_of_file(info)
    lines = usage("m.onnx", "onnx", rule_of(CLASSES, calibration), units=units)
    own = lines[lines.index("def eye_of(p)") :]
    assert "CNV + DME is 0.25 or more" in own and units["eye"]["referred_from"] == 0.25
    there = {"np": np}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(own, there)
    p = np.random.default_rng(seed).dirichlet(np.full(4, 0.2), scans)
    how = aggregation_of(calibration, "eye", CLASSES)
    expected = how.probabilities(p, np.zeros(scans, dtype=int), 1, CLASSES)[0]
    np.testing.assert_allclose(there["eye_of"](p), expected, rtol=1e-6, atol=1e-9)


def test_the_file_of_a_model_of_scans_says_how_they_are_put_together(own_run, tmp_path):
    kept = {"rule": "top_k", "k": 2, "temperature": 1.5, "urgent": ["CNV", "DME"]}
    calibration = {**load(own_run.bundle).info.calibration, "units": {"eye": kept, "patient": kept}}
    update_info(own_run.bundle, calibration=calibration)
    found = export_bundle(own_run.bundle, "torch", tmp_path / "m.pt2", scans=2)
    extra = {"octfast.json": ""}
    torch.export.load(found.file, extra_files=extra)
    units = json.loads(json.loads(extra["octfast.json"])["units"])
    assert set(units) == {"eye", "patient"} and (units["eye"]["rule"], units["eye"]["k"]) == ("top_k", 2)
    assert found.level == "scan" and re.findall(r"def (\w+)\(p\)", found.usage()) == ["eye_of", "patient_of"]
    assert "above 1, which do not count" in found.usage() or found.agreement.distance is None
