"""Volumes, eyes and patients on the page, of a model that answers for these: one answer, and how each scan counted."""

import json
from dataclasses import replace

import numpy as np
import pytest

from octfast.deploy.app.answers import Answers, Limits
from octfast.deploy.app.app import make_app
from octfast.deploy.app.volume import STEP
from octfast.deploy.predictor import load
from octfast.model.pooling import DECIDING
from tests.bags import bag_bundle
from tests.data.volumes import volume_files as files
from tests.deploy.app.uploads import HERE, png, post, refused
from tests.pictures import scan

pytest.importorskip("starlette")
pytest.importorskip("python_multipart")


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    return load(bag_bundle(tmp_path_factory.mktemp("bags") / "model"), precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def asking(bags):
    testclient = pytest.importorskip("starlette.testclient")
    limits = Limits(max_bytes=1 << 20, max_pixels=2_000_000, max_files=12, seconds=5)
    with testclient.TestClient(make_app(Answers(bags, limits)), base_url=HERE) as client:
        yield client


def lines_of(response):
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def unit(client, contents, query=""):
    return client.post(f"/api/unit{query}", files=[("file", (f"{n}.png", c)) for n, c in enumerate(contents)])


def test_a_volume_has_one_answer_and_says_how_its_scans_counted(asking, bags, tmp_path):
    frames = files.frames_of(STEP + 3, 64, 64)
    path = files.write_vol(tmp_path / "a.vol", frames)
    about, *scans, end = lines_of(asking.post("/api/volume?name=a.vol", content=path.read_bytes()))
    assert [s["frame"] for s in scans] == list(range(STEP + 3)) and about["about"]["eye"] == "R"
    # A scan has no answer of its own.
    assert not any({"predicted", "probabilities", "referred"} & set(s) for s in scans)
    (said,) = end["volumes"]
    from octfast.data.volumes.reader import VolumeReader

    with VolumeReader() as reader:
        answer = bags.answer_unit([b.pixels for b in reader.read(path, "vol")])
    assert list(said["probabilities"].values()) == pytest.approx(answer.probabilities.tolist(), abs=1e-5)
    assert said["attention"] == pytest.approx(answer.attention.tolist(), abs=1e-5)
    assert (said["frames"], said["scans"], said["level"], said["of_volumes"]) == (STEP + 3, STEP + 3, "volume", [0])
    assert said["most_frame"] == int(answer.attention.argmax()) and said["predicted"] in bags.classes
    assert said["referred"] in (True, False) and "weighed by attention" in said["how"]
    for s, each in zip(scans, answer.scans, strict=True):
        assert list(s["alone"].values()) == pytest.approx(each.probabilities.tolist(), abs=1e-5)


def test_what_decided_counts_for_more_than_its_share(asking, bags):
    *_, end = lines_of(unit(asking, [png(scan(64, 64, n)) for n in range(9)]))
    (said,) = end["volumes"]
    shares = np.array(said["attention"])
    deciding = said["deciding"]
    assert all(shares[i] >= 1.5 / 9 for i in deciding) and len(deciding) <= DECIDING
    assert set(deciding) <= set(np.argsort(-shares)[:DECIDING].tolist())


def test_pictures_given_together_are_one_unit(asking, bags):
    pictures = [scan(50, 90, 1), scan(120, 80, 2), scan(64, 64, 3)]
    _, *scans, end = lines_of(unit(asking, [png(p) for p in pictures], "?pictures=1"))
    answer = bags.answer_unit(pictures)
    (said,) = end["volumes"]
    assert list(said["probabilities"].values()) == pytest.approx(answer.probabilities.tolist(), abs=1e-5)
    assert said["attention"] == pytest.approx(answer.attention.tolist(), abs=1e-5)
    assert [s["name"] for s in scans] == ["0.png", "1.png", "2.png"] and scans[0]["picture"].startswith(
        "data:image/png"
    )
    assert "Not a medical device" in end["notice"]


def test_a_picture_that_cannot_be_read_is_left_out_of_account(asking, bags):
    pictures = [scan(64, 64, 1), scan(64, 64, 2)]
    _, *scans, end = lines_of(unit(asking, [png(pictures[0]), b"nothing", png(pictures[1])]))
    (said,) = end["volumes"]
    assert scans[1]["error"] and (said["frames"], said["unread"], said["attention"][1]) == (2, 1, None)
    answer = bags.answer_unit(pictures)
    assert list(said["probabilities"].values()) == pytest.approx(answer.probabilities.tolist(), abs=1e-5)
    nothing = lines_of(unit(asking, [b"nothing", b"nothing"]))
    assert nothing[-1]["volumes"][0]["predicted"] is None and nothing[1]["error"]


def test_one_picture_is_a_unit_of_one_and_is_said_to_be(asking, bags):
    picture = scan(64, 64, 4)
    found = post(asking, png(picture)).json()
    answer = bags.answer_unit([picture])
    assert list(found["probabilities"].values()) == pytest.approx(answer.probabilities.tolist(), abs=1e-5)
    assert (found["level"], found["scans"], found["note"]) == ("volume", 1, "A volume of this one scan")


def test_a_heat_map_is_of_the_class_of_the_unit(asking, bags):
    pytest.importorskip("captum")
    picture = png(scan(64, 64, 4))
    for c in bags.classes:
        found = post(asking, picture, f"?heatmap=1&of={c}").json()
        assert found["heat_map_of"] == c or found["heat_map_reason"]
    refused(post(asking, picture, "?heatmap=1&of=MUMPS"), 422, "no class named 'MUMPS'", "CNV")


def test_the_volumes_of_a_file_are_one_patient(bags, tmp_path, monkeypatch):
    testclient = pytest.importorskip("starlette.testclient")
    monkeypatch.setattr(bags, "info", replace(bags.info, level="patient"))
    path = files.write_kind("e2e", tmp_path / "a.e2e", files.frames_of(3))
    with testclient.TestClient(make_app(Answers(bags)), base_url=HERE) as client:
        *_, end = lines_of(client.post("/api/volume?name=a.e2e", content=path.read_bytes()))
    first, second = end["volumes"]
    assert first["of_volumes"] == second["of_volumes"] == [0, 1] and first["scans"] == 5
    assert first["probabilities"] == second["probabilities"]
    assert sum(first["attention"]) + sum(second["attention"]) == pytest.approx(1, abs=1e-5)


def test_limits_and_what_is_no_unit_have_a_sentence(asking, client):
    refused(unit(asking, [png()] * 13), 400, "Too many files")
    refused(unit(asking, [bytes(1 << 19)] * 3), 413, "larger")
    refused(client.post("/api/unit", files=[("file", ("a.png", png()))]), 422, "single scans", "/api/predict")


def test_the_page_says_what_it_answers_for(asking, client):
    assert "answers for a whole volume" in asking.get("/").text and "one volume" in asking.get("/").text
    assert asking.get("/api/model").json()["level"] == "volume"
    assert "answers for a whole" not in client.get("/").text


def test_a_dicom_series_in_one_form_has_one_answer(asking, bags, tmp_path):
    pytest.importorskip("pydicom", minversion="3")
    frames = files.frames_of(5, 64, 64)
    paths = files.write_series(tmp_path / "s", frames)
    form = [("file", (p.name, p.read_bytes())) for p in paths]
    _, *scans, end = lines_of(asking.post("/api/volume", files=form))
    (said,) = end["volumes"]
    answer = bags.answer_unit(list(frames))
    assert len(scans) == 5 and said["attention"] == pytest.approx(answer.attention.tolist(), abs=1e-5)
    assert list(said["probabilities"].values()) == pytest.approx(answer.probabilities.tolist(), abs=1e-5)
