"""Runs a folded network on OpenVINO: float32, bf16, or int8 that NNCF calibrates on pictures."""

from __future__ import annotations

import hashlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octfast.errors import UsageError

log = logging.getLogger("octfast")

PRECISIONS = ("fp32", "bf16", "int8")
# Of VGG16-BN's features, 32, 64 and 200 pictures gave a relative error of 3.5% alike; each costs a third of a second.
CALIBRATION_PICTURES = 64
_HINT = "pip install 'octfast[openvino]'"


class OpenVinoEngine:
    """A network on a CPU through OpenVINO, compiled when it is first called.

    Parameters
    ----------
    network : in eval mode and folded (`octfast.model.engine.fold`), in float32 on a CPU; it is kept, not changed.
    precision : "auto" (bf16 where the CPU has it), "fp32", "bf16" or "int8".
    tail : run by torch in float32 on what the network gave.
    calibration : for int8; gives batches of pictures, float32 of shape (B, 3, H, W), of which the first
        `CALIBRATION_PICTURES` are used. It is called once, at once, so that `key` is known; NNCF runs at the first
        call.

    Attributes
    ----------
    precision : fp32, bf16 or int8.
    name, description, key : see `octfast.model.engine.Engine`.

    Raises
    ------
    UsageError : OpenVINO (or, for int8, NNCF) is not installed; an unknown precision; bf16 on a CPU without it; int8
        without pictures to calibrate on.
    """

    name = "openvino"

    def __init__(
        self,
        network: nn.Module,
        precision: str = "auto",
        tail: nn.Module | None = None,
        calibration: Callable[[], Iterable[Tensor]] | None = None,
    ):
        openvino = _import("openvino")
        self.device = torch.device("cpu")
        self._core = openvino.Core()
        self.precision = _choose_precision(precision, self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        self._net, self._tail = network, tail
        self._size: tuple[int, ...] = ()
        self._compiled: Any = None
        version = openvino.get_version().split("-")[0]
        self.description = f"{self.precision} by OpenVINO {version} on cpu"
        self.key: dict[str, Any] = {"name": self.name, "precision": self.precision, "version": version}
        self._pictures = torch.empty(0)
        if self.precision == "int8":
            self.key["nncf"] = _import("nncf").__version__
            self._pictures = _first_pictures(calibration)
            self.key["calibration"] = hashlib.sha256(self._pictures.numpy().tobytes()).hexdigest()[:20]

    def __call__(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run pictures, float32 of shape (B, 3, H, W), through the network; what it gives comes back in float32.

        Raises
        ------
        UsageError : pictures of another size than those of the first call, or than those calibrated on.
        """
        x = x.detach().as_subclass(Tensor).to("cpu", torch.float32).contiguous()
        size = tuple(x.shape[1:])
        if self._compiled is None:
            self._compile(x)
        if size != self._size:
            raise UsageError(f"this engine was made for pictures of {self._size}, not {size}", "make another engine")
        # OpenVINO writes every answer into the same memory unless told not to share it.
        given = self._compiled(x.numpy(), share_inputs=True, share_outputs=False)
        out = tuple(torch.from_numpy(given[i]) for i in range(len(self._compiled.outputs)))
        if len(out) > 1:
            return out
        with torch.inference_mode():
            return out[0] if self._tail is None else self._tail(out[0])

    def _compile(self, x: Tensor) -> None:
        model = convert(self._net, x[:1])
        if self.precision == "int8":
            log.info("calibrating int8 on %d pictures", len(self._pictures))
            model = quantise(model, self._pictures)
            self._pictures = torch.empty(0)
        settings = {
            # What int8 leaves in floats is left in float32, so that its numbers are those of any machine.
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            # Pinned threads stand still where another process has the core.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = self._core.compile_model(model, "CPU", settings)
        self._size = tuple(x.shape[1:])


def convert(network: nn.Module, example: Tensor) -> Any:
    """An `openvino.Model` of a network, of any number of pictures of the example's size, shape (1, 3, H, W).

    Raises
    ------
    UsageError : neither torch.export nor torch.jit can follow the network.
    """
    openvino = _import("openvino")
    # torch.export takes a batch of 1 for a constant.
    example = example.repeat(2, 1, 1, 1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            batch = torch.export.Dim("batch", min=1, max=4096)
            program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
            model = openvino.convert_model(program)
        except Exception as e:  # tracing meets any Python there is
            log.debug("torch.export: %s", e)
            try:
                model = openvino.convert_model(network, example_input=example)
            except Exception as last:
                first_line = (str(last).splitlines() or [type(last).__name__])[0]
                raise UsageError(f"OpenVINO cannot convert this network: {first_line}", "use --engine torch") from last
    model.reshape([-1, *example.shape[1:]])
    return model


def quantise(model: Any, pictures: Tensor) -> Any:
    """The model in int8, its ranges those of the pictures, float32 of shape (N, 3, H, W); the same each time."""
    nncf = _import("nncf")
    shown = logging.getLogger("nncf")
    level, progress = shown.level, _progress_of(nncf)
    shown.setLevel(logging.ERROR)
    try:
        with progress:
            # Symmetric ranges (the default for networks of convolutions) were .1 points nearer than asymmetric ones.
            return nncf.quantize(model, nncf.Dataset([p[None].numpy() for p in pictures]), subset_size=len(pictures))
    finally:
        shown.setLevel(level)
