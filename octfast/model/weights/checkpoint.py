"""Reads tensors out of a weights file without running code of it, and names them as the network alone does.

A checkpoint can hold more than a network: the decoder of a masked autoencoder, the heads of a self-supervised teacher,
an optimizer, the arguments of a training. RETFound's have all of these.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from octfast.errors import WeightsError
from octfast.model.weights.fetch import one_line

# Where in a checkpoint the network lies; "teacher" in DINOv2's.
_INSIDE = ("state_dict", "model", "model_state_dict", "teacher")
# What a masked autoencoder draws its masked patches with, and does without afterwards.
_DECODER = ("mask_token", "decoder_")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors file or in a pickled state dict, by name; a nested state dict is unwrapped.

    No code of the file is run. Beside tensors a pickle may hold plain values and argparse's Namespace, in which many
    trainings store their arguments and which has no code of its own; it is read and left out.
    Raises WeightsError.
    """
    start = b""
    try:
        with path.open("rb") as file:
            start = file.read(64)
        if path.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(path, device="cpu")
        # mapping needs torch's zip format, the only one written since 2020
        with warnings.catch_warnings(), _namespaces():
            warnings.simplefilter("ignore")  # torch's remarks on a pickle that it then refuses, or that works
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file can make either library raise nearly anything
        raise _unreadable(path, start, error) from error
    return _state_dict_in(content, path)


def network_alone(tensors: dict[str, Tensor], state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors under the names that the network itself has, and a note of what was changed, empty for nothing.

    Left out are the prefixes of DataParallel and torch.compile, the decoder of a masked autoencoder, and what stands
    beside the `backbone` of a teacher. Where the network normalises averaged patches (`fc_norm`), which pretraining
    does not, the norm of the single patches stands in.

    Parameters
    ----------
    state : of the network that they are for.
    """
    notes, gone = [], ""
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            gone += prefix
    if gone:
        notes.append(f"prefix {gone} stripped")
    if "backbone.patch_embed.proj.weight" in tensors:
        inside = {n.removeprefix("backbone."): t for n, t in tensors.items() if n.startswith("backbone.")}
        notes.append(f"its backbone taken, {len(tensors) - len(inside)} tensors beside it left out")
        tensors = inside
    if any(name.startswith("decoder_") for name in tensors):
        inside = {n: t for n, t in tensors.items() if not n.startswith(_DECODER)}
        notes.append(f"{len(tensors) - len(inside)} tensors of its decoder left out")
        tensors = inside
    if "fc_norm.weight" in state and "fc_norm.weight" not in tensors and "norm.weight" in tensors:
        tensors = {re.sub(r"^norm\.", "fc_norm.", name): tensor for name, tensor in tensors.items()}
        notes.append("its norm stands in for fc_norm")
    return tensors, "; ".join(notes)


def retfound_hint(tensors: Mapping[str, Tensor], arch: str) -> str:
    """What to try with a file that does not fit, where its patches and width are those of RETFound; else empty."""
    patches = tensors.get("patch_embed.proj.weight")
    sides: dict[tuple[int, ...], str] = {(1024, 3, 16, 16): "retfound", (1024, 3, 14, 14): "retfound_dinov2"}
    name = None if patches is None else sides.get(tuple(patches.shape))
    return f"for a file of RETFound's try --arch {name}" if name and name != arch else ""


def _namespaces() -> contextlib.AbstractContextManager[Any]:
    """Let torch read an argparse.Namespace and nothing more; before 2.5 it cannot be told so for a while alone."""
    allow = getattr(torch.serialization, "safe_globals", None)
    return allow([argparse.Namespace]) if allow else contextlib.nullcontext()


def _unreadable(path: Path, start: bytes, error: Exception) -> WeightsError:
    if start.startswith(b"version https://git-lfs"):
        return WeightsError(
            f"{path.name} is a git-lfs pointer, not the file itself", "fetch the file with git lfs pull"
        )
    if start.lstrip()[:1] == b"<":
        return WeightsError(f"{path.name} is a web page, not weights", "download it again, and look at what came")
    refused = re.search(r"(?:GLOBAL|global:?|class) ([\w.]+\.[\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and (refused or start[:1] == b"\x80"):
        what = f" (a pickled {refused.group(1)})" if refused else ", or is damaged,"
        hint = (
            "unsafe pickles are never loaded; where you trust the file, load it there and save "
            "model.state_dict() with safetensors.torch.save_file"
        )
        return WeightsError(f"{path.name} holds more than tensors{what} and was not opened", hint)
    kind = "safetensors file" if path.suffix.lower() == ".safetensors" else "PyTorch state dict"
    detail = one_line(error).split(". ")[0][:120]
    return WeightsError(
        f"{path.name} is not a {kind}, or is damaged or cut short ({type(error).__name__}: {detail})",
        "copy or download it again, and compare its size with the original's",
    )


def _state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        inner = next((k for k in _INSIDE if _holds(content, k)), None)
        if inner is None:
            break
        content = content[inner]
    if isinstance(content, Mapping):
        tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        plain = all(
            t.layout == torch.strided and t.device.type == "cpu" and not t.is_quantized for t in tensors.values()
        )
        if tensors and plain:
            return tensors
    raise WeightsError(
        f"{path.name} holds no state dict of plain tensors", "save model.state_dict(), not something else"
    )


def _holds(content: Any, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Mapping)
