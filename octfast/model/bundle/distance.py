"""The distance to the training scans beside a bundle's model: unlike.safetensors, checked before it is read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octfast.errors import BundleError
from octfast.files import whole_file
from octfast.model.bundle.info import INFO_FILE, UNLIKE_FILE, BundleInfo
from octfast.model.bundle.read import read_info
from octfast.model.bundle.strict import MEND
from octfast.model.bundle.tensor_file import TensorFile
from octfast.model.bundle.write import update_info
from octfast.model.unlike import Unlike, shapes_of

if TYPE_CHECKING:
    from torch import Tensor

_KEY = "unlike"


def save_distance(folder: str | Path, unlike: Unlike, about: dict[str, Any]) -> BundleInfo:
    """Keep a distance in a bundle, and what is to be known of its threshold in octfast.json (`calibration.unlike`).

    Parameters
    ----------
    about : `share` of held-out scans beyond the threshold, and the `scans` and `patients` it was fixed on.
    """
    from safetensors.torch import save

    folder = Path(folder)
    tensors = {name: t.detach().cpu().float().contiguous().clone() for name, t in unlike.state_dict().items()}
    with whole_file(folder / UNLIKE_FILE) as part:
        part.write_bytes(save(tensors, metadata={"format": "pt"}))
    kept = {**about, "sha256": _digest(tensors)}
    return update_info(folder, calibration={**read_info(folder).calibration, _KEY: kept})


def load_distance(folder: str | Path, info: BundleInfo) -> Unlike | None:
    """The distance that a bundle keeps, on the CPU in float32; None where it keeps none, as older ones.

    Raises
    ------
    BundleError : its file is missing, damaged, or not the one that octfast.json speaks of.
    """
    about = info.calibration.get(_KEY)
    if about is None:
        return None
    import torch

    file = Path(folder) / UNLIKE_FILE
    wrong = BundleError(f"{file} does not hold the distance that {INFO_FILE} speaks of", MEND)
    with TensorFile(file) as opened:
        kept = opened.entries.get("directions")
        if kept is None or len(kept.shape) != 2:
            raise wrong
        directions, dim = kept.shape
        if {name: entry.shape for name, entry in opened.entries.items()} != shapes_of(dim, directions):
            raise wrong
        if any(entry.dtype != torch.float32 for entry in opened.entries.values()):
            raise wrong
        state = opened.read()
    if not all(bool((state[name] > 0).all()) for name in ("scale", "weights", "rest", "threshold")):
        raise wrong
    if not isinstance(about, dict) or about.get("sha256") != _digest(state):
        raise wrong
    found = Unlike(dim, directions)
    found.load_state_dict(state)
    return found.eval()


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}\n".encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()
