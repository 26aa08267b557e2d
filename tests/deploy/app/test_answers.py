import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from octfast.deploy.predictor import load
from octfast.errors import UsageError
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import save_bundle, update_info
from octfast.model.heads import body_and_head
from tests.deploy.app.uploads import HERE, huge_png, png, post, refused
from tests.pictures import scan, write_broken, write_kinds

pytest.importorskip("starlette")
pytest.importorskip("python_multipart")
httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

from starlette.testclient import TestClient  # noqa: E402

from octfast.deploy.app.answers import Answers  # noqa: E402
from octfast.deploy.app.app import make_app  # noqa: E402


def test_a_picture_has_the_models_probabilities(client, predictor, trained):
    for path in trained.predictions("valid")["path"].head(3):
        found = post(client, Path(path).read_bytes()).json()
        expected = predictor.probabilities([path])[0]
        np.testing.assert_allclose(list(found["probabilities"].values()), expected, atol=1e-3)
        assert list(found["probabilities"]) == list(predictor.classes)
        assert found["predicted"] == predictor.classes[expected.argmax()]
        assert found["probability"] == pytest.approx(expected.max(), abs=1e-3)
        assert found["referred"] is (found["predicted"] in ("CNV", "DME"))
        assert "Not a medical device" in found["notice"] and "phantoms" in found["synthetic"]
        assert "heat_map" not in found


def test_half_precision_is_near(tmp_path):
    """A network without batch norms of random weights, which would make more of a rounding than training leaves."""
    torch.manual_seed(0)
    arch = find_arch("squeezenet1_1")
    model = torch.nn.Sequential(*body_and_head(make_network(arch, 64), arch, "octfast", 3)).eval()
    save_bundle(tmp_path / "b", model, BundleInfo(arch.name, "octfast", ("a", "b", "c"), 64, arch.mean, arch.std))
    whole, half = (Answers(load(tmp_path / "b", precision=p)) for p in ("fp32", "bf16"))
    for seed in range(5):
        expected, found = (list(a.answer(png(scan(seed=seed)))["probabilities"].values()) for a in (whole, half))
        np.testing.assert_allclose(found, expected, atol=0.02)
    assert found != expected


def test_heat_map(client):
    found = post(client, png(scan(90, 120)), "?heatmap=1").json()
    for key in ("picture", "heat_map"):
        head, data = found[key].split(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (120, 90)
    assert found["heat_map_of"] == found["predicted"]
    large = post(client, png(np.tile(scan(60, 75), (20, 20))), "?heatmap=1").json()
    shown = Image.open(io.BytesIO(base64.b64decode(large["picture"].split(",")[1])))
    assert max(shown.size) == 1024 and (large["width"], large["height"]) == (1500, 1200)


def test_every_kind_of_picture_that_is_read(client, predictor, tmp_path):
    for name, file in write_kinds(tmp_path / "kinds").items():
        response = post(client, file.read_bytes())
        assert response.status_code == 200, (name, response.text)
        expected = predictor.probabilities([file])[0]
        np.testing.assert_allclose(list(response.json()["probabilities"].values()), expected, atol=1e-5)


def test_what_is_no_picture_is_refused_in_a_sentence(client, tmp_path):
    for name, file in write_broken(tmp_path / "broken").items():
        response = post(client, file.read_bytes())
        assert response.status_code in (400, 415, 422), name
        refused(response, response.status_code)
    refused(post(client, b""), 400, "empty")
    refused(post(client, b"%PDF-1.4"), 415, ".png")


def test_sizes_are_limited_before_anything_is_decoded(client):
    refused(post(client, huge_png(20_000)), 413, "400,000,000 pixels", "2 million")
    refused(post(client, huge_png(5_000)), 413, "5,000 x 5,000")
    refused(post(client, bytes((1 << 20) + 1)), 413, "larger than 1 MB")
    refused(client.post("/api/predict", files={"file": bytes((1 << 20) + 1)}), 413, "larger than 1 MB")
    refused(client.post("/api/predict", content=iter([bytes(1 << 19)] * 5)), 413, "larger than 1 MB")


def test_a_calibrated_bundle(own_run):
    operating = {"urgent": ["CNV"], "sensitivity": 0.95, "threshold": 0.0}
    conformal = {"coverage": 0.9, "threshold": 1e-9}
    found = {"split": "valid", "scans": 1200, "patients": 300, "nll_after": 0.3}
    update_info(own_run.bundle, temperature=1.5, calibration={**found, "operating": operating, "conformal": conformal})
    answers = Answers(load(own_run.bundle))
    about = answers.about()
    assert about["calibrated"] and "1,200 held-out scans of 300 patients" in about["calibration"]
    said = answers.answer(png())
    assert said["referred"] is True and said["urgent_score"] == pytest.approx(said["probabilities"]["CNV"])
    assert said["abstained"] is True and said["possible"] == list(said["probabilities"])
    operating["threshold"], conformal["threshold"] = 1.0, 0.9999
    update_info(own_run.bundle, calibration={**found, "operating": operating, "conformal": conformal})
    said = Answers(load(own_run.bundle)).answer(png())
    assert said["referred"] is False and said["abstained"] is False and said["possible"] == [said["predicted"]]
    page = TestClient(make_app(Answers(load(own_run.bundle))), base_url=HERE).get("/").text
    assert "of 1.00 on" in page and "calibrated on 1,200" in page


def test_urgent_classes_can_be_named(predictor):
    said = Answers(predictor, urgent=["NORMAL", "DRUSEN"]).answer(png())
    p = said["probabilities"]
    assert said["urgent_score"] == pytest.approx(p["NORMAL"] + p["DRUSEN"])
    with pytest.raises(UsageError, match="no class 'CVN'"):
        Answers(predictor, urgent=["CVN"])


def test_a_jpeg_of_a_great_many_scans_is_refused(client):
    """Each costs a pass over the whole picture and a few bytes: 20 MB of them would keep the model busy for hours."""
    out = io.BytesIO()
    Image.fromarray(np.zeros((200, 300), np.uint8)).save(out, "JPEG", progressive=True)
    whole = out.getvalue()
    last = whole[whole.rfind(b"\xff\xda") : -2]
    assert post(client, whole).status_code == 200
    refused(post(client, whole[:-2] + last * 200 + whole[-2:]), 413, "scans")


def test_a_volume_is_told_from_what_is_no_picture(client):
    for head in (bytes(128) + b"DICM", b"HSF-OCT-103" + bytes(200), b"FOCT" + bytes(200)):
        refused(post(client, head), 415, "volume", "/api/volume")


def test_what_is_doubtful_about_a_picture_stands_beside_the_answer(client, tmp_path):
    assert post(client, png(scan())).json()["remarks"] == []
    assert "blank" in post(client, png(np.full((60, 80), 90, np.uint8))).json()["remarks"][0]
    exif, out = Image.Exif(), io.BytesIO()
    exif[274] = 3
    Image.fromarray(scan()[::-1, ::-1]).save(out, "PNG", exif=exif)
    turned, upright = post(client, out.getvalue()).json(), post(client, png(scan())).json()
    assert turned["probabilities"] == upright["probabilities"] and "upright" in turned["remarks"][0]


def test_a_damaged_jpeg_is_refused_though_it_ends_well(client, trained):
    data = Path(trained.predictions("valid")["path"].iloc[0]).read_bytes()
    refused(post(client, data[: len(data) // 2] + b"\xff\xd9"), 422, "truncated")
