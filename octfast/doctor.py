"""What this computer offers for training, check by check, each with what to do about it; the network is not used."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from octfast.data.workers import shared_memory_needed
from octfast.errors import OctfastError
from octfast.files import cache_root, is_offline, is_set, usable_cores

OK, WARN, FAIL = "ok", "warn", "fail"
GB = 1e9
# What each optional group of packages is for; one that is not named here is listed without a purpose.
PURPOSES = {
    "accelerate": "training a whole network in several processes",
    "all": "everything but the documentation",
    "app": "the web page (octfast app)",
    "dev": "working on octfast: tests, lint, types",
    "docs": "building the documentation",
    "download": "octfast data download",
    "oct": "reading OCT volumes: DICOM and makers' formats",
    "onnx": "octfast export to ONNX",
    "mlflow": "--tracker mlflow",
    "openvino": "--engine openvino and --precision int8 on CPUs",
    "parquet": "parquet tables of scans",
    "sr": "octfast predict --dicom-sr",
    "tensorboard": "--tracker tensorboard",
    "test": "running the tests",
    "tune": "octfast tune",
    "wandb": "--tracker wandb (Weights & Biases)",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name : of the thing.
    status : "ok", "warn" (training works, but slower or with less) or "fail" (training cannot work).
    found : what was found, in one line.
    advice : what to do; empty where nothing is to be done.
    """

    name: str
    status: str
    found: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """As JSON takes it."""
        return asdict(self)


@dataclass(frozen=True)
class Extra:
    """A group of optional packages: what it is for, and which of them are `missing`."""

    name: str
    purpose: str
    packages: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def installed(self) -> bool:
        return not self.missing

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**asdict(self), "installed": self.installed}


def examine(arch: str = "vgg16_bn") -> list[Check]:
    """Check the computer as `octfast train` would find it: this folder, these environment variables.

    Parameters
    ----------
    arch : the architecture whose pretrained weights are looked for.
    """
    checks = [check_python(), check_packages()]
    torch = check_torch()
    checks.append(torch)
    if torch.status != FAIL:
        checks += [check_device(), check_precision()]
    checks += [check_cores(), check_memory(), check_shared_memory()]
    checks += [check_folder("run folders", Path("runs"), "train in another folder, or name one with --out")]
    checks += [_check_cache()]
    if torch.status != FAIL:
        checks.append(check_weights(arch))
    return [*checks, check_network()]


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Whether octfast supports this Python."""
    number = ".".join(map(str, version))
    found = f"{platform.python_implementation()} {number} on {platform.system()} {platform.machine()}"
    wanted = _metadata().get("Requires-Python", "")
    if wanted:
        from packaging.specifiers import SpecifierSet

        if not SpecifierSet(wanted).contains(number):
            return Check(
                "python", FAIL, f"{found}; octfast needs {wanted}", "make a virtual environment of another one"
            )
    return Check("python", OK, found)


def check_packages() -> Check:
    """Whether the packages that octfast needs are installed, in versions that it works with."""
    from packaging.requirements import Requirement

    needed = [r for r in map(Requirement, _metadata().get_all("Requires-Dist") or ()) if _is_wanted(r)]
    off = []
    for requirement in needed:
        version = _version(requirement.name)
        if version is None:
            off.append((requirement, "missing"))
        elif not requirement.specifier.contains(version, prereleases=True):
            off.append((requirement, version))
    if off:
        found = ", ".join(f"{r.name} {version} ({r.specifier} needed)" for r, version in off)
        install = " ".join(f"'{r.name}{r.specifier}'" for r, _ in off)
        return Check("packages", FAIL, found, f"pip install --upgrade {install}")
    main = ", ".join(f"{n} {_version(n)}" for n in ("octfast", "fastai", "timm", "safetensors"))
    return Check("packages", OK, f"{main}; all {len(needed)} needed are there")


def check_torch() -> Check:
    """Whether torch and torchvision can be imported together."""
    try:
        import torch
        import torchvision
    except Exception as e:  # two builds that do not fit together may raise anything
        found = f"cannot be imported: {type(e).__name__}: {' '.join(str(e).split())[:160]}"
        return Check("torch", FAIL, found, "reinstall both in one go: pip install --force-reinstall torch torchvision")
    return Check("torch", OK, f"torch {torch.__version__}, torchvision {torchvision.__version__}")


def check_device() -> Check:
    """Which device training would use."""
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found = ", ".join(f"{card.name} with {card.total_memory / GB:.0f} GB" for card in cards)
        return Check("device", OK, f"CUDA {torch.version.cuda}: {found}")
    if _nvidia_card():
        if torch.version.cuda is None:
            advice = "install torch with CUDA: see pytorch.org/get-started"
        else:
            advice = "look at nvidia-smi and CUDA_VISIBLE_DEVICES; the driver may be too old for this torch"
        return Check("device", WARN, "the CPU, though there is an NVIDIA card", advice)
    if getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
        return Check("device", OK, "Apple's GPU (MPS)")
    return Check("device", OK, "the CPU; no GPU was found, and none is needed")


def check_precision() -> Check:
    """Which precision the frozen part would run in."""
    import torch
    from torch import nn

    from octfast.model.engine import choose_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = choose_precision(nn.Identity(), "auto", device)
    if chosen == "fp32" and device.type == "cpu":
        openvino = _version("openvino") and _version("nncf")
        advice = (
            "" if openvino else "pip install 'octfast[openvino]', then --precision int8 runs the frozen part faster"
        )
        return Check("precision", OK, "fp32: this CPU does not multiply bf16 in hardware", advice)
    why = "in hardware" if device.type == "cpu" else "on the GPU"
    return Check("precision", OK, f"{chosen} for the frozen part, {why}")


def check_cores() -> Check:
    """How many cores there are, and whether torch uses as many."""
    cores = usable_cores()
    quota = _cgroup_cores()
    threads = _torch_threads()
    found = f"{cores} cores" if cores > 1 else "1 core"
    if quota is not None and quota < cores:
        found += f", of which this container may use {quota:g}"
    found += f"; torch uses {threads} thread{'' if threads == 1 else 's'}" if threads else ""
    usable = max(1, min(cores, int(quota) if quota is not None else cores))
    if threads and threads > usable:
        return Check("cores", WARN, found, f"threads that wait for each other are slow: set OMP_NUM_THREADS={usable}")
    if threads and threads * 2 <= usable and "OMP_NUM_THREADS" in os.environ:
        return Check("cores", WARN, found, "OMP_NUM_THREADS keeps torch from using the others: unset it")
    return Check("cores", OK, found)


def check_memory() -> Check:
    """How much memory is free, within the limit of a container."""
    total, free = _memory()
    if total is None or free is None:
        return Check("memory", OK, "could not be found out on this system; 4 GB are enough")
    found = f"{free / GB:.1f} of {total / GB:.1f} GB free"
    if free < 1.5 * GB:
        return Check("memory", WARN, found, "training takes 1.5 to 3 GB: close other programs, or take a smaller --bs")
    return Check("memory", OK, found)


def check_shared_memory(shm: str | Path = "/dev/shm") -> Check:
    """Whether shared memory is large enough for decoding in processes, which `--views 0` does."""
    if not Path(shm).is_dir():
        return Check("shared memory", OK, f"{shm} does not exist here and is not needed")
    free = shutil.disk_usage(shm).free
    found = f"{free / GB:.2f} GB free in {shm}"
    if free < shared_memory_needed():
        return Check(
            "shared memory",
            WARN,
            f"{found}, too little to decode in several processes",
            "only --views 0 is slower for it; in Docker, run with --shm-size=1g",
        )
    return Check("shared memory", OK, found)


def check_folder(name: str, folder: Path, advice: str, least: float = 0.2 * GB, enough: float = 2 * GB) -> Check:
    """Whether files can be written in a folder that may yet have to be made, and what room its disk has.

    Nothing is left behind, and the folder is not made.
    """
    there = folder.expanduser().absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"octfast")
        free = shutil.disk_usage(there).free
    except OSError as e:
        return Check(name, FAIL, f"cannot write in {folder.absolute()}: {e.strerror or e}", advice)
    found = f"{folder.absolute()}, {free / GB:.1f} GB free"
    if free < enough:
        return Check(name, FAIL if free < least else WARN, found, f"free some room, or {advice}")
    return Check(name, OK, found)


def check_weights(arch: str = "vgg16_bn") -> Check:
    """Whether the pretrained weights of an architecture are where octfast looks for them."""
    from octfast.model.weights.load import cached_file, expected_path, weights_url

    name = f"weights of {arch}"
    try:
        with _captured_log() as said:
            file = cached_file(arch)
        if file is not None:
            return Check(name, OK, f"{file}, {file.stat().st_size / 1e6:.0f} MB, checksum right")
        found = "; ".join(said) or "not on this machine"
        where = f"put {weights_url(arch)} at {expected_path(arch)}, or name the file with --weights"
        if is_offline():
            return Check(name, WARN, f"{found}, and OCTFAST_OFFLINE forbids to fetch them", where)
        return Check(name, WARN, found, f"the first training fetches them; without a network {where}")
    except OctfastError as e:
        return Check(name, WARN, e.message, e.hint)


def check_network() -> Check:
    """Whether octfast may use the network; the network is not tried."""
    forbidding = [name for name in ("OCTFAST_OFFLINE", "HF_HUB_OFFLINE") if is_set(name)]
    if forbidding:
        return Check("network", OK, f"{' and '.join(forbidding)} set: nothing will be fetched")
    return Check("network", OK, "used only to fetch weights and data sets; OCTFAST_OFFLINE=1 forbids it")


def list_extras() -> list[Extra]:
    """The optional groups of packages that this version of octfast knows, by name."""
    from packaging.requirements import Requirement

    needed = [Requirement(r) for r in _metadata().get_all("Requires-Dist") or ()]
    extras = []
    for name in sorted(_metadata().get_all("Provides-Extra") or ()):
        own = [r for r in needed if not _is_wanted(r) and _is_wanted(r, name)]
        packages = tuple(dict.fromkeys(r.name for r in own))
        missing = tuple(
            dict.fromkeys(r.name for r in own if not ((v := _version(r.name)) and r.specifier.contains(v, True)))
        )
        extras.append(Extra(name, PURPOSES.get(name, ""), packages, missing))
    return extras


def _check_cache() -> Check:
    return check_folder("cache", cache_root(), "name another with --cache or OCTFAST_CACHE")


def _metadata() -> Any:
    return metadata.metadata("octfast")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_wanted(requirement: Any, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _nvidia_card() -> bool:
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists()


def _torch_threads() -> int | None:
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else None


def _cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The cores' worth of time that a container's limit allows; None where there is no limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _memory(
    root: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")
) -> tuple[float | None, float | None]:
    """Bytes of memory, and those of them that are free for programs, in the machine or in the container."""
    try:
        lines = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(), re.M))
        total, free = float(lines["MemTotal"]) * 1024, float(lines["MemAvailable"]) * 1024
    except (OSError, KeyError):
        return None, None
    try:
        limit, used = int((root / "memory.max").read_text()), int((root / "memory.current").read_text())
        # Pages of files count as used and are given back when they are needed.
        cached = re.search(r"^inactive_file (\d+)", (root / "memory.stat").read_text(), re.M)
        used -= int(cached.group(1)) if cached else 0
        return min(total, limit), min(free, max(0, limit - used))
    except (OSError, ValueError):
        return total, free


@contextmanager
def _captured_log() -> Iterator[list[str]]:
    """The lines that octfast logs meanwhile; nobody else gets to see them."""
    lines: list[str] = []

    class Keep(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            lines.append(record.getMessage())
            return False

    log, keep = logging.getLogger("octfast"), Keep()
    log.addFilter(keep)
    try:
        yield lines
    finally:
        log.removeFilter(keep)
