"""One forward pass over a Scans table gives the Predictions table, which everything after it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from octfast.data.preprocess import normalise
from octfast.errors import DataError, OctfastError
from octfast.model.bundle.carry import packed, unpacked
from octfast.model.bundle.info import BundleInfo
from octfast.model.engine import Engine
from octfast.model.prefetch import MAX_WAIT, Picture, decoded_batches
from octfast.model.quality import measure
from octfast.model.unlike import Unlike, with_distance
from octfast.processes import Computed, Content, Group, current

if TYPE_CHECKING:
    import pandas as pd

# What a body keeps of a batch grows with its pixels: 16 scans of 512 x 512 take VGG about 2 GB in float32.
BATCH_PIXELS = 16 * 512 * 512


def run_pictures(
    engine: Engine,
    info: BundleInfo,
    pictures: Iterable[Picture | DataError] | Picture,
    bs: int = 16,
    *,
    quality: bool = False,
    max_wait: float | None = MAX_WAIT,
) -> Iterator[tuple[Any, Tensor | DataError, tuple[str, ...]]]:
    """The one way from pictures to logits: decoded ahead, preprocessed as in training, run batch by batch.

    Parameters
    ----------
    engine : of the body, with the head for its tail.
    info : gives the preprocessing.
    pictures : see `octfast.model.prefetch.decoded_batches`; may never end.
    bs : pictures a batch; fewer are taken where they are larger than 512 x 512.
    quality : whether to measure that of each picture, where the model has limits; it takes some milliseconds.
    max_wait : see `octfast.model.prefetch.decoded_batches`.

    Yields
    ------
    Each picture in the order given, with its logits, float32 of shape (classes,) on the CPU, or with the reason why it
    cannot be read; and what is unusual about it, in words, `QualityNote`s of `octfast.model.quality` among them.
    """
    bs = batch_of(info, bs)
    # One thread keeps ahead of a CPU; a GPU outruns several.
    workers = min(16, torch.get_num_threads()) if engine.device.type == "cuda" else 1
    limits = (info.calibration.get("quality") or {}).get("limits") if quality else None
    for batch in decoded_batches(pictures, info.size, bs, workers, info.fit, limits, max_wait):
        greys = [read.grey for read in batch if not isinstance(read.grey, DataError)]
        out = engine(normalise(np.stack(greys), info.mean, info.std)) if greys else torch.empty(0)
        assert isinstance(out, Tensor)
        logits = iter(out.cpu())
        for picture, grey, remarks in batch:
            yield picture, grey if isinstance(grey, DataError) else next(logits), remarks


def batch_of(info: BundleInfo, bs: int) -> int:
    """How many pictures are run at a time where `bs` were asked for."""
    return max(1, min(bs, BATCH_PIXELS // info.size**2))


def measured(info: BundleInfo, pictures: Sequence[Picture]) -> Iterator[dict[str, float] | DataError]:
    """The quality of pictures as the network is shown them, see `octfast.model.quality.measure`; in their order."""
    for batch in decoded_batches(list(pictures), info.size, 16, fit=info.fit):
        for read in batch:
            yield read.grey if isinstance(read.grey, DataError) else measure(read.grey)


def predict_scans(
    model: nn.Sequential,
    info: BundleInfo,
    scans: pd.DataFrame,
    *,
    bs: int = 16,
    precision: str = "auto",
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
    unlike: Unlike | None = None,
) -> pd.DataFrame:
    """Run the model once over the scans, in eval mode and in this machine's fastest precision.

    Parameters
    ----------
    model : a Sequential of body and head, whose output is logits or log-probabilities.
    info : gives the classes, the preprocessing and the temperature.
    scans : a Scans table.
    bs : scans a batch, see `run_pictures`.
    precision : see `octfast.model.engine`; "int8", which would have to be calibrated again, is taken for "auto".
    progress : called with (scans done, all scans).
    unlike : where given, a column `distance` holds that to the training scans; above 1 is unlike them.

    Returns
    -------
    The Predictions table: see `predictions_table`.

    Raises
    ------
    DataError : a file cannot be decoded.
    """
    outputs, distances = run_scans(
        model, info, scans, bs=bs, precision=precision, device=device, progress=progress, unlike=unlike
    )
    table = predictions_table(scans, outputs, info.classes, info.temperature)
    return table if distances is None else table.assign(distance=distances)


def run_scans(
    model: nn.Sequential,
    info: BundleInfo,
    scans: pd.DataFrame,
    *,
    bs: int = 16,
    precision: str = "auto",
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
    unlike: Unlike | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """What the head gives of each scan; see `predict_scans` for the parameters and what is raised.

    Returns
    -------
    (logits, float32 of shape (n, classes), or one column more where the model answers for units; the distances to the
    training scans, of shape (n,), or None without `unlike`).
    """
    tail = with_distance(model[1], unlike)
    engine = Engine(model[0], "auto" if precision == "int8" else precision, device, tail=tail)
    n, paths = info.outputs, [str(path) for path in scans["path"]]
    parts = [np.zeros((0, n + (unlike is not None)), np.float32)]
    group, done = current(), 0
    if group is None or group.rank or len(paths) <= bs:
        given: Iterator[np.ndarray] = _run_batches(engine, info, paths, bs)
    else:
        given = _dealt(group, engine, model, info, unlike, paths, bs)
    for outputs in given:
        parts.append(outputs)
        done += len(outputs)
        if progress:
            progress(done, len(scans))
    stacked = np.concatenate(parts)
    return stacked[:, :n], None if unlike is None else stacked[:, n].astype(float)


def _run_batches(engine: Engine, info: BundleInfo, paths: list[str], bs: int) -> Iterator[np.ndarray]:
    """What the head gives of pictures, batch by batch; raises DataError for one that cannot be read."""
    rows: list[Tensor] = []
    for number, (_, outputs, _) in enumerate(run_pictures(engine, info, paths, bs), 1):
        if isinstance(outputs, DataError):
            raise outputs
        rows.append(outputs)
        if len(rows) == batch_of(info, bs) or number == len(paths):
            yield torch.stack(rows).numpy()
            rows = []


def _dealt(
    group: Group,
    engine: Engine,
    model: nn.Sequential,
    info: BundleInfo,
    unlike: Unlike | None,
    paths: list[str],
    bs: int,
) -> Iterator[np.ndarray]:
    """As `_run_batches`, by several processes; each batch holds the pictures that it would hold in one."""
    about, arrays = packed(model, info, unlike)
    about |= {"paths": paths, "bs": bs, "precision": engine.precision, "device": engine.device.type}
    each = batch_of(info, bs)
    for _, given in group.deal(
        "predictions", about, -(-len(paths) // each), _answering(engine, info, paths, bs), arrays
    ):
        yield given["outputs"]


def answer_for_scans(about: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Computed:
    """What another process than the first does of a prediction, see `octfast.processes.Group.assist`."""
    model, info, unlike = unpacked(about, arrays)
    if about["device"] == "cuda" and not torch.cuda.is_available():
        raise OctfastError("one process works on a GPU and another has none", "start them on machines of one kind")
    engine = Engine(model[0], about["precision"], about["device"], tail=with_distance(model[1], unlike))
    return _answering(engine, info, about["paths"], about["bs"])


def _answering(engine: Engine, info: BundleInfo, paths: list[str], bs: int) -> Computed:
    each = batch_of(info, bs)

    def compute(claims: Iterator[int]) -> Iterator[Content]:
        for k in claims:
            yield {}, {"outputs": next(_run_batches(engine, info, paths[k * each : (k + 1) * each], bs))}

    return compute


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
