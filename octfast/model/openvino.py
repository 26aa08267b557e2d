"""Runs a folded network on OpenVINO: float32, bf16, or int8 that NNCF calibrates on pictures."""

from __future__ import annotations

import hashlib
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from octfast.errors import UsageError
from octfast.model.networks import keep_network, kept_network

log = logging.getLogger("octfast")

PRECISIONS = ("fp32", "bf16", "int8")
# On real scans 8, 16 and 64 pictures gave the pooled features of VGG16-BN a relative error of 2.6%, 2.4% and 2.3%,
# in 4.5, 6.4 and 18.5 processor seconds.
CALIBRATION_PICTURES = 16
HINT = "pip install 'octfast[openvino]'"


class OpenVinoEngine:
    """A network on a CPU through OpenVINO, compiled when it is first called.

    Parameters
    ----------
    network : in eval mode and folded (`octfast.model.engine.fold`), in float32 on a CPU; it is kept, not changed.
    precision : "auto" (bf16 where the CPU has it), "fp32", "bf16" or "int8".
    tail : run by torch in float32 on the network's output.
    calibration : for int8; gives batches of pictures, float32 of shape (B, 3, H, W), of which the first
        `CALIBRATION_PICTURES` are used. It is called once, in the constructor, as `key` depends on the pictures; NNCF
        runs when the engine is first called.
    cache : root of the cache, where a network in int8 is kept and found again (see `octfast.model.networks`); None
        takes the user's.

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
        cache: str | Path | None = None,
    ):
        openvino = _import("openvino")
        self.device = torch.device("cpu")
        self._core = openvino.Core()
        self.precision = _choose_precision(precision, self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        self._net, self._tail, self._cache = network, tail, cache
        self._size: tuple[int, ...] = ()
        self._compiled: Any = None
        release = openvino.get_version().split("-")[0]
        self.description = f"{self.precision} by OpenVINO {release} on cpu"
        self.key: dict[str, Any] = {"name": self.name, "precision": self.precision, "version": release}
        self._pictures = torch.empty(0)
        if self.precision == "int8":
            self.key["nncf"] = version("nncf")
            self._pictures = _first_pictures(calibration)
            self.key["calibration"] = hashlib.sha256(self._pictures.numpy().tobytes()).hexdigest()[:20]

    def __call__(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run pictures, float32 of shape (B, 3, H, W), through the network; the output is float32.

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
        if len(self._pictures) and self._pictures.shape[1:] != x.shape[1:]:
            asked, given = tuple(x.shape[1:]), tuple(self._pictures.shape[1:])
            raise UsageError(f"int8 was calibrated on pictures of {given}, not {asked}", "make another engine")
        model = self._quantised(x) if self.precision == "int8" else convert(self._net, x[:1])
        settings = {
            # The part that int8 leaves in floats runs in float32, so that every machine gives the same numbers.
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            # A pinned thread waits while another process has its core.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = self._core.compile_model(model, "CPU", settings)
        self._size = tuple(x.shape[1:])

    def _quantised(self, x: Tensor) -> Any:
        """The network in int8, from the cache where the same one was calibrated on the same pictures before."""
        pictures, self._pictures = self._pictures, torch.empty(0)
        key = {**self.key, "size": list(x.shape[1:]), "body": _digest(self._net), "pictures": len(pictures)}
        file = kept_network(key, self._cache)
        if file is not None:
            log.info(
                "int8: the network calibrated on the same %d pictures before is taken from the cache", len(pictures)
            )
            return self._core.read_model(file)
        log.info("calibrating int8 on %d pictures", len(pictures))
        model = quantise(convert(self._net, x[:1]), pictures, transformer=_has_attention(self._net))
        save = _import("openvino").save_model
        keep_network(key, model, lambda m, path: save(m, path, compress_to_fp16=False), self._cache)
        return model


def convert(network: nn.Module, example: Tensor) -> Any:
    """An `openvino.Model` of a network, of any number of pictures of the example's size, shape (1, 3, H, W).

    Raises
    ------
    UsageError : neither torch.export nor torch.jit can follow the network.
    """
    openvino = _import("openvino")
    # torch.export takes a batch of 1 for a constant.
    example = example.repeat(2, 1, 1, 1)
    try:
        with torch.no_grad(), _quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                batch = torch.export.Dim("batch", min=1, max=4096)
                program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
                model = openvino.convert_model(program)
            except Exception as e:  # tracing can meet any Python code
                log.debug("torch.export: %s", e)
                model = openvino.convert_model(network, example_input=example)
                _check(model, network, example)
        model.reshape([-1, *example.shape[1:]])
    except Exception as e:
        line = (str(e).splitlines() or [type(e).__name__])[0]
        raise UsageError(f"OpenVINO cannot convert this network: {line}", "use --engine torch") from e
    return model


def _check(model: Any, network: nn.Module, example: Tensor) -> None:
    """torch.jit silently turns what it cannot follow into constants, which other pictures than the example reveal.

    Raises
    ------
    ValueError : the model's answers differ from the network's.
    """
    other = torch.randn(3, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    expected = network(other)
    given = _import("openvino").compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(other.numpy())
    for i, e in enumerate(expected if isinstance(expected, tuple) else (expected,)):
        if given[i].shape != tuple(e.shape) or not torch.allclose(torch.from_numpy(given[i]), e, 1e-2, 1e-2):
            raise ValueError("its answers would not be the network's")


def quantise(model: Any, pictures: Tensor, *, transformer: bool = False) -> Any:
    """An `openvino.Model` in int8, with the ranges of its activations over the pictures; deterministic.

    Parameters
    ----------
    model : from `convert`.
    pictures : float32 of shape (N, 3, H, W).
    transformer : whether it has attention, of which a part is then left in float32.
    """
    nncf = _import("nncf")
    with _quiet():
        # NNCF's default for convolutions, symmetric ranges, was at least as near to float32 as asymmetric ones.
        return nncf.quantize(
            model,
            nncf.Dataset([p[None].numpy() for p in pictures]),
            subset_size=len(pictures),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            ignored_scope=nncf.IgnoredScope(names=_after_the_layers(model), validate=False),
            # It took a third of the time and left the features of VGG16-BN as they were to the last digit.
            advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=not transformer),
        )


# The layers that are worth running in int8, and those that lie between them.
_LAYERS = ("Convolution", "GroupConvolution", "MatMul", "MaxPool", "AvgPool", "Relu", "Parameter", "Constant")


def _after_the_layers(model: Any) -> list[str]:
    """The names of the operations after the last layers: pooling, whose standard deviations 8 bits would spoil."""
    found: set[str] = set()
    left = [result.input_value(0).get_node() for result in model.get_results()]
    while left:
        node = left.pop()
        if node.get_type_name() not in _LAYERS and node.get_friendly_name() not in found:
            found.add(node.get_friendly_name())
            left += [i.get_source_output().get_node() for i in node.inputs()]
    return sorted(found)


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256(repr(network).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:20]


def _has_attention(network: nn.Module) -> bool:
    return any("attention" in type(m).__name__.lower() for m in network.modules())


def _choose_precision(precision: str, capabilities: Iterable[str]) -> str:
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"OpenVINO does not run in {precision}", f"one of auto, {', '.join(PRECISIONS)}")
    bf16 = "BF16" in capabilities
    if precision == "bf16" and not bf16:
        raise UsageError("this CPU has no bf16 for OpenVINO", "use --precision fp32 or int8")
    if precision == "auto":
        return "bf16" if bf16 else "fp32"
    return precision


def _first_pictures(calibration: Callable[[], Iterable[Tensor]] | None) -> Tensor:
    parts: list[Tensor] = []
    for batch in calibration() if calibration else ():
        left = CALIBRATION_PICTURES - sum(map(len, parts))
        parts.append(batch.detach().as_subclass(Tensor)[:left].to("cpu", torch.float32, copy=True))
        if len(batch) >= left:
            break
    pictures = torch.cat(parts) if parts else torch.empty(0)
    if not len(pictures):
        raise UsageError("int8 needs pictures to be calibrated on, and there are none", "use --precision bf16 or fp32")
    return pictures.contiguous()


def _import(name: str) -> ModuleType:
    """Import OpenVINO or NNCF, with their telemetry off.

    Raises
    ------
    UsageError : it is not installed.
    """
    _silence_telemetry()
    try:
        with _quiet():
            return importlib.import_module(name)
    except ImportError as e:
        raise UsageError(f"{name} cannot be imported: {e}", HINT) from e


def _silence_telemetry() -> None:
    """Turn off the telemetry of both, which otherwise report to Google Analytics from their import on, unasked.

    NNCF has an environment variable for that, but OpenVINO only a file in the user's home. Both work without telemetry
    where the package that reports cannot be imported.
    """
    package = sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    if package is not None:
        # OpenVINO was imported before octfast got here.
        sys.modules["openvino_telemetry.main"].TelemetrySender.send = lambda *args, **kwargs: None  # type: ignore[attr-defined]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's progress bars and remarks off standard output, which is for results."""
    # The second warns that there is no CUDA where a variable says where it would be.
    loggers = [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
