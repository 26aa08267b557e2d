from __future__ import annotations

import math
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from octfast.data.volumes.reader import VolumeReader
from octfast.deploy.predict.inputs import Item
from octfast.deploy.predict.predict import predict
from octfast.deploy.predict.rows import Table, Wanted, stream_rows
from octfast.model.bundle.write import update_info
from tests.data.volumes import volume_files as files
from tests.deploy.predict.conftest import CLASSES, OPERATING
from tests.pictures import scan


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
    from octfast.data.volumes.reader import VolumeReader

    with VolumeReader() as reader:
        return list(reader.read(path, "vol"))


def test_an_unreadable_file_costs_its_row_and_no_other(predictor, scans):
    table = predict(predictor, scans)
    broken = table[table["error"] != ""]
    assert {Path(p).parent.name for p in broken["path"]} == {"broken"} and len(broken) == 7
    assert len(table) == 7 + 5 + 7
    assert broken[["predicted", "probability", "urgent_score", "referred"]].isna().all().all()
    assert not broken["error"].str.contains("\n|Traceback").any()


def test_a_volume_that_breaks_off_keeps_what_was_read(predictor, scans):
    path = scans / "5-volume.vol"
    path.write_bytes(path.read_bytes()[:-100])
    table = predict(predictor, path)
    assert table["frame"].tolist() == [0, 1, 2, 3, pd.NA]
    assert (table["error"] != "").tolist() == [False] * 4 + [True]


def test_pipes_and_folders_are_not_opened(predictor, tmp_path):

    os.mkfifo(tmp_path / "pipe.png")
    (row,) = predict(predictor, tmp_path / "pipe.png").itertuples()
    assert "not a plain file" in row.error


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


def test_what_is_doubtful_about_a_picture_is_said_in_its_row(predictor, tmp_path):
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(scan()).save(tmp_path / "a.png")
    Image.fromarray(scan()[::-1, ::-1]).save(tmp_path / "b.png", exif=exif)
    Image.fromarray(scan().astype(np.uint16) * 16).save(tmp_path / "c.png")
    Image.new("L", (90, 90), 7).save(tmp_path / "d.png")
    table = predict(predictor, [tmp_path / f"{name}.png" for name in "abcd"])
    for remarks, words in zip(table["remarks"], ("", "upright", "16 bits a sample", "blank"), strict=True):
        assert words in remarks and bool(words) == bool(remarks)
    of_classes = table.filter(like="p_")
    assert np.allclose(of_classes.iloc[0], of_classes.iloc[1]) and np.allclose(of_classes.iloc[0], of_classes.iloc[2])
