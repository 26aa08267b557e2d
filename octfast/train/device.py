"""Where and how a training computes: the device that fastai takes, and whether it repeats bit for bit."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from fastai.torch_core import default_device
from fastcore.basics import defaults

from octfast.errors import OctfastError
from octfast.model.device import find_device

log = logging.getLogger("octfast")

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def computing(device: str = "auto", deterministic: bool = False) -> Iterator[torch.device]:
    """Inside, fastai makes DataLoaders and models on this device; afterwards it goes on as before.

    Parameters
    ----------
    device : see `octfast.model.device.find_device`; "auto" takes Apple's GPU, too.
    deterministic : whether torch takes algorithms that repeat bit for bit alone, and cuDNN tries none out.

    Raises
    ------
    UsageError : there is no such device.
    OctfastError : something that has to be computed has no algorithm that repeats.
    """
    found = find_device(device, apple=True)
    before = getattr(defaults, "use_cuda", None)
    with torch.cuda.device(found) if found.type == "cuda" else nullcontext():
        default_device(found.type != "cpu")
        try:
            with _repeating() if deterministic else nullcontext():
                yield found
        finally:
            defaults.use_cuda = before


@contextmanager
def _repeating() -> Iterator[None]:
    if os.environ.get(_CUBLAS) not in (":4096:8", ":16:8"):
        # cuBLAS reads it as the first product is computed on the GPU.
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            log.warning("the GPU is in use already: for --deterministic set %s=:4096:8 before Python starts", _CUBLAS)
        os.environ[_CUBLAS] = ":4096:8"
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as e:
        if "deterministic" not in str(e):
            raise
        what = str(e).split(" ")[0]
        raise OctfastError(
            f"--deterministic: torch has no way to compute {what} on this GPU that repeats bit for bit",
            "train a head alone, or on the CPU (--device cpu), or leave --deterministic out",
        ) from e
    finally:
        cudnn.benchmark = before[0]
        torch.use_deterministic_algorithms(before[1], warn_only=lenient)
