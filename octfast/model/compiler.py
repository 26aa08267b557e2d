"""torch.compile: whether it can be had on this machine, and what it makes of a network."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Any

import torch
from torch import nn

from octfast.errors import OctfastError, UsageError

_WITHOUT = "leave --compile out: it changes the speed alone"


def check_compiler(device: torch.device | str) -> None:
    """
    Raises
    ------
    UsageError : torch.compile finds no C++ compiler, or on a GPU no Triton; or it is not for this device.
    """
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"--compile is for a CPU or a CUDA GPU, not for {kind}", _WITHOUT)
    if kind == "cuda" and importlib.util.find_spec("triton") is None:
        raise UsageError("--compile needs Triton, which is not installed", f"pip install triton; or {_WITHOUT}")
    named = os.environ.get("CXX")
    compilers = [named] if named else ["cl"] if os.name == "nt" else ["g++", "clang++", "c++"]
    if not any(map(shutil.which, compilers)):
        raise UsageError(
            f"--compile needs a C++ compiler, and there is no {' or '.join(compilers)}", f"install one; or {_WITHOUT}"
        )


def compiled_network(network: nn.Module, device: torch.device) -> nn.Module:
    """A network whose kernels torch.compile makes at its first call; the weights are shared.

    Raises
    ------
    UsageError : see `check_compiler`. At the first call OctfastError : it cannot be compiled.
    """
    check_compiler(device)
    return _Compiled(network)


def compile_in_place(module: nn.Module, device: torch.device) -> None:
    """Let a module that is trained run what torch.compile makes of it; names and places of its weights stay.

    Raises
    ------
    UsageError : see `check_compiler`.
    """
    check_compiler(device)
    module.compile()


class _Compiled(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self._run = torch.compile(network)

    def forward(self, x: Any) -> Any:
        try:
            return self._run(x)
        except Exception as e:
            if not type(e).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(e).strip().splitlines()[0][:200]
            raise OctfastError(f"this network cannot be compiled: {reason}", _WITHOUT) from e
