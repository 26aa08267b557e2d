"""Pretrained weights: from a file, from an earlier download, from a download, or a clear word on why not."""

from __future__ import annotations

import copy
import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import re
import socket
import threading
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants as hub_constants
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torchvision import models

from octfast.errors import UsageError, WeightsError
from octfast.model.weights import fetch
from octfast.model.weights import find as download
from octfast.model.weights.load import cached_file, expected_path, load_weights, weights_url

SHARED = Path(__file__).parents[3].parent / "shared" / "weights"


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    """No earlier downloads, and no way to any real server."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("OCTFAST_OFFLINE", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # huggingface_hub reads its variables when it is imported
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    set_hub(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetch, "READ_TIMEOUT", 1.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small tensors: on a busy machine the threads wait for each other
    yield
    torch.set_num_threads(threads)


def set_hub(monkeypatch, url: str) -> None:
    monkeypatch.setattr(hub_constants, "ENDPOINT", url)
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def fresh(arch: str, seed: int = 0) -> torch.nn.Module:
    return copy.deepcopy(made(arch, seed))


@functools.cache
def made(arch: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(arch) if arch.startswith("mobilenetv3") else models.get_model(arch, weights=None)


def same(a: torch.nn.Module, b: torch.nn.Module, prefix: str = "") -> bool:
    b_state = b.state_dict()
    return all(torch.equal(v, b_state[k]) for k, v in a.state_dict().items() if k.startswith(prefix))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder of weights: a whole SqueezeNet (seed 1) in both formats, and a whole ResNet-18."""
    folder = tmp_path_factory.mktemp("saved")
    save_file(fresh("squeezenet1_1", 1).state_dict(), folder / "squeeze.safetensors")
    torch.save(fresh("squeezenet1_1", 1).state_dict(), folder / "squeeze.pth")
    save_file(fresh("resnet18", 1).state_dict(), folder / "resnet18.safetensors")
    return folder


# ---------------------------------------------------------------------------------------------- a file of the user's


@pytest.mark.parametrize("name", ["squeeze.safetensors", "squeeze.pth"])
def test_whole_model_from_a_file(saved, name):
    model = fresh("squeezenet1_1")
    report = load_weights(model, "squeezenet1_1", saved / name)
    assert same(model, fresh("squeezenet1_1", 1))
    assert (report.source, report.file, report.loaded, report.missing, report.unused) == ("file", name, 52, (), ())
    assert report.sha256 == hashlib.sha256((saved / name).read_bytes()).hexdigest()
    assert report.describe() == f"body weights: {name}, 52 tensors loaded"
    assert json.loads(json.dumps(report.to_dict()))["path"] == str(saved / name)


def test_features_only_leaves_the_classifier_and_says_so(tmp_path):
    state = fresh("squeezenet1_1", 1).state_dict()
    save_file({k: v for k, v in state.items() if k.startswith("features.")}, tmp_path / "f.safetensors")
    model = fresh("squeezenet1_1")
    report = load_weights(model, "squeezenet1_1", str(tmp_path / "f.safetensors"), needed=("features.",))
    assert same(model, fresh("squeezenet1_1", 1), "features.") and same(model, fresh("squeezenet1_1"), "classifier.")
    assert report.missing == ("classifier.1.weight", "classifier.1.bias")
    assert report.describe().endswith("not in the file: classifier.1.weight and 1 more")


def test_a_classifier_of_other_classes_is_left_out(tmp_path):
    torch.save(models.squeezenet1_1(num_classes=4).state_dict(), tmp_path / "four.pt")
    report = load_weights(fresh("squeezenet1_1"), "squeezenet1_1", tmp_path / "four.pt")
    assert report.unused == report.missing == ("classifier.1.weight", "classifier.1.bias")


@pytest.mark.parametrize("wrap", ["state_dict", "model"])
def test_nested_and_prefixed_state_dict(tmp_path, wrap):
    state = {f"module.{k}": v for k, v in fresh("squeezenet1_1", 1).state_dict().items()}
    torch.save({"epoch": 3, wrap: OrderedDict(state), "optimizer": {"lr": 0.1}}, tmp_path / "run.bin")
    model = fresh("squeezenet1_1")
    report = load_weights(model, "squeezenet1_1", tmp_path / "run.bin")
    assert same(model, fresh("squeezenet1_1", 1)) and report.unused == ()
    assert report.renamed == "prefix module. stripped" and "prefix module. stripped" in report.describe()


def test_legacy_pth_that_cannot_be_mapped(tmp_path):
    torch.save(fresh("squeezenet1_1", 1).state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = fresh("squeezenet1_1")
    load_weights(model, "squeezenet1_1", tmp_path / "old.pth")
    assert same(model, fresh("squeezenet1_1", 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    other = fresh("squeezenet1_1", 1).to(dtype)
    save_file(other.state_dict(), tmp_path / "half.safetensors")
    model = fresh("squeezenet1_1")
    report = load_weights(model, "squeezenet1_1", tmp_path / "half.safetensors")
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32}
    assert same(model, other.float())
    assert report.cast == str(dtype).removeprefix("torch.")


def test_batch_norm_counters_may_be_missing(tmp_path):
    state = {k: v for k, v in fresh("resnet18", 1).state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "r.safetensors")
    report = load_weights(fresh("resnet18"), "resnet18", tmp_path / "r.safetensors")
    assert report.loaded == 102 and report.missing == ()


def test_older_densenet_names_are_converted(tmp_path):
    state = fresh("densenet121", 1).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", k): v for k, v in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    save_file(old, tmp_path / "d.safetensors")
    model = fresh("densenet121")
    report = load_weights(model, "densenet121", tmp_path / "d.safetensors")
    assert same(model, fresh("densenet121", 1)) and report.unused == () and "converted" in report.renamed


def test_timm_model_from_a_file(tmp_path):
    source = fresh("mobilenetv3_small_050", 1)
    save_file(source.state_dict(), tmp_path / "r.safetensors")
    model = timm_body()
    report = load_weights(model, TIMM, tmp_path / "r.safetensors")
    assert (
        same(model, source) and set(report.unused) == {"classifier.weight", "classifier.bias"} and report.missing == ()
    )


def test_timm_positions_are_resampled_to_another_size(tmp_path):
    made = {"model_name": "vit_tiny_patch16_224", "num_classes": 0, "depth": 1}
    save_file(timm.create_model(**made).state_dict(), tmp_path / "v.safetensors")
    report = load_weights(timm.create_model(**made, img_size=96), "vit_tiny_patch16_224", tmp_path / "v.safetensors")
    assert report.missing == () and report.unused == () and "converted" in report.renamed


def test_none_loads_nothing():
    model = fresh("squeezenet1_1")
    report = load_weights(model, "squeezenet1_1", "none")
    assert report.source == "none" and report.sha256 is None and report.loaded == 0
    assert same(model, fresh("squeezenet1_1")) and "untrained" in report.describe()


def test_needed_that_names_nothing(saved):
    with pytest.raises(UsageError, match="nothing in the model is named body"):
        load_weights(fresh("squeezenet1_1"), "squeezenet1_1", saved / "squeeze.pth", needed=("body.",))


# ------------------------------------------------------------------------------------- files that cannot be loaded


def refusal(path: Path | str, arch: str = "squeezenet1_1", **kwargs) -> WeightsError:
    """The error that loading gives, after checking that it is one line and a hint, and that the model is untouched."""
    model = fresh(arch)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, arch, path, progress=False, **kwargs)
    error = caught.value
    assert error.message and "\n" not in error.message and error.hint and "\n" not in error.hint
    assert same(model, fresh(arch))
    return error


def test_wrong_architecture_is_named(saved):
    error = refusal(saved / "resnet18.safetensors")
    assert error.message == (
        "resnet18.safetensors does not fit squeezenet1_1: 0 of 50 needed tensors fit, features.0.weight is not in it"
    )
    assert error.hint == "its tensors are those of resnet18: try --arch resnet18"


def test_shape_that_differs_is_named(tmp_path):
    state = fresh("squeezenet1_1").state_dict()
    state["features.3.squeeze.weight"] = torch.zeros(8, 64, 1, 1)
    save_file(state, tmp_path / "s.safetensors")
    error = refusal(tmp_path / "s.safetensors")
    assert "49 of 50 needed tensors fit, features.3.squeeze.weight has shape (8, 64, 1, 1), not (16, 64, 1, 1)" in str(
        error
    )


def test_a_larger_network_that_holds_all_names_is_refused(tmp_path):
    state = {k: v.half() for k, v in fresh("resnet34").state_dict().items()}
    save_file(state, tmp_path / "r34.safetensors")
    error = refusal(tmp_path / "r34.safetensors", "resnet18")
    assert "100 of 100 needed tensors fit, but it has 116 more" in error.message
    assert "try --arch resnet34" in error.hint


@pytest.mark.parametrize(("arch", "other"), [("vgg11", "vgg11_bn"), ("vgg11_bn", "vgg11")])
def test_plain_and_batch_norm_vgg_are_told_apart(tmp_path, arch, other):
    with torch.device("meta"):
        made, wanted = models.get_model(other), models.get_model(arch)
    state = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in made.state_dict().items() if k.startswith("features.")}
    save_file(state, tmp_path / "vgg.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_weights(wanted, arch, tmp_path / "vgg.safetensors", needed=("features.",))
    assert caught.value.hint == f"its tensors are those of {other}: try --arch {other}"


def test_values_that_are_not_finite(tmp_path):
    state = fresh("squeezenet1_1").state_dict()
    state["features.0.bias"][3] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    assert "not finite, in features.0.bias" in str(refusal(tmp_path / "nan.safetensors"))


def test_integers_in_place_of_weights(tmp_path):
    save_file({k: v.to(torch.int8) for k, v in fresh("squeezenet1_1").state_dict().items()}, tmp_path / "i.safetensors")
    assert "0 of 50 needed tensors fit, features.0.weight is torch.int8" in str(refusal(tmp_path / "i.safetensors"))


def test_paths_that_are_no_weights_file(tmp_path):
    (tmp_path / "empty.pth").touch()
    (tmp_path / "model.h5").write_bytes(b"x" * 10)
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>Not found</html>")
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for path, words in [
        (tmp_path / "nowhere.pth", "no weights file"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty.pth", "is empty"),
        (tmp_path / "model.h5", "not a kind of weights file"),
        (tmp_path / "page.pth", "is a web page"),
        (tmp_path / "pointer.safetensors", "git-lfs pointer"),
        ("imagenet", "no weights file imagenet"),
        ("~nobody-of-this-name/x.pth", "cannot be read|no weights file"),
        ("bad\0name.pth", "cannot be read|no weights file"),
        ("x" * 5000 + ".pth", "cannot be read|no weights file"),
    ]:
        assert re.search(words, refusal(path).message)


@pytest.mark.parametrize(
    "content", [[1, 2], {"epoch": 3}, {"state_dict": {}}, torch.zeros(3), {"a": torch.eye(2).to_sparse()}]
)
def test_pickles_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    assert "holds no state dict of plain tensors" in str(refusal(tmp_path / "x.pth"))


class Malice:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["zip", "legacy", "raw"])
def test_a_malicious_pickle_runs_nothing(tmp_path, how):
    written = tmp_path / "written"
    content = {"state_dict": fresh("squeezenet1_1").state_dict(), "x": Malice(written)}
    if how == "raw":
        (tmp_path / "evil.pth").write_bytes(pickle.dumps({"x": Malice(written)}))
    else:
        torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=how == "zip")
    error = refusal(tmp_path / "evil.pth")
    assert not written.exists()
    assert "mkdir" in error.message or how == "raw"
    assert "unsafe pickles are never loaded" in error.hint


def test_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(fresh("squeezenet1_1"), tmp_path / "model.pth")
    error = refusal(tmp_path / "model.pth")
    assert "SqueezeNet" in error.message and "safetensors" in error.hint


@pytest.mark.parametrize("name", ["squeeze.safetensors", "squeeze.pth"])
@pytest.mark.parametrize("part", [0.0001, 0.5, 0.9999])
def test_truncated_files(saved, tmp_path, name, part):
    whole = (saved / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * part)])
    assert "damaged or cut short" in str(refusal(tmp_path / name))


def tiny() -> torch.nn.Module:
    return torch.nn.ModuleDict({"features": torch.nn.Conv2d(1, 2, 3), "classifier": torch.nn.Linear(2, 2)})


def in_bytes(kind: str) -> bytes:
    if kind == "safetensors":
        from safetensors.torch import save

        return save(tiny().state_dict())
    buffer = io.BytesIO()
    torch.save(tiny().state_dict(), buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


WHOLE = {kind: in_bytes(kind) for kind in ("safetensors", "zip", "legacy")}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(list(WHOLE)),
    end=st.integers(0, 6000),
    changes=st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=12)), max_size=4),
)
@example(kind="zip", end=6000, changes=[])
@example(kind="legacy", end=6000, changes=[])
def test_damaged_files_give_weights_error_or_load(tmp_path, kind, end, changes):
    content = bytearray(WHOLE[kind][:end])
    for at, new in changes:
        content[at : at + len(new)] = new
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    path.write_bytes(content)
    try:
        load_weights(tiny(), "tiny", path, needed=("features.",))
    except WeightsError as error:
        assert "\n" not in error.message and error.hint
    else:
        assert end >= len(WHOLE[kind]) or changes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".safetensors", ".pth", ".pt", ".bin"]))
def test_random_bytes_give_weights_error(tmp_path, content, suffix):
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(WeightsError):
        load_weights(tiny(), "tiny", tmp_path / f"x{suffix}")


# --------------------------------------------------------------------------------------- downloaded before, or now


class Server:
    """A web server on this machine: `files` by path, with extra headers; `cut` breaks off halfway."""

    def __init__(self):
        self.files: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.cut = False
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(f"{self.command} {self.path}")
                content, headers = outer.files.get(self.path, (None, {}))
                if content is None:
                    return self.send_error(404)
                self.send_response(200)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content[: len(content) // 2] if outer.cut else content)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def published(server, saved, monkeypatch) -> Path:
    """torchvision's SqueezeNet published on the server; gives the path at which it belongs on this machine."""
    content = (saved / "squeeze.pth").read_bytes()
    name = f"squeezenet1_1-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    server.files[f"/{name}"] = (content, {})
    publish(monkeypatch, f"{server.url}/{name}")
    return expected_path("squeezenet1_1")


def publish(monkeypatch, url: str) -> None:
    monkeypatch.setattr(models.SqueezeNet1_1_Weights.IMAGENET1K_V1.value, "url", url)


def left_in(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.glob("*")) if path.parent.exists() else []


def test_download_then_cache(server, published, tmp_path, capsys):
    assert published.parent == tmp_path / "torch" / "hub" / "checkpoints"
    assert cached_file("squeezenet1_1") is None
    model = fresh("squeezenet1_1")
    report = load_weights(model, "squeezenet1_1")
    assert report.source == "download" and report.file == published.name and report.loaded == 52
    assert same(model, fresh("squeezenet1_1", 1))
    assert left_in(published) == [published.name]
    lines = capsys.readouterr().err.splitlines()
    assert [re.search(r"(\d+)%", line)[1] for line in lines] == ["0", "25", "50", "75", "100"]

    again = load_weights(fresh("squeezenet1_1"), "squeezenet1_1")
    assert again.source == "cache" and again.sha256 == report.sha256 and len(server.asked) == 1
    assert f"{published.name} (downloaded before), 52 tensors" in again.describe()
    assert cached_file("squeezenet1_1") == published
    assert capsys.readouterr().err == ""


def test_a_bar_on_request(published, capsys):
    load_weights(fresh("squeezenet1_1"), "squeezenet1_1", progress=True)
    assert published.name in capsys.readouterr().err


def test_offline_finds_what_was_put_there_by_hand(server, published, saved, monkeypatch):
    monkeypatch.setenv("OCTFAST_OFFLINE", "1")
    error = refusal("auto")
    assert error.message == (
        "no pretrained weights for squeezenet1_1: no sound copy on this machine, and OCTFAST_OFFLINE is set"
    )
    for way in ("--weights FILE", weights_url("squeezenet1_1"), str(published), "TORCH_HOME", "--weights none"):
        assert way in error.hint
    published.parent.mkdir(parents=True)
    published.write_bytes((saved / "squeeze.pth").read_bytes())
    assert load_weights(fresh("squeezenet1_1"), "squeezenet1_1").source == "cache"
    assert server.asked == []


def test_a_damaged_copy_is_said_and_kept_until_replaced(published, monkeypatch, caplog):
    published.parent.mkdir(parents=True)
    published.write_bytes(b"half a file")
    monkeypatch.setenv("OCTFAST_OFFLINE", "1")
    refusal("auto")
    assert f"{published} is damaged" in caplog.text and published.read_bytes() == b"half a file"
    assert cached_file("squeezenet1_1") is None
    monkeypatch.delenv("OCTFAST_OFFLINE")
    assert load_weights(fresh("squeezenet1_1"), "squeezenet1_1", progress=False).source == "download"
    assert "has been replaced" in caplog.text and cached_file("squeezenet1_1") == published


def test_a_download_that_breaks_off(server, published):
    server.cut = True
    assert re.search(r"broke off after 2\d\d\d kB of 4\d\d\d kB", refusal("auto").message)
    assert left_in(published) == []


def test_a_download_of_something_else(server, published):
    server.files[f"/{published.name}"] = (b"<html>a log-in page</html>", {})
    assert f"is not {published.name}: its SHA-256 begins" in refusal("auto").message
    assert left_in(published) == []


def test_an_address_that_is_gone(server, published):
    server.files.clear()
    assert "answered 404" in refusal("auto").message and left_in(published) == []


def test_a_folder_that_cannot_be_written(published):
    published.parents[1].mkdir(parents=True)
    published.parent.write_text("a file where the folder should be")
    assert "cannot write to" in refusal("auto").message


def test_a_server_that_never_answers(monkeypatch):
    monkeypatch.setattr(fetch, "READ_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publish(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/squeezenet1_1-0123abcd.pth")
        started = time.monotonic()
        assert "cannot be reached (timed out after 0.3 s)" in refusal("auto").message
    assert time.monotonic() - started < 8
    assert left_in(expected_path("squeezenet1_1")) == []


def test_a_server_that_cannot_be_connected_to(monkeypatch):
    monkeypatch.setattr(fetch, "CONNECT_TIMEOUT", 0.4)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = []
        for _ in range(4):  # fill the queue, so that further packets are dropped as a firewall would
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(full.getsockname())
        publish(monkeypatch, f"http://127.0.0.1:{full.getsockname()[1]}/squeezenet1_1-0123abcd.pth")
        started = time.monotonic()
        assert "timed out after" in refusal("auto").message
        assert time.monotonic() - started < 8
        for one in waiting:
            one.close()


def test_a_name_that_does_not_resolve_and_a_closed_port(monkeypatch):
    publish(monkeypatch, "https://download.pytorch.invalid/squeezenet1_1-0123abcd.pth")
    message = refusal("auto").message
    assert (
        "download.pytorch.invalid cannot be reached (its name could not be looked up" in message or "timed" in message
    )
    publish(monkeypatch, "http://127.0.0.1:9/squeezenet1_1-0123abcd.pth")
    assert "127.0.0.1:9 cannot be reached (the connection was refused)" in refusal("auto").message


# --------------------------------------------------------------------------------------------------------------- timm

TIMM = "mobilenetv3_small_050.lamb_in1k"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file(fresh("mobilenetv3_small_050", 1).state_dict(), path)
    return path


@pytest.fixture
def hub(server, timm_file, monkeypatch) -> Server:
    content = timm_file.read_bytes()
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
    server.files[f"/timm/{TIMM}/resolve/main/model.safetensors"] = (content, headers)
    server.files[f"/timm/{TIMM}/resolve/{COMMIT}/model.safetensors"] = (content, headers)
    set_hub(monkeypatch, server.url)
    return server


def timm_body() -> torch.nn.Module:
    model = fresh("mobilenetv3_small_050")
    model.reset_classifier(0)
    return model


def test_hub_download_then_cache(hub, timm_file, capsys):
    model = timm_body()
    report = load_weights(model, TIMM)
    assert report.source == "download" and set(report.unused) == {"classifier.weight", "classifier.bias"}
    assert report.sha256 == hashlib.sha256(timm_file.read_bytes()).hexdigest()
    assert capsys.readouterr().err == f"downloading timm/{TIMM}/model.safetensors\n"
    asked = len(hub.asked)
    assert all("/resolve/" in request for request in hub.asked)
    assert load_weights(timm_body(), TIMM).source == "cache" and len(hub.asked) == asked
    assert cached_file(TIMM) == Path(report.path) == expected_path(TIMM)


def test_hub_copy_that_is_damaged_is_downloaded_again(hub, caplog):
    path = Path(load_weights(timm_body(), TIMM, progress=False).path)
    path.resolve().write_bytes(b"damaged")
    assert cached_file(TIMM) is None and "is damaged" in caplog.text
    assert load_weights(timm_body(), TIMM, progress=False).source == "download"
    assert cached_file(TIMM) == path


def test_hub_that_cannot_be_reached_is_told_at_once(monkeypatch):
    body = timm_body()
    started = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        load_weights(body, TIMM)
    assert time.monotonic() - started < 8
    assert caught.value.message == (
        f"no pretrained weights for {TIMM}: 127.0.0.1:9 cannot be reached (the connection was refused)"
    )
    assert str(expected_path(TIMM)) in caught.value.hint and "HF_HOME" in caught.value.hint


def test_hub_without_the_file_and_hub_offline(hub, monkeypatch):
    hub.files.clear()
    with pytest.raises(WeightsError, match="there is no http"):
        load_weights(timm_body(), TIMM)
    hub.asked.clear()
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        load_weights(timm_body(), TIMM)
    assert hub.asked == []


def test_a_file_put_by_hand_where_expected_path_says(timm_file, monkeypatch):
    monkeypatch.setenv("OCTFAST_OFFLINE", "1")
    place = expected_path(TIMM)
    place.parent.mkdir(parents=True)
    place.write_bytes(timm_file.read_bytes())
    assert load_weights(timm_body(), TIMM).source == "cache"


def test_timm_file_of_a_plain_url_in_torch_hub(tmp_path, caplog):
    arch = "resnet18d.ra2_in1k"
    origin = download.find_origin(arch)
    assert origin.sha256_prefix == "48a79e06"
    place = tmp_path / "torch" / "hub" / "checkpoints" / "resnet18d_ra2-48a79e06.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"another file")
    assert cached_file(arch) is None and f"{place} is damaged" in caplog.text


# -------------------------------------------------------------------------------------------------------- addresses


def test_addresses():
    assert weights_url("vgg16_bn") == "https://download.pytorch.org/models/vgg16_bn-6c64b313.pth"
    assert expected_path("vgg16_bn").name == "vgg16_bn-6c64b313.pth"
    assert download.find_origin("vgg16_bn").sha256_prefix == "6c64b313"
    assert weights_url("vgg16_bn", "timm").endswith("/timm/vgg16_bn.tv_in1k/resolve/main/model.safetensors")
    assert weights_url(TIMM).endswith(f"/timm/{TIMM}/resolve/main/model.safetensors")
    for arch, words in [
        ("nonsense", "neither torchvision nor timm knows it"),
        ("resnet18d.nonsense", "Invalid pretrained tag"),
    ]:
        with pytest.raises(WeightsError, match=words):
            weights_url(arch)


def test_every_torchvision_name_has_an_address_with_a_hash():
    for arch in models.list_models(module=models):
        assert len(download.find_origin(arch).sha256_prefix) >= 8, arch


# ------------------------------------------------------------------------------------------------------ real weights


@pytest.mark.realdata
@pytest.mark.parametrize(("arch", "tensors", "other"), [("vgg16_bn", 78, "vgg16"), ("vgg16", 26, "vgg16_bn")])
def test_the_real_vgg16_features(arch, tensors, other):
    path = SHARED / f"{arch}_features.safetensors"
    if not path.exists():
        pytest.skip(f"the real weights are not here: {path}")
    with torch.device("meta"):
        model = models.get_model(arch, weights=None)
    model.to_empty(device="cpu")
    report = load_weights(model, arch, path, needed=("features.",))
    assert report.loaded == tensors and report.cast == "float16" and report.unused == ()
    assert all(name.startswith("classifier.") for name in report.missing)
    with pytest.raises(WeightsError, match=f"does not fit {other}") as caught, torch.device("meta"):
        load_weights(models.get_model(other, weights=None), other, path, needed=("features.",))
    assert f"try --arch {arch}" in caught.value.hint
