"""octfast predict with a model that answers for volumes: which scans are one unit, how each counted, and the answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.deploy.predict.predict import predict, run_prediction
from octfast.deploy.predictor import load
from octfast.errors import UsageError
from octfast.model.bundle.write import save_bundle, update_info
from tests.bags import bag_bundle
from tests.deploy.predict.conftest import CLASSES, OPERATING, interrupted


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


@pytest.fixture
def table(scans):
    """Two volumes of pictures, whose rows are mixed, before a file of a volume of five B-scans."""
    rows = [(f"scans/{n}.png", "ab"[n % 2]) for n in range(7)] + [("scans/5-volume.vol", "")]
    pd.DataFrame(rows, columns=["path", "volume"]).assign(patient="p").to_csv("table.csv", index=False)
    return "table.csv"


@pytest.mark.parametrize("after", [1, 4, 6, 7, 11])
def test_resuming_repeats_no_unit_and_loses_none(predictor, table, after):
    whole = predict(predictor, table, out="whole.csv")
    interrupted(predictor, [table], after)
    seen = []
    found = run_prediction(predictor, [table], lambda row, _: seen.append(row.values), out="out.csv", resume=True)
    for name in ("", "-volumes"):
        assert Path(f"out{name}.csv").read_bytes() == Path(f"whole{name}.csv").read_bytes()
    assert len(seen) == 12 and [v["frames"] for v in found.volumes] == whole["frames"].tolist() == [4, 3, 5]
    assert sorted(p.name for p in Path().glob(".out*")) == []


def test_what_was_answered_is_not_computed_again(predictor, table, monkeypatch, said):
    interrupted(predictor, [table], 8)
    asked = []
    stream = predictor.stream_scans

    def counting(pictures, bs=16):
        def counted():
            for picture in pictures:
                asked.append(picture)
                yield picture

        yield from stream(counted(), bs)

    monkeypatch.setattr(predictor, "stream_scans", counting)
    predict(predictor, table, out="out.csv", resume=True)
    # The first two volumes were done.
    assert len(asked) == 5 and any("resuming after 7 files and 7 scans" in line for line in said())


def test_resuming_with_other_inputs_is_refused(predictor, table):
    interrupted(predictor, [table], 8)
    with pytest.raises(UsageError, match="--force"):
        predict(predictor, [table, "scans/0.png"], out="out.csv", resume=True)
    pd.read_csv(table).assign(volume="x").to_csv(table, index=False)
    with pytest.raises(UsageError, match="the inputs are not those of the interrupted"):
        predict(predictor, table, out="out.csv", resume=True)
    with pytest.raises(UsageError, match="interrupted prediction"):
        predict(predictor, table, out="out.csv")
    assert len(predict(predictor, table, out="out.csv", force=True)) == 2


def test_resuming_what_is_finished_changes_nothing(predictor, table, said):
    predict(predictor, table, out="out.csv")
    before = Path("out-volumes.csv").read_bytes()
    predict(predictor, table, out="out.csv", resume=True)
    assert Path("out-volumes.csv").read_bytes() == before and any("finished already" in line for line in said())


def test_the_montage_shows_each_unit_by_the_scan_that_counted_most(predictor, table, monkeypatch):
    from octfast.deploy.predict import pictures

    drawn = {}
    plot = pictures.plot_montage
    monkeypatch.setattr(
        pictures, "plot_montage", lambda rows, *rest: drawn.update(rows=rows, rest=rest) or plot(rows, *rest)
    )
    found = predict(predictor, table, montage="m.png")
    assert Image.open("m.png").width > 300
    rows = found.sort_values("urgent_score", ascending=False)
    assert [r["path"] for r in drawn["rows"]] == rows["most"].tolist()
    assert [r["predicted"] for r in drawn["rows"]] == rows["predicted"].tolist()
    shown, title, _ = drawn["rest"]
    assert "most urgent volumes" in title and "counted most" in title
    assert all(isinstance(picture, np.ndarray) for picture in shown)
    assert any("p a: " in r["caption"] for r in drawn["rows"])


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
