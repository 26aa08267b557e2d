"""A scan darker, more clipped, cut off or more blurred than the training scans is remarked upon; its class stays."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter

import octfast
from octfast.data.phantom.draw import write_phantoms
from octfast.deploy.app.answers import Answers
from octfast.errors import BundleError
from octfast.model.quality import MEASURES, measure, quality_notes


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> list[Image.Image]:
    """30 phantoms of other patients than the run's."""
    drawn = write_phantoms(tmp_path_factory.mktemp("q"), 30, seed=90, size=64, test=0)
    return [Image.open(p).convert("L") for p in sorted(drawn.rglob("*")) if p.suffix in (".jpeg", ".png")]


def darkened(scan: Image.Image) -> Image.Image:
    return scan.point(lambda v: v // 5)


def clipped(scan: Image.Image) -> Image.Image:
    return scan.point(lambda v: min(255, v * 12))


def cut_off(scan: Image.Image) -> Image.Image:
    """Cut through the brightest row."""
    row = int(np.asarray(scan, dtype=float).mean(1).argmax())
    return scan.crop((0, row, scan.width, scan.height)).resize(scan.size)


def blurred(scan: Image.Image) -> Image.Image:
    return scan.filter(ImageFilter.GaussianBlur(3))


FAULTS = {"dark": darkened, "clipped": clipped, "cut off": cut_off, "blurred": blurred}


@pytest.mark.parametrize("name", MEASURES)
def test_each_fault_is_measured_by_its_own_measure(name, scans):
    before, after = (np.array([measure(np.asarray(s))[name] for s in of]) for of in (scans, map(FAULTS[name], scans)))
    assert (before > 0).all() and (after > before).mean() >= 0.9
    assert np.median(after) > 2 * np.median(before)


def test_what_is_beyond_a_limit_is_said_in_a_sentence(scans):
    limits = dict.fromkeys(MEASURES, 1e9)
    grey = np.asarray(cut_off(scans[0]))
    assert quality_notes(grey, limits) == ()
    assert quality_notes(grey, {**limits, "cut off": 1e-4}) == (MEASURES["cut off"],)


def test_a_white_wedge_is_no_clipping_and_what_is_all_white_is_measured_too():
    grey = np.random.default_rng(0).integers(20, 120, (64, 64)).astype(np.uint8)
    wedge = grey.copy()
    wedge[np.tril_indices(64, -40)] = 255
    assert measure(wedge)["clipped"] == measure(grey)["clipped"]
    assert measure(wedge)["dark"] == pytest.approx(measure(grey)["dark"], rel=0.1)
    for flat in (0, 255):
        assert all(np.isfinite(v) and v > 0 for v in measure(np.full((64, 64), flat, np.uint8)).values())


# Of few patients the limit of what is cut off is wide, as scans differ much in it.
@pytest.mark.parametrize("name", ["dark", "clipped", "blurred"])
def test_a_trained_model_remarks_upon_it_and_answers_all_the_same(name, trained, scans):
    predictor = octfast.load(trained.path, precision="fp32")
    assert predictor.tells_quality
    usual = predictor.predict(scans, answer_anyway=True)
    assert (usual["quality"] != "").mean() <= 0.1
    table = predictor.predict([FAULTS[name](s) for s in scans], answer_anyway=True)
    assert table["quality"].str.contains(MEASURES[name]).mean() >= 0.8
    assert table["predicted"].notna().all()


def test_the_table_and_the_page_say_it(trained, scans, tmp_path):
    file = tmp_path / "dark.png"
    darkened(scans[0]).save(file)
    row = octfast.predict(trained.path, [file], answer_anyway=True).iloc[0]
    assert MEASURES["dark"] in row["quality"] and MEASURES["dark"] in row["remarks"]
    said = Answers(octfast.load(trained.path)).answer(file.read_bytes())
    assert MEASURES["dark"] in said["quality"] and MEASURES["dark"] in said["remarks"]
    json.dumps(said)


def test_a_bundle_without_limits_says_nothing_and_spoilt_ones_are_refused(trained, tmp_path, scans):
    bundle = shutil.copytree(trained.path / "model", tmp_path / "bundle")
    info = bundle / "octfast.json"
    about = json.loads(info.read_text(encoding="utf-8"))
    assert set(about["calibration"]["quality"]["limits"]) == set(MEASURES)
    for wrong in ({}, {"limits": {"dark": 1}}, {"limits": dict.fromkeys(MEASURES, -1)}, 3):
        spoilt = {**about, "calibration": {**about["calibration"], "quality": wrong}}
        info.write_text(json.dumps(spoilt), encoding="utf-8")
        with pytest.raises(BundleError, match="quality"):
            octfast.load(bundle)
    old = {**about, "calibration": {k: v for k, v in about["calibration"].items() if k != "quality"}}
    info.write_text(json.dumps(old), encoding="utf-8")
    assert "quality" not in octfast.load(bundle).predict(scans[:1])
