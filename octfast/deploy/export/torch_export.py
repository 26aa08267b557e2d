"""Writes a classifier with its preprocessing as a torch.export program (.pt2), and runs one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from octfast.errors import DataError, UsageError
from octfast.model.bundle.info import BundleInfo

if TYPE_CHECKING:
    from torch import nn

    from octfast.model.unlike import Unlike

METADATA = "octfast.json"


def write_program(
    model: nn.Sequential,
    info: BundleInfo,
    file: str | Path,
    metadata: dict[str, str],
    *,
    half: bool = False,
    unlike: Unlike | None = None,
) -> None:
    """Write a `WholeClassifier` with torch.export, which took TorchScript's place; `metadata` lies in it as JSON.

    With `unlike` the program gives a pair: the probabilities, and the distances to the training scans. Of a model of
    units the attention comes between.

    Raises
    ------
    UsageError : torch.export cannot follow the network.
    """
    import torch

    from octfast.deploy.export.classifier import whole
    from octfast.deploy.export.onnx import dynamic_shapes, example_pictures, quiet

    classifier = whole(model, info, half=half, unlike=unlike)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(classifier, (example_pictures(),), dynamic_shapes=dynamic_shapes())
    except Exception as e:  # exporters meet any Python there is in a network
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UsageError(f"torch.export cannot follow this network: {reason}", "train another --arch") from e
    # Through memory, as torch ends the whole process where a disk is full.
    made = io.BytesIO()
    with quiet():
        torch.export.save(program, made, extra_files={METADATA: json.dumps(metadata, ensure_ascii=False)})
    Path(file).write_bytes(made.getbuffer())


def program_outputs(file: str | Path) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """A function from uint8 pictures of shape (N, H, W, C) to float32 probabilities (N, classes), by torch.

    After them come the attention and the distances, of shape (N,), where the file gives them.

    Only for a file of one's own, as torch may run code from such a file.

    Raises
    ------
    DataError : no such program.
    """
    import torch

    from octfast.deploy.export.onnx import quiet

    try:
        with Path(file).open("rb") as f, quiet():
            network = torch.export.load(f).module()
    except Exception as e:  # zip files, JSON and tensors, each with errors of its own
        raise DataError(f"torch cannot read {file}: {' '.join(str(e).split())}", "export it again") from None

    def run(pictures: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            found = network(torch.from_numpy(np.array(pictures)))
        return tuple(y.numpy() for y in (found if isinstance(found, tuple) else (found,)))

    return run
