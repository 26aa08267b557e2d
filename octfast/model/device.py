"""Where a model runs: the device by its name, and what of it decides the last digits."""

from __future__ import annotations

import difflib
import logging
import os
import re
from typing import Any

import torch

from octfast.errors import UsageError

log = logging.getLogger("octfast")

DEVICES = ("auto", "cpu", "cuda", "mps")


def find_device(name: str | torch.device | None = None, *, apple: bool = False) -> torch.device:
    """The device of this name.

    Parameters
    ----------
    name : auto (or None), cpu, cuda, cuda:1 and so on, or mps. "auto" is a CUDA GPU where there is one, else the CPU.
    apple : whether "auto" takes Apple's GPU before the CPU, as fastai does in training.

    Raises
    ------
    UsageError : there is no such device, or it cannot be used.
    """
    name = "auto" if name is None else str(name)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if apple and _has_mps() else "cpu")
    kind = name.partition(":")[0]
    if kind == "cuda" and re.fullmatch(r"cuda(:\d+)?", name):
        return _cuda(name)
    if name == "mps":
        if not _has_mps():
            raise UsageError("--device mps: there is no Apple GPU here that torch can use", "use --device auto")
        if os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") != "1":
            log.warning("what Apple's GPU cannot do will fail: set PYTORCH_ENABLE_MPS_FALLBACK=1 before Python starts")
        return torch.device("mps")
    if name == "cpu":
        return torch.device("cpu")
    near = ["cuda"] if kind in ("gpu", "nvidia") else difflib.get_close_matches(kind, DEVICES, n=1, cutoff=0.5)
    raise UsageError(
        f"no device named {name!r}", f"did you mean {near[0]}?" if near else "auto, cpu, cuda, cuda:1 or mps"
    )


def half_of(capability: tuple[int, int]) -> str:
    """The precision for a CUDA GPU of this compute capability.

    bf16 from 8.0 (Ampere), which has it in its tensor cores: the range of float32, as on a CPU. fp16 for 7.0 to 7.5
    (Volta, Turing), whose tensor cores know no bf16. fp32 below, where half precision is no faster and on some cards a
    64th as fast.
    """
    if capability >= (8, 0):
        return "bf16"
    return "fp16" if capability >= (7, 0) else "fp32"


def describe_device(device: torch.device) -> dict[str, Any]:
    """What config.json says of a GPU; empty for a CPU.

    `gpu`, `compute_capability`, `gpu_memory_gb`, `cudnn`, and the choices that decide the last digits of float32:
    `tf32_matmul`, `tf32_convolutions` (of training; the frozen part in fp32 never uses TF32), `cudnn_benchmark`,
    `deterministic`.
    """
    if device.type == "mps":
        return {"gpu": "Apple (MPS)", "mps_fallback": os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1"}
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
        "cudnn": torch.backends.cudnn.version(),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _cuda(name: str) -> torch.device:
    if not torch.cuda.is_available():
        reason = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no NVIDIA GPU"
        raise UsageError(f"--device {name}: {reason}", "use --device cpu, or see what octfast doctor says")
    device, count = torch.device(name), torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise UsageError(f"--device {name}: there are {count} GPUs, numbered from 0", f"use cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _has_mps() -> bool:
    return getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available()
