"""`octfast drift`: a table of predictions against the run that made it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.assess.drift.drift import default_folder, find_drift, save_drift
from octfast.data.phantom.draw import CLASSES, make_phantom
from octfast.errors import DataError, UsageError
from octfast.run.folder import open_run
from octfast.train.job import train_classifier
from tests.conftest import quick


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on phantoms that knows how far its own scans lie."""
    from octfast.data.phantom.draw import write_phantoms

    folder = tmp_path_factory.mktemp("drift")
    data = write_phantoms(folder / "data", 120, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return open_run(train_classifier(**quick(data, views=1, folds=3, epochs=1)).path)


@pytest.fixture(scope="module")
def month(run, tmp_path_factory):
    """Predictions of two months: scans as in training, then, in December, a brighter device and some noise."""
    from octfast.deploy.predict.predict import predict
    from octfast.deploy.predictor import load

    folder = tmp_path_factory.mktemp("month")
    (folder / "scans").mkdir()
    rows = []
    for n in range(60):
        late = n >= 30
        drawn = Image.fromarray(make_phantom(CLASSES[n % 4], 5000 + n // 2))
        grey = np.asarray(drawn.resize((64, 64), Image.Resampling.BILINEAR))
        if late:
            grey = np.clip(grey.astype(int) + 60, 0, 255).astype(np.uint8)
        if late and n % 3 == 0:
            grey = np.random.default_rng(n).integers(0, 256, (64, 64)).astype(np.uint8)
        file = folder / "scans" / f"p{n // 2:03d}_{n}.png"
        Image.fromarray(grey).save(file)
        rows.append((str(file), f"p{n // 2}", "2026-12-03" if late else "2026-11-20"))
    pd.DataFrame(rows, columns=["path", "pid", "taken"]).to_csv(folder / "scans.csv", index=False)
    predict(load(run.path, precision="fp32", device="cpu"), [folder / "scans"], out=folder / "answers.csv")
    return folder


ASKED = {"patient_column": "pid", "resamples": 200, "pictures": 60}


def test_a_brighter_device_has_moved(run, month):
    found = find_drift(month / "answers.csv", run, scans=month / "scans.csv", **ASKED)
    table = found.table.set_index("figure")
    assert table.loc["brightness", "moved"] is True and table.loc["brightness", "low"] > 0.02
    assert found.about["patients"] == 30 and found.about["scans"] == 60
    assert table.loc["unlike", "new"] >= 10 / 60 > table.loc["unlike", "training"]
    assert any(w.startswith("Moved beyond chance") and "brightness" in w for w in found.words)
    assert "unlike anything the model was trained on" in found.words[0]


def test_over_time_the_month_is_named(run, month, tmp_path):
    found = find_drift(month / "answers.csv", run, scans=month / "scans.csv", date_column="taken", **ASKED)
    assert list(found.periods["period"]) == ["2026-11", "2026-12"] and list(found.periods["scans"]) == [30, 30]
    first, last = found.periods["unlike"]
    assert last >= 1 / 3 > first
    assert any("2026-12" in w and "each period" in w for w in found.words)
    files = save_drift(found, tmp_path / "out")
    assert [f.name for f in files] == ["drift.csv", "drift.json", "drift.png", "drift-periods.csv"]
    kept = json.loads(files[1].read_text())
    assert kept["figures"][0]["figure"] == "unlike" and "no difference is no proof" in kept["limits"]
    assert Image.open(files[2]).width > 800
    with pytest.raises(UsageError, match="not empty"):
        save_drift(found, tmp_path / "out")


def test_the_training_scans_themselves_have_not_moved(run, tmp_path):
    """Out-of-fold answers in the form of a table of predictions."""
    from octfast.assess.predictions import held_out_predictions

    own, _ = held_out_predictions(run)
    far = run.distances.set_index("path")["distance"]
    own = own.assign(distance=own["path"].map(far))
    own.assign(unlike_training=own["distance"] > 1, pid=own["patient"]).to_csv(tmp_path / "own.csv", index=False)
    found = find_drift(tmp_path / "own.csv", run, patient_column="pid", resamples=200, pictures=40)
    tested = found.table[found.table["p"].notna()]
    assert len(tested) >= 6 and not tested["moved"].any()
    assert any("the run's own" in n for n in found.about["notes"])
    assert (found.table["difference"].dropna().abs() < 1e-9).mean() > 0.5


def test_a_run_made_before_tells_the_share_alone(run, month, tmp_path):
    import shutil

    old = open_run(shutil.copytree(run.path, tmp_path / "old"))
    (old.path / "distances.csv").unlink()
    found = find_drift(month / "answers.csv", old, scans=month / "scans.csv", **{**ASKED, "pictures": 0})
    assert not {"unlike", "distance", "brightness"} & set(found.table["figure"])
    assert "unlike anything" in found.words[0] and any("keeps no distances" in n for n in found.about["notes"])


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_other_formats_say_the_same(run, month, tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    table = pd.read_csv(month / "answers.csv")
    if ending == "jsonl":
        table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    else:
        table.to_parquet(tmp_path / "a.parquet")
    asked = {"patient_from": r"(p\d+)_", "resamples": 50, "pictures": 0}
    found = find_drift(tmp_path / f"a.{ending}", run, **asked)
    expected = find_drift(month / "answers.csv", run, **asked)
    pd.testing.assert_frame_equal(found.table, expected.table, rtol=1e-4)
    assert found.about["patients"] == 30


def test_nothing_is_guessed(run, month, tmp_path, caplog):
    asked = {"resamples": 20, "pictures": 0}
    found = find_drift(month / "answers.csv", run, **asked)
    assert found.about["patients_from"] == "each file" and "no patients are named" in caplog.text
    with pytest.raises(UsageError, match="--by month needs dates"):
        find_drift(month / "answers.csv", run, by="month", **asked)
    with pytest.raises(UsageError, match="--by decade"):
        find_drift(month / "answers.csv", run, by="decade", file_dates=True, **asked)
    with pytest.raises(UsageError, match="has not such a column"):
        find_drift(month / "answers.csv", run, patient_column="pid", **asked)
    dates = pd.read_csv(month / "scans.csv").assign(taken="03/12/2026")
    dates.to_csv(tmp_path / "d.csv", index=False)
    with pytest.raises(DataError, match="without guessing"):
        find_drift(month / "answers.csv", run, scans=tmp_path / "d.csv", date_column="taken", **asked)
    dates.iloc[:9].to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(DataError, match="51 of 60 scans have no pid"):
        find_drift(month / "answers.csv", run, scans=tmp_path / "few.csv", patient_column="pid", **asked)
    periods = find_drift(month / "answers.csv", run, file_dates=True, by="year", **asked).periods
    assert list(periods["scans"]) == [60]


def test_a_table_of_another_model_is_refused(run, month, tmp_path):
    table = pd.read_csv(month / "answers.csv")
    for wrong, said in ((table.drop(columns="p_CNV"), "no column p_CNV"), (table.assign(p_ERM=0.1), "another model")):
        wrong.to_csv(tmp_path / "w.csv", index=False)
        with pytest.raises(DataError, match=said):
            find_drift(tmp_path / "w.csv", run, pictures=0)
    unread = table.head(2).assign(predicted="", probability=None, unlike_training="", error="truncated")
    unread.to_csv(tmp_path / "u.csv", index=False)
    with pytest.raises(DataError, match="no scan that could be read"):
        find_drift(tmp_path / "u.csv", run, pictures=0)


def test_the_command(run, month, octfast, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "drift",
        month / "answers.csv",
        "--run",
        run.path,
        "--scans",
        month / "scans.csv",
        "--patient-column",
        "pid",
    ]
    words += ["--date-column", "taken", "--by", "month", "--resamples", "50", "--pictures", "20", "--out", "d"]
    ended = octfast(*words)
    assert ended.code == 0 and "Moved beyond chance" in ended.out and "Not a medical device" in ended.out
    assert "no difference is no proof" in " ".join(ended.out.split()) and Path("d/drift.png").exists()
    assert octfast(*words).code == 2
    said = octfast(*words[:-1], "e", "--json")
    assert json.load(io.StringIO(said.out))["about"]["patients"] == 30
    assert default_folder(month / "answers.csv").name == "answers-drift"
