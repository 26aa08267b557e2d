from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.schedule import combined_cos

import octfast.train.job as job
from octfast.data.readers.folder import read_scans
from octfast.data.splits.hold_out import shared_patients
from octfast.errors import DataError, UsageError, WeightsError
from octfast.model.bundle.read import load_bundle
from octfast.model.forward import headline, predict_scans
from octfast.run.folder import open_run
from octfast.train.config import TrainConfig
from octfast.train.job import train_classifier
from octfast.train.store.cache import list_stores
from tests.conftest import quick
from tests.data.splits.test_hold_out import table


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def history(run) -> pd.DataFrame:
    return run.history.drop(columns="seconds")


def test_what_a_run_leaves_behind(trained):
    there = {p.relative_to(trained.path).as_posix() for p in trained.path.rglob("*") if p.is_file()}
    assert there == {
        *("config.json", "scans.csv", "history.csv", "log.txt", "model/model.safetensors", "model/octfast.json"),
        *("predictions-valid.csv", "predictions-test.csv", "metrics-valid.json", "metrics-test.json"),
        *("figures/history.png", "figures/lr_find.png", "figures/lr_find.csv", "checkpoints/best.safetensors"),
    }


def test_the_newest_run_is_named(trained):
    latest = trained.path.parent / "latest"
    assert latest.resolve() == trained.path


def test_the_history_has_a_row_an_epoch(trained):
    rows = trained.history
    assert list(rows.columns) == [
        *("epoch", "train_loss", "valid_loss", "train_accuracy", "accuracy", "lr", "seconds"),
    ]
    assert list(rows["epoch"]) == [1, 2, 3] and rows.notna().all(axis=None)
    assert rows["train_accuracy"].between(0, 1).all() and rows["accuracy"].between(0, 1).all()
    # The rate of the last batch of one cycle, whose end is a hundred-thousandth of the highest rate.
    chosen, train = trained.config["chosen"], int((trained.scans["split"] == "train").sum())
    steps = 3 * (train // chosen["bs"])
    last = combined_cos(0.25, chosen["lr"] / 25, chosen["lr"], chosen["lr"] / 1e5)((steps - 1) / steps)
    assert rows["lr"].iloc[-1] == pytest.approx(float(last), rel=1e-4) and last < chosen["lr"] / 20


def test_the_weights_of_the_lowest_validation_loss_are_kept(trained):
    model, info = load_bundle(trained.bundle)
    scans = trained.scans.query("split == 'valid'")
    found = predict_scans(model, info, scans, precision="fp32")
    best = trained.history["valid_loss"].argmin()
    assert found["loss"].mean() == pytest.approx(trained.history["valid_loss"][best], abs=1e-3)
    assert (found["predicted"] == found["label"]).mean() == pytest.approx(trained.history["accuracy"][best], abs=1e-5)
    assert trained.config["chosen"]["best_epoch"] == best + 1
    np.testing.assert_allclose(trained.predictions("valid")["loss"], found["loss"], atol=1e-3)


def test_predictions_of_validation_and_test_and_their_figures(trained):
    scans = trained.scans
    for split in ("valid", "test"):
        found = trained.predictions(split)
        assert list(found["path"]) == list(scans.loc[scans["split"] == split, "path"])
        said = json.loads((trained.path / f"metrics-{split}.json").read_text())
        right = found["predicted"] == found["label"]
        assert said["scans"] == len(found) and said["right"] == right.sum()
        assert said["accuracy"] == pytest.approx(right.mean()) and said["loss"] == pytest.approx(found["loss"].mean())
        assert said["patients"] == found["patient"].nunique()


def test_headline_counts_scans_and_patients():
    found = table([("A", "1"), ("A", "1"), ("A", "1"), ("B", "2"), ("B", "2"), ("B", "3"), ("A", "4")])
    found = found.assign(predicted=found["label"], loss=0.5)
    assert headline(found)["patients_right"] == 4
    # Patient 1 with one of three wrong, patient 2 with one of two, patient 3 with the only one.
    wrong = found["path"].str.extract(r"-(\d+)\.jpeg")[0].astype(int).isin([0, 3, 5])
    found.loc[wrong, "predicted"] = "C"
    said = headline(found)
    assert said["scans"] == 7 and said["right"] == 4 and said["patients"] == 4 and said["loss"] == 0.5
    assert said["accuracy"] == pytest.approx(4 / 7)
    most_right = found.assign(right=~wrong).groupby("patient")["right"].mean() > 0.5
    assert said["patients_right"] == most_right.sum() == 2


def test_the_scans_table_says_what_was_trained_on(trained, phantoms):
    scans = trained.scans
    assert set(scans["path"]) == set(read_scans(phantoms)["path"])
    assert not len(shared_patients(scans[scans["split"] != "test"]))
    assert all(p.split("/")[-3] == "test" for p in scans.loc[scans["split"] == "test", "path"])
    assert str(phantoms) not in (trained.path / "scans.csv").read_text()


def test_the_config_says_how_it_was_made(trained, phantoms):
    said = trained.config
    assert {f: said[f] for f in TrainConfig().to_dict()}["epochs"] == 3
    assert said["classes"] == {"CNV": 0, "DME": 1, "DRUSEN": 2, "NORMAL": 3}
    assert said["chosen"]["bs"] == 8 and said["chosen"]["patience"] == 3 and said["chosen"]["lr"] > 0
    assert said["data"]["root"] == str(phantoms) and said["data"]["synthetic"] is True
    assert said["versions"]["torch"] == torch.__version__.split("+")[0] or said["versions"]["torch"]
    assert said["weights_report"]["source"] == "none" and said["seconds"] > 0 and "fingerprint" in said["data"]
    bundle = json.loads((trained.bundle / "octfast.json").read_text())
    assert bundle["classes"] == ["CNV", "DME", "DRUSEN", "NORMAL"] and bundle["synthetic"] is True


def test_scans_of_people_are_not_called_synthetic(own_phantoms, tmp_path):
    (own_phantoms / "SYNTHETIC.txt").unlink()
    run = train_classifier(**quick(own_phantoms, out=tmp_path / "r", epochs=1))
    assert run.config["data"]["synthetic"] is False and not load_bundle(run.bundle)[1].synthetic


def test_an_untrained_body_is_said_at_the_start_at_the_end_and_in_the_notes(trained):
    notes = [note for note in trained.notes if "untrained" in note.text]
    assert len(notes) == 2 and "batch norms were set" in notes[0].text and notes[1].text.startswith("remember: ")
    assert [note.kind for note in notes] == ["", "reminder"]
    lines = (trained.path / "log.txt").read_text().splitlines()
    at = [i for i, line in enumerate(lines) if "untrained" in line]
    epochs = [i for i, line in enumerate(lines) if "epoch " in line and "train loss" in line]
    assert len(epochs) == 3 and at[0] < epochs[0] and at[-1] > epochs[-1]


def test_the_figures_are_pictures(trained):
    from PIL import Image

    for name in ("history.png", "lr_find.png"):
        with Image.open(trained.figures / name) as figure:
            assert min(figure.size) > 300
    found = pd.read_csv(trained.figures / "lr_find.csv")
    assert len(found) > 20 and found["lr"].is_monotonic_increasing


def test_the_same_seed_gives_the_same_history_and_predictions(phantoms, tmp_path):
    first, second, other = (
        train_classifier(**quick(phantoms, cache=str(tmp_path / cache), out=out, seed=seed))
        for cache, out, seed in (("c1", "a", 5), ("c2", "b", 5), ("c3", "c", 6))
    )
    pd.testing.assert_frame_equal(history(first), history(second), check_exact=True)
    for split in ("valid", "test"):
        assert (first.path / f"predictions-{split}.csv").read_bytes() == (
            second.path / f"predictions-{split}.csv"
        ).read_bytes()
    assert (first.path / "model/model.safetensors").read_bytes() == (
        second.path / "model/model.safetensors"
    ).read_bytes()
    assert not history(first).equals(history(other))


def test_test_scans_play_no_part_and_are_in_no_store(phantoms, own_phantoms, tmp_path):
    shutil.rmtree(own_phantoms / "test")
    with_test = train_classifier(**quick(phantoms, cache=str(tmp_path / "c1"), out="a"))
    without = train_classifier(**quick(own_phantoms, cache=str(tmp_path / "c2"), out="b"))
    pd.testing.assert_frame_equal(history(with_test), history(without), check_exact=True)
    assert {s.name for s in list_stores(tmp_path / "c1")} == {s.name for s in list_stores(tmp_path / "c2")}
    assert not (without.path / "metrics-test.json").exists() and without.predictions("test") is None
    counts = with_test.scans["split"].value_counts()
    kept = sorted(int(s.what.split(" scans")[0].split()[-1].replace(",", "")) for s in list_stores(tmp_path / "c1"))
    assert kept == sorted([counts["train"], counts["valid"]])


@pytest.mark.parametrize(
    "fields",
    [
        {"views": 0, "epochs": 1},
        {"unfreeze": "block5", "arch": "resnet18", "epochs": 1, "views": 1},
        {"unfreeze": "all", "epochs": 3, "lr": 0.05},
        {"arch": "test_vit", "epochs": 1},
        {"head": "fastai", "epochs": 1},
        {"precision": "bf16", "epochs": 1},
    ],
    ids=str,
)
def test_every_way_to_train_ends_in_a_run_that_agrees_with_its_model(phantoms, fields):
    run = train_classifier(**quick(phantoms, out="r", **fields))
    rows = run.history
    assert list(rows["epoch"]) == list(range(1, len(rows) + 1))
    model, info = load_bundle(run.bundle)
    found = predict_scans(model, info, run.scans.query("split == 'valid'"), precision="fp32")
    assert run.config["chosen"]["best_epoch"] == rows["valid_loss"].argmin() + 1
    close = 0.1 if "precision" in fields else 2e-3
    assert found["loss"].mean() == pytest.approx(rows["valid_loss"].min(), abs=close)
    assert not [p for p in run.path.rglob("*") if p.suffix in (".pkl", ".pth", ".pt")]


def test_in_the_stock_path_the_body_is_the_same_to_the_bit(phantoms):
    from octfast.data.loaders import oct_dataloaders
    from octfast.train.learner import oct_learner

    fields = quick(phantoms, out="r", views=0, epochs=1, arch="resnet18")
    run = train_classifier(**fields)
    dls = oct_dataloaders(run.scans, size=64, num_workers=0, seed=0)
    untrained = oct_learner(dls, "resnet18", weights="none").model[0].state_dict()
    body = load_bundle(run.bundle)[0][0].state_dict()
    assert len(body) > 100 and all(torch.equal(v, untrained[k].cpu()) for k, v in body.items())


def test_patience_ends_a_run_early(phantoms):
    run = train_classifier(**quick(phantoms, out="r", epochs=30, patience=1, lr=1.0, views=1))
    losses = run.history["valid_loss"]
    assert len(losses) < 30 and losses.iloc[-1] >= losses.iloc[:-1].min()
    assert (losses.diff().iloc[1:-1] < 0).all()
    assert "stopped early" in (run.path / "log.txt").read_text()


def test_what_a_launcher_left_in_the_environment_does_no_harm(phantoms, trained, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = train_classifier(**quick(phantoms, out="r", epochs=3, lr=None))
    pd.testing.assert_frame_equal(run.history.drop(columns="seconds"), trained.history.drop(columns="seconds"))
    assert any("RANK=1, WORLD_SIZE=2" in note.text for note in run.notes)
    assert os.environ["RANK"] == "1"


def test_without_weights_phantoms_fall_back_to_an_untrained_body(phantoms, monkeypatch):
    monkeypatch.setattr(job, "default_phantoms", lambda **kwargs: phantoms)
    run = train_classifier(**{**quick(phantoms, weights="auto", arch="resnet18", epochs=1, out="r"), "data": None})
    said = run.config
    assert said["data"]["synthetic"] and said["weights_report"]["source"] == "none"
    notes = " ".join(map(str, run.notes))
    assert "on phantoms an untrained body will do" in notes and "knows nothing of real eyes" in notes
    assert load_bundle(run.bundle)[1].synthetic


def test_without_weights_the_users_data_is_an_error_with_three_ways_on(phantoms):
    with pytest.raises(WeightsError, match="no pretrained weights for resnet18") as e:
        train_classifier(**quick(phantoms, weights="auto", arch="resnet18", out="r"))
    ways = e.value.message + e.value.hint
    assert "--weights FILE" in ways and "--weights none" in ways and "resnet18-" in ways
    assert e.value.exit_code == 1 and not Path("r").exists()


@pytest.mark.parametrize(
    "fields, error",
    [
        ({"valid": "2"}, UsageError),
        ({"valid": "folder"}, DataError),
        ({"arch": "resnet81"}, UsageError),
        ({"head": "knee"}, UsageError),
        ({"precision": "fp8"}, UsageError),
        ({"weights": "/nowhere.pth"}, WeightsError),
        ({"data": "/nowhere"}, DataError),
    ],
    ids=str,
)
def test_what_cannot_be_trained_leaves_no_run_behind(phantoms, fields, error):
    with pytest.raises(error):
        train_classifier(**{**quick(phantoms), **fields})
    assert not Path("runs").exists() or not any(Path("runs").iterdir())


def test_an_empty_folder_of_the_users_stays_when_training_cannot_begin(phantoms, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError):
        train_classifier(**quick(phantoms, out="mine", arch="resnet81"))
    assert (tmp_path / "mine").is_dir() and not any((tmp_path / "mine").iterdir())


def test_unreadable_files_are_listed_and_training_goes_on(own_phantoms):
    broken = own_phantoms / "train" / "CNV" / "CNV-42-1.jpeg"
    broken.write_bytes(b"")
    run = train_classifier(**quick(own_phantoms, out="r", epochs=1))
    left = pd.read_csv(run.path / "left-out.csv", dtype=str)
    assert left[["path", "reason"]].to_dict("records") == [{"path": "train/CNV/CNV-42-1.jpeg", "reason": "empty file"}]
    assert broken.exists() and not run.scans["path"].str.contains("CNV-42-1").any()
    assert any("CNV-42-1" in note.text for note in run.notes)


def test_patients_in_two_splits_are_refused_unless_allowed_and_then_said(own_phantoms):
    file = min((own_phantoms / "train" / "DME").iterdir())
    shutil.copy(file, own_phantoms / "test" / "DME" / file.name)
    with pytest.raises(DataError, match=r"1 patient stands in more than one split, with .* scans"):
        train_classifier(**quick(own_phantoms, out="r", epochs=1))
    run = train_classifier(**quick(own_phantoms, out="r", epochs=1, allow_leaks=True))
    assert any("1 patient stands in more than one split" in note.text for note in run.notes)
    run = train_classifier(**quick(own_phantoms, out="clean", epochs=1, drop_leaks=True))
    left_out = pd.read_csv(run.path / "left-out.csv")
    assert file.name in {Path(p).name for p in left_out["path"]}
    assert not set(run.scans.query("split == 'test'")["patient"]) & set(run.scans.query("split != 'test'")["patient"])


def test_a_run_can_be_opened_elsewhere_with_the_data_elsewhere(trained, own_phantoms, tmp_path):
    moved = shutil.copytree(trained.path, tmp_path / "moved")
    run = open_run(moved, own_phantoms)
    assert all(Path(p).is_file() and p.startswith(str(own_phantoms)) for p in run.scans["path"])


def test_the_log_is_given_back_as_it_was(phantoms):
    log = logging.getLogger("octfast")
    log.setLevel(logging.ERROR)
    before = list(log.handlers)
    train_classifier(**quick(phantoms, out="r", epochs=1))
    assert log.handlers == before and log.level == logging.ERROR
    assert "train loss" in (Path("r") / "log.txt").read_text()


def test_the_augmentation_that_is_asked_for_makes_the_views(phantoms, tmp_path):
    runs = [
        train_classifier(**quick(phantoms, epochs=1, augment=a, out=str(tmp_path / a))) for a in ("light", "strong")
    ]
    losses = [run.history["train_loss"].iloc[0] for run in runs]
    assert losses[0] != losses[1] and [run.config["augment"] for run in runs] == ["light", "strong"]


def test_its_figures_are_of_the_format_that_is_asked_for(phantoms, tmp_path):
    run = train_classifier(**quick(phantoms, epochs=1, lr=None, format="svg", out=str(tmp_path / "run")))
    assert sorted(f.name for f in run.figures.iterdir()) == ["history.svg", "lr_find.csv", "lr_find.svg"]
    assert "data:image/svg+xml;base64," in run._repr_html_() and "lr_find.svg" in run._repr_html_()
