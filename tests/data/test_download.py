from __future__ import annotations

import hashlib
import http.server
import importlib.util
import io
import json
import socket
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from octfast.data import download as module
from octfast.data.download import SOURCES, download
from octfast.data.readers.read import read_data
from octfast.errors import DataError, UsageError


@pytest.fixture
def online(monkeypatch):
    for package in ("medmnist", "kagglehub"):
        pytest.importorskip(package, reason="needs the extra octfast[download]")
    monkeypatch.delenv("OCTFAST_OFFLINE")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(online, monkeypatch):
    """A server of this machine's own; `files` holds what it sends by path, `asked` what it was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            if length := int(self.headers.get("Content-Length") or 0):
                self.rfile.read(length)
            path = self.path.partition("?")[0]
            asked.append((path, self.headers.get("Range")))
            kind, data = files.get(path, ("", None))
            if data is None:
                self.send_error(404)
                return
            start = 0
            if asked[-1][1]:
                start = int(asked[-1][1].removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            sent = data[start:] if cut["at"] is None or start else data[: cut["at"]]
            self.wfile.write(sent)

        do_GET = do_POST = do_HEAD = answer  # noqa: N815

        def log_message(self, *args):
            pass

    files: dict[str, tuple[str, bytes]] = {}
    asked: list[tuple[str, str | None]] = []
    cut: dict[str, int | None] = {"at": None}
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.files, http_server.asked, http_server.cut = files, asked, cut
    http_server.url = f"http://127.0.0.1:{http_server.server_port}"
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    for name, source in list(SOURCES.items()):
        monkeypatch.setitem(SOURCES, name, module.Source(**{**vars(source), "probe": http_server.url}))
    yield http_server
    http_server.shutdown()
    http_server.server_close()


def small_npz() -> bytes:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 12), ("val", 4), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n)[:, None] % 4).astype(np.uint8)
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def kaggle_zip() -> bytes:
    """The archive of Kaggle in small: the scans twice, in a folder whose name ends in a space."""
    picture = io.BytesIO()
    Image.new("L", (8, 8), 90).save(picture, "JPEG")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        # kagglehub writes a mebibyte at a time, so a shorter archive has nothing to go on from.
        archive.writestr("filler.bin", np.random.default_rng(0).bytes(1_500_000))
        for root in ("OCT2017 ", "oct2017/OCT2017 "):
            for split in ("train", "val", "test"):
                for i, label in enumerate(("CNV", "NORMAL")):
                    archive.writestr(f"{root}/{split}/{label}/{label}-{i}-1.jpeg", picture.getvalue())
    return out.getvalue()


@pytest.fixture
def medmnist(server, monkeypatch):
    info = pytest.importorskip("medmnist").INFO["octmnist"]
    data = small_npz()
    server.files["/octmnist_64.npz"] = ("application/octet-stream", data)
    monkeypatch.setitem(info, "url_64", f"{server.url}/octmnist_64.npz")
    monkeypatch.setitem(info, "MD5_64", hashlib.md5(data).hexdigest())
    monkeypatch.setitem(info, "n_samples", {"train": 12, "val": 4, "test": 4})
    return server


def test_octmnist_is_fetched_by_the_real_package_and_can_be_read(medmnist, tmp_path):
    file = download("octmnist", tmp_path / "data", 64)
    assert file == tmp_path / "data" / "octmnist_64.npz"
    assert [p.name for p in file.parent.iterdir()] == ["octmnist_64.npz"]
    scans = read_data(file, cache=tmp_path)
    assert scans["split"].value_counts().to_dict() == {"train": 12, "valid": 4, "test": 4}


def test_octmnist_is_not_fetched_again(medmnist, tmp_path, said):
    first = download("octmnist", tmp_path, 64)
    n = len(medmnist.asked)
    assert download("octmnist", tmp_path, 64) == first
    assert len(medmnist.asked) == n
    assert any("there already" in line for line in said())


def test_a_damaged_octmnist_is_refused_and_leaves_nothing_behind(medmnist, tmp_path):
    medmnist.files["/octmnist_64.npz"] = ("application/octet-stream", b"no such thing")
    with pytest.raises(DataError, match="fetching octmnist_64") as e:
        download("octmnist", tmp_path / "data", 64)
    assert "zenodo.org" in e.value.hint and str(tmp_path / "data") in e.value.hint
    assert list((tmp_path / "data").iterdir()) == []


def test_ctrl_c_ends_the_download_and_is_no_error_of_the_network(medmnist, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("torchvision.datasets.utils.download_url", stop)
    with pytest.raises(KeyboardInterrupt):
        download("octmnist", tmp_path / "data", 64)


@pytest.fixture
def kaggle(server, monkeypatch):
    if importlib.util.find_spec("kagglehub") is None:
        pytest.skip("kagglehub is not installed")
    # It holds on to the standard output of when it was imported.
    for name in [n for n in sys.modules if n.partition(".")[0] == "kagglehub"]:
        monkeypatch.delitem(sys.modules, name)
    env = pytest.importorskip("kagglesdk.kaggle_env")
    monkeypatch.setitem(env._env_to_endpoint, env.KaggleEnv.PROD, server.url)
    for name in ("KAGGLE_API_ENVIRONMENT", "KAGGLE_KERNEL_RUN_TYPE", "KAGGLEHUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    api = "/v1/datasets.DatasetApiService/"
    about = json.dumps({"id": 1, "currentVersionNumber": 2}).encode()
    server.files[f"{api}GetDataset"] = ("application/json", about)
    server.files[f"{api}DownloadDataset"] = ("application/zip", kaggle_zip())
    return server


def test_oct2017_is_fetched_by_the_real_package_and_one_copy_is_kept(kaggle, tmp_path, capsys, said):
    out = download("oct2017", tmp_path / "oct")
    assert sorted(p.name for p in out.iterdir()) == ["test", "train", "val"]
    assert [p.name for p in tmp_path.iterdir()] == ["oct"]
    assert len(read_data(out)) == 6
    assert capsys.readouterr().out == ""
    assert any("one copy is kept" in line for line in said())


def test_oct2017_goes_on_where_it_stopped(kaggle, tmp_path):
    kaggle.cut["at"] = 1_200_000
    with pytest.raises(DataError, match="fetching OCT2017 failed") as e:
        download("oct2017", tmp_path / "oct")
    assert "try again" in e.value.hint and "kaggle.com" in e.value.hint
    assert not (tmp_path / "oct").exists()
    kaggle.cut["at"] = None
    assert len(read_data(download("oct2017", tmp_path / "oct"))) == 6
    assert "bytes=1048576-" in [r for _, r in kaggle.asked]


def test_oct2017_never_goes_into_a_folder_with_files(online, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        download("oct2017", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", list(SOURCES))
def test_without_a_network_it_says_so_in_seconds(name, online, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", _no_name)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"cannot reach https://.*: .*Name or service not known") as e:
        download(name, tmp_path / "out")
    assert time.monotonic() - start < 20
    assert SOURCES[name].page in e.value.hint and str(tmp_path / "out") in e.value.hint
    assert "\n" not in e.value.message and not (tmp_path / "out").exists()


def test_a_network_that_swallows_everything_is_given_up(online, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_REACH", -2.0)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: time.sleep(30))
    start = time.monotonic()
    with pytest.raises(DataError, match="no answer"):
        download("octmnist", tmp_path)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("name", list(SOURCES))
def test_a_missing_package_is_named_with_the_way_to_install_it(name, online, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, SOURCES[name].package, None)
    with pytest.raises(DataError, match=SOURCES[name].package) as e:
        download(name, tmp_path / "out")
    assert e.value.hint == "pip install 'octfast[download]'"


def test_offline_means_offline(tmp_path):
    with pytest.raises(DataError, match="OCTFAST_OFFLINE"):
        download("octmnist", tmp_path)


@pytest.mark.parametrize(("name", "size"), [("octmnist", 32), ("oct2018", 28)])
def test_what_is_not_on_offer_is_a_usage_error(name, size, tmp_path):
    with pytest.raises(UsageError):
        download(name, tmp_path, size)


def _no_name(*args):
    raise socket.gaierror(-2, "Name or service not known")
