"""Training scans beside an answer: of other patients, only where asked for, and only of a run with its scans."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from octfast.deploy.app.similar import SHOWN_TO_ALL, Similar, run_with_scans
from octfast.deploy.predictor import Predictor, load
from octfast.errors import DataError
from octfast.model.unlike import Unlike
from octfast.train.again.again import stored_features
from tests.deploy.app.uploads import HERE, post

testclient = pytest.importorskip("starlette.testclient")
pytest.importorskip("python_multipart")
pytest.importorskip("uvicorn")

from octfast.deploy.app.answers import Answers  # noqa: E402
from octfast.deploy.app.app import make_app  # noqa: E402


@pytest.fixture(scope="module")
def similar(trained):
    return Similar(run_with_scans(trained.path))


@pytest.fixture(scope="module")
def asking(predictor, similar):
    app = make_app(Answers(predictor, answer_anyway=True, similar=similar))
    with testclient.TestClient(app, base_url=HERE) as client:
        yield client


def test_neighbours_of_other_patients_stand_beside_the_answer(asking, similar, trained):
    scans = trained.scans[trained.scans["split"] != "test"].set_index("path")
    for path in scans.index[:5]:
        near = similar.beside(Image.open(path).convert("L"))
        assert len(near) == 3 and [n.distance for n in near] == sorted(n.distance for n in near)
        assert all(scans["patient"][n.path] != scans["patient"][path] for n in near)
        assert [n.label for n in near] == list(scans["label"][[n.path for n in near]])
        said = post(asking, Path(path).read_bytes())
        assert said.json()["similar"] == [{"class": n.label, "distance": round(n.distance, 4)} for n in near]
        assert not any(Path(n.path).name in said.text for n in near)
    shown = post(asking, Path(path).read_bytes(), "?heatmap=1").json()["similar"]
    for row in shown:
        assert Image.open(io.BytesIO(base64.b64decode(row["picture"].split(",")[1]))).size == (64, 64)
    assert SHOWN_TO_ALL in asking.get("/").text and asking.get("/api/model").json()["similar"] == SHOWN_TO_ALL


def test_without_being_asked_for_nothing_of_training_scans_is_served(client, trained):
    found = post(client, Path(trained.scans["path"].iloc[0]).read_bytes(), "?heatmap=1").json()
    assert "similar" not in found and client.get("/api/model").json()["similar"] is None
    assert SHOWN_TO_ALL not in client.get("/").text


def test_a_scan_that_gets_no_class_gets_no_neighbours(trained, predictor, similar):
    unlike = Unlike(stored_features(trained).features.shape[1], 1)
    unlike.threshold.fill_(1e-6)
    strict = Predictor(predictor.model, predictor.info, precision="fp32", unlike=unlike)
    picture = Path(trained.scans["path"].iloc[0]).read_bytes()
    found = Answers(strict, similar=similar).answer(picture)
    assert found["predicted"] is None and found["similar"] == []
    assert len(Answers(strict, answer_anyway=True, similar=similar).answer(picture)["similar"]) == 3


def test_of_a_model_of_volumes_scans_stand_beside_a_scan_of_one(of_volumes):
    answers = Answers(load(of_volumes.path), answer_anyway=True, similar=Similar(run_with_scans(of_volumes.path)))
    scans = of_volumes.scans.set_index("path")
    found = answers.answer(Path(scans.index[0]).read_bytes(), heat_map=True)
    assert len(found["similar"]) == 3 and all(row["class"] in set(scans["label"]) for row in found["similar"])
    assert all(row["picture"].startswith("data:image") for row in found["similar"])
    assert "the whole volume which the scan is of" in answers.about()["similar"]


def test_a_bundle_alone_and_missing_scans_are_refused(octfast, trained, own_run, tmp_path):
    ended = octfast("app", trained.bundle, "--similar")
    assert ended.code == 1 and "no run folder" in ended.err and "leave --similar out" in ended.err
    away = tmp_path / "away"
    away.mkdir()
    ended = octfast("app", own_run.path, "--similar", "--data", away)
    assert ended.code == 1 and "are missing" in ended.err and "--data" in ended.err
    with pytest.raises(DataError, match="missing"):
        run_with_scans(own_run.path, away)
    moved = Path(shutil.copytree(trained.root, tmp_path / "moved"))
    assert run_with_scans(own_run.path, moved).root == moved.resolve()
    ended = octfast("app", own_run.path, "--data", moved)
    assert ended.code == 2 and "--similar" in ended.err


@pytest.mark.parametrize("module", ["octfast.deploy.app.app", "octfast.assess.report.report"])
def test_what_shows_no_neighbours_starts_without_fastai(module):
    code = f"import sys, {module}; print(*sorted({{m.split('.')[0] for m in sys.modules}} & {{'fastai', 'timm'}}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []
