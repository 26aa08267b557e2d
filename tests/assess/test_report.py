from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
from PIL import Image

from octfast.assess import predictions
from octfast.assess.predictions import run_predictions
from octfast.assess.report import interpret_run
from octfast.errors import BundleError, DataError, UsageError
from octfast.train.run import open_run


def test_what_interpret_finds_and_leaves_behind(own_run):
    found = interpret_run(own_run)
    names = [f.name for f in found.files]
    assert names == ["top_losses.png", "confusion_matrix.png", "predictions-valid.csv"]
    for file in found.files[:2]:
        with Image.open(file) as figure:
            assert file.parent == own_run.figures and min(figure.size) > 300
    table = own_run.predictions("valid")
    assert found.headline["scans"] == len(table) == found.confusion.to_numpy().sum()
    assert found.headline == json.loads((own_run.path / "metrics-valid.json").read_text())
    assert len(found.top) == 9 and found.top["path"].is_unique and not found.synthetic
    assert found.top["loss"].iloc[0] == table["loss"].max()
    said = json.loads(json.dumps(found.to_dict(), default=str))
    assert {"split", "accuracy", "confusion", "most_confused", "top_losses", "files"} <= set(said)


def test_more_than_there_are(own_run):
    assert len(interpret_run(own_run, k=10_000).top) == len(own_run.predictions("valid"))


def test_the_smallest_losses(own_run):
    found = interpret_run(own_run, k=3, largest=False)
    assert found.files[0].name == "smallest_losses.png"
    assert list(found.top["loss"]) == sorted(own_run.predictions("valid")["loss"])[:3]


@pytest.mark.parametrize("split", ["test", "train"])
def test_other_splits(own_run, split):
    found = interpret_run(own_run, split)
    assert [f.name for f in found.files] == [
        f"top_losses-{split}.png",
        f"confusion_matrix-{split}.png",
        f"predictions-{split}.csv",
    ]
    assert all(f.exists() for f in found.files)


def test_the_model_runs_only_where_there_are_no_predictions(own_run, monkeypatch):
    before = own_run.predictions("valid")
    runs = []
    predict = predictions.predict_scans
    monkeypatch.setattr(predictions, "predict_scans", lambda *a, **k: runs.append(1) or predict(*a, **k))
    interpret_run(own_run), interpret_run(own_run, "test")
    assert not runs
    own_run.predictions_file("valid").unlink()
    again, _ = run_predictions(own_run)
    interpret_run(own_run)
    assert len(runs) == 1
    pd.testing.assert_frame_equal(again, before, atol=1e-3)


def test_a_run_that_was_copied_with_its_data(trained, own_phantoms, tmp_path):
    moved = shutil.copytree(trained.path, tmp_path / "elsewhere")
    run = open_run(moved, own_phantoms)
    for split in ("valid", "train"):
        found = interpret_run(run, split)
        assert found.top["path"].str.startswith(str(own_phantoms)).all()
        assert all(f.is_relative_to(moved) and f.exists() for f in found.files)


def test_figures_are_drawn_though_the_scans_are_gone(own_run, own_phantoms):
    run = open_run(own_run.path, own_phantoms)
    shutil.rmtree(own_phantoms / "train")
    assert interpret_run(run, k=2).files[0].exists()
    with pytest.raises(DataError, match="no such file"):
        interpret_run(run, "train")


def test_what_a_run_has_not(own_run):
    with pytest.raises(UsageError, match="no split named 'tset'"):
        interpret_run(own_run, "tset")
    scans = pd.read_csv(own_run.path / "scans.csv", dtype=str).query("split != 'test'")
    scans.to_csv(own_run.path / "scans.csv", index=False)
    own_run.predictions_file("test").unlink()
    with pytest.raises(DataError, match="no test scans") as e:
        interpret_run(own_run, "test")
    assert "train, valid" in e.value.hint


@pytest.mark.parametrize("damage", ["octfast.json", "model.safetensors"])
def test_a_damaged_model(own_run, damage):
    own_run.predictions_file("valid").unlink()
    (own_run.bundle / damage).write_bytes(b"damaged")
    with pytest.raises(BundleError, match=damage):
        interpret_run(own_run)


def test_a_table_of_other_classes_than_the_models_is_an_error(own_run):
    table = own_run.predictions("valid").drop(columns="p_DME")
    own_run.save_predictions(table, "valid")
    with pytest.raises(BundleError, match=r"predictions-valid\.csv"):
        interpret_run(own_run)
    own_run.predictions_file("valid").write_text("path,label,patient,split\na,CNV,1,valid\n")
    with pytest.raises(BundleError, match=r"predictions-valid\.csv"):
        interpret_run(own_run)
