from __future__ import annotations

import configparser
import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from octfast import doctor
from octfast.data.workers import decoding_workers, shared_memory_needed
from octfast.doctor import FAIL, OK, WARN

ROOT = Path(__file__).resolve().parents[2]


def by_name(said: dict) -> dict[str, dict]:
    return {check["name"]: check for check in said["checks"]}


def test_a_machine_that_can_train(octfast):
    ended = octfast("doctor", "--json")
    said = json.loads(ended.out)
    found = by_name(said)
    assert (ended.code, said["works"]) == (0, True)
    wanted = {"python", "packages", "torch", "device", "precision", "cores", "memory", "shared memory", "run folders"}
    assert wanted | {"cache", "weights of vgg16_bn", "network"} == set(found)
    for check in found.values():
        assert check["status"] in (OK, WARN) and check["found"]
        assert check["status"] == OK or check["advice"], check
    # The tests' own machine has no weights and forbids the network.
    assert found["weights of vgg16_bn"]["status"] == WARN
    assert "vgg16_bn-6c64b313.pth at " in found["weights of vgg16_bn"]["advice"]
    assert found["network"]["found"].startswith("OCTFAST_OFFLINE set")


def test_what_people_see(octfast):
    ended = octfast("doctor", "--arch", "resnet18")
    assert ended.code == 0 and ended.err == ""
    assert "weights of resnet18" in ended.out and "resnet18-" in ended.out
    assert "Training works." in ended.out
    assert "pip install 'octfast[" in ended.out or "openvino" in ended.out


def test_it_leaves_nothing_behind_and_makes_no_folder(octfast, tmp_path, monkeypatch):
    monkeypatch.setenv("OCTFAST_CACHE", str(tmp_path / "not" / "yet"))
    assert octfast("doctor", "--json").code == 0
    assert list(Path.cwd().iterdir()) == [] and not (tmp_path / "not").exists()


def test_a_cache_that_cannot_be_written_is_a_failure(octfast, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("OCTFAST_CACHE", str(tmp_path / "file" / "cache"))
    ended = octfast("doctor", "--json")
    check = by_name(json.loads(ended.out))["cache"]
    assert ended.code == 1 and check["status"] == FAIL and "OCTFAST_CACHE" in check["advice"]
    shown = octfast("doctor")
    assert shown.code == 1 and "Training cannot work" in shown.out and str(tmp_path / "file") in shown.out


def test_damaged_weights_are_told_from_missing_ones(octfast, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "vgg16_bn-6c64b313.pth").write_bytes(b"half of it")
    ended = octfast("doctor", "--json")
    check = by_name(json.loads(ended.out))["weights of vgg16_bn"]
    assert check["status"] == WARN and "damaged" in check["found"]
    assert ended.err == ""


def test_an_unknown_network_is_a_warning_with_the_reason(octfast):
    check = by_name(json.loads(octfast("doctor", "--arch", "vgg61", "--json").out))["weights of vgg61"]
    assert check["status"] == WARN and "vgg61" in check["found"]


def test_it_does_not_use_the_network(octfast, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.delenv("OCTFAST_OFFLINE")
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, never)
    monkeypatch.setattr(socket.socket, "connect", never)
    ended = octfast("doctor", "--json")
    assert ended.code == 0 and "OCTFAST_OFFLINE=1 forbids it" in ended.out


@pytest.mark.parametrize(
    ("version", "status"), [((3, 9, 18), FAIL), ((3, 10, 0), OK), ((3, 13, 5), OK), ((3, 14, 0), FAIL)]
)
def test_the_pythons_that_are_supported(version, status):
    assert doctor.check_python(version).status == status


def test_needed_packages_are_compared_with_what_is_installed():
    assert doctor.check_packages().status == OK


def test_a_disk_without_room(tmp_path):
    plenty = doctor.check_folder("cache", tmp_path / "new", "go elsewhere")
    assert plenty.status in (OK, WARN) and not (tmp_path / "new").exists()
    assert doctor.check_folder("cache", tmp_path, "go elsewhere", least=0, enough=1e18).status == WARN
    full = doctor.check_folder("cache", tmp_path, "go elsewhere", least=1e18, enough=1e18)
    assert full.status == FAIL and "go elsewhere" in full.advice


def test_shared_memory_that_is_not_there(tmp_path):
    assert doctor.check_shared_memory(tmp_path / "shm").status == OK


@pytest.mark.parametrize(("more", "status"), [(0, OK), (-1, WARN)])
def test_shared_memory_is_enough_where_the_loaders_find_it_enough(tmp_path, monkeypatch, more, status):

    needed = shared_memory_needed()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed + more))
    assert doctor.check_shared_memory(tmp_path).status == status
    assert (decoding_workers(224, 64, tmp_path) > 0) == (status == OK)


@pytest.mark.parametrize(("written", "cores"), [("150000 100000", 1.5), ("max 100000", None), ("nonsense", None)])
def test_the_cores_that_a_container_may_use(tmp_path, written, cores):
    (tmp_path / "cpu.max").write_text(written)
    assert doctor._cgroup_cores(tmp_path) == cores
    assert doctor._cgroup_cores(tmp_path / "none") is None


def test_memory_is_that_of_the_container_where_there_is_one(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 64000000 kB\nMemFree: 1 kB\nMemAvailable: 32000000 kB\n")
    assert doctor._memory(tmp_path, meminfo) == (64_000_000 * 1024, 32_000_000 * 1024)
    (tmp_path / "memory.max").write_text("4000000000")
    (tmp_path / "memory.current").write_text("3500000000")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1000000000\n")
    assert doctor._memory(tmp_path, meminfo) == (4_000_000_000, 1_500_000_000)
    assert doctor._memory(tmp_path, tmp_path / "none") == (None, None)


def test_every_extra_of_the_package_is_listed_with_what_it_is_for():
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    keys = {k.removesuffix("_requirements") for k in settings["DEFAULT"] if k.endswith("_requirements")}
    extras = {extra.name: extra for extra in doctor.list_extras()}
    assert keys <= set(extras), "installed before settings.ini had these: install octfast again"
    for extra in extras.values():
        assert extra.purpose and extra.packages, extra.name
        assert set(extra.missing) <= set(extra.packages) and extra.installed == (not extra.missing)
    assert extras["test"].installed
