"""The stock weights that a slim bundle leaves out: which of a model's tensors they are, and how they come back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from octfast.errors import BundleError, WeightsError
from octfast.model.arch import Arch, drop_classifier, find_arch, make_network
from octfast.model.bundle.info import BundleInfo
from octfast.model.heads import body_and_head
from octfast.model.weights.load import cached_file, expected_path, load_weights, weights_url


def stock_tensors(
    info: BundleInfo, left_out: Mapping[str, Tensor], folder: Path, weights: str | Path | None = None
) -> dict[str, Tensor]:
    """The tensors that a slim bundle leaves out, from stock weights on this machine, checked by their SHA-256.

    Parameters
    ----------
    left_out : the names that are wanted; their values may be on the meta device.
    folder : of the bundle, for what is said of it.
    weights : a file; None looks where torch and timm keep theirs. Nothing is fetched.

    Raises
    ------
    BundleError : there are none, or they are not those that the bundle was made with.
    """
    stock = stock_state(info, folder, weights)
    found = {k: stock[k] for k in left_out}
    assert info.base is not None
    if digest(found) != info.base["sha256"]:
        raise BundleError(
            f"{folder} is slim, and the stock weights of {info.arch} here are not those it was made with",
            "give the file it was trained from: --weights FILE, in Python weights=FILE; or ask for the whole bundle",
        )
    return found


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, as hex, of tensors with their names, types and shapes, in the order of their names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def stock_state(info: BundleInfo, folder: Path, weights: str | Path | None) -> dict[str, Tensor]:
    """The model's tensors as the stock weights have them; what those do not have is not a number."""
    try:
        arch = find_arch(info.arch)
        file = _stock_file(info, arch, folder, weights)
        names, network = _names_in_network(info, arch), _meta_network(info, arch)
        _check_size(network, file, info)
        network.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
        load_weights(network, arch.own_name, file, needed=("features.",) if arch.is_vgg else ())
    except WeightsError as e:
        raise BundleError(f"the stock weights of {folder}: {e.message}", e.hint) from None
    stock = network.state_dict()
    return {name: stock[theirs] for name, theirs in names.items()}


def _meta_network(info: BundleInfo, arch: Arch) -> nn.Module:
    """The whole network without memory for its tensors, such as `oct_learner` loads weights into."""
    with torch.device("meta"):
        network = make_network(arch, info.size)
    if info.head != "article":
        drop_classifier(network)
    return network


def _names_in_network(info: BundleInfo, arch: Arch) -> dict[str, str]:
    """What each tensor of the model's body is called in the whole network."""
    network = _meta_network(info, arch)
    theirs = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
    with torch.device("meta"):
        body, _ = body_and_head(network, arch, info.head, len(info.classes))
    return {f"0.{name}": theirs[id(tensor)] for name, tensor in body.state_dict(keep_vars=True).items()}


def _stock_file(info: BundleInfo, arch: Arch, folder: Path, weights: str | Path | None) -> Path:
    if weights is not None:
        return Path(weights).expanduser()
    file = cached_file(arch.own_name, arch.library)
    whole = "; or ask for the whole bundle" if info.base else ""
    if file is None and "file" in ((info.base or {}).get("source"), info.weights.get("source")):
        raise BundleError(
            f"the body of {folder} was trained from a file, which has to be given",
            "give it: --weights FILE, in Python weights=FILE" + whole,
        )
    if file is None:
        raise BundleError(
            f"the stock weights of {info.arch}, which {folder} {'needs' if info.base else 'was trained from'}, "
            "are not on this machine, and none are fetched",
            f"put {weights_url(arch.own_name, arch.library)} at {expected_path(arch.own_name, arch.library)}, "
            "or give their file: --weights FILE, in Python weights=FILE" + whole,
        )
    return file


def _check_size(network: nn.Module, file: Path, info: BundleInfo) -> None:
    """A network far larger than the file cannot be of it, and is not to be given memory."""
    needed = sum(v.numel() * v.element_size() for v in network.state_dict().values())
    try:
        size = file.stat().st_size
    except OSError:
        return  # load_weights has a sentence for it
    if needed > 5 * size + (64 << 20):
        raise BundleError(f"{file.name} is too small to hold the weights of {info.arch}", "give the file made for it")
