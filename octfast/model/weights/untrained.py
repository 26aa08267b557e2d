"""An untrained body made usable: its batch norms are set to the statistics of the training scans."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def calibrate_batch_norm(body: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set the running statistics of every batch norm to the average over the batches, in place.

    In a network of random weights they are far from those of its inputs, and its features all but constant.

    Parameters
    ----------
    batches : pictures, float32 of shape (B, 3, H, W), B of 2 or more.

    Returns
    -------
    How many batch norms were set; 0 where the body has none.
    """
    norms = [m for m in body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    momenta = [m.momentum for m in norms]
    training = body.training
    body.eval()
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
        m.train()
    with torch.no_grad():
        for x in batches:
            body(x)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
    body.train(training)
    return len(norms)
