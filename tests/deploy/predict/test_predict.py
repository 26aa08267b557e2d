from __future__ import annotations

import json
import math
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from octfast.deploy.predict.inputs import Item
from octfast.deploy.predict.outputs import volumes_file
from octfast.deploy.predict.predict import predict, run_prediction
from octfast.deploy.predict.rows import Table, Wanted, stream_rows
from octfast.deploy.predict.writers import Journal, csv_line, format_of
from octfast.deploy.predictor import Predictor, load
from octfast.deploy.volumes.reader import VolumeReader
from octfast.errors import DataError, UsageError
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import save_bundle, update_info
from octfast.model.heads import body_and_head
from tests.deploy.volumes import volume_files as files
from tests.pictures import scan, write_broken

CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")
OPERATING = {"urgent": ["CNV", "DME"], "sensitivity": 0.95, "threshold": 0.5}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A small untrained model, its answers spread by a low temperature."""
    torch.manual_seed(3)
    arch = find_arch("test_resnet")
    model = nn.Sequential(*body_and_head(make_network(arch, 64), arch, "octfast", 4))
    info = BundleInfo("test_resnet", "octfast", CLASSES, 64, (0.5,) * 3, (0.2,) * 3, temperature=0.3)
    return save_bundle(tmp_path_factory.mktemp("bundle") / "model", model, info)


@pytest.fixture(scope="module")
def predictor(bundle) -> Predictor:
    return load(bundle, precision="fp32", device="cpu")


@pytest.fixture
def scans(tmp_path, monkeypatch) -> Path:
    """Seven pictures, a volume of five B-scans, and broken files, in the current folder's `scans`."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "scans"
    folder.mkdir()
    for n in range(7):
        Image.fromarray(scan(40 + n, 50, seed=n)).save(folder / f"{n}.png")
    files.write_vol(folder / "5-volume.vol", files.frames_of(5))
    write_broken(folder / "broken")
    return folder


def test_a_row_a_scan_in_the_order_of_the_inputs(predictor, scans):
    table = predict(predictor, [scans / "3.png", scans / "5-volume.vol", scans / "0.png"], bs=2)
    assert [Path(p).name for p in table["path"]] == ["3.png", *["5-volume.vol"] * 5, "0.png"]
    assert table["frame"].tolist() == [pd.NA, 0, 1, 2, 3, 4, pd.NA]
    assert table["volume"].dropna().eq(0).all() and table["eye"].tolist() == ["", *"RRRRR", ""]
    pictures = [scans / "3.png", *[f.pixels for f in read_vol(scans / "5-volume.vol")], scans / "0.png"]
    expected = predictor.probabilities(pictures)
    assert np.allclose(table[[f"p_{c}" for c in CLASSES]], expected, atol=1e-6)
    assert (table["predicted"] == np.asarray(CLASSES)[expected.argmax(1)]).all()
    assert np.allclose(table["probability"], expected.max(1)) and (table["error"] == "").all()
    assert np.allclose(table["urgent_score"], expected[:, :2].sum(1))
    assert (table["referred"] == np.isin(table["predicted"], ["CNV", "DME"])).all() and "abstained" not in table


def read_vol(path):
    from octfast.deploy.volumes.reader import VolumeReader

    with VolumeReader() as reader:
        return list(reader.read(path, "vol"))


def test_an_unreadable_file_costs_its_row_and_no_other(predictor, scans):
    table = predict(predictor, scans)
    broken = table[table["error"] != ""]
    assert {Path(p).parent.name for p in broken["path"]} == {"broken"} and len(broken) == 7
    assert len(table) == 7 + 5 + 7
    assert broken[["predicted", "probability", "urgent_score", "referred"]].isna().all().all()
    assert not broken["error"].str.contains("\n|Traceback").any()


def test_only_broken_files_are_all_rows(predictor, scans):
    assert (predict(predictor, [scans / "broken", "gone.png"])["error"] != "").all()


def test_a_volume_that_breaks_off_keeps_what_was_read(predictor, scans):
    path = scans / "5-volume.vol"
    path.write_bytes(path.read_bytes()[:-100])
    table = predict(predictor, path)
    assert table["frame"].tolist() == [0, 1, 2, 3, pd.NA]
    assert (table["error"] != "").tolist() == [False] * 4 + [True]


def test_pipes_and_folders_are_not_opened(predictor, tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.png")
    (row,) = predict(predictor, tmp_path / "pipe.png").itertuples()
    assert "no plain file" in row.error


def test_the_temperature_is_applied(bundle, predictor, scans, tmp_path):
    warm = Path(shutil.copytree(bundle, tmp_path / "warm"))
    update_info(warm, temperature=0.6)
    names = [f"p_{c}" for c in CLASSES]
    cold = np.log(predict(predictor, scans / "0.png")[names].to_numpy(float))
    found = np.log(predict(warm, scans / "0.png", precision="fp32", device="cpu")[names].to_numpy(float))
    assert np.allclose(found, cold / 2 - np.log(np.exp(cold / 2).sum()), atol=1e-5)


def test_top_k_and_abstention(predictor, scans):
    table = predict(predictor, scans / "*.png", top_k=3, abstain_below=0.9)
    p = table[[f"p_{c}" for c in CLASSES]].to_numpy()
    assert np.allclose(table[["probability", "probability_2", "probability_3"]], -np.sort(-p, 1)[:, :3])
    assert (table["predicted_2"] == np.asarray(CLASSES)[np.argsort(-p, 1)[:, 1]]).all()
    assert (table["abstained"] == (p.max(1) < 0.9)).all() and table["abstained"].any()


def test_the_bundles_operating_point_and_prediction_sets(bundle, scans, tmp_path):
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    update_info(own, calibration={"operating": OPERATING, "conformal": {"coverage": 0.9, "threshold": 0.05}})
    table = predict(own, scans / "*.png", precision="fp32")
    p = table[[f"p_{c}" for c in CLASSES]].to_numpy()
    assert (table["referred"] == (p[:, :2].sum(1) >= 0.5)).all()
    assert (table["abstained"] == ((p >= 0.05).sum(1) > 1)).all()


def test_a_run_folder_will_do(trained, phantoms):
    paths = sorted((phantoms / "test").rglob("*.jpeg"))[:4]
    table = predict(trained.path, paths, precision="fp32", device="cpu")
    known = trained.predictions("test").set_index("path")
    for row in table.itertuples():
        assert math.isclose(row.probability, known.loc[str(Path(row.path).resolve()), "probability"], abs_tol=1e-3)


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_the_file_holds_the_table(predictor, scans, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    table = predict(predictor, scans, out=name, top_k=2, abstain_below=0.5)
    read = {"csv": pd.read_csv, "jsonl": lambda f: pd.read_json(f, lines=True), "parquet": pd.read_parquet}
    found = read[name.split(".")[1]](name)
    assert list(found.columns) == list(table.columns)
    assert found["path"].tolist() == table["path"].tolist()
    assert np.allclose(found["p_CNV"], table["p_CNV"], rtol=1e-5, equal_nan=True)
    assert found["error"].fillna("").tolist() == table["error"].tolist()
    right = table["error"] == ""
    assert found.loc[right, "abstained"].astype(bool).tolist() == table.loc[right, "abstained"].tolist()
    assert found["frame"].astype("Int64").tolist() == table["frame"].tolist()
    assert sorted(p.name for p in Path().iterdir()) == sorted([name, volumes_file(Path(name)).name, "scans"])


def test_volumes_have_a_table_of_their_own_the_urgent_first(predictor, scans):
    for n in range(4):
        files.write_e2e(scans / f"v{n}.e2e", [files.frames_of(3, seed=10 * n + 7)]) if n % 2 else files.write_vol(
            scans / f"v{n}.vol", files.frames_of(3, seed=10 * n + 7), eye=b"OS"
        )
    (scans / "bad.vol").write_bytes(b"HSF-OCT")
    table = predict(predictor, [*sorted(scans.glob("v*")), scans / "bad.vol"], out="out.csv")
    volumes = pd.read_csv("out-volumes.csv")
    assert volumes["urgent_score"].dropna().is_monotonic_decreasing
    assert (
        Path(volumes["path"].iloc[-1]).name == "bad.vol"
        and volumes["error"].notna().sum() == (volumes["frames"] == 0).sum()
    )
    for row in volumes[volumes["frames"] > 0].itertuples():
        own = table[table["path"] == row.path]
        assert row.frames == len(own) == 3 and row.unread == 0
        assert math.isclose(row.urgent_score, own["urgent_score"].max(), rel_tol=1e-5)
        assert own["frame"].iloc[own["urgent_score"].astype(float).argmax()] == row.urgent_frame
        assert row.referred == own["referred"].any()
        assert row.scans_CNV == (own["predicted"] == "CNV").sum()
        assert math.isclose(row.highest_p_NORMAL, own["p_NORMAL"].max(), rel_tol=1e-5)


class StopHereError(Exception):
    pass


def interrupted(predictor, inputs, after: int, **options):
    """Predict into out.csv, killed after so many rows."""
    seen = 0

    def on_row(row, columns):
        nonlocal seen
        seen += 1
        if seen == after:
            raise StopHereError

    with pytest.raises(StopHereError):
        run_prediction(predictor, inputs, on_row, out="out.csv", bs=3, **options)
    assert not Path("out.csv").exists() and Path(".out.csv.part").exists()


@pytest.mark.parametrize("after", [1, 3, 7, 8, 12, 15, 19])
def test_resuming_repeats_and_loses_no_row(predictor, scans, after):
    whole = predict(predictor, ["scans"], out="whole.csv")
    interrupted(predictor, ["scans"], after)
    calls = []
    table = predict(counting(predictor, calls), ["scans"], out="out.csv", resume=True)
    pd.testing.assert_frame_equal(table, whole)
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert Path("out-volumes.csv").read_bytes() == Path("whole-volumes.csv").read_bytes()
    assert not Path(".out.csv.part").exists()
    # Rows of inputs that were finished are not computed again.
    done = {p for p in whole["path"][:after] if list(whole["path"]).index(p) + list(whole["path"]).count(p) <= after}
    assert not done & {str(c) for c in calls}


def counting(predictor, calls):
    """The same predictor, which notes the files that it is asked about."""
    own = Predictor.__new__(Predictor)
    own.__dict__.update(predictor.__dict__)
    own.stream = lambda pictures, bs: predictor.stream((calls.append(p) or p for p in pictures), bs)
    return own


@pytest.mark.parametrize("cut", [1, 10, 200, 1500])
def test_a_torn_last_line_is_dropped(predictor, scans, cut):
    whole = predict(predictor, ["scans"])
    interrupted(predictor, ["scans"], 14)
    part = Path(".out.csv.part")
    part.write_bytes(part.read_bytes()[:-cut])
    pd.testing.assert_frame_equal(predict(predictor, ["scans"], out="out.csv", resume=True), whole)


def test_a_journal_torn_in_its_first_line_starts_anew(predictor, scans):
    Path(".out.csv.part").write_bytes(b'{"octfast": "pred')
    assert len(predict(predictor, ["scans"], out="out.csv", resume=True)) == 19


def test_an_interrupted_prediction_is_neither_lost_nor_mixed_with_another(bundle, predictor, scans, tmp_path):
    interrupted(predictor, ["scans"], 6)
    before = Path(".out.csv.part").read_bytes()
    with pytest.raises(UsageError, match="interrupted prediction"):
        predict(predictor, ["scans"], out="out.csv")
    with pytest.raises(UsageError, match="other inputs"):
        predict(predictor, ["scans", "scans"], out="out.csv", resume=True)
    with pytest.raises(UsageError, match="other settings"):
        predict(predictor, ["scans"], out="out.csv", resume=True, top_k=2)
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    update_info(other, temperature=2.0)
    with pytest.raises(UsageError, match="another model"):
        predict(other, ["scans"], out="out.csv", resume=True, precision="fp32", device="cpu")
    assert Path(".out.csv.part").read_bytes() == before
    Image.fromarray(scan()).save(scans / "0-new.png")
    with pytest.raises(UsageError, match="inputs are not those"):
        predict(predictor, ["scans"], out="out.csv", resume=True)
    assert len(predict(predictor, ["scans"], out="out.csv", force=True)) == 20


def test_an_interruption_says_how_to_go_on(predictor, scans, said):
    interrupted(predictor, ["scans"], 4)
    assert any(".out.csv.part" in line and "--resume" in line for line in said())


def test_two_processes_do_not_write_the_same_file(predictor, scans):
    other = Journal(Path("out.csv"), {})
    other.open(False, False)
    with pytest.raises(UsageError, match="another process"):
        predict(predictor, ["scans"], out="out.csv", force=True)
    other.close()
    assert not Path(".out.csv.lock").exists()


def test_resuming_what_is_finished_changes_nothing(predictor, scans, said):
    predict(predictor, ["scans"], out="out.csv")
    before = Path("out.csv").stat().st_mtime_ns
    predict(predictor, ["scans"], out="out.csv", resume=True)
    assert Path("out.csv").stat().st_mtime_ns == before
    assert any("nothing to go on with" in line for line in said())


def test_nothing_is_overwritten_unless_forced(predictor, scans):
    Path("out.csv").write_text("mine")
    with pytest.raises(UsageError, match=r"out\.csv exists"):
        predict(predictor, ["scans"], out="out.csv")
    assert Path("out.csv").read_text() == "mine"
    predict(predictor, [scans / "0.png"], out="out.csv", force=True)
    assert len(pd.read_csv("out.csv")) == 1


def test_an_input_is_not_overwritten_even_by_force(predictor, scans):
    Path("list.csv").write_text("path\nscans/0.png\n")
    with pytest.raises(UsageError, match="is an input"):
        predict(predictor, ["list.csv"], out="list.csv", force=True)
    assert Path("list.csv").read_text() == "path\nscans/0.png\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 5}, "4 classes"),
        ({"top_k": 0}, "4 classes"),
        ({"abstain_below": 1.5}, "not a probability"),
        ({"out": "gone/out.csv"}, "no such folder"),
        ({"out": "out.xlsx"}, r"\.xlsx"),
        ({"out": "out"}, "ends in nothing"),
        ({"format": "excel"}, "no format"),
        ({"format": "parquet"}, "into a file"),
        ({"resume": True}, "--resume"),
        ({"heatmaps": "scans/maps"}, "whose pictures are predicted"),
        ({"montage": "montage.txt"}, "unsupported file type"),
        ({"montage": "scans/montage.png"}, "whose pictures are predicted"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(predictor, scans, options, words):
    before = sorted(scans.parent.rglob("*"))
    with pytest.raises(UsageError, match=words):
        predict(predictor, ["scans"], **options)
    assert sorted(scans.parent.rglob("*")) == before


def test_nothing_to_predict(predictor, tmp_path):
    with pytest.raises(DataError, match="nothing to predict"):
        predict(predictor, tmp_path)


def test_heat_maps_and_montage(predictor, scans):
    inputs = ["scans/0.png", "scans/5-volume.vol", "scans/broken"]
    table = predict(predictor, inputs, heatmaps="maps", montage="montage.png", out="out.csv")
    good = table[table["error"] == ""]
    assert sorted(good["heat_map"]) == sorted(p.name for p in Path("maps").iterdir())
    assert good["heat_map"].iloc[1] == "000002-5-volume-0-0000.png"
    assert table.loc[table["error"] != "", "heat_map"].isna().all()
    with Image.open("maps/000001-0.png") as held:
        assert held.mode == "RGB" and held.height > 40
    with Image.open("montage.png") as held:
        assert held.width > 200
    with pytest.raises(UsageError, match="not empty"):
        predict(predictor, inputs, heatmaps="maps")


def test_hostile_names_are_harmless_in_csv(predictor, scans):
    import csv

    hostile = ['=HYPERLINK("x").png', "+1.png", "-1.png", "@x.png", 'quo"te,.png', "new\nline.png", "$x_1$.png"]
    for name in hostile:
        shutil.copy(scans / "0.png", name)
    predict(predictor, [f"./{n}" for n in hostile] + ["=gone.png"], out="out.csv", montage="montage.png")
    with Path("out.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 8
    assert all(not v.startswith(("=", "+", "-", "@")) for row in rows for v in row.values())
    assert all(Path(row["path"]).samefile(n) for row, n in zip(rows, hostile, strict=False))


def test_a_class_whose_name_is_a_formula():
    assert csv_line(["=1+1", "a", -0.5, True, None, 1e-12]) == "'=1+1,a,-0.5,true,,1e-12\r\n"


def test_formats_by_ending():
    assert [format_of(f"a{e}", None) for e in (".csv", ".CSV", ".ndjson", ".pq")] == ["csv", "csv", "jsonl", "parquet"]
    assert format_of(None, None) == "csv" and format_of("a.txt", "jsonl") == "jsonl"


def test_rows_are_in_the_journal_as_they_come(predictor, scans):
    """Somebody who follows the file sees each row when it is there, not when all are."""
    lines = []

    def on_row(row, columns):
        lines.append(len(Path(".out.jsonl.part").read_bytes().splitlines()))

    run_prediction(predictor, ["scans"], on_row, out="out.jsonl", wanted=Wanted(top_k=2))
    assert lines == [n + 2 for n in range(19)]
    assert json.loads(Path("out.jsonl").read_text().splitlines()[0])["path"] == "scans/0.png"


def test_errors_stream_as_rows_do(predictor, scans):
    """A source that gives what cannot be read and then nothing more for a while does not hold their rows back."""
    more = threading.Event()

    def items():
        for n in range(40):
            yield n, Item(f"gone-{n}.png", "no such file")
        more.wait(20)
        yield 40, Item("scans/0.png")

    with VolumeReader() as reader:
        rows = stream_rows(Table(predictor, Wanted()), items(), reader)
        found = [next(rows) for _ in range(40)]
        waited = not more.is_set()
        more.set()
        (last,) = rows
    assert waited and [r.values["error"] for r in found] == ["no such file"] * 40
    assert [r.item for r in found] == list(range(40)) and last.values["error"] == ""


def test_a_montage_that_fails_costs_nothing_else(predictor, scans, monkeypatch):
    def fail(*_):
        raise StopHereError

    whole = predict(predictor, ["scans"], out="whole.csv", montage="whole.png")
    with monkeypatch.context() as broken, pytest.raises(StopHereError):
        broken.setattr("octfast.deploy.predict.pictures.plot_montage", fail)
        predict(predictor, ["scans"], out="out.csv", montage="out.png")
    for name in ("{}.csv", "{}-volumes.csv"):
        assert Path(name.format("out")).read_bytes() == Path(name.format("whole")).read_bytes()
    again = predict(predictor, ["scans"], out="out.csv", montage="out.png", resume=True)
    pd.testing.assert_frame_equal(again, whole)
    with Image.open("out.png") as one, Image.open("whole.png") as other:
        assert one.size == other.size
    assert not Path(".out.csv.part").exists()


@pytest.mark.parametrize("held", [b"notes of mine\n", b'{"a": 1}\nx\n', b"[1]\n"])
def test_a_file_of_another_program_is_no_journal(predictor, scans, held):
    Path(".out.csv.part").write_bytes(held)
    with pytest.raises(UsageError, match="no interrupted prediction"):
        predict(predictor, ["scans"], out="out.csv", resume=True)
    assert Path(".out.csv.part").read_bytes() == held


def test_a_journal_with_a_row_that_is_none(predictor, scans):
    interrupted(predictor, ["scans"], 3)
    with Path(".out.csv.part").open("ab") as f:
        f.write(b'{"item": 3}\n')
    with pytest.raises(DataError, match="damaged"):
        predict(predictor, ["scans"], out="out.csv", resume=True)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text are Linux's alone")
@pytest.mark.parametrize("name", ["montage.png", "montage.svg"])
def test_a_montage_of_names_that_are_no_text(predictor, scans, name):
    shutil.copy(scans / "0.png", os.fsdecode(bytes(scans) + b"/caf\xe9 $x$ \x1b[31m.png"))
    table = predict(predictor, ["scans"], montage=name, heatmaps="maps", out="out.csv")
    assert (table["error"] == "").sum() == 13 and Path(name).stat().st_size > 1000
    assert len(list(Path("maps").iterdir())) == 13


def test_a_heat_map_is_no_larger_than_needed(predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scan(2600, 4000)).save("large.png")
    predict(predictor, "large.png", heatmaps="maps")
    with Image.open("maps/000001-large.png") as held:
        assert held.width == 2048 and held.height < 1400


def test_a_network_without_a_map_is_told_before_anything_is_read(scans, tmp_path):
    arch = find_arch("test_vit")
    model = nn.Sequential(*body_and_head(make_network(arch, 64), arch, "octfast", 4))
    save_bundle(tmp_path / "vit", model, BundleInfo("test_vit", "octfast", CLASSES, 64, (0.5,) * 3, (0.2,) * 3))
    with pytest.raises(UsageError, match="--heatmaps: test_vit"):
        predict(tmp_path / "vit", ["scans"], heatmaps="maps", out="out.csv", device="cpu")
    assert not Path(".out.csv.part").exists()


@pytest.mark.parametrize("option", ["out", "heatmaps", "montage"])
def test_a_name_that_no_file_can_have(predictor, scans, option):
    with pytest.raises(UsageError, match="cannot write"):
        predict(predictor, ["scans"], **{option: "x" * 300 + {"out": ".csv", "montage": ".png"}.get(option, "")})


def test_inputs_that_can_be_no_files_do_not_end_it(predictor, scans):
    given = ["x" * 5000, "~no such user/x.png", "scans/0.png"]
    table = predict(predictor, given, out="out.csv", heatmaps="maps", force=True)
    assert [bool(e) for e in table["error"]] == [True, True, False]
