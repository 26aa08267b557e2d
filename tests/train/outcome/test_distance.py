from __future__ import annotations

import numpy as np
import torch

from octfast.model.unlike import MOST_SCANS, fit_distance
from octfast.train.outcome.distance import LEARNED, fit_with_threshold


class Counted:
    """Features that keep how many rows were asked for at once."""

    def __init__(self, values: np.ndarray):
        self.values, self.most, self.seen = values, 0, 0

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        self.most, self.seen = max(self.most, len(rows)), self.seen + len(rows)
        return self.values[rows]


def test_the_features_of_a_large_set_are_never_all_in_memory_and_each_is_judged_without_its_patient():
    rng = np.random.default_rng(0)
    scans, patients = 20_000, rng.integers(0, 500, 20_000)
    x = rng.normal(size=(scans, 3)).astype(np.float32)
    folds, read = patients % 2, Counted(x)
    unlike, threshold, held = fit_with_threshold(read, folds, patients)
    assert read.most == MOST_SCANS < scans
    assert read.seen == scans + 3 * MOST_SCANS
    # As the sentences of the docstrings have it, of all at once.
    assert torch.equal(unlike.centre, fit_distance(x).centre)
    for fold in (0, 1):
        fitted = fit_distance(x[folds != fold], shrinkage=unlike.shrinkage)
        expected = fitted(torch.from_numpy(x[folds == fold])).numpy()
        assert np.allclose(held[folds == fold] * threshold, expected, rtol=1e-4)


def test_what_is_learned_from_alone_is_never_held_out():
    x = np.random.default_rng(1).normal(size=(300, 3)).astype(np.float32)
    folds = np.where(np.arange(300) < 200, LEARNED, 0)
    unlike, threshold, held = fit_with_threshold(x, folds, np.arange(300))
    assert (held[:200] == 0).all() and (held[200:] > 0).all()
    assert torch.equal(unlike.centre, fit_distance(x[:200]).centre) and float(unlike.threshold) == np.float32(threshold)
