"""What a process with a share of a batch computes as if it had the whole: batch norms, dropout, random draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Those of torch.Tensor that fill it at random.
_FILLS = ("bernoulli_", "exponential_", "normal_", "random_", "uniform_")


def share(count: int, rank: int, size: int) -> int:
    """How many of a batch's scans a process has: each takes every `size`-th, so that the first ones have one more."""
    return max(0, -(-(count - rank) // size))


class WholeBatch(TorchFunctionMode):
    """Inside, batch norms that learn take their statistics from all processes, and what is drawn is for all.

    Each process draws the random numbers of the whole batch and takes those of its own scans. So a network of batch
    norms and dropout learns what it learns in one process, but for rounding, where all draw from the same state.

    Parameters
    ----------
    rank, size : this process's number, and how many there are.
    count : scans of a whole batch; this process has every `size`-th of them, from `rank` on.
    """

    def __init__(self, rank: int, size: int, count: int):
        super().__init__()
        self.rank, self.size, self.count = rank, size, count
        self.own = share(count, rank, size)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.batch_norm:
            return batch_norm(*args, **kwargs)
        if func is functional.dropout:
            return self._dropout(*args, **kwargs)
        if getattr(func, "__name__", "") in _FILLS and args[0].shape[:1] == (self.own,):
            x = args[0]
            return x.copy_(self._rows(x, lambda whole: func(whole, *args[1:], **kwargs)))
        return func(*args, **kwargs)

    def _rows(self, like: Tensor, fill: Callable[[Tensor], Any]) -> Tensor:
        """This process's rows of a tensor of the whole batch that is filled."""
        whole = torch.empty((self.count, *like.shape[1:]), dtype=like.dtype, device=like.device)
        fill(whole)
        return whole[self.rank :: self.size]

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not p or x.shape[:1] != (self.own,):
            return functional.dropout(x, p, training, inplace)
        # What torch does: where a number is dropped its share is 0, elsewhere it makes up for those.
        return x * self._rows(x.detach(), lambda whole: whole.bernoulli_(1 - p).div_(1 - p or 1))


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` over what all processes have of a batch, of shape (B, C, ...) each.

    On a GPU it is what `torch.nn.SyncBatchNorm` computes, which there is not for a CPU.
    """
    x = x.as_subclass(Tensor)
    if not training:
        return functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if x.is_cuda:
        from torch.nn.modules._functions import SyncBatchNorm

        group = distributed.group.WORLD
        size = distributed.get_world_size()
        return SyncBatchNorm.apply(x, weight, bias, running_mean, running_var, eps, momentum, group, size)
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    out, mean, var, count = _WholeNorm.apply(x, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * count / (count - 1).clamp(min=1)).to(running_var), momentum)
    return out


class _WholeNorm(Function):
    """Batch norm whose means over a batch are of all processes, forward and back; sums of them go in float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        own = x.numel() // x.shape[1]
        var, mean = (v.double() for v in torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0))
        told = torch.cat([own * mean, own * (var + mean**2), mean.new_tensor([own])])
        distributed.all_reduce(told)
        count = told[-1]
        mean, square = (told[:-1] / count).chunk(2)
        var = (square - mean**2).clamp(min=0)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean.to(x), var.to(x), count)
        out = functional.batch_norm(x, mean.to(x), var.to(x), weight, bias, False, 0.0, eps)
        ctx.mark_non_differentiable(mean, var, count)
        return out, mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        # As if mean and variance were given; then what comes through them, by the sums of all processes.
        through = torch.ops.aten.native_batch_norm_backward(
            given.contiguous(memory_format=torch.channels_last)
            if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
            else given.contiguous(),
            *(x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]),
        )
        grad, of_weight, of_bias = through
        sums = torch.cat([of_weight, of_bias]).double()
        distributed.all_reduce(sums)
        mean_weight, mean_bias = (sums / count).to(x).chunk(2)
        shape = [1, -1] + [1] * (x.ndim - 2)
        scale = (var + ctx.eps).rsqrt()
        slope = weight * scale * scale * mean_weight
        shift = weight * scale * mean_bias - slope * mean
        return grad - x * slope.view(shape) - shift.view(shape), of_weight, of_bias, None
