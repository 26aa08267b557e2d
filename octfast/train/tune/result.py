"""What a search found: its trials, each with an interval by patient, and what is left of the winner's lead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

RESAMPLES = 2000


@dataclass(frozen=True)
class Tuned:
    """A search and the run that it ended with.

    Attributes
    ----------
    folder : of the search; the same command with `--out` goes on with it.
    trials : a row a trial: number, state (complete or pruned), the recipe, log_loss with its 95% interval by patient
        (low, high), the paired difference to the default recipe (minus_default with minus_low and minus_high) and
        accuracy, over the folds of the search; seconds.
    best, default : the trials' numbers.
    corrected : log_loss and minus_default of the winner, [value, low, high], corrected for its having been chosen.
    held_back : the same on the patients that no trial has seen, with their numbers of scans and patients.
    run : the folder of the run that was trained by the best recipe; None where none was.
    settings : what the search went by, its seeds among it.
    """

    folder: Path
    trials: pd.DataFrame
    best: int
    default: int
    corrected: Mapping[str, list[float]]
    held_back: Mapping[str, Any]
    settings: Mapping[str, Any]
    run: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """As tune.json has it."""
        rows = self.trials.astype(object).where(self.trials.notna(), None).to_dict("records")
        return {
            "format": "octfast tune",
            "version": 1,
            "best": next(r for r in rows if r["number"] == self.best),
            "default": next(r for r in rows if r["number"] == self.default),
            "corrected": dict(self.corrected),
            "held_back": dict(self.held_back),
            "settings": dict(self.settings),
            "trials": rows,
        }


class ByPatient:
    """Means over scans, with bootstrap intervals over patients that are the same for all that is compared.

    Parameters
    ----------
    patients : of the scans.
    """

    def __init__(self, patients: pd.Series, resamples: int = RESAMPLES, seed: int = 0):
        self.owner = pd.factorize(patients)[0]
        n = int(self.owner.max()) + 1
        rng = np.random.default_rng(seed)
        self.counts = np.bincount(self.owner, minlength=n).astype(float)
        self.drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float32)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sum over each patient's scans."""
        return np.bincount(self.owner, weights=values, minlength=len(self.counts))

    def mean(self, values: np.ndarray) -> list[float]:
        """[mean over the scans, low, high]."""
        drawn = (self.drawn @ self.sums(values)) / (self.drawn @ self.counts)
        return [float(values.mean()), *(float(v) for v in np.percentile(drawn, [2.5, 97.5]))]

    def of_chosen(self, losses: np.ndarray, default: int) -> dict[str, list[float]]:
        """The log-loss of choosing the best of many, without the advantage of being judged on what it was chosen by.

        In each resample of the patients the trial with the lowest loss is chosen, and is judged on the patients that
        the resample left out (Tsamardinos, Greasidou and Borboudakis, Machine Learning 107 (2018) 1895).

        Parameters
        ----------
        losses : of shape (trials, scans).
        default : the trial that the choice is compared with.

        Returns
        -------
        log_loss and minus_default: [mean over the resamples, low, high].
        """
        sums = np.stack([self.sums(row) for row in losses])
        chosen = np.argmin((self.drawn @ sums.T) / (self.drawn @ self.counts)[:, None], axis=1)
        out = (self.drawn == 0).astype(float)
        scans = np.maximum(out @ self.counts, 1)
        judged = (out * sums[chosen]).sum(1) / scans
        lead = judged - (out @ sums[default]) / scans
        return {
            name: [float(v.mean()), *(float(e) for e in np.percentile(v, [2.5, 97.5]))]
            for name, v in (("log_loss", judged), ("minus_default", lead))
        }


def log_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The loss of each scan in nats; logits of shape (..., scans, classes)."""
    top = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    return total - np.take_along_axis(logits, np.broadcast_to(targets[..., None], (*logits.shape[:-1], 1)), -1)[..., 0]
