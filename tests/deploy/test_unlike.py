"""A scan unlike the training scans gets no class, whichever door it comes in by, unless one is asked for."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.deploy.app.answers import Answers
from octfast.deploy.predict.predict import predict
from octfast.deploy.predictor import Predictor, load
from tests.conftest import quick


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on phantoms of enough patients to tell what is usual, with folds."""
    from octfast.data.phantom.draw import write_phantoms
    from octfast.train.job import train_classifier

    folder = tmp_path_factory.mktemp("unlike")
    data = write_phantoms(folder / "data", 160, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return train_classifier(**quick(data, views=1, folds=3, epochs=1))


@pytest.fixture(scope="module")
def predictor(run) -> Predictor:
    return load(run.path, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def strange(tmp_path_factory) -> list[Path]:
    """Pictures of no retina."""
    folder = tmp_path_factory.mktemp("strange")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    pictures = {
        "noise": rng.integers(0, 256, (64, 64)),
        "white": np.full((64, 64), 255),
        "disc": np.where(np.hypot(x, y) < 0.9, 180, 0),
        "chess": 255 * ((np.indices((64, 64)) // 8).sum(0) % 2),
    }
    for name, grey in pictures.items():
        Image.fromarray(grey.astype(np.uint8)).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


def test_training_keeps_a_distance(run, predictor):
    about = predictor.info.calibration["unlike"]
    scans = run.scans[run.scans["split"] != "test"]
    assert (about["scans"], about["patients"]) == (len(scans), scans["patient"].nunique())


def test_phantoms_pass_on_a_phantom_model(run, predictor):
    from octfast.data.phantom.draw import make_phantom

    new = [make_phantom("NORMAL", 900 + n) for n in range(12)] + [make_phantom("CNV", 950 + n) for n in range(12)]
    small = [np.asarray(Image.fromarray(p).resize((64, 64), Image.Resampling.BILINEAR)) for p in new]
    table = predictor.predict(small)
    assert table["unlike_training"].mean() <= 0.1
    test = run.scans[run.scans["split"] == "test"]
    assert predictor.predict(list(test["path"]))["unlike_training"].mean() <= 0.1


def test_every_door_withholds_the_class(predictor, strange):
    by_predictor = predictor.predict(strange)
    by_command = predict(predictor, strange)
    page = Answers(predictor)
    by_page = pd.DataFrame([page.answer(f.read_bytes()) for f in strange])
    for table in (by_predictor, by_command, by_page):
        assert table["unlike_training"].tolist() == [True] * len(strange)
        assert table["predicted"].isna().all() and table["probability"].isna().all()
        assert np.allclose(table["distance"].astype(float), by_predictor["distance"], rtol=1e-4)
    names = [f"p_{c}" for c in predictor.classes]
    assert by_predictor[names].isna().all(axis=None) and by_command[names].isna().all(axis=None)
    assert by_command["remarks"].str.contains("unlike anything the model was trained on").all()
    assert by_page["probabilities"].tolist() == [{}] * len(strange)
    assert page.answer(strange[0].read_bytes(), heat_map=True)["heat_map"] is None


def test_a_class_is_given_where_it_is_asked_for(predictor, strange):
    by_predictor = predictor.predict(strange, answer_anyway=True)
    by_command = predict(predictor, strange, answer_anyway=True)
    page = Answers(predictor, answer_anyway=True)
    by_page = pd.DataFrame([page.answer(f.read_bytes()) for f in strange])
    for table in (by_predictor, by_command, by_page):
        assert table["unlike_training"].all() and set(table["predicted"]) <= set(predictor.classes)
    assert not by_command["remarks"].str.contains("no class is given").any()


@pytest.mark.parametrize("anyway", [False, True])
def test_the_page_and_its_endpoint_mark_them(predictor, strange, anyway):
    pytest.importorskip("starlette")
    pytest.importorskip("httpx")
    from starlette.testclient import TestClient

    from octfast.deploy.app.app import make_app
    from tests.deploy.app.uploads import HERE, post

    app = make_app(Answers(predictor, answer_anyway=anyway))
    with TestClient(app, base_url=HERE) as client:
        about = client.get("/api/model").json()
        assert about["knows_unlike"] and about["answer_anyway"] is anyway
        page = client.get("/").text
        assert about["unlike"] in page and ("a class is given all the same" in page) is anyway
        found = post(client, strange[0].read_bytes()).json()
        assert found["unlike_training"] and found["distance"] > 1
        assert found["predicted"] in predictor.classes if anyway else found["predicted"] is None
        assert len(found["probabilities"]) == (len(predictor.classes) if anyway else 0)


def test_a_volume_counts_them(predictor, tmp_path, monkeypatch):
    from tests.data.volumes import volume_files

    monkeypatch.chdir(tmp_path)
    volume_files.write_vol(tmp_path / "v.vol", volume_files.frames_of(3))
    table = predict(predictor, tmp_path / "v.vol", out="out.csv", heatmaps="maps", montage="m.png")
    (volume,) = pd.read_csv("out-volumes.csv").itertuples()
    assert volume.frames == 3 and volume.unlike_training == table["unlike_training"].sum()


def test_the_onnx_file_gives_the_same_distance(run, predictor, strange, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    from octfast.deploy.export.export import export_bundle

    exported = export_bundle(run.path, out=tmp_path / "m.onnx", scans=2)
    session = onnxruntime.InferenceSession(str(exported.file), providers=["CPUExecutionProvider"])
    expected = predictor.predict(strange)["distance"]
    for file, wanted in zip(strange, expected, strict=True):
        p, distance = session.run(
            ["probabilities", "distance"], {"picture": np.asarray(Image.open(file))[None, :, :, None]}
        )
        assert p.shape == (1, len(predictor.classes))
        assert distance[0] == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("half", [False, True])
def test_the_torch_program_gives_the_same_distance(run, predictor, strange, tmp_path, half):
    import torch

    from octfast.deploy.export.export import export_bundle

    exported = export_bundle(run.path, "torch", tmp_path / "m.pt2", scans=4, half=half)
    assert exported.agreement.distance < (0.05 if half else 0.01) and exported.agreement.unlike_same == 1
    network = torch.export.load(exported.file).module()
    expected = predictor.predict(strange)["distance"]
    for file, wanted in zip(strange, expected, strict=True):
        p, distance = network(torch.from_numpy(np.array(Image.open(file)))[None, :, :, None])
        assert p.shape == (1, len(predictor.classes))
        assert float(distance[0]) == pytest.approx(wanted, rel=0.05 if half else 0.01)


def test_the_printed_lines_say_that_a_scan_is_unlike(run, strange, tmp_path, monkeypatch, capsys):
    from octfast.deploy.export.export import export_bundle

    exported = export_bundle(run.path, "torch", tmp_path / "m.pt2", scans=1)
    Image.open(strange[0]).save(tmp_path / "scan.jpeg")
    monkeypatch.chdir(tmp_path)
    exec(exported.usage(), {})
    assert "unlike_training True" in capsys.readouterr().out


def test_a_file_of_another_distance_is_not_kept(run, tmp_path, monkeypatch):
    """What is compared is the bundle's own distance, so that one that was lost on the way is noticed."""
    from octfast.deploy.export import export, torch_export
    from octfast.errors import DataError

    whole = torch_export.write_program

    def without_scale(model, info, file, metadata, *, half=False, unlike=None):
        import copy

        wrong = copy.deepcopy(unlike)
        wrong.threshold *= 1.1
        whole(model, info, file, metadata, half=half, unlike=wrong)

    monkeypatch.setattr(torch_export, "write_program", without_scale)
    with pytest.raises(DataError, match=r"distance to the training scans differs .*nothing was written"):
        export.export_bundle(run.path, "torch", tmp_path / "m.pt2", scans=2)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_how_many(run, strange, octfast):
    ended = octfast("predict", run.path, *strange, "--out", "a.csv")
    assert ended.code == 0 and f"{len(strange)} unlike the training scans" in ended.out
    assert "A disease that the model has not seen is mostly not noticed" in ended.out
    assert pd.read_csv("a.csv")["unlike_training"].all()
    assert "NaN" not in Path("a.csv").read_text()


def test_the_report_and_the_card_say_what_is_not_noticed(run, octfast):
    ended = octfast("report", run.path, "--resamples", 100, "--top-losses", 1, "--no-heatmaps")
    assert ended.code == 0, ended.err
    for name in ("report.html", "MODEL_CARD.md"):
        text = (run.path / name).read_text(encoding="utf-8")
        assert "A disease that the model has not seen is mostly not noticed" in " ".join(text.split())
        assert "given one of the classes" not in text


def test_evaluate_says_how_much_is_unlike(run, strange, octfast):
    test = run.scans[run.scans["split"] == "test"].head(8)
    rows = [(p, c) for p, c in zip(test["path"], test["label"], strict=True)] + [(str(s), "CNV") for s in strange]
    table = io.StringIO()
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(table, index=False)
    Path("more.csv").write_text(table.getvalue())
    ended = octfast("evaluate", run.path, "more.csv", "--resamples", 100, "--out", "judged")
    assert ended.code == 0
    assert "nlike anything the model was trained on: 4 of 12 scans" in ended.out + ended.err
    assert (pd.read_csv(next(Path("judged").glob("predictions-*.csv")))["distance"] > 1).sum() >= 4
