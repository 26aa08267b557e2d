import base64
import io
import json
import logging
import re
import socket
import struct
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octfast.deploy.predictor import load
from octfast.errors import UsageError
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import save_bundle, update_info
from octfast.model.heads import body_and_head
from tests.pictures import scan, write_broken, write_kinds

pytest.importorskip("starlette")
pytest.importorskip("python_multipart")
httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

from starlette.testclient import TestClient  # noqa: E402

from octfast.deploy.app.answers import Answers, Limits  # noqa: E402
from octfast.deploy.app.app import bind, is_loopback, make_app, url  # noqa: E402
from octfast.deploy.app.guard import is_meant, own_names  # noqa: E402

HERE = "http://127.0.0.1:8731"


def png(picture=None, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(scan() if picture is None else picture).save(out, "PNG", **options)
    return out.getvalue()


def huge_png(side: int) -> bytes:
    """A PNG whose header claims side x side pixels."""

    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def predictor(trained):
    found = load(trained.bundle, precision="fp32")
    found.info = replace(found.info, synthetic=True)
    return found


@pytest.fixture(scope="module")
def client(predictor):
    limits = Limits(max_bytes=1 << 20, max_pixels=2_000_000, seconds=5)
    with TestClient(make_app(Answers(predictor, limits), ["oct.clinic"]), base_url=HERE) as client:
        yield client


def post(client, content, query="", **headers):
    return client.post(f"/api/predict{query}", content=content, headers=headers)


def refused(response, status, *words):
    assert response.status_code == status, response.text
    found = response.json()
    for word in words:
        assert word in found["error"] + found["hint"]
    assert "\n" not in found["error"] and "Traceback" not in found["error"]
    return found


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


def test_the_page_answers_as_onnx_and_the_learner_do(client, trained, tmp_path):
    pytest.importorskip("onnxscript")
    from octfast.deploy.export.export import export_bundle
    from octfast.deploy.export.onnx import onnx_runner

    run = onnx_runner(export_bundle(trained.bundle, out=tmp_path / "m.onnx").file)
    learner = load(trained.bundle, precision="fp32").to_learner()
    for path in trained.predictions("valid")["path"].head(2):
        found = list(post(client, Path(path).read_bytes()).json()["probabilities"].values())
        picture = np.asarray(Image.open(path).convert("L"))[None, :, :, None]
        np.testing.assert_allclose(found, run(picture)[0], atol=1e-3)
        np.testing.assert_allclose(found, np.asarray(learner.predict(path)[2]), atol=1e-3)


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


def test_a_form_is_taken_too(client):
    plain = post(client, png()).json()
    assert client.post("/api/predict", files={"file": ("=x.png", png(), "image/png")}).json() == plain
    assert client.post("/api/predict", files={"anything": png()}, data={"note": "hello"}).json() == plain
    # What curl --data-binary says of its body.
    assert post(client, png(), **{"content-type": "application/x-www-form-urlencoded"}).json() == plain
    refused(client.post("/api/predict", files=[("file", png()), ("file", png())]), 400, "form", "curl")
    refused(client.post("/api/predict", files={}, data={"file": "x"}, headers={}), 415)
    form = {"content-type": "multipart/form-data; boundary=x"}
    refused(
        post(client, b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n', **form), 400, "no file"
    )
    refused(post(client, b"no form at all", **form), 400, "form")
    refused(post(client, b"x", **{"content-type": "multipart/form-data"}), 400, "form")


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


def test_another_pages_posts_are_refused(client):
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        refused(post(client, png(), **headers), 403, "another page")
    assert post(client, png(), origin=HERE, **{"sec-fetch-site": "same-origin"}).status_code == 200


def test_strange_hosts_are_refused(client):
    for host in ("evil.example", "evil.example:8731", "127.0.0.1.evil.example", "", "[::1", "localhost:x"):
        for path in ("/", "/health", "/static/app.js"):
            refused(client.get(path, headers={"host": host}), 403, "address")
    for host in ("127.0.0.1", "localhost:8731", "[::1]:8731", "192.168.0.7:80", "oct.clinic", "OCT.clinic:8731"):
        assert client.get("/health", headers={"host": host}).status_code == 200


def test_names_of_a_server():
    assert own_names("127.0.0.1") == []
    assert socket.gethostname() in own_names("0.0.0.0")
    assert own_names("oct.clinic") == ["oct.clinic"]
    assert not is_meant("localhost.evil.example", ["localhost"])


def test_the_page_asks_nobody_else_and_runs_nothing_of_its_own(client):
    page = client.get("/")
    assert page.status_code == 200 and "Not a medical device" in page.text and "phantoms" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    named = re.findall(r'(?:src|href|action)="([^"]*)"', page.text)
    assert named and all(n.startswith("/static/") for n in named)
    for name in named:
        found = client.get(name)
        assert found.status_code == 200 and found.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", found.text)
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=", page.text)


def test_other_addresses(client):
    refused(client.get("/nothing"), 404)
    refused(client.get("/static/../app.py"), 404)
    refused(client.get("/static/index.html"), 404)
    refused(client.get("/api/predict"), 405)
    assert client.get("/health").json()["status"] == "ok"
    about = client.get("/api/model").json()
    assert about["calibrated"] is False and "not calibrated" in about["calibration"]


def test_a_calibrated_bundle(own_run):
    operating = {"urgent": ["CNV"], "sensitivity": 0.95, "threshold": 0.0}
    conformal = {"coverage": 0.9, "threshold": 1e-9}
    found = {"split": "valid", "scans": 1200, "patients": 300, "nll_after": 0.3}
    update_info(own_run.bundle, temperature=1.5, calibration={**found, "operating": operating, "conformal": conformal})
    answers = Answers(load(own_run.bundle))
    about = answers.about()
    assert about["calibrated"] and "1,200 validation scans of 300 patients" in about["calibration"]
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


def test_hostile_class_names_stay_text(predictor):
    names = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$notice", "NORMAL")
    model, info = predictor.model, replace(predictor.info, classes=names)
    hostile = TestClient(make_app(Answers(type(predictor)(model, info, precision="fp32"))), base_url=HERE)
    page = hostile.get("/").text
    assert "<script>alert" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    assert list(post(hostile, png()).json()["probabilities"]) == list(names)


def test_nothing_is_written_to_disk(client, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.chdir(tmp_path)
    noise = png(scan(900, 1000))
    assert len(noise) > 800_000
    for response in (
        post(client, noise, "?heatmap=1"),
        client.post("/api/predict?heatmap=1", files={"file": ("a.png", noise, "image/png")}),
    ):
        assert response.status_code == 200, response.text
    assert client.post("/api/predict", files={"file": ("../../x.png", b"no picture")}).status_code == 415
    assert list(tmp_path.iterdir()) == []


WHOLE = [png(), png(optimize=True)]
for _kind in ("JPEG", "GIF", "BMP", "TIFF", "WEBP"):
    _out = io.BytesIO()
    Image.fromarray(scan()).save(_out, _kind)
    WHOLE.append(_out.getvalue())


@settings(max_examples=150)
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), max_size=6),
    st.floats(0, 1),
    st.booleans(),
    st.sampled_from(["", "image/png", "multipart/form-data; boundary=b", "multipart/form-data; boundary=b; charset=x"]),
)
def test_fuzzed_uploads(client, whole, changes, cut, truncated, kind):
    content = bytearray(whole)
    for where, held in changes:
        at = int(where * (len(content) - 1))
        content[at : at + len(held)] = held
    body = bytes(content[: int(cut * len(content))] if truncated else content)
    if "boundary" in kind and len(changes) % 2:
        body = b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n' + body + b"\r\n--b--\r\n"
    response = post(client, body, "?heatmap=1" if len(changes) == 1 else "", **({"content-type": kind} if kind else {}))
    assert response.status_code in (200, 400, 413, 415, 422), response.text
    found = response.json()
    if response.status_code == 200:
        assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    else:
        refused(response, response.status_code)


@pytest.fixture
def server(predictor):
    """The app as uvicorn serves it, with room for three pictures."""
    place = bind("127.0.0.1", 0 or free_port())
    limits = Limits(queue=3, seconds=1)
    running = uvicorn.Server(
        uvicorn.Config(make_app(Answers(predictor, limits)), http="h11", ws="none", log_level="error")
    )
    thread = threading.Thread(target=running.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    yield url(place)
    running.should_exit = True
    thread.join(10)
    place.close()


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def test_more_than_the_queue_is_told_to_wait(server):
    content = png(scan(600, 800))

    def ask(_):
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.post(f"{server}api/predict?heatmap=1", content=content)

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(ask, range(40)))
    assert {a.status_code for a in answers} == {200, 503}
    for a in answers:
        if a.status_code == 503:
            assert int(a.headers["retry-after"]) >= 1 and "waiting" in a.json()["error"]
    assert httpx.get(f"{server}health", trust_env=False).json()["held"] == 0
    assert ask(0).status_code == 200


def test_a_slow_upload_is_ended(server):
    host, port = server.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as line:
        head = f"POST /api/predict HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 1000\r\n\r\n12345"
        line.sendall(head.encode())
        start = time.monotonic()
        line.settimeout(20)
        answer = line.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408") and time.monotonic() - start < 10
    assert httpx.get(f"{server}health", trust_env=False).json()["held"] == 0


def test_ports(said):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port}"):
            bind("127.0.0.1", port)
    with pytest.raises(UsageError, match="no such address"):
        bind("no.such.host.invalid", None)
    with bind("127.0.0.1", None) as first, bind("127.0.0.1", None) as second:
        ports = {p.getsockname()[1] for p in (first, second)}
        assert len(ports) == 2
        assert json.dumps(url(second)).startswith('"http://127.0.0.1:')
    assert any("taken" in line for line in said())


def test_the_command_says_what_is_wrong(octfast, trained, tmp_path):
    done = octfast("app", tmp_path)
    assert done.code == 1 and "octfast.json" in done.err
    done = octfast("app", trained.path, "--urgent", "CVN")
    assert done.code == 2 and "CVN" in done.err
    done = octfast("app", trained.path, "--host", "no.such.host.invalid")
    assert done.code == 2 and "--host" in done.err
    done = octfast("app", "--help")
    assert done.code == 0 and "curl" in done.out and "Not a medical device" in done.out


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
        refused(post(client, head), 415, "volume", "octfast predict")


def test_an_upload_that_breaks_off_is_no_fault(server, caplog):
    host, port = server.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(f"POST /api/predict HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 1000\r\n\r\n12".encode())
        time.sleep(0.2)
    for _ in range(50):
        if httpx.get(f"{server}health", trust_env=False).json()["held"] == 0:
            break
        time.sleep(0.1)
    assert httpx.get(f"{server}health", trust_env=False).json()["held"] == 0
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


@pytest.mark.parametrize(("host", "alone"), [("127.0.0.1", True), ("127.0.0.7", True), ("0.0.0.0", False)])
def test_who_can_reach_it(host, alone):
    with bind(host, None) as place:
        assert is_loopback(place) == alone
