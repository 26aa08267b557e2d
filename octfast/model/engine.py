"""Runs a finished network as fast as this machine can: folded, in reduced precision, by torch or OpenVINO."""

from __future__ import annotations

import copy
import difflib
import importlib.util
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from octfast.errors import UsageError
from octfast.model.arch import PooledStage
from octfast.model.compiler import compiled_network
from octfast.model.depths import Depths
from octfast.model.device import half_of
from octfast.model.memory import Passes

if TYPE_CHECKING:
    from octfast.model.openvino import OpenVinoEngine

log = logging.getLogger("octfast")

ENGINES = ("auto", "torch", "openvino")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
# While torch.fx traces, it takes the place of every module's call. Two traces at once would leave it there for good.
_TRACING = threading.Lock()
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_engine(
    network: nn.Module,
    *,
    engine: str = "auto",
    precision: str = "auto",
    device: torch.device | str | None = None,
    tail: nn.Module | None = None,
    calibration: Callable[[], Iterable[Tensor]] | None = None,
    cache: str | Path | None = None,
    compiled: bool = False,
) -> Engine | OpenVinoEngine:
    """An engine, to be called with pictures, that runs a copy of the network: in eval mode, folded, in low precision.

    Parameters
    ----------
    network : what to run; the caller's is not changed.
    engine : one of `ENGINES`. "auto" is torch, but OpenVINO for int8.
    precision : one of `PRECISIONS`. "auto" is the half precision that the machine has, else float32; never int8.
    device : None takes the network's.
    tail : run by torch in float32 on the network's output; a head.
    calibration : for int8; gives batches of training pictures as the network sees them, float32 of shape
        (B, 3, H, W), of which the first few are used (see `octfast.model.openvino`).
    cache : root of the cache, where a network in int8 is kept; None takes the user's.
    compiled : whether torch.compile makes kernels of the network; not of OpenVINO's.

    Raises
    ------
    UsageError : see `check_engine` and `octfast.model.compiler.check_compiler`; or int8 without pictures; or a
        network that OpenVINO cannot convert (at the first call).
    """
    device = torch.device(device or next(network.parameters()).device)
    if check_engine(engine, precision, device) == "torch":
        return Engine(network, precision, device, tail, compiled=compiled)
    if compiled:
        raise UsageError("--compile is torch's, and OpenVINO compiles by itself", "leave --compile out")
    from octfast.model.openvino import OpenVinoEngine

    folded = _folded(network).to(device, torch.float32)
    return OpenVinoEngine(folded, precision, tail=_copied(tail, device), calibration=calibration, cache=cache)


def check_engine(engine: str, precision: str, device: torch.device | str = "cpu") -> str:
    """The name of the engine that would run: torch or openvino.

    Raises
    ------
    UsageError : an unknown engine or precision, two that do not go together, fp16 on a CPU, OpenVINO on a GPU, or
        OpenVINO where it is not installed.
    """
    for what, given, known in (("engine", engine, ENGINES), ("precision", precision, PRECISIONS)):
        if given not in known:
            near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
            raise UsageError(f"no {what} named {given!r}", hint)
    kind = torch.device(device).type
    if kind == "cpu" and precision == "fp16":
        raise UsageError("half precision on a CPU is bf16, not fp16", "use --precision bf16")
    if precision != "int8" and engine != "openvino":
        return "torch"
    if engine == "torch":
        raise UsageError("int8 is run by OpenVINO, not by torch", "leave --engine out, or use --precision bf16")
    what = "int8 needs OpenVINO, which runs" if precision == "int8" else "OpenVINO runs"
    if kind != "cpu":
        raise UsageError(f"{what} on a CPU, not on {kind}", "use --engine torch --precision auto")
    for package in ("openvino", "nncf") if precision == "int8" else ("openvino",):
        if not _installed(package):
            needs = "--precision int8" if precision == "int8" else "--engine openvino"
            raise UsageError(f"{needs} needs {package}, which is not installed", "pip install 'octfast[openvino]'")
    return "openvino"


class Engine:
    """A copy of a network, run by torch: in eval mode, batch norms folded into convolutions, in the chosen precision.

    Parameters
    ----------
    network : what to run; the caller's is not changed.
    tail : run in float32 on the network's output; a head, which is small and needs the precision.
    precision : "auto", "fp32", "bf16" or "fp16".
    compiled : whether torch.compile makes kernels of the network, at the first call.

    A batch that memory is too small for is run in passes of half as many pictures, and half of that; see
    `octfast.model.memory.Passes`. In fp32 a GPU convolves in float32 and never in TF32.

    Attributes
    ----------
    precision : fp32, bf16 or fp16.
    passes : how many pictures memory has been found to hold at once.
    device : where it runs.
    name : of the library that runs it.
    description : one phrase for a person.
    key : what its output depends on beside the weights and the pictures: the library, its version, the precision and,
        for int8, a digest of the pictures it was calibrated on.
    """

    name = "torch"

    def __init__(
        self,
        network: nn.Module,
        precision: str = "auto",
        device: torch.device | str | None = None,
        tail: nn.Module | None = None,
        *,
        compiled: bool = False,
    ):
        self.device = torch.device(device or next(network.parameters()).device)
        self._net = _folded(network).to(self.device).to(memory_format=torch.channels_last)
        self.precision = choose_precision(self._net, precision, self.device)
        self._net = self._net.to(_DTYPES[self.precision])
        self._tail = _copied(tail, self.device)
        self.description = f"{self.precision} by torch {torch.__version__.split('+')[0]} on {self.device.type}"
        self.key: dict[str, Any] = {"name": self.name, "precision": self.precision, "version": torch.__version__}
        self.passes = Passes("the network", last=False)
        if compiled:
            # Fused kernels round otherwise, so that what they give is stored apart.
            self._net = compiled_network(self._net, self.device)
            self.description += ", compiled"
            self.key["compiled"] = True

    def __call__(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run pictures, float32 of shape (B, 3, H, W), through the network; the output is float32.

        Raises
        ------
        torch.cuda.OutOfMemoryError, RuntimeError, MemoryError : memory is too small for a single picture.
        """
        with torch.inference_mode(), self._exact():
            if not len(x):
                return self._pass(x)
            outs = self.passes(len(x), lambda part: self._pass(x[part]))
            if len(outs) == 1:
                return outs[0]
            if isinstance(outs[0], tuple):
                return tuple(torch.cat(parts) for parts in zip(*outs, strict=True))
            return torch.cat([out for out in outs if isinstance(out, Tensor)])

    def _pass(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = x.as_subclass(Tensor).to(self.device, _DTYPES[self.precision], non_blocking=True)
        out = self._net(x.contiguous(memory_format=torch.channels_last))
        if isinstance(out, tuple):
            return tuple(o.float() for o in out)
        return out.float() if self._tail is None else self._tail(out.float())

    @contextmanager
    def _exact(self) -> Iterator[None]:
        """Without TF32, which keeps 10 bits of a float32's 23, where float32 was asked for."""
        if self.device.type != "cuda" or self.precision != "fp32":
            yield
            return
        cudnn = torch.backends.cudnn
        before, cudnn.allow_tf32 = cudnn.allow_tf32, False
        try:
            yield
        finally:
            cudnn.allow_tf32 = before


def fold(network: nn.Module) -> nn.Module:
    """Fold every batch norm in eval mode into the convolution before it, which is exact up to rounding, in place.

    Sequences are folded here and the blocks of residual networks through torch.fx; where a block cannot be traced,
    those of its parts that can be are folded.
    """
    if isinstance(network, PooledStage):
        network.stage = fold(network.stage)
        return network
    if isinstance(network, Depths):
        # Traced as a whole it would lose what gives the maps of several depths.
        for name, child in list(network.network.named_children()):
            setattr(network.network, name, fold(child))
        return network
    if type(network) is nn.Sequential:
        out: list[nn.Module] = []
        for m in network.children():
            # Not a kind of batch norm: timm's are followed by an activation of their own.
            if type(m) is nn.BatchNorm2d and out and type(out[-1]) is nn.Conv2d:
                out[-1] = fuse_conv_bn_eval(out[-1], m)
            else:
                out.append(fold(m))
        return nn.Sequential(*out)
    if any(isinstance(m, nn.BatchNorm2d) for m in network.children()):
        from torch.fx.experimental.optimization import fuse

        for module in list(network.modules()):
            for name, child in list(module.named_children()):
                # timm's batch norm with an activation, in which torch.fx would find no batch norm.
                if type(child).__name__ == "BatchNormAct2d":
                    setattr(module, name, _norm_and_activation(child))
        try:
            with _TRACING:
                return fuse(network, inplace=False)
        except Exception as e:  # tracing can meet any Python code
            log.debug("not folded as a whole: %s", e)
    for name, child in list(network.named_children()):
        setattr(network, name, fold(child))
    return network


def _norm_and_activation(norm: Any) -> nn.Sequential:
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    plain.load_state_dict(norm.state_dict(), strict=False)
    return nn.Sequential(plain, norm.drop, norm.act).eval().requires_grad_(False)


def choose_precision(network: nn.Module, precision: str, device: torch.device) -> str:
    """The precision to run in: what was asked for, or by what the machine has.

    Nothing is timed to decide it: beside other work a trial could end differently, and the same scans would get other
    probabilities.

    Raises
    ------
    UsageError : an unknown precision, int8, or fp16 on a CPU.
    """
    check_engine("torch", precision, device)
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return half_of(torch.cuda.get_device_capability(device))
    return "bf16" if device.type == "cpu" and _has_bf16() else "fp32"


def half_where_fast() -> torch.autocast | nullcontext:
    """A context in which torch convolves in bf16 where this CPU multiplies it in hardware; elsewhere nothing changes.

    For what is trained, or measured once, and so cannot be folded into an `Engine`. Weights, statistics of batch norms
    and losses stay in float32.
    """
    # Without its cache: that keeps weights as they were when the context began, whatever a training makes of them.
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if _has_bf16() else nullcontext()


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread of the CPU.

    For networks so small that threads wait for each other longer than they compute, and far longer beside other work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _folded(network: nn.Module) -> nn.Module:
    return fold(copy.deepcopy(network).eval().requires_grad_(False))


def _copied(tail: nn.Module | None, device: torch.device) -> nn.Module | None:
    if tail is None:
        return None
    copied = copy.deepcopy(tail).eval()
    # Apple's GPU has no float64.
    return (copied.float() if device.type == "mps" else copied).to(device)


def _installed(package: str) -> bool:
    """Whether it can be imported; it is not imported here, as OpenVINO's telemetry must be silenced first."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # what stands in sys.modules under this name is no module
        return False


def _has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware and torch uses that; elsewhere bf16 is emulated, slowly."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(k, False) for k in ("avx512_bf16", "amx_bf16", "amx", "bf16", "sve_bf16"))
    except AttributeError:
        pass
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, c)() for c in checks if hasattr(torch.cpu, c))
