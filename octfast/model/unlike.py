"""How far a scan's features lie from those a model was trained on: a distance, its threshold, and both on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

# Directions of the features whose spread is kept one by one; all others share one.
MOST = 128
# Scans that the spread is computed of, at most: more change it by less than its own error.
MOST_SCANS = 8000


class Unlike(nn.Module):
    """The Mahalanobis distance of features to the training scans, divided by its threshold: above 1 is unlike them.

    Features are standardised. The covariance is that of the training scans, shrunk towards a multiple of the identity
    (Ledoit and Wolf, 2004), of which the `MOST` widest directions are kept and the rest has one variance, so that a
    model carries some numbers and no scan.

    Parameters
    ----------
    dim : width of the features.
    directions : how many are kept.
    """

    centre: Tensor
    scale: Tensor
    directions: Tensor
    weights: Tensor
    rest: Tensor
    threshold: Tensor

    def __init__(self, dim: int, directions: int):
        super().__init__()
        # Of the covariance; kept for a second fit on scans of the same kind.
        self.shrinkage: float | None = None
        for name, shape in shapes_of(dim, directions).items():
            self.register_buffer(name, torch.ones(shape))

    def forward(self, features: Tensor) -> Tensor:
        """The distance in units of the threshold, of shape (B,), of features (B, dim), or of maps (B, dim, H, W)."""
        if features.ndim > 2:
            features = features.flatten(2).mean(2)
        z = (features - self.centre) / self.scale
        along = torch.matmul(z, self.directions.t())
        outside = torch.clamp((z * z).sum(1) - (along * along).sum(1), min=0)
        squared = (along * along * self.weights).sum(1) + outside * self.rest
        return torch.sqrt(squared) / self.threshold


class HeadAndDistance(nn.Module):
    """A head whose output has one column more, the distance in units of the threshold."""

    def __init__(self, head: nn.Module, unlike: Unlike):
        super().__init__()
        self.head, self.unlike = head, unlike

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.head(features), self.unlike(features)[:, None]], 1)


def with_distance(head: nn.Module, unlike: Unlike | None) -> nn.Module:
    """The head, and beside its logits the distance where there is one."""
    return head if unlike is None else HeadAndDistance(head, unlike)


def shapes_of(dim: int, directions: int) -> dict[str, tuple[int, ...]]:
    """The tensors of an `Unlike` by name, with their shapes."""
    return {
        "centre": (dim,),
        "scale": (dim,),
        "directions": (directions, dim),
        "weights": (directions,),
        "rest": (),
        "threshold": (),
    }


def fit_distance(features: np.ndarray, seed: int = 0, shrinkage: float | None = None, most: int = MOST) -> Unlike:
    """The distance to these scans, its threshold 1.

    Parameters
    ----------
    features : of shape (scans, dim), two scans or more; of more than `MOST_SCANS` as many are drawn.
    shrinkage : of the covariance, where it is known; None computes it.
    most : directions that are kept, at most.

    Source of the covariance: O. Ledoit and M. Wolf, 'A well-conditioned estimator for large-dimensional covariance
    matrices', Journal of Multivariate Analysis 88 (2004).
    """
    x = np.asarray(features, dtype=np.float32)
    if len(x) > MOST_SCANS:
        x = x[drawn_rows(len(x), seed)]
    centre, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    # What never varies in training still says something when it does; it gets the scale of what hardly varies.
    scale = np.maximum(scale, max(1e-6, 1e-3 * float(np.median(scale))))
    z = torch.from_numpy(((x - centre) / scale).astype(np.float32))
    n, dim = z.shape
    if shrinkage is None:
        shrinkage = shrinkage_of(z.numpy())
    total = float((z.double() ** 2).sum()) / n
    directions, variances = _widest(z, min(most, dim, n - 1), seed)
    kept = len(variances)
    left = max(total - float(variances.sum()), 0.0) / max(dim - kept, 1)
    floor = shrinkage * total / dim
    found = Unlike(dim, kept)
    found.centre, found.scale = torch.from_numpy(centre).float(), torch.from_numpy(scale).float()
    found.directions = directions.float()
    found.weights = (1 / ((1 - shrinkage) * variances + floor).clamp(min=1e-6)).float()
    found.rest = torch.tensor(1 / max((1 - shrinkage) * left + floor, 1e-6))
    found.shrinkage = shrinkage
    return found


def drawn_rows(scans: int, seed: int = 0) -> np.ndarray:
    """The rows that `fit_distance` takes of so many scans, ascending, for who does not hold all of them in memory."""
    if scans <= MOST_SCANS:
        return np.arange(scans)
    return np.sort(np.random.default_rng(seed).choice(scans, MOST_SCANS, replace=False))


def patient_threshold(distances: np.ndarray, patients: Sequence[object], share: float = 0.01) -> float:
    """The distance that this share of scans exceeds, every patient counting alike.

    Below 100 patients the largest distance seen says too little of the rarest hundredth: the logarithms are then taken
    to be normal (a prediction interval by Student's t, with the degrees of freedom of the patients), if that is higher.

    Parameters
    ----------
    distances : positive, of scans that were held out.
    patients : of each scan.
    """
    from scipy.stats import t

    d = np.asarray(distances, dtype=np.float64)
    _, codes, counts = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
    order = np.argsort(d)
    weight = np.cumsum(1 / counts[codes][order]) / len(counts)
    at = float(d[order][np.searchsorted(weight, 1 - share - 1e-9).clip(max=len(d) - 1)])
    if len(counts) < 1 / share:
        logs = np.log(np.maximum(d, 1e-12))
        spread = float(logs.std(ddof=1)) * math.sqrt(1 + 1 / len(counts))
        at = max(at, math.exp(float(logs.mean()) + float(t.ppf(1 - share, len(counts) - 1)) * spread))
    return at


def shrinkage_of(z: np.ndarray) -> float:
    """How far the covariance of centred rows is to be shrunk, in 0..1 (Ledoit and Wolf)."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    # Beyond a few thousand scans it is near 0 and costs more to compute than it is worth.
    return float(ledoit_wolf_shrinkage(z[:: max(1, len(z) // 2000)], assume_centered=True))


def _widest(z: Tensor, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """The directions of the largest variances, (most, dim), and these variances; of centred rows."""
    n, dim = z.shape
    if min(n, dim) > 4 * most:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, values, vectors = torch.svd_lowrank(z, q=min(most + 16, n, dim), niter=3)
        return vectors[:, :most].t().contiguous(), (values[:most].double() ** 2) / n
    _, values, vectors = torch.linalg.svd(z, full_matrices=False)
    return vectors[:most].contiguous(), (values[:most].double() ** 2) / n
