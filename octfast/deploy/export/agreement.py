"""How an exported file answers against torch in float32 on the same scans, and how far it may differ to be kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from octfast.console import track
from octfast.data.preprocess import decode_grey, preprocess, resize
from octfast.deploy.export.scans import Sample
from octfast.errors import DataError
from octfast.model.bundle.info import BundleInfo

if TYPE_CHECKING:
    from torch import nn

    from octfast.model.unlike import Unlike

# How far a probability may lie from torch's in float32, and how often the predicted class must be the same.
LIMITS = {"fp32": (1e-3, 0.0), "fp16": (0.02, 0.0), "int8": (1.0, 0.9)}
# How far a distance to the training scans may lie from torch's, relative to the greater of it and the limit of 1.
APART = {"fp32": 0.01, "fp16": 0.05, "int8": math.inf}


# Scans that torch is asked about at a time.
_AT_ONCE = 16


@dataclass(frozen=True)
class Agreement:
    """How an exported file answers against torch in float32.

    Attributes
    ----------
    scans : how many were compared, and `source`: which.
    largest, mean : difference of a probability.
    same : share of the scans with the same predicted class.
    accuracy, accuracy_torch : of the file and of torch; None where the scans have no labels.
    distance : largest difference of the distance to the training scans, relative to the greater of it and 1, which is
        the limit; None where the model has no such distance.
    unlike_same : share of the scans that are as much beyond the limit for the file as for torch; None as above.
    units, attention : of a model that answers for whole volumes, eyes or patients how many were compared, and the
        largest difference in how much a scan counts; `largest`, `mean`, `same` and the accuracies are of these.
    """

    scans: int
    source: str
    largest: float
    mean: float
    same: float
    accuracy: float | None = None
    accuracy_torch: float | None = None
    distance: float | None = None
    unlike_same: float | None = None
    units: int | None = None
    attention: float | None = None


def compare(
    run: Callable[[np.ndarray], tuple[np.ndarray, ...]],
    model: nn.Sequential,
    info: BundleInfo,
    sample: Sample,
    unlike: Unlike | None = None,
) -> Agreement:
    """Run a file and torch in float32 over the same scans.

    Each picture goes in as it was decoded, grey or in colour; the first also twice in one batch, and tinted, and where
    the model does not see all of a scan, a wide and a narrow part of it.

    Parameters
    ----------
    run : from uint8 pictures of shape (N, H, W, C) to probabilities (N, classes), and with `unlike` distances (N,).
    model, info, unlike : the bundle.
    """
    import torch

    body, head = model

    def expected(picture: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            features = body(preprocess(_image(picture), info.size, info.mean, info.std, info.fit)[None])
            p = torch.softmax(head(features).double() / info.temperature, 1)[0].numpy()
            return p if unlike is None else np.append(p, unlike(features).numpy())

    def found(pictures: np.ndarray) -> np.ndarray:
        # With a distance it is the last column, as of what is expected.
        return np.concatenate([y.reshape(len(pictures), -1) for y in run(pictures)], 1).astype(np.float64)

    given, wanted = [], []
    with track("comparing with torch", len(sample.pictures)) as update:
        for n, picture in enumerate(sample.pictures, start=1):
            given.append(found(picture[None])[0])
            wanted.append(expected(picture))
            update(n, len(sample.pictures))
    first = sample.pictures[0]
    tinted = (first[..., :1] * np.array([1.0, 0.6, 0.3])).astype(np.uint8)
    further = [tinted]
    if info.fit != "squeeze":
        # Whatever shape the scans have, what is not to be seen must be seen nowhere.
        side = -(-min(first.shape[:2]) // 2)
        further += [first[:side], first[:, :side]]
    got = np.stack([*given, *found(np.stack([first, first])), *(found(picture[None])[0] for picture in further)])
    wished = np.stack([*wanted, wanted[0], wanted[0], *map(expected, further)])
    far = None
    if unlike is not None:
        far, got, wished = (got[:, -1], wished[:, -1]), got[:, :-1], wished[:, :-1]
    return _agreement(sample, len(sample.pictures), got, wished, _indices(sample.labels or (), info), far)


def compare_bags(
    run: Callable[[np.ndarray], tuple[np.ndarray, ...]],
    model: nn.Sequential,
    info: BundleInfo,
    sample: Sample,
    unlike: Unlike | None = None,
) -> Agreement:
    """As `compare`, of a model that answers for units: whole ones go in, and the first also as a bag of one scan.

    Scans of a unit that differ in their size or channels are brought to the model's size before.

    Parameters
    ----------
    run : from uint8 pictures of shape (N, H, W, C) to probabilities (1, classes), attention (N,), and with `unlike`
        distances (N,).
    """
    import torch

    from octfast.model.pooling import pool

    body, head = model

    def expected(pictures: list[np.ndarray]) -> list[np.ndarray]:
        x = torch.stack([preprocess(_image(p), info.size, info.mean, info.std, info.fit) for p in pictures])
        with torch.inference_mode():
            features = torch.cat([body(part) for part in x.split(_AT_ONCE)])
            logits, attention = pool(
                head(features).double(), torch.zeros(len(x), dtype=torch.int64), 1, info.pooling or {}
            )
            found = [torch.softmax(logits / info.temperature, 1)[0], attention]
            return [y.numpy() for y in (found if unlike is None else [*found, unlike(features)])]

    def found(pictures: list[np.ndarray]) -> list[np.ndarray]:
        if len({p.shape for p in pictures}) > 1:
            greys = (resize(decode_grey(_image(p)), info.size, info.fit) for p in pictures)
            pictures = [np.asarray(grey)[..., None] for grey in greys]
        p, *rest = run(np.stack(pictures))
        return [p[0].astype(np.float64), *rest]

    bags = [[sample.pictures[i] for i in places] for places in sample.bags]
    got, wished = [], []
    with track("comparing with torch", len(bags)) as update:
        for n, bag in enumerate([*bags, bags[0][:1]], start=1):
            got.append(found(bag))
            wished.append(expected(bag))
            update(min(n, len(bags)), len(bags))
    p, q = (np.stack([one[0] for one in of]) for of in (got, wished))
    further = range(1, len(got[0]))
    attention, *distance = ([np.concatenate([one[i] for one in of]) for of in (got, wished)] for i in further)
    far = (distance[0][0], distance[0][1]) if distance else None
    labels = _indices([sample.labels[places[0]] for places in sample.bags] if sample.labels else (), info)
    found_of_units = _agreement(sample, len(bags), p, q, labels, far)
    counts = float(np.nan_to_num(np.abs(attention[0] - attention[1]), nan=1.0).max())
    return replace(found_of_units, units=len(bags), attention=counts)


def _indices(labels: Sequence[str], info: BundleInfo) -> list[int]:
    return [info.classes.index(label) for label in labels]


def _agreement(
    sample: Sample,
    n: int,
    got: np.ndarray,
    wished: np.ndarray,
    labels: Sequence[int],
    far: tuple[np.ndarray, np.ndarray] | None,
) -> Agreement:
    """How probabilities agree, of which the first n rows are of the sample, and those behind of what is tried beside.

    Parameters
    ----------
    got, wished : probabilities of the file and of torch.
    labels : of the first n, where they are known.
    far : distances of the file and of torch, those of the scans of the sample first.
    """
    # A probability that is no number is as far away as can be.
    apart = np.nan_to_num(np.abs(got - wished), nan=1.0)
    given, wanted, scans = got[:n].argmax(1), wished[:n].argmax(1), len(sample.pictures)
    return Agreement(
        scans=scans,
        source=sample.source,
        largest=float(apart.max()),
        mean=float(apart[:n].mean()),
        same=float((given == wanted).mean()),
        accuracy=float((given == labels).mean()) if labels else None,
        accuracy_torch=float((wanted == labels).mean()) if labels else None,
        distance=None if far is None else float((np.abs(far[0] - far[1]) / np.maximum(far[1], 1)).max()),
        unlike_same=None if far is None else float(((far[0] > 1) == (far[1] > 1))[:scans].mean()),
    )


def _image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


def refuse(found: Agreement, precision: str) -> None:
    """
    Raises
    ------
    DataError : the file is too far from torch.
    """
    apart, same = LIMITS[precision]
    if found.attention is not None and not found.attention <= apart:
        raise DataError(
            f"how much a scan counts differs from torch's by up to {found.attention:.2g} on {found.source}, more than "
            f"{apart:g}; nothing was written",
            "leave --half out" if precision == "fp16" else "report it",
        )
    if found.largest <= apart and found.same >= same:
        # No number is no agreement, either.
        if found.distance is None or found.distance <= APART[precision]:
            return
        raise DataError(
            f"the file's distance to the training scans differs from torch's by up to {found.distance:.1%} on "
            f"{found.source}, more than {APART[precision]:.0%}; nothing was written",
            "leave --half out" if precision == "fp16" else "report it",
        )
    if precision == "int8":
        what = (
            f"the int8 file gives {found.same:.0%} of {found.source} the class that torch gives, fewer than {same:.0%}"
        )
        raise DataError(f"{what}; nothing was written", "leave --int8 out, or calibrate on more scans: --calibration")
    hint = "leave --half out" if precision == "fp16" else "try --format torch or another --opset, and report it"
    raise DataError(
        f"the file's probabilities differ from torch's by up to {found.largest:.2g} on {found.source}, "
        f"more than {apart:g}; nothing was written",
        hint,
    )
