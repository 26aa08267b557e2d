import io
import json
import re
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octfast.deploy.predictor import load
from octfast.errors import UsageError
from tests.deploy.app.uploads import HERE, png, post, refused
from tests.pictures import scan

pytest.importorskip("starlette")
pytest.importorskip("python_multipart")
httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

from starlette.testclient import TestClient  # noqa: E402

from octfast.deploy.app.answers import Answers  # noqa: E402
from octfast.deploy.app.app import bind, is_loopback, make_app, url  # noqa: E402


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


def test_the_page_asks_nobody_else_and_runs_nothing_of_its_own(client):
    page = client.get("/")
    assert page.status_code == 200 and "Not a medical device" in page.text and "phantoms" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    named = re.findall(r'(?:src|href|action)="([^"]*)"', page.text)
    assert named and all(n.startswith("static/") for n in named)
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


@pytest.mark.parametrize(("host", "alone"), [("127.0.0.1", True), ("127.0.0.7", True), ("0.0.0.0", False)])
def test_who_can_reach_it(host, alone):
    with bind(host, None) as place:
        assert is_loopback(place) == alone
