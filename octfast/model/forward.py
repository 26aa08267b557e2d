"""One forward pass over a Scans table gives the Predictions table, which everything after it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch
from torch import nn

from octfast.data.preprocess import decode_grey, normalise, resize
from octfast.model.bundle.info import BundleInfo
from octfast.model.engine import Engine


def predict_scans(
    model: nn.Sequential,
    info: BundleInfo,
    scans: pd.DataFrame,
    *,
    bs: int = 16,
    precision: str = "auto",
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Run the model once over the scans, in eval mode and in this machine's fastest precision.

    Parameters
    ----------
    model : a Sequential of body and head, whose output is logits or log-probabilities.
    info : gives the classes, the preprocessing and the temperature.
    scans : a Scans table.
    bs : scans a batch.
    precision : see `octfast.model.engine`; "int8", which would have to be calibrated again, is taken for "auto".
    progress : called with (scans done, all scans).

    Returns
    -------
    The Predictions table: see `predictions_table`.

    Raises
    ------
    DataError : a file cannot be decoded.
    """
    engine = Engine(model[0], "auto" if precision == "int8" else precision, device, tail=model[1])
    logits = []
    paths = list(scans["path"])
    for batch in _batches(paths, info, bs):
        out = engine(batch)
        assert isinstance(out, torch.Tensor)
        logits.append(out.cpu())
        if progress:
            progress(sum(map(len, logits)), len(paths))
    stacked = torch.cat(logits) if logits else torch.zeros(0, len(info.classes))
    return predictions_table(scans, stacked.numpy(), info.classes, info.temperature)


def predictions_table(
    scans: pd.DataFrame, logits: np.ndarray, classes: Sequence[str], temperature: float = 1.0
) -> pd.DataFrame:
    """The Predictions table.

    Parameters
    ----------
    scans : n rows.
    logits : of shape (n, len(classes)); log-probabilities will do.

    Returns
    -------
    The columns of `scans`, then `predicted`, `probability` (of the predicted class), `loss` (cross entropy in nats
    against `label`) and `p_<class>` a class; where the temperature is not 1, a column `temperature` holds it.
    """
    logp = torch.log_softmax(torch.as_tensor(np.asarray(logits, dtype=np.float64)) / temperature, dim=1).numpy()
    best = logp.argmax(1)
    index = {c: i for i, c in enumerate(classes)}
    actual = np.array([index[label] for label in scans["label"]], dtype=int)
    rows = np.arange(len(scans))
    table = scans.reset_index(drop=True).copy()
    table["predicted"] = np.asarray(classes, dtype=object)[best]
    table["probability"] = np.exp(logp[rows, best])
    table["loss"] = -logp[rows, actual]
    for i, c in enumerate(classes):
        table[f"p_{c}"] = np.exp(logp[:, i])
    if temperature != 1 or "temperature" in table:
        table["temperature"] = float(temperature)
    return table


def headline(predictions: pd.DataFrame) -> dict[str, float | int]:
    """Accuracy, loss and counts of a Predictions table; a patient is right when more than half of its scans are."""
    right = predictions["predicted"] == predictions["label"]
    by_patient = right.groupby(predictions["patient"]).mean()
    return {
        "scans": len(predictions),
        "patients": len(by_patient),
        "right": int(right.sum()),
        "accuracy": float(right.mean()),
        "loss": float(predictions["loss"].mean()),
        "patients_right": int((by_patient > 0.5).sum()),
    }


def _batches(paths: Sequence[str], info: BundleInfo, bs: int) -> Iterable[torch.Tensor]:
    """Preprocessed pictures, float32 of shape (at most bs, 3, size, size), decoded ahead in one thread."""

    def read(chunk: Sequence[str]) -> torch.Tensor:
        return normalise(np.stack([np.asarray(resize(decode_grey(p), info.size)) for p in chunk]), info.mean, info.std)

    chunks = [paths[i : i + bs] for i in range(0, len(paths), bs)]
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = [pool.submit(read, c) for c in chunks[:2]]
        for n in range(len(chunks)):
            yield ahead.pop(0).result()
            if n + 2 < len(chunks):
                ahead.append(pool.submit(read, chunks[n + 2]))
