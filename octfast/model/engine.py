"""Runs a network that will not change as fast as this machine can: folded, channels last, in half precision."""

from __future__ import annotations

import copy
import logging
import time

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from octfast.errors import UsageError
from octfast.model.arch import PooledStage

log = logging.getLogger("octfast")

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """A network in eval mode, copied, its convolutions and batch norms folded, in the precision that was chosen.

    Parameters
    ----------
    network : what to run; the caller's is not changed.
    tail : run in float32 on what the network gave; a head, which is small and wants the precision.
    precision : "auto" or one of `PRECISIONS`.

    Attributes
    ----------
    precision : fp32, bf16 or fp16.
    device : where it runs.
    """

    def __init__(
        self,
        network: nn.Module,
        precision: str = "auto",
        device: torch.device | str | None = None,
        tail: nn.Module | None = None,
    ):
        self.device = torch.device(device or next(network.parameters()).device)
        self._net = fold(copy.deepcopy(network).eval().requires_grad_(False)).to(self.device)
        self._net = self._net.to(memory_format=torch.channels_last)
        self.precision = choose_precision(self._net, precision, self.device)
        self._net = self._net.to(_DTYPES[self.precision])
        self._tail = copy.deepcopy(tail).eval().to(self.device) if tail is not None else None

    def __call__(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run pictures, float32 of shape (B, 3, H, W), through the network; what it gives comes back in float32."""
        with torch.inference_mode():
            x = x.as_subclass(Tensor).to(self.device, _DTYPES[self.precision], non_blocking=True)
            out = self._net(x.contiguous(memory_format=torch.channels_last))
            if isinstance(out, tuple):
                return tuple(o.float() for o in out)
            return out.float() if self._tail is None else self._tail(out.float())


def fold(network: nn.Module) -> nn.Module:
    """Fold every batch norm in eval mode into the convolution before it, which is exact up to rounding, in place.

    Sequences are folded here and the blocks of residual networks through torch.fx; what cannot be traced is left as
    it is.
    """
    if isinstance(network, PooledStage):
        network.stage = fold(network.stage)
        return network
    if type(network) is nn.Sequential:
        out: list[nn.Module] = []
        for m in network.children():
            if isinstance(m, nn.BatchNorm2d) and out and isinstance(out[-1], nn.Conv2d):
                out[-1] = fuse_conv_bn_eval(out[-1], m)
            else:
                out.append(fold(m))
        return nn.Sequential(*out)
    if any(isinstance(m, nn.BatchNorm2d) for m in network.children()):
        from torch.fx.experimental.optimization import fuse

        try:
            return fuse(network, inplace=False)
        except Exception:  # tracing meets any Python there is
            return network
    for name, child in list(network.named_children()):
        setattr(network, name, fold(child))
    return network


def choose_precision(network: nn.Module, precision: str, device: torch.device) -> str:
    """The precision to run in: what was asked for, or by what the machine has and, on a CPU, a trial of a second.

    Raises
    ------
    UsageError : an unknown precision, or fp16 on a CPU.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"no precision named {precision!r}", f"one of {', '.join(PRECISIONS)}")
    if device.type == "cpu" and precision == "fp16":
        raise UsageError("half precision on a CPU is bf16, not fp16", "use --precision bf16")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "fp16"
    if device.type != "cpu" or not _has_bf16():
        return "fp32"
    return "bf16" if _bf16_is_faster() else "fp32"


_trial: list[bool] = []


def _bf16_is_faster() -> bool:
    """Time one convolution as VGG's middle ones are, in both precisions; once a process."""
    if not _trial:
        conv = nn.Conv2d(256, 256, 3, padding=1).to(memory_format=torch.channels_last)
        x = torch.randn(2, 256, 56, 56).contiguous(memory_format=torch.channels_last)
        seconds = {}
        for dtype in (torch.float32, torch.bfloat16):
            layer, y = conv.to(dtype), x.to(dtype)
            with torch.inference_mode():
                layer(y)
                best = float("inf")
                for _ in range(5):
                    start = time.perf_counter()
                    layer(y)
                    best = min(best, time.perf_counter() - start)
            seconds[dtype] = best
        _trial.append(seconds[torch.bfloat16] < 0.9 * seconds[torch.float32])
    return _trial[0]


def _has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; elsewhere it is emulated, slowly."""
    try:
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(k, False) for k in ("avx512_bf16", "amx_bf16", "amx", "bf16", "sve_bf16"))
    except AttributeError:
        pass
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, c)() for c in checks if hasattr(torch.cpu, c))
