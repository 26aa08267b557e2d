import contextlib
import logging
import socket
import time

import pytest

from octfast.errors import UsageError
from tests.deploy.app.uploads import HERE, png, post, refused

pytest.importorskip("starlette")
pytest.importorskip("python_multipart")
httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")


from octfast.deploy.app.guard import clean_root_path, is_meant, own_names  # noqa: E402


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


def test_the_path_of_the_page():
    assert [clean_root_path(p) for p in ("", "/", "octfast", "/a/b/")] == ["", "", "/octfast", "/a/b"]
    for path in ("/a b", "/../x", "https://clinic.example/octfast", "/a//b", "/a\nb"):
        with pytest.raises(UsageError, match="--root-path"):
            clean_root_path(path)


def test_an_upload_that_drips_is_ended_before_its_time(slow_server):
    host, port = slow_server.removeprefix("http://").rstrip("/").split(":")
    start = time.monotonic()
    with socket.create_connection((host, int(port))) as line:
        line.sendall(f"POST /api/predict HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 99999\r\n\r\n".encode())
        line.settimeout(0.5)
        answer = b""
        while not answer and time.monotonic() - start < 20:
            line.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                answer = line.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408") and time.monotonic() - start < 10


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
