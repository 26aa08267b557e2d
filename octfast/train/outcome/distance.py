"""What a training leaves of its scans' features: the distance by which others are called unlike them."""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from fastai.learner import Learner
from torch import Tensor, nn

from octfast.errors import DataError
from octfast.model.bundle.distance import save_distance
from octfast.model.bundle.info import BundleInfo
from octfast.model.engine import Engine
from octfast.model.forward import run_pictures
from octfast.model.unlike import Unlike, drawn_rows, fit_distance, patient_threshold
from octfast.run.folder import Run
from octfast.train.frozen.folds import draw_folds
from octfast.train.frozen.frozen import FrozenLearner
from octfast.train.store.rows import Rows

log = logging.getLogger("octfast")

# Of the held-out scans, every patient counting alike, so many are beyond the threshold.
SHARE = 0.01
# Of fewer patients the rarest hundredth cannot be told at all.
MIN_PATIENTS = 20
# The fold of scans that are learned from alone.
LEARNED = -1
# Scans whose features are in memory at once where they are read from a store.
_BLOCK = 1024


class Features(Protocol):
    """Features of scans, read as they are needed; an array of them will do."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """Those of some scans, float32 of shape (len(rows), dim)."""


def keep_distance(
    run: Run, trainee: Learner, learn: Learner, scans: pd.DataFrame, info: BundleInfo, precision: str
) -> BundleInfo:
    """Fit the distance on the features of training and validation, fix its threshold, and keep both in the bundle.

    The threshold is fixed on scans whose patients the distance has not seen: fold by fold, or of augmented views on
    validation alone.

    Parameters
    ----------
    trainee : the Learner that was fitted; what is stored of it is taken, else the body runs once more.
    scans : a Scans table, as the features are ordered: training, then validation.

    Returns
    -------
    The bundle's info as it is now.
    """
    table = pd.concat([scans[scans["split"] == s] for s in ("train", "valid")], ignore_index=True)
    augmented = isinstance(trainee, FrozenLearner) and trainee.stores[0].shape[1] > 1
    held_out = table["split"].eq("valid") if augmented else table["split"].notna()
    patients = table.loc[held_out, "patient"].nunique()
    if patients < MIN_PATIENTS:
        log.warning(
            "scans unlike the training scans will not be told: %d held-out patients are too few to say what is usual",
            patients,
        )
        return info
    folds = trainee.folds if isinstance(trainee, FrozenLearner) else None
    if augmented:
        # Of training only augmented views are stored, and scans that are asked about come as validation does.
        folds = np.where(held_out, 0, LEARNED)
    elif folds is None:
        folds = _folds_by_patient(table)
    try:
        x = _features(trainee, learn, table, info, precision)
    except DataError as e:
        log.warning("scans unlike the training scans will not be told: %s", e.message)
        return info
    unlike, threshold, held = fit_with_threshold(x, folds, table["patient"].to_numpy())
    run.save_distances(table.assign(distance=held)[held_out.to_numpy()])
    about = {"share": SHARE, "scans": int(held_out.sum()), "patients": int(patients)}
    log.info(
        "scans will be called unlike the training scans beyond the distance that 1%% of %d held-out patients pass",
        patients,
    )
    return save_distance(run.bundle, unlike, {**about, "threshold": round(threshold, 4)})


def fit_with_threshold(x: Features, folds: np.ndarray, patients: np.ndarray) -> tuple[Unlike, float, np.ndarray]:
    """The distance to all scans, the threshold that held-out patients give it, and the distances of these scans.

    The last are in units of the threshold, each by a fit without the scan's patient; 0 for what was never held out.

    Parameters
    ----------
    x : features, of shape (scans, dim); a block of them is held at a time, beside those that a fit takes.
    folds : of each scan; those of a patient are in one. Scans of `LEARNED` are never held out, and where there are
        any, the others are never learned from.
    """
    fixed = folds == LEARNED
    unlike = _fitted(x, fixed if fixed.any() else ~fixed)
    held = np.zeros(len(folds))
    for fold in np.unique(folds[~fixed]):
        inside = folds == fold
        fitted = unlike if fixed.any() else _fitted(x, ~inside, unlike.shrinkage)
        rows = np.flatnonzero(inside)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            with torch.no_grad():
                held[block] = fitted(torch.from_numpy(x[block])).numpy()
    threshold = patient_threshold(held[~fixed], patients[~fixed].tolist(), SHARE)
    unlike.threshold.fill_(threshold)
    return unlike, threshold, held / threshold


def _fitted(x: Features, learned: np.ndarray, shrinkage: float | None = None) -> Unlike:
    """The distance to the scans of a mask, of which those that it takes are read."""
    rows = np.flatnonzero(learned)
    return fit_distance(x[rows[drawn_rows(len(rows))]], shrinkage=shrinkage)


def _features(trainee: Learner, learn: Learner, table: pd.DataFrame, info: BundleInfo, precision: str) -> Features:
    """What the model's head gets of each scan, pooled where it is a map: float32 of shape (scans, dim)."""
    body, head = learn.model
    if isinstance(trainee, FrozenLearner):
        return _Stored(trainee, head)
    engine = Engine(body, "auto" if precision == "int8" else precision, learn.dls.device)
    found = np.empty((0, 0), np.float32)
    for row, (_, features, _) in enumerate(run_pictures(engine, info, list(table["path"]))):
        if isinstance(features, DataError):
            raise features
        vector = pooled(features[None])[0].numpy()
        if not len(found):
            found = np.empty((len(table), len(vector)), np.float32)
        found[row] = vector
    return found


class _Stored:
    """What the head gets of the training, then the validation scans, of the first view of what is stored."""

    def __init__(self, trainee: FrozenLearner, head: nn.Module):
        # Dropout that stands before the head's first trained layer goes with the suffix, so modules are told by
        # identity.
        own = {id(m) for m in head.modules()}
        self._before = nn.Sequential(*(m for m in trainee.part.children() if id(m) not in own)).eval()
        self._device = next(trainee.part.parameters()).device
        self._rows = Rows(trainee.stores)

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        out = []
        for start in range(0, len(rows), 64):  # of maps more would not fit
            taken = torch.from_numpy(self._rows.take(rows[start : start + 64], 0)).to(self._device)
            with torch.no_grad():
                out.append(pooled(self._before(taken).float().cpu()).numpy())
        return np.concatenate(out)


def pooled(features: Tensor) -> Tensor:
    """Maps of shape (B, dim, H, W) as their means; vectors as they are."""
    return features.flatten(2).mean(2) if features.ndim > 2 else features


def _folds_by_patient(table: pd.DataFrame) -> np.ndarray:
    """Five folds by patient, by class where that can be."""
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        folds = draw_folds(table, 5, 0)
    finally:
        log.setLevel(level)
    if folds is not None:
        return folds
    codes = table["patient"].astype("category").cat.codes.to_numpy()
    return np.random.default_rng(0).permutation(codes.max() + 1)[codes] % 5
