"""The trials of a search: what has been tried, kept in a folder, and the trying of more.

Optuna keeps its trials in a journal, a text file of JSON lines, and octfast the predictions of each beside it. Neither
the sampler nor the pruner keeps anything else, and nothing is unpickled when a search goes on.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from octfast.console import track
from octfast.errors import OctfastError, UsageError
from octfast.figure import Files
from octfast.files import whole_file, write_text
from octfast.processes import current
from octfast.train.tune.dealt import judge_all
from octfast.train.tune.features import Features
from octfast.train.tune.plot import plot_search
from octfast.train.tune.recipe import Recipe, suggest
from octfast.train.tune.result import ByPatient, Tuned, log_losses

log = logging.getLogger("octfast")

SEARCH, JOURNAL, TRIALS = "search.json", "journal.log", "trials"
NEW = "give a new folder: --out FOLDER"


@dataclass
class _Tried:
    """A trial on its way through the folds."""

    trial: Any
    recipe: Recipe
    logits: np.ndarray
    done: np.ndarray
    start: float
    value: float = np.inf
    pruned: bool = False

    @classmethod
    def begin(cls, search: Search, trial: Any) -> _Tried:
        recipe = suggest(trial, *search.space)
        logits = np.zeros((len(search.rows), search.features.classes), np.float32)
        return cls(trial, recipe, logits, np.zeros(len(search.rows), bool), time.monotonic())


def together() -> int:
    """How many trials are tried at a time."""
    group = current()
    return 1 if group is None else group.size


class Search:
    """A search in its folder; the trial of the default recipe is its first.

    Parameters
    ----------
    optuna : the package.
    folder : new, or with a search to go on with.
    features : what is trained on.
    views : numbers of readings to choose from.
    seed : of the sampler, of every training and of the intervals.
    files : how its figure is written.

    Raises
    ------
    UsageError : the folder has another search, or is damaged.
    """

    def __init__(
        self, optuna: Any, folder: Path, features: Features, views: list[int], seed: int, files: Files
    ) -> None:
        self.optuna, self.folder, self.features, self.files = optuna, folder, features, files
        self.held = int(features.folds.max())
        self.rows = np.flatnonzero(features.folds != self.held)
        self.targets = features.targets.numpy()
        self.count = 0
        self.recipes: dict[int, Recipe] = {}
        self.losses: dict[int, np.ndarray] = {}
        self.right: dict[int, float] = {}
        archs = list(dict.fromkeys(a for a, _ in features.stores))
        self.space = archs, views
        # An untrained body says less, and the head that starts at zero needs a higher rate, as in train/job.py.
        self.default = Recipe(archs[0], views[0], lr=0.0025 if archs[0] in features.untrained else 0.0015)
        self.settings: dict[str, Any] = {
            "scans": features.digest(),
            "bodies": {a: features.stores[a, 1][0].spec.hash for a in archs},
            "views": views,
            "folds": self.held,
            "scans_held_back": int((features.folds == self.held).sum()),
            "epochs": features.epochs,
            "batch": features.bs,
            "seed": seed,
        }
        self._begin()

    def _begin(self) -> None:
        """Open the folder's journal, after making sure that it is of this search."""
        file = self.folder / SEARCH
        if file.exists():
            try:
                was = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as e:
                raise UsageError(f"{file} cannot be read: {e}", NEW) from None
            other = [k for k in self.settings if not isinstance(was, dict) or was.get(k) != self.settings[k]]
            if other:
                raise UsageError(f"{self.folder} has a search of other {', '.join(other)}", NEW)
        else:
            write_text(file, json.dumps(self.settings, indent=2) + "\n")
        (self.folder / TRIALS).mkdir(exist_ok=True)
        journal = self.optuna.storages.journal
        path = str(self.folder / JOURNAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            storage = self.optuna.storages.JournalStorage(
                journal.JournalFileBackend(path, lock_obj=journal.JournalFileOpenLock(path))
            )
            try:
                study = self._study(storage, 0)
                self._read(study)
                # Drawn anew from what has been tried so far, not as the first trials were.
                self.study = self._study(storage, self.count)
            except (ValueError, KeyError, AssertionError) as e:
                raise UsageError(f"{path} is damaged: {e}", NEW) from None
        if not self.count:
            self.study.enqueue_trial(self.default.to_dict())
        else:
            log.info("going on with %d trials", self.count)

    def _study(self, storage: Any, more: int) -> Any:
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        return self.optuna.create_study(
            study_name="octfast",
            storage=storage,
            load_if_exists=True,
            sampler=self.optuna.samplers.TPESampler(seed=self.settings["seed"] + more),
            pruner=self.optuna.pruners.MedianPruner(n_startup_trials=5),
        )

    def _read(self, study: Any) -> None:
        """Take in the trials that are there whole."""
        for trial in study.trials:
            file = self.folder / TRIALS / f"{trial.number:04d}.npy"
            if trial.state.name == "COMPLETE" and file.exists():
                self._keep(trial.number, Recipe(**trial.params), np.load(file, allow_pickle=False))
        self.count = sum(t.state.name in ("COMPLETE", "PRUNED") for t in study.trials)

    def run(self, minutes: float, trials: int | None) -> None:
        """Try recipes until the time is up, a trial that has begun being finished."""
        start = time.monotonic()
        first = self.count
        log.info(
            "searching for %g minutes among %s, seed %d", minutes, " and ".join(self.space[0]), self.settings["seed"]
        )
        with track("searching", 1, "trials", after=0) as update:
            while trials is None or self.count < trials:
                spent, done = time.monotonic() - start, self.count - first
                if spent >= 60 * minutes and self.losses:
                    break
                # How many there will be is known from how long those so far took.
                most = max(done + 1, round(done * 60 * minutes / spent)) if done else 1
                update(done, most if trials is None else min(most, trials - first))
                self._try(together() if trials is None else trials - self.count)
            update(self.count - first, self.count - first)

    def _try(self, most: int) -> None:
        """Try a recipe, or as many at a time as processes work together."""
        tried = [_Tried.begin(self, self.study.ask()) for _ in range(max(1, min(most, together())))]
        folds = self.features.folds[self.rows]
        for fold in range(self.held):
            inside = folds == fold
            left = [t for t in tried if not t.pruned]
            args = self.rows[~inside], self.rows[inside], self.settings["seed"]
            for t, logits in zip(left, judge_all(self.features, [t.recipe for t in left], *args), strict=True):
                t.logits[inside] = logits
                t.done |= inside
                t.value = float(log_losses(t.logits[t.done], self.targets[self.rows[t.done]]).mean())
                t.pruned = not np.isfinite(t.value)
                if fold < self.held - 1 and not t.pruned:
                    t.trial.report(t.value, fold)
                    # The default recipe is what all others are compared with.
                    t.pruned = t.recipe != self.default and t.trial.should_prune()
                if t.pruned or fold == self.held - 1:
                    t.trial.set_user_attr("seconds", round(time.monotonic() - t.start, 2))
        for t in tried:
            self._tell(t)

    def _tell(self, tried: _Tried) -> None:
        """Keep a trial that has come to its end."""
        self.count += 1
        trial, recipe, value = tried.trial, tried.recipe, tried.value
        if tried.pruned:
            self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
            log.debug("trial %d given up: %s", trial.number, recipe.describe())
            return
        with whole_file(self.folder / TRIALS / f"{trial.number:04d}.npy") as part, part.open("wb") as file:
            np.save(file, tried.logits, allow_pickle=False)
        self.study.tell(trial, value)
        best = min((x.mean() for x in self.losses.values()), default=np.inf)
        self._keep(trial.number, recipe, tried.logits)
        if value < best:
            log.info("trial %d: log-loss %.4f, the best so far: %s", trial.number, value, recipe.describe())
        else:
            log.debug("trial %d: log-loss %.4f: %s", trial.number, value, recipe.describe())

    def _keep(self, number: int, recipe: Recipe, logits: np.ndarray) -> None:
        targets = self.targets[self.rows]
        self.recipes[number] = recipe
        self.losses[number] = log_losses(logits, targets)
        self.right[number] = float((logits.argmax(1) == targets).mean())

    def result(self, judge: bool = False) -> Tuned:
        """What has been found so far, written into the folder.

        Parameters
        ----------
        judge : also judge the winner and the default on the fold that is held back.
        """
        numbers = sorted(self.losses)
        default = next((n for n in numbers if self.recipes[n] == self.default), None)
        if default is None:
            raise OctfastError("the default recipe could not be tried: its loss is not a number", NEW)
        best = min(numbers, key=lambda n: float(self.losses[n].mean()))
        by = ByPatient(self.features.scans["patient"].iloc[self.rows], seed=self.settings["seed"])
        rows = []
        for trial in self.study.trials:
            if trial.number not in self.losses and trial.state.name != "PRUNED":
                continue
            row: dict[str, Any] = {"number": trial.number, "state": trial.state.name.lower(), **trial.params}
            if trial.number in self.losses:
                value, lead = by.mean(self.losses[trial.number]), self.losses[trial.number] - self.losses[default]
                row |= dict(zip(("log_loss", "low", "high"), value, strict=True))
                row |= dict(zip(("minus_default", "minus_low", "minus_high"), by.mean(lead), strict=True))
                row["accuracy"] = self.right[trial.number]
            rows.append({**row, "seconds": trial.user_attrs.get("seconds")})
        table = pd.DataFrame(rows).sort_values("log_loss", ignore_index=True)
        corrected = by.of_chosen(np.stack([self.losses[n] for n in numbers]), numbers.index(default))
        held = self._held_back(best, default) if judge else {}
        result = Tuned(self.folder, table, best, default, corrected, held, self.settings)
        table.to_csv(self.folder / "trials.csv", index=False, float_format="%.6g")
        write_text(self.folder / "tune.json", json.dumps(result.to_dict(), indent=2, default=float) + "\n")
        self.files.save(plot_search(table.sort_values("number"), default), self.folder / "search")
        return result

    def _held_back(self, best: int, default: int, seeds: int = 3) -> dict[str, Any]:
        rows = np.flatnonzero(self.features.folds == self.held)
        by = ByPatient(self.features.scans["patient"].iloc[rows], seed=self.settings["seed"])
        first = self.settings["seed"]
        losses = {
            n: np.mean(
                [
                    log_losses(self.features.judge(self.recipes[n], self.rows, rows, s), self.targets[rows])
                    for s in range(first, first + seeds)
                ],
                axis=0,
            )
            for n in {best, default}
        }
        return {
            "scans": len(rows),
            "patients": int(self.features.scans["patient"].iloc[rows].nunique()),
            "log_loss": by.mean(losses[best]),
            "default_log_loss": by.mean(losses[default]),
            "minus_default": by.mean(losses[best] - losses[default]),
        }
