"""The journal of a prediction that may be interrupted: what it belongs to, and what is said where it is left."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octfast.deploy.predict.writers import Journal
from octfast.deploy.predictor import Predictor
from octfast.files import sha256_of
from octfast.model.bundle.info import INFO_FILE, MODEL_FILE
from octfast.model.bundle.read import find_bundle

log = logging.getLogger("octfast")


def journal_of(
    out: Path | None, bundle: str | Path | Predictor, inputs: list[str], predictor: Predictor, settings: list[Any]
) -> Journal | None:
    """The journal of a prediction into a file, not yet opened; None where no file is written.

    Parameters
    ----------
    bundle : as it was given, and `predictor` what was loaded of it.
    settings : all that rows depend on beside the model and the inputs, as JSON takes it.
    """
    if out is None:
        return None
    digest = digest_of(bundle, predictor)
    return Journal(out, {"octfast": "predictions", "bundle": digest, "inputs": inputs, "settings": settings})


def leaving(journal: Journal) -> Callable[..., None]:
    """Closes a journal, and says where it lies where the prediction did not come to its end."""

    def leave(kind: type[BaseException] | None, *_: object) -> None:
        journal.close()
        if kind is not None and journal.part.exists():
            log.info("the rows so far are in %s; --resume continues from there", journal.part)

    return leave


def digest_of(bundle: str | Path | Predictor, predictor: Predictor) -> str:
    """Of all that makes a model's answers: its files, or for a loaded one its numbers."""
    if not isinstance(bundle, Predictor):
        return sha256_of(*(find_bundle(bundle) / name for name in (INFO_FILE, MODEL_FILE)))
    digest = hashlib.sha256(repr(predictor.info).encode())
    for tensor in predictor.model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
