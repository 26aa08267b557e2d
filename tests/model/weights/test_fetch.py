"""Fetching one file: the time-outs hold, and nothing that is not whole and right gets the file's name."""

from __future__ import annotations

import hashlib
import http.server
import socket
import threading
import time

import pytest

from octfast.model.weights import fetch
from octfast.model.weights.fetch import UnavailableError, exists_at, fetch_url

CONTENT = bytes(range(256)) * 100


class Handler(http.server.BaseHTTPRequestHandler):
    """/whole, /moved (to /whole), /unsized, /stalled (half of it, then nothing), /nothing (not even a header)."""

    def do_GET(self):
        if self.path == "/nothing":
            time.sleep(20)
            return None
        if self.path not in ("/whole", "/moved", "/unsized", "/stalled"):
            return self.send_error(404)
        self.send_response(302 if self.path == "/moved" else 200)
        if self.path == "/moved":
            self.send_header("Location", "/whole")
            self.send_header("Content-Length", "0")
        elif self.path != "/unsized":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.command == "GET" and self.path != "/moved":
            self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/stalled" else CONTENT)
        if self.path == "/stalled":
            self.wfile.flush()
            time.sleep(20)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def url():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetch, "READ_TIMEOUT", 0.5)


@pytest.mark.parametrize("path", ["/whole", "/moved", "/unsized"])
def test_a_file_arrives_whole(url, tmp_path, path):
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    target = tmp_path / "a" / "b" / "file.bin"
    assert fetch_url(url + path, target, sha256[:8], progress=False) == sha256
    assert target.read_bytes() == CONTENT and [f.name for f in target.parent.iterdir()] == ["file.bin"]


def refusal(url, tmp_path) -> str:
    start = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        fetch_url(url, tmp_path / "file.bin", progress=False)
    assert time.monotonic() - start < 10
    assert list(tmp_path.iterdir()) == []
    return str(caught.value)


def test_a_download_that_stalls_is_given_up(url, tmp_path):
    assert "broke off (timed out after 0.5 s)" in refusal(url + "/stalled", tmp_path)


def test_a_server_that_says_nothing_is_given_up(url, tmp_path, monkeypatch):
    assert "cannot be reached (timed out after 0.5 s)" in refusal(url + "/nothing", tmp_path)
    monkeypatch.setattr(fetch, "CONNECT_TIMEOUT", 0.3)
    assert "cannot be reached (timed out after 0.3 s)" in refusal(url + "/nothing", tmp_path)


def test_a_look_up_that_hangs_and_a_host_of_many_dead_addresses_take_one_time_out(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "CONNECT_TIMEOUT", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(20) or [])
    assert "weights.example cannot be reached (timed out after 0.3 s)" in refusal("http://weights.example/a", tmp_path)

    def connect(*args, **kwargs):
        for _ in range(80):
            time.sleep(0.25)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", connect)
    assert "timed out after 0.3 s" in refusal("http://weights.example/a", tmp_path)


def test_what_is_not_there_or_not_what_was_asked_for(url, tmp_path):
    assert "answered 404" in refusal(url + "/gone", tmp_path)
    with pytest.raises(UnavailableError, match=r"is not file\.bin: its SHA-256 begins"):
        fetch_url(url + "/whole", tmp_path / "file.bin", "00000000", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_whether_a_server_has_a_file(url):
    assert exists_at(url + "/whole") and exists_at(url + "/moved") and not exists_at(url + "/gone")
    with pytest.raises(UnavailableError, match="the connection was refused"):
        exists_at("http://127.0.0.1:9/whole")
