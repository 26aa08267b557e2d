"""A volume that the page is asked about: a line a B-scan, the answers of octfast predict, and nothing left behind."""

import base64
import json
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from octfast.deploy.app.volume import STEP
from octfast.deploy.predict.predict import run_prediction
from tests.data.volumes import volume_files as files
from tests.deploy.app.uploads import png, post, refused

pytest.importorskip("starlette")
pytest.importorskip("python_multipart")
httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def vol(tmp_path_factory) -> Path:
    return files.write_vol(tmp_path_factory.mktemp("vol") / "a.vol", files.frames_of(STEP + 3, 64, 64))


def asked(client, path: Path, query: str = "") -> list[dict]:
    response = client.post(f"/api/volume?name={path.name}{query}", content=path.read_bytes())
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_a_volume_has_the_answers_of_octfast_predict(client, predictor, vol):
    about, *frames, end = asked(client, vol)
    rows: list[dict] = []
    found = run_prediction(predictor, [vol], lambda row, _: rows.append(row.values))
    assert about["about"]["eye"] == "R" and "patient" not in about["about"] and "slo" not in about["about"]
    assert "SECRET" not in json.dumps([about, frames, end])
    assert [f["frame"] for f in frames] == [r["frame"] for r in rows] == list(range(STEP + 3))
    for frame, row in zip(frames, rows, strict=True):
        assert frame["predicted"] == row["predicted"] and "picture" not in frame
        assert frame["probabilities"] == pytest.approx({c: row[f"p_{c}"] for c in predictor.classes}, abs=1e-5)
    (volume,), (expected,) = end["volumes"], found.volumes
    assert volume == pytest.approx({k: v for k, v in expected.items() if k != "path"}, abs=1e-5)
    assert "Not a medical device" in end["notice"] and end["synthetic"]


def test_a_volume_is_answered_for_as_was_fitted(client, predictor, vol, monkeypatch):
    kept = {"rule": "mean_probability", "k": None, "temperature": 0.7, "urgent": ["CNV", "DME"]}
    kept |= {"operating": {"urgent": ["CNV", "DME"], "threshold": 0.0}}
    calibration = {**predictor.info.calibration, "units": {"volume": kept}}
    monkeypatch.setattr(predictor, "info", replace(predictor.info, calibration=calibration))
    (volume,) = asked(client, vol)[-1]["volumes"]
    (expected,) = run_prediction(predictor, [vol]).volumes
    assert volume["probabilities"] == pytest.approx({c: expected[f"p_{c}"] for c in predictor.classes}, abs=1e-5)
    assert volume["predicted"] == expected["predicted"] and volume["referred"] is expected["referred"] is True
    assert "mean of its scans' probabilities" in volume["how"] and volume["urgent_frame"] in range(STEP + 3)


def test_a_frame_that_is_sent_back_has_the_same_answer(client, vol):
    about, *frames, _ = asked(client, vol, "&pictures=1")
    assert about["about"]["slo"].startswith("data:image/png;base64,")
    sent = base64.b64decode(frames[4]["picture"].partition(",")[2])
    again = post(client, sent).json()
    assert again["probabilities"] == pytest.approx(frames[4]["probabilities"], abs=1e-6)


@pytest.mark.parametrize("kind", ["dicom", "e2e", "fda", "fds", "img", "tiff"])
def test_every_format_is_read_and_nothing_stays(client, tmp_path, monkeypatch, kind):
    if kind == "dicom":
        pytest.importorskip("pydicom", minversion="3")
    if kind in ("fda", "fds", "img"):
        pytest.importorskip("oct_converter")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    frames = files.frames_of(3)
    if kind == "tiff":
        path = tmp_path / "SECRET.tif"
        pages = [Image.fromarray(f) for f in frames]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    else:
        path = files.write_kind(kind, tmp_path / f"SECRET_2x1024x200_OD{files.SUFFIXES[kind]}", frames)
    lines = asked(client, path)
    assert sum("frame" in line for line in lines) == {"e2e": 5, "img": 2}.get(kind, 3)
    assert len(lines[-1]["volumes"]) == (2 if kind == "e2e" else 1)
    assert list((tmp_path / "t").iterdir()) == [] and "SECRET" not in json.dumps(lines)


def test_where_there_are_no_files_in_memory_it_lies_in_a_folder_that_goes(client, vol, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert len(asked(client, vol)) == STEP + 5
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_volume_or_damaged_has_a_sentence(client, vol, tmp_path):
    def send(content, name="a.vol"):
        return client.post(f"/api/volume?name={name}", content=content)

    refused(send(png(), "a.png"), 415, "picture")
    refused(send(b"nothing", "a.txt"), 415, "unsupported file type")
    refused(send(b""), 422, "the file")
    refused(send(bytes(2 << 20)), 413, "larger")
    refused(send(vol.read_bytes()[:3000]), 422, "the file ends before its first B-scan")
    refused(post(client, vol.read_bytes()), 415, "/api/volume")
    cut = send(vol.read_bytes()[:-40_000])
    *_, end = [json.loads(line) for line in cut.text.splitlines()]
    assert cut.status_code == 200 and "holds 8 of the 11 B-scans" in end["error"] and end["hint"]
    assert (end["volumes"][0]["frames"], end["volumes"][0]["unread"]) == (8, 1)


def test_volumes_are_few_at_a_time_and_pictures_are_answered_beside_them(slow_server, vol):
    go_on, content = threading.Event(), vol.read_bytes()

    def slowly():
        yield content[:1000]
        go_on.wait(30)
        yield content[1000:]

    def ask(where, sent):
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.post(f"{slow_server}api/{where}", content=sent)

    with ThreadPoolExecutor(2) as pool, httpx.Client(trust_env=False, timeout=60) as client:
        held = [pool.submit(ask, "volume", slowly()) for _ in range(2)]
        for _ in range(200):
            if client.get(f"{slow_server}health").json()["held"] == 2:
                break
            time.sleep(0.05)
        waits = refused(client.post(f"{slow_server}api/volume", content=content), 503, "volumes", "seconds")
        assert waits and client.post(f"{slow_server}api/predict", content=png()).status_code == 200
        go_on.set()
        for answer in held:
            assert json.loads(answer.result().text.splitlines()[-1])["volumes"][0]["frames"] == STEP + 3
        # One that goes away frees its place.
        with client.stream("POST", f"{slow_server}api/volume?pictures=1", content=content) as response:
            assert b"about" in next(response.iter_raw())
        for _ in range(200):
            if client.get(f"{slow_server}health").json()["held"] == 0:
                return
            time.sleep(0.05)
        raise AssertionError("the place is still held")


def together(client, paths: list[Path], query: str = ""):
    form = [("file", (p.name, p.read_bytes())) for p in paths]
    return client.post(f"/api/volume{query}", files=form)


def test_a_dicom_series_in_one_form_is_one_volume_as_octfast_predict_has_it(client, predictor, tmp_path, monkeypatch):
    pytest.importorskip("pydicom", minversion="3")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    frames = files.frames_of(STEP + 2, 64, 64)
    paths = files.write_series(tmp_path / "s", frames, places=[0.2 * n for n in range(len(frames))])
    response = together(client, paths[::-1])
    about, *lines, end = [json.loads(line) for line in response.text.splitlines()]
    rows: list[dict] = []
    found = run_prediction(predictor, [tmp_path / "s"], lambda row, _: rows.append(row.values))
    assert len(rows) == len(lines) == STEP + 2 and about["about"]["eye"] == "L" and len(end["volumes"]) == 1
    assert [f["position_mm"] for f in lines] == pytest.approx([0.2 * n for n in range(STEP + 2)])
    for frame, row in zip(lines, rows, strict=True):
        assert frame["probabilities"] == pytest.approx({c: row[f"p_{c}"] for c in predictor.classes}, abs=1e-5)
    expected = {k: v for k, v in found.volumes[0].items() if k != "path"}
    assert end["volumes"][0] == pytest.approx(expected, abs=1e-5)
    assert "SECRET" not in response.text and list((tmp_path / "t").iterdir()) == []
    assert not list(Path("/dev/shm").glob("octfast-*")) if Path("/dev/shm").is_dir() else True


def test_an_export_with_its_pictures_is_a_volume_and_without_them_a_sentence(client, tmp_path):
    path = files.write_heyex(tmp_path / "E", files.frames_of(3))
    beside = sorted(path.parent.iterdir())
    about, *lines, end = [json.loads(line) for line in together(client, beside, "?pictures=1").text.splitlines()]
    assert len(lines) == 3 and about["about"]["slo"] and about["about"]["between_um"] == 240
    assert end["volumes"][0]["frames"] == 3
    alone = client.post("/api/volume?name=E.xml", content=path.read_bytes())
    refused(alone, 422, "without its pictures", "together")
    refused(together(client, [p for p in beside if p.name != "E_2.png"]), 422, "E_2.png, which is not beside it")


def test_files_that_are_no_volume_together_are_refused_and_two_volumes_are_two(client, vol, tmp_path):
    other = files.write_e2e(tmp_path / "b.e2e", [files.frames_of(2), files.frames_of(2)])
    *_, end = [json.loads(line) for line in together(client, [vol, other]).text.splitlines()]
    assert {v["volume"]: v["frames"] for v in end["volumes"]} == {0: STEP + 3, 1: 2, 2: 2}
    (tmp_path / "a.png").write_bytes(png())
    refused(together(client, [vol, tmp_path / "a.png"]), 415, "a.png is no part of a volume")
    refused(together(client, [vol, vol]), 422, "two files are named")
    big = [tmp_path / f"{n}.bin" for n in range(3)]
    for path in big:
        path.write_bytes(bytes(500_000))
    refused(together(client, big), 413, "larger")
    cut = tmp_path / "a.vol"
    cut.write_bytes(vol.read_bytes()[:3000])
    refused(together(client, [cut, other]), 422, "a.vol ends before its first B-scan")
