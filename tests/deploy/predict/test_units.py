"""octfast predict with a model that answers for volumes: which scans are one unit, how each counted, and the answer."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from octfast.deploy.predict.predict import predict
from octfast.deploy.predictor import load
from octfast.errors import UsageError
from octfast.model.bundle.write import save_bundle, update_info
from tests.bags import bag_bundle
from tests.deploy.predict.conftest import CLASSES, OPERATING


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A small untrained model that answers for volumes, its answers and its attention spread."""
    return bag_bundle(tmp_path_factory.mktemp("bags") / "model", CLASSES)


@pytest.fixture(scope="module")
def predictor(bundle):
    return load(bundle, precision="fp32", device="cpu")


def test_the_pictures_of_a_folder_and_the_scans_of_a_volume_are_units(predictor, scans, tmp_path, said):
    out = tmp_path / "answers.csv"
    units = predict(predictor, "scans", out=out)
    each, kept = pd.read_csv(out), pd.read_csv(tmp_path / "answers-volumes.csv")
    volume = kept[kept["path"].str.endswith(".vol")].iloc[0]
    folder = kept[kept["path"] == "scans"].iloc[0]
    assert (volume["frames"], folder["frames"]) == (5, 7)
    assert units["predicted"].dropna().tolist() == kept["predicted"].dropna().tolist()
    own = each[each["unit"] == folder["unit"]]
    assert own["path"].tolist() == [f"scans/{n}.png" for n in range(7)]
    assert own["attention"].sum() == pytest.approx(1, abs=1e-4)
    assert folder["most"] == own.loc[own["attention"].idxmax(), "path"]
    answer = predictor.answer_unit([f"scans/{n}.png" for n in range(7)])
    np.testing.assert_allclose([folder[f"p_{c}"] for c in CLASSES], answer.probabilities, rtol=1e-4)
    inside = each[each["path"] == volume["path"]]
    assert inside["frame"].tolist() == list(range(5)) and inside["attention"].sum() == pytest.approx(1, abs=1e-4)
    assert any("taken for one volume" in line for line in said())
    # A scan has no class of its own.
    assert "predicted" not in each and not any(c.startswith("p_") for c in each)


def test_the_order_of_scans_plays_no_part(predictor, scans):
    paths = [f"scans/{n}.png" for n in range(7)]
    answer, again = predictor.answer_unit(paths), predictor.answer_unit(paths[::-1])
    np.testing.assert_allclose(answer.probabilities, again.probabilities, atol=1e-5)
    np.testing.assert_allclose(answer.attention, again.attention[::-1], atol=1e-5)


def test_a_table_says_which_scans_are_of_which_volume(predictor, scans, tmp_path):
    table = pd.DataFrame({"path": [f"scans/{n}.png" for n in range(6)], "patient": list("ababab"), "volume": 1})
    table.to_csv(tmp_path / "table.csv", index=False)
    found = predict(predictor, "table.csv")
    assert found["patient"].tolist() == ["a", "b"] and found["frames"].tolist() == [3, 3]
    answer = predictor.answer_unit([f"scans/{n}.png" for n in (0, 2, 4)])
    np.testing.assert_allclose([found.iloc[0][f"p_{c}"] for c in CLASSES], answer.probabilities, atol=1e-5)


def test_right_eyes_of_unknown_patients_are_not_one_eye(bundle, scans, tmp_path):
    eyes = shutil.copytree(bundle, tmp_path / "eyes")
    update_info(eyes, level="eye")
    table = pd.DataFrame({"path": [f"scans/{n}.png" for n in range(4)], "eye": ["OD", "OS"] * 2})
    table.to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(UsageError, match=r"0.png: the table says which eye"):
        predict(load(eyes, precision="fp32", device="cpu"), "table.csv")


def test_what_cannot_be_read_is_said_and_the_rest_answers(predictor, scans):
    found = predict(predictor, ["scans/0.png", "scans/1.png", "scans/gone.png"])
    assert len(found) == 1 and (found["frames"][0], found["unread"][0]) == (2, 1)
    assert found["error"][0] and found["predicted"][0] in CLASSES
    nothing = predict(predictor, ["scans/gone.png"])
    assert nothing["frames"][0] == 0 and pd.isna(nothing["predicted"][0]) and nothing["error"][0]


def test_the_operating_point_is_that_of_units(bundle, scans, tmp_path):
    folder = save_bundle(tmp_path / "own", load(bundle).model, load(bundle).info)
    for threshold, referred in ((0.0, True), (1.0, False)):
        update_info(folder, calibration={"operating": {**OPERATING, "threshold": threshold}})
        found = predict(folder, [f"scans/{n}.png" for n in range(3)], precision="fp32")
        assert found["referred"].tolist() == [referred]


@pytest.mark.parametrize("given", [{"montage": "x.png"}, {"resume": True, "out": "x.csv"}], ids=str)
def test_what_is_of_single_scans_is_refused(predictor, scans, given):
    with pytest.raises(UsageError, match="whole volume"):
        predict(predictor, "scans", **given)


def test_heat_maps_are_of_the_scans_that_count_most(predictor, scans, tmp_path):
    predict(predictor, [f"scans/{n}.png" for n in range(5)], out="answers.csv", heatmaps=tmp_path / "maps")
    each = pd.read_csv("answers.csv").sort_values("attention", ascending=False)
    drawn = each["heat_map"].dropna().tolist()
    assert each["heat_map"].notna().tolist() == [True] * 3 + [False] * 2
    assert sorted(drawn) == drawn == sorted(f.name for f in (tmp_path / "maps").iterdir())


def test_nothing_is_overwritten(predictor, scans, tmp_path):
    (tmp_path / "a-volumes.csv").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        predict(predictor, "scans", out=tmp_path / "a.csv")
    assert (tmp_path / "a-volumes.csv").read_text() == "mine" and not (tmp_path / "a.csv").exists()


def test_the_command(octfast, bundle, scans):
    ended = octfast("predict", bundle, scans, "--json", "--precision", "fp32")
    said = json.loads(ended.out)
    assert {v["frames"] for v in said["volumes"]} >= {5, 7} and said["scans"] >= 12
    assert all(0 <= v["most_attention"] <= 1 for v in said["volumes"] if v["most"])
    shown = octfast("predict", bundle, f"{scans}/5-volume.vol", "--volume-summary")
    assert shown.out.splitlines()[0].startswith("unit,path") and len(shown.out.splitlines()) == 2


@pytest.mark.parametrize("words", [("review",)])
def test_commands_about_single_scans_refuse_it(octfast, bundle, words):
    ended = octfast(*words, bundle)
    assert ended.code in (1, 2) and ended.err
