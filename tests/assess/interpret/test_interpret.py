from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastai.interpret import ClassificationInterpretation as FastaiInterpretation
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from octfast.assess.interpret.interpret import interpret_run
from octfast.assess.interpret.interpretation import ClassificationInterpretation
from octfast.assess.interpret.rows import confused_classes
from octfast.assess.predictions import run_predictions
from octfast.errors import BundleError, DataError, UsageError
from octfast.run.folder import open_run
from tests.assess.simulated import simulated_run
from tests.assess.tables import predicted_as

FIGURES = [
    *("top_losses", "confusion_matrix", "confusion_matrix_normalised", "hardest_wrong", "easiest_right"),
    *("missed_urgent", "montage"),
]


@pytest.fixture
def passes():
    """How many scans go through a network, by its first convolution, whichever engine runs it."""
    seen = []

    def count(module, given, out):
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            seen.append(len(given[0]))

    hook = register_module_forward_hook(count)
    yield seen
    hook.remove()


def test_what_interpret_finds_and_leaves_behind(own_run):
    found = interpret_run(own_run)
    names = [f.name for f in found.files]
    assert names == [*(f"{n}.png" for n in FIGURES), "predictions-valid.csv", "missed-urgent.csv"]
    assert list(found.figures) == FIGURES
    for file in found.figures.values():
        with Image.open(file) as figure:
            assert file.parent == own_run.figures and min(figure.size) > 300
    assert not list(own_run.figures.glob(".*"))
    table = own_run.predictions("valid")
    assert found.headline["scans"] == len(table) == found.confusion.to_numpy().sum()
    assert {k: found.headline[k] for k in ("scans", "right")} == {
        k: json.loads((own_run.path / "metrics-valid.json").read_text())[k] for k in ("scans", "right")
    }
    assert len(found.top) == 9 and found.top["path"].is_unique and found.synthetic and not found.notes
    assert found.top["loss"].iloc[0] == table["loss"].max()
    assert found.urgent == ("CNV", "DME") and found.label_errors is None
    said = json.loads(json.dumps(found.to_dict(), default=str))
    assert {"split", "accuracy", "confusion", "most_confused", "top_losses", "missed_urgent", "files"} <= set(said)


def test_every_answer_is_that_of_fastais_class(own_run, monkeypatch):
    asked = []
    from_run = ClassificationInterpretation.from_run
    monkeypatch.setattr(ClassificationInterpretation, "from_run", lambda *a: asked.append(from_run(*a)) or asked[-1])
    found = interpret_run(own_run, "test", k=3, heatmaps=False)
    (interp,) = asked
    fastais = FastaiInterpretation(interp.learn, interp.dl, interp.losses)
    np.testing.assert_array_equal(found.confusion, fastais.confusion_matrix())
    assert {(r.actual, r.predicted, r.scans) for r in found.confused.itertuples()} == {*fastais.most_confused()}
    np.testing.assert_allclose(found.top["loss"], fastais.top_losses(3)[0])


def test_more_than_there_are(own_run):
    assert len(interpret_run(own_run, k=10_000, heatmaps=False).top) == len(own_run.predictions("valid"))


def test_the_smallest_losses(own_run):
    found = interpret_run(own_run, k=3, largest=False, heatmaps=False)
    assert found.files[0].name == "smallest_losses.png"
    assert list(found.top["loss"]) == sorted(own_run.predictions("valid")["loss"])[:3]


@pytest.mark.parametrize("split", ["test", "train"])
def test_other_splits(own_run, split):
    found = interpret_run(own_run, split, k=2, heatmaps=False)
    empty = {"missed_urgent": found.missed.empty, "hardest_wrong": found.hardest.empty}
    assert [f.name for f in found.files] == [
        *(f"{n}-{split}.png" for n in FIGURES if not empty.get(n)),
        *(f"predictions-{split}.csv", f"missed-urgent-{split}.csv"),
    ]
    assert all(f.exists() for f in found.files)


def test_the_model_does_not_run_where_the_table_exists(own_run, passes):
    interpret_run(own_run, heatmaps=False)
    interpret_run(own_run, "test", heatmaps=False, label_errors=True)
    assert passes == []


def test_the_model_runs_once_a_scan_where_the_table_is_missing(own_run, passes):
    before = own_run.predictions("valid")
    own_run.predictions_file("valid").unlink()
    again, _ = run_predictions(own_run)
    assert sum(passes) == len(again)
    interpret_run(own_run, heatmaps=False)
    assert sum(passes) == len(again)
    pd.testing.assert_frame_equal(again, before, atol=1e-3)


def test_heat_maps_cost_one_pass_for_each_scan_that_is_shown(own_run, passes):
    found = interpret_run(own_run, k=4)
    shown = pd.concat([found.top, found.hardest, found.easiest, found.missed.head(4)])
    # One more finds the network's last map, and where its bundle is loaded its width is looked up.
    assert sum(passes) - len(shown.drop_duplicates("path")) in (1, 2)


def test_a_run_that_was_copied_with_its_data(trained, own_phantoms, tmp_path):
    moved = shutil.copytree(trained.path, tmp_path / "elsewhere")
    run = open_run(moved, own_phantoms)
    for split in ("valid", "train"):
        found = interpret_run(run, split, k=2)
        assert found.top["path"].str.startswith(str(own_phantoms)).all()
        assert all(f.is_relative_to(moved) and f.exists() for f in found.files)


def test_figures_are_drawn_though_the_scans_are_gone(own_run, own_phantoms):
    run = open_run(own_run.path, own_phantoms)
    shutil.rmtree(own_phantoms / "train")
    found = interpret_run(run, k=2)
    assert found.files[0].exists() and "no heat maps of" in found.notes[0]
    with pytest.raises(DataError, match="no such file"):
        interpret_run(run, "train")


def test_what_a_run_has_not(own_run):
    with pytest.raises(UsageError, match="no split named 'tset'"):
        interpret_run(own_run, "tset")
    with pytest.raises(UsageError, match="CNX"):
        interpret_run(own_run, urgent=["CNX"])
    with pytest.raises(UsageError, match="no heat map by"):
        interpret_run(own_run, method="gradcan")
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


def test_missed_urgent_scans_are_listed(own_run):
    table = own_run.predictions("valid")
    table = predicted_as(table, ["NORMAL" if label == "CNV" else label for label in table["label"]])
    own_run.save_predictions(table, "valid")
    found = interpret_run(own_run, k=2, heatmaps=False)
    assert set(found.missed["path"]) == set(table.loc[table["label"] == "CNV", "path"])
    with (own_run.path / "missed-urgent.csv").open(newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    assert [float(r["p_urgent"]) for r in listed] == pytest.approx(list(found.missed["p_urgent"]))
    none = interpret_run(own_run, k=2, heatmaps=False, urgent=["DRUSEN"])
    assert none.urgent == ("DRUSEN",) and len(none.missed) == 0


def test_label_errors_are_a_list_and_nothing_is_changed(own_run):
    scans = (own_run.path / "scans.csv").read_bytes()
    table = own_run.predictions_file("valid").read_bytes()
    found = interpret_run(own_run, k=2, heatmaps=False, label_errors=True)
    assert found.label_errors_from == "this run's valid predictions"
    listed = pd.read_csv(own_run.path / "label-errors.csv", dtype=str, keep_default_na=False)
    assert len(listed) == len(found.label_errors)
    assert {"path", "label", "suggested", "p_suggested", "p_actual", "predictions"} <= set(listed.columns)
    assert own_run.path / "label-errors.csv" in found.files and "label_errors" in found.figures
    assert (own_run.path / "scans.csv").read_bytes() == scans
    assert own_run.predictions_file("valid").read_bytes() == table


def test_label_errors_out_of_fold(own_run, trained, tmp_path):
    table = trained.predictions("valid")
    patients = sorted(table["patient"].unique())
    for i in range(2):
        fold = open_run(shutil.copytree(trained.path, tmp_path / "folds" / f"fold{i}"))
        fold.save_predictions(table[table["patient"].isin(patients[i::2])], "valid")
    found = interpret_run(own_run, "test", k=2, heatmaps=False, folds=[tmp_path / "folds"])
    assert found.label_errors_from == "out-of-fold predictions of 2 runs"
    assert set(found.label_errors["path"]) <= set(table["path"])


def test_a_network_without_a_map_is_interpreted_without_heat_maps(own_run, monkeypatch, said):
    from octfast.assess.interpret import interpretation

    def refuse(*a, **k):
        raise UsageError("Grad-CAM needs a network that ends in a map", "use occlusion: --method occlusion")

    monkeypatch.setattr(interpretation, "HeatMaps", refuse)
    found = interpret_run(own_run, k=2)
    assert "occlusion" in found.notes[0] and any("no heat maps" in line for line in said())
    assert all(f.exists() for f in found.files)


def test_pictures_of_many_classes_show_the_most_confused_and_a_table_has_all(tmp_path):
    classes = [f"class {i:03d}" for i in range(120)]
    run = simulated_run(tmp_path / "run", classes=classes, n=600, n_test=0)
    found = interpret_run(run, heatmaps=False)
    for name in ("confusion_matrix", "confusion_matrix_normalised", "montage"):
        with Image.open(found.figures[name]) as figure:
            assert figure.width * figure.height < 25e6, name
    written = pd.read_csv(run.path / "confusion-matrix.csv", index_col=0)
    assert written.shape == (120, 120) and written.to_numpy().sum() == 600 and list(written.columns) == classes
    counts = ClassificationInterpretation.from_run(run).confusion()
    chosen = confused_classes(counts)
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    assert len(chosen) == 20 and wrong[chosen].min() >= wrong.drop(chosen).max()
    assert len(found.confusion) == 120


@pytest.mark.parametrize("split", ["valid", "test"])
def test_the_top_losses_stand_beside_scans_like_them(own_run, split):
    found = interpret_run(own_run, split, k=3, heatmaps=False, similar=True)
    assert found.near is not None and list(found.near["path"].unique()) == list(found.top["path"])
    patient = own_run.scans.set_index("path")["patient"]
    tested = set(own_run.scans.loc[own_run.scans["split"] == "test", "path"])
    assert not set(found.near["neighbour"]) & tested
    assert all(patient[r.path] != patient[r.neighbour] for r in found.near.itertuples())
    end = "" if split == "valid" else "-test"
    assert (own_run.figures / f"similar{end}.png").is_file() and found.figures["similar"] in found.files
    kept = pd.read_csv(own_run.path / f"similar{end}.csv")
    assert len(kept) == len(found.near) == 12 and not kept["neighbour"].map(lambda p: Path(p).is_absolute()).any()


def test_the_volumes_with_the_top_losses_stand_beside_scans_like_the_one_that_counted_most(of_volumes, tmp_path):
    run = open_run(shutil.copytree(of_volumes.path, tmp_path / "run"))
    found = interpret_run(run, k=2, heatmaps=False, similar=True)
    assert found.near is not None and list(found.near["path"].unique()) == list(found.top["path"])
    assert found.figures["similar"].is_file()


def test_what_no_similar_scans_can_be_found_of_says_why(own_run):
    config = own_run.config | {"head": "fastai"}
    own_run.write_json("config.json", config)
    found = interpret_run(open_run(own_run.path), k=2, heatmaps=False, similar=True)
    assert found.near is None and any("no similar scans" in note for note in found.notes)
