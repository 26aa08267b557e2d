"""Writes a bundle, changes what it says of its model, and writes it without the tensors of its stock weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octfast.errors import BundleError, UsageError
from octfast.files import is_taken, whole_file, write_text
from octfast.model.bundle.info import INFO_FILE, MODEL_FILE, UNLIKE_FILE, BundleInfo, info_text
from octfast.model.bundle.read import load_bundle, read_info
from octfast.model.bundle.strict import open_plain

if TYPE_CHECKING:
    from torch import Tensor, nn


def save_bundle(folder: str | Path, model: nn.Module, info: BundleInfo) -> Path:
    """Write a model, a Sequential of body and head, and what is known of it; each file under its name only when whole.

    The bundle is whole, whatever `info.base` says; its numbers are stored as `info.tensors` says.

    Returns
    -------
    The folder.

    Raises
    ------
    BundleError : float16 has no room for one of the model's numbers.
    """
    return write_bundle(folder, model.state_dict(), replace(info, base=None))


def write_bundle(folder: str | Path, state: Mapping[str, Tensor], info: BundleInfo) -> Path:
    """Write tensors and what is known of them as a bundle; `save_bundle` is for models."""
    import torch
    from safetensors.torch import save

    text = info_text(info)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, info.tensors)
    # Copies, since safetensors refuses tensors that share memory and saves none that are strided otherwise.
    own = {
        k: (v.detach().cpu().to(dtype) if v.is_floating_point() else v.detach().cpu()).contiguous().clone()
        for k, v in state.items()
    }
    if dtype != torch.float32:
        lost = next((k for k, v in own.items() if v.is_floating_point() and not v.isfinite().all()), None)
        if lost:
            raise BundleError(f"{info.tensors} has no room for the numbers of {lost}", "store them as float32")
    # One entry of metadata, as safetensors writes several in any order, and the same model should give the same bytes.
    # Through bytes, as its save_file makes files that only their owner can read.
    with whole_file(folder / MODEL_FILE) as part:
        part.write_bytes(save(own, metadata={"format": "pt"}))
    write_text(folder / INFO_FILE, text)
    return folder


def update_info(folder: str | Path, **changes: Any) -> BundleInfo:
    """Replace fields of a bundle's octfast.json, such as `temperature`; its tensors stay as they are.

    Raises
    ------
    BundleError : see `read_info`.
    """
    info = replace(read_info(folder), **changes)
    write_text(Path(folder) / INFO_FILE, info_text(info))
    return info


def slim_bundle(bundle: str | Path, out: str | Path, weights: str | Path | None = None) -> Path:
    """Write a bundle without the tensors that are as in the stock weights, which it names by their SHA-256.

    Parameters
    ----------
    bundle : a whole bundle.
    out : a folder that does not exist, or is empty.
    weights : the file of the stock weights that it was trained from; None looks where torch and timm keep theirs.

    Returns
    -------
    The folder.

    Raises
    ------
    BundleError : the bundle cannot be read or is slim already, the stock weights are not on this machine, or nothing in
        the model is as in them.
    UsageError : `out` holds something.
    """
    import torch

    from octfast.model.arch import find_arch
    from octfast.model.bundle.stock import digest, stock_state

    model, info = load_bundle(bundle)
    if info.base is not None:
        raise BundleError(f"{bundle} is slim already", "copy it as it is")
    out = Path(out).expanduser()
    if is_taken(out):
        raise UsageError(f"{out} exists and is not empty", "give another --out; nothing is ever overwritten")
    if info.weights.get("source") == "none" and weights is None:
        raise BundleError(
            f"the body of {bundle} began with random numbers, so there are no stock weights to leave out",
            "hand on the whole bundle",
        )
    stock = stock_state(info, Path(bundle), weights)
    state = model.state_dict()
    left_out = {k: v for k, v in state.items() if k in stock and torch.equal(v, stock[k])}
    # Counters, and norms that nobody trained, are alike in any two networks.
    if not any(v.is_floating_point() and v.ndim > 1 for v in left_out.values()):
        raise BundleError(
            f"nothing of {bundle} is as in the stock weights of {info.arch}, so there is nothing to leave out",
            "hand on the whole bundle; where it was trained from a file of yours, give it: --weights FILE",
        )
    source = find_arch(info.arch).library if weights is None else "file"
    base = {"source": source, "sha256": digest(left_out)}
    write_bundle(out, {k: v for k, v in state.items() if k not in left_out}, replace(info, base=base))
    if info.calibration.get("unlike") is not None:
        opened, _ = open_plain(Path(bundle) / UNLIKE_FILE)
        with opened, whole_file(out / UNLIKE_FILE) as part:
            part.write_bytes(opened.read())
    return out
