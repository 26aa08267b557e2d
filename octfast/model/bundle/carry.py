"""A model on its way to another process: what it is as JSON takes it, and its tensors as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from octfast.model.bundle.build import empty_network, filled
from octfast.model.bundle.info import BundleInfo, info_text, parse_info
from octfast.model.unlike import Unlike

_FAR = "unlike."


def packed(
    model: nn.Sequential, info: BundleInfo, unlike: Unlike | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A model, a Sequential of body and head, what is known of it, and its distance to the training scans.

    Returns
    -------
    (what `unpacked` needs to know, as JSON takes it; the tensors as arrays, on the CPU).
    """
    arrays = _arrays("model.", model)
    shape = None
    if unlike is not None:
        arrays |= _arrays(_FAR, unlike)
        directions, dim = unlike.directions.shape
        shape = [int(dim), int(directions)]
    return {"info": info_text(replace(info, base=None, tensors="float32")), "unlike": shape}, arrays


def unpacked(
    about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[nn.Sequential, BundleInfo, Unlike | None]:
    """What `packed` was given, on the CPU in eval mode.

    Raises
    ------
    BundleError : this version of octfast has no such model.
    """
    info = parse_info(about["info"].encode(), "the model of process 0")
    model = filled(empty_network(info), info, _tensors("model.", arrays))
    if about["unlike"] is None:
        return model, info, None
    unlike = Unlike(*about["unlike"])
    unlike.load_state_dict(_tensors(_FAR, arrays))
    return model, info, unlike.eval()


def _arrays(prefix: str, module: nn.Module) -> dict[str, np.ndarray]:
    return {prefix + name: t.detach().cpu().contiguous().numpy() for name, t in module.state_dict().items()}


def _tensors(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith(prefix)}
