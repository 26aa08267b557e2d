"""The page's server as a process of its own: requests that are sent in part, a signal to stop, a proxy before it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.deploy.app.uploads import free_port, png

pytest.importorskip("starlette")
pytest.importorskip("python_multipart")
httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

# The real server before an application that takes as long as it is asked to.
SERVE = """
import asyncio, sys
from octfast.deploy.app import connection
connection.connection_class.__defaults__ = (1.0, 20)
from octfast.deploy.app.app import bind, run_server
from octfast.deploy.app.guard import Guard
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

async def wait(request):
    await asyncio.sleep(float(request.query_params.get("s", 0)))
    return PlainTextResponse(request.url.path)

app = Starlette(routes=[Route("/{rest:path}", wait, methods=["GET", "POST"])])
listener = bind("127.0.0.1", int(sys.argv[1]))
run_server(Guard(app, root_path=sys.argv[2], hosts=["oct.clinic"], pages=["oct.clinic"]), listener)
"""


@pytest.fixture(scope="module")
def served():
    started = []

    def start(root_path: str = "") -> tuple[subprocess.Popen, int]:
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(port), root_path], stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        for _ in range(1200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        return process, port

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def test_requests_that_are_sent_in_part_shut_nobody_out(served):
    _, port = served()
    lines = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
    for line in lines:
        line.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half:")
    assert httpx.get(f"http://127.0.0.1:{port}/a", trust_env=False, timeout=5).text == "/a"
    # Those beyond the most that may wait are closed at once, the others after a second.
    lines[0].settimeout(5)
    assert lines[0].recv(100) == b""
    lines[-1].settimeout(5)
    start = time.monotonic()
    assert lines[-1].recv(100) == b"" and time.monotonic() - start < 4
    for line in lines:
        line.close()


def test_one_connection_for_several_requests_some_of_them_long(served):
    _, port = served()
    with httpx.Client(trust_env=False) as client:
        for path in ("/a", "/b?s=1.5", "/c"):
            assert client.get(f"http://127.0.0.1:{port}{path}").text == path.partition("?")[0]
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.settimeout(5)
        line.sendall(b"GET /a HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = b""
        while not answer.endswith(b"/a"):
            answer += line.recv(4096)
        line.sendall(b"GET /a HTTP/1.1\r\nHost:")
        assert line.recv(4096) == b""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_signal_to_stop_during_a_request_is_answered_in_json(served):
    process, port = served()
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(httpx.get(f"http://127.0.0.1:{port}/?s=60", trust_env=False, timeout=30))
    )
    asking.start()
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    asking.join(20)
    assert answers[0].status_code == 503 and "is being stopped" in answers[0].json()["error"]
    process.wait(20)
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("path", ["/octfast/a", "/a"])
def test_a_path_that_a_proxy_takes_off_or_leaves(served, path):
    _, port = served("/octfast")
    asked = {"trust_env": False, "headers": {"host": "oct.clinic"}}
    assert httpx.get(f"http://127.0.0.1:{port}{path}", **asked).text == "/a"
    found = httpx.get(f"http://127.0.0.1:{port}/octfast", **asked)
    assert found.status_code == 307 and found.headers["location"] == "octfast/"


NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen 127.0.0.1:{port};
    {location}
  }}
}}
"""
# As docs/guides/engineer.md has it; with nginx's own Host header; and with the path left in place.
LOCATIONS = {
    "recipe": "location /octfast/ {{ proxy_pass http://127.0.0.1:{app}/; proxy_set_header Host $http_host; }}",
    "default host": "location /octfast/ {{ proxy_pass http://127.0.0.1:{app}/; }}",
    "path left": "location /octfast {{ proxy_pass http://127.0.0.1:{app}; }}",
}


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_the_page_behind_nginx(trained, tmp_path):
    app, ports = free_port(), {name: free_port() for name in LOCATIONS}
    names = [w for port in ports.values() for w in ("--host-name", f"localhost:{port}")]
    command = [sys.executable, "-m", "octfast", "app", trained.bundle, "--port", app, "--root-path", "/octfast", *names]
    page = subprocess.Popen([str(w) for w in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    running = [page]
    try:
        assert page.stdout.readline().startswith("page: ")
        for name, port in ports.items():
            folder = tmp_path / name.replace(" ", "-")
            folder.mkdir()
            text = NGINX.format(folder=folder, port=port, location=LOCATIONS[name].format(app=app))
            (folder / "conf").write_text(text)
            running.append(subprocess.Popen(["nginx", "-c", folder / "conf", "-p", folder], stderr=subprocess.DEVNULL))
        for name, port in ports.items():
            here = f"http://localhost:{port}"
            with httpx.Client(trust_env=False, follow_redirects=True, timeout=30) as client:
                for _ in range(100):
                    try:
                        found = client.get(f"{here}/octfast/")
                        break
                    except httpx.ConnectError:
                        time.sleep(0.1)
                assert found.status_code == 200 and 'src="static/app.js"' in found.text, name
                assert str(client.get(f"{here}/octfast").url) == f"{here}/octfast/", name
                assert client.get(f"{here}/octfast/static/app.js").status_code == 200, name
                assert client.get(f"{here}/octfast/api/model").status_code == 200, name
                asked = {"origin": here, "sec-fetch-site": "same-origin"}
                found = client.post(f"{here}/octfast/api/predict", content=png(), headers=asked)
                assert found.status_code == 200 and "probabilities" in found.json(), (name, found.text)
                asked = {"origin": "http://evil.example"}
                assert client.post(f"{here}/octfast/api/predict", content=png(), headers=asked).status_code == 403, name
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(20)
        page.stdout.close()
