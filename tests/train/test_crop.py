"""A training that cuts scans to the square in their middle, and what is made of its run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from octfast.assess.report.report import write_report
from octfast.assess.similar import features_of, similar
from octfast.deploy.predictor import load
from octfast.model.bundle.read import read_info
from octfast.run.folder import REMINDER
from octfast.train.again.again import stored_features
from octfast.train.frozen.frozen import frozen_learner
from octfast.train.job import train_classifier
from octfast.train.save import save_run
from tests.conftest import quick
from tests.pictures import scan


@pytest.fixture(scope="module")
def wide(phantoms, tmp_path_factory) -> Path:
    """The phantoms between sides of noise, 160 x 64."""
    folder = tmp_path_factory.mktemp("wide") / "scans"
    for n, file in enumerate(sorted(phantoms.rglob("*.jpeg"))):
        picture = scan(64, 160, n)
        picture[:, 48:112] = np.asarray(Image.open(file).convert("L"))
        to = folder / file.relative_to(phantoms)
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(to, quality=95)
    return folder


@pytest.fixture(scope="module")
def run(wide, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("crop"))
        return train_classifier(**quick(wide, views=1, folds=5, fit="crop"))


def test_the_run_says_so(run):
    assert run.config["fit"] == "crop" and read_info(run.bundle).fit == "crop"
    (note,) = [n for n in run.notes if "is not seen" in n.text]
    assert "72 of 72 scans are longer than 1.5 : 1, and of these 60%" in note.text and note.kind != REMINDER


def test_its_predictions_are_those_of_its_model(run):
    table = run.predictions("test")
    columns = [c for c in table if c.startswith("p_")]
    found = load(run.bundle, precision="fp32", device="cpu").probabilities(list(table["path"]))
    np.testing.assert_allclose(found, table[columns].to_numpy(), atol=1e-4)


def test_its_stored_features_are_those_of_the_middle(run, tmp_path):
    stored = stored_features(run)
    paths = list(stored.scans["path"])[:4]
    np.testing.assert_allclose(features_of(run, paths), stored.features[:4], atol=0.02, rtol=0.02)
    # Another file whose middle is the same is the same scan to it.
    picture = np.asarray(Image.open(paths[0]).convert("L")).copy()
    picture[:, :48], picture[:, 112:] = 0, 255
    Image.fromarray(picture).save(tmp_path / "other-sides.png")
    near = similar(run, [tmp_path / "other-sides.png"], 1)
    assert near["neighbour"].iloc[0] == paths[0] and near["distance"].iloc[0] < 0.01


def test_its_report_and_card_say_so_and_how_to_train_it_again(run):
    page = write_report(run, split="test").read_text(encoding="utf-8")
    assert "cut to the square in the middle, resized to 64 × 64 pixels" in page
    assert "What is darkened is not seen" in page and "--fit crop" in page
    assert "sees the square in the middle of a scan alone" in (run.path / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_other_features_are_stored_for_it(run, wide, tmp_path, said):
    """A store of squeezed scans must not be taken for one of cut ones."""
    train_classifier(**quick(wide, views=1, folds=0, fit="squeeze", out=str(tmp_path / "squeezed")))
    assert not any("using the" in line for line in said())
    train_classifier(**quick(wide, views=1, folds=0, fit="crop", out=str(tmp_path / "cut")))
    assert any("using the" in line for line in said())


def test_a_learner_keeps_it(wide, tmp_path, said):
    from octfast.data.loaders import oct_dataloaders
    from octfast.train.learner import oct_learner

    dls = oct_dataloaders(wide, size=64, fit="crop", valid=0.25, num_workers=0, device="cpu")
    learn = oct_learner(dls, "test_resnet", weights="none")
    fast = frozen_learner(learn)
    fast.fit(1)
    kept = save_run(fast, tmp_path / "run")
    fast.close()
    assert read_info(kept.bundle).fit == "crop" and kept.config["fit"] == "crop"
    assert any("is not seen" in n.text for n in kept.notes)
    table = kept.predictions("valid")
    found = load(kept.bundle, precision="fp32", device="cpu").probabilities(list(table["path"]))
    np.testing.assert_allclose(found.max(1), table["probability"], atol=0.02)


def test_the_commands_take_it(octfast_train, octfast, wide):
    done = octfast_train(wide, "--fit", "crop", "--out", "run")
    assert done.code == 0 and "is not seen" in done.err
    shown = octfast("model", "show", "run")
    assert "cut to the square in the middle" in " ".join(shown.out.split())
    wrong = octfast_train(wide, "--fit", "crob")
    assert wrong.code == 2 and "did you mean crop?" in wrong.err
    assert json.loads(Path("run/model/octfast.json").read_text())["version"] == 3
    scans = sorted(wide.rglob("*.jpeg"))[:2]
    told = octfast("predict", "run", *scans, "--heatmaps", "maps", "--montage", "m.png", "--json")
    assert told.code == 0 and len(list(Path("maps").glob("*.png"))) == 2 and Path("m.png").is_file()
    assert octfast("show", "run", "--seed", 1).code == 0
    assert octfast("interpret", "run", "--split", "test").code == 0
