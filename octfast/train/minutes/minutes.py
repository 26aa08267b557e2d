"""Keeps a training to a number of minutes by the views, scans and epochs that fit; a later one repeats the choice."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from fastai.learner import Learner

from octfast.data.prepare import Prepared
from octfast.data.scans import save_scans
from octfast.errors import UsageError
from octfast.run.folder import Run
from octfast.train.config import TrainConfig
from octfast.train.frozen.frozen import frozen_part
from octfast.train.frozen.views import digest_of_file
from octfast.train.minutes.nested import LEAST, Order, drawing_order
from octfast.train.minutes.pace import Pace, Scans, Times, in_words, measured, measured_whole, times
from octfast.train.store.store import stored_scans

log = logging.getLogger("octfast")

UNUSED = "unused.csv"
# Of the time that is left so much is planned with: other work may begin on the machine.
_MARGIN = 0.95
# Of each class in validation; where folds are trained, all scans judge.
_LEAST_VALID = 2
# A one-cycle schedule of fewer epochs hardly begins.
_EPOCHS = 3
# Test is predicted in the same run where it takes no more than this share of the time that is left.
_TEST = 0.5


@dataclass(frozen=True)
class Taken:
    """What fits the time.

    Attributes
    ----------
    prepared : the scans without those that are not used.
    unused : the training and validation scans that are not.
    about : `training_scans`, `validation_scans`, each with `of`; `views`, `epochs` and `test`, "predicted" or "later".
    """

    prepared: Prepared
    unused: pd.DataFrame
    about: dict[str, Any]

    @property
    def chosen(self) -> dict[str, Any]:
        """What config.json says of it under `chosen`."""
        return {"views": self.about["views"], "epochs": self.about["epochs"], "minutes": self.about}

    def config(self, config: TrainConfig) -> TrainConfig:
        """The config with the views and epochs that were chosen."""
        return replace(config, views=self.about["views"], epochs=self.about["epochs"])

    def save(self, run: Run) -> None:
        """Write the scans that are not used into the run folder."""
        if len(self.unused):
            save_scans(self.unused, run.path / UNUSED, self.prepared.root)


@dataclass(frozen=True)
class Drawn:
    """The orders in which training and validation scans are drawn, and how many of validation go with training."""

    train: Order
    valid: Order

    def valid_for(self, train: int) -> int:
        """Validation scans beside so many training scans: the same share, and at least the smallest sensible number."""
        every = (len(self.train.rows), len(self.valid.rows))
        wanted = max(self.valid.least, math.ceil(every[1] * train / max(every[0], 1)))
        return len(self.valid.first(wanted))


def taken_before(about: Mapping[str, Any], prepared: Prepared, config: TrainConfig, again: bool) -> Taken | None:
    """What an earlier training took, of whatever scans there are now; None where it is to be chosen.

    Parameters
    ----------
    about : its config.json.
    again : whether the scans are all that there are, and not those that were taken.
    """
    chosen = about.get("chosen")
    found = chosen.get("minutes") if isinstance(chosen, dict) else None
    if config.minutes is None or not isinstance(found, dict) or about.get("minutes") != config.minutes:
        return None
    if not again:
        return Taken(prepared, prepared.scans.iloc[:0], found)
    log.info("the scans are those that fitted %g minutes then", config.minutes)
    return _taken(prepared, config, draw(prepared, config), found)


def choose(
    prepared: Prepared,
    config: TrainConfig,
    learn: Learner,
    began: float,
    begin_again: float = 0.0,
    clock: Callable[[], float] = time.time,
) -> Taken:
    """The views, scans and epochs that fit `config.minutes`, said with what is left out.

    Views are halved before scans are left out. Scans are drawn by patient, in an order in which those of fewer minutes
    are among those of more. Validation is drawn in its proportion; test is never drawn from.

    Parameters
    ----------
    learn : of all scans.
    began : when the command began, as `clock` has it.
    begin_again : seconds that a Learner of fewer scans takes to make.

    Raises
    ------
    UsageError : not even the smallest sensible set fits.
    """
    assert config.minutes is not None
    drawn, bs = draw(prepared, config), learn.dls.train.bs
    started = clock()
    ways = list(_ways(prepared, config, learn, drawn, bs))
    pace = ways[0].pace
    begin_again += (clock() - started) / (len(ways) + 1)
    spent = clock() - began
    left = _MARGIN * (60 * config.minutes - spent) - begin_again
    tests = int((prepared.scans["split"] == "test").sum())
    once = pace.read + pace.view
    later, best = tests * once > _TEST * left, None
    if not later:
        best = _best(ways, drawn, left)
        later = best is None and tests > 0
    if later:
        ways = [replace(way, tests=0) for way in ways]
        best = _best(ways, drawn, left)
    if best is None:
        least = ways[-1]
        n, v = drawn.train.least, drawn.valid_for(drawn.train.least)
        needed = (least.times(n, drawn).all + begin_again) / _MARGIN + spent
        raise UsageError(
            f"--minutes {config.minutes:g}: the least that makes sense, {n} training and {v} validation scans, "
            f"takes about {needed / 60:.1f} minutes here",
            f"give --minutes {math.ceil(needed / 6) / 10 + 0.1:.1f} or more{least.other_ways}",
        )
    way, n = best
    took = way.times(n, drawn)
    about = {
        "training_scans": {"taken": n, "of": len(drawn.train.rows)},
        "validation_scans": {"taken": drawn.valid_for(n), "of": len(drawn.valid.rows)},
        "views": way.config.views,
        "epochs": way.config.epochs,
        "test": "none" if not tests else "later" if later else "predicted",
        "expected": round((spent + begin_again + took.all) / 60, 2),
    }
    taken = _taken(prepared, config, drawn, about)
    _say(taken, config, way, took, n, drawn, (tests * once, left))
    return taken


def say_overrun(config: TrainConfig, seconds: float, about: dict[str, Any]) -> None:
    """Say how many of the minutes it took, and keep that in what config.json says of them."""
    assert config.minutes is not None
    about["took"] = round(seconds / 60, 2)
    say = log.warning if seconds > 63 * config.minutes else log.info
    say("took %.1f of %g minutes", seconds / 60, config.minutes)


def draw(prepared: Prepared, config: TrainConfig) -> Drawn:
    """The orders in which scans are drawn."""
    scans, level = prepared.scans, config.level or "scan"
    return Drawn(
        _order(scans[scans["split"] == "train"], config.seed, level, LEAST),
        _order(scans[scans["split"] == "valid"], config.seed, level, _LEAST_VALID),
    )


def _order(scans: pd.DataFrame, seed: int, level: str, least: int) -> Order:
    # The scan by which stores of a part and of the whole tell that they are of the same transforms (`Views.key`).
    digests = [digest_of_file(p) for p in scans["path"]]
    return drawing_order(scans, seed, level, least, min(range(len(scans)), key=digests.__getitem__, default=None))


@dataclass(frozen=True)
class _Way:
    """A way to train: how many views or epochs, and which scans are stored for it, in the order of the draw."""

    config: TrainConfig
    pace: Pace
    bs: int
    tests: int
    new: tuple[np.ndarray, np.ndarray]

    def times(self, train: int, drawn: Drawn) -> Times:
        return times(self.pace, self.scans(train, drawn), self.config, self.bs)

    def scans(self, train: int, drawn: Drawn) -> Scans:
        valid = drawn.valid_for(train)
        return Scans(train, valid, self.tests, int(self.new[0][:train].sum()), int(self.new[1][:valid].sum()))

    @property
    def other_ways(self) -> str:
        """What else would be sooner, as the end of a hint."""
        if self.config.unfreeze == "all" or not self.config.views:
            return "; or train on stored activations: --unfreeze head --views 1, or --unfreeze block5"
        return "; or a smaller --size"


def _ways(prepared: Prepared, config: TrainConfig, learn: Learner, drawn: Drawn, bs: int) -> Iterator[_Way]:
    """The ways to train, from the one that was asked for to the shortest."""
    tests = int((prepared.scans["split"] == "test").sum())
    every = np.ones(len(drawn.train.rows), dtype=bool), np.ones(len(drawn.valid.rows), dtype=bool)
    if config.unfreeze == "all" or not config.views:
        whole = measured_whole(learn, config)
        for epochs in range(config.epochs, min(config.epochs, _EPOCHS) - 1, -1):
            yield _Way(replace(config, epochs=epochs), whole, bs, tests, every)
        return
    pace: Pace | None = None
    least = 2 if config.augment in ("light", "strong") else 1
    for views in sorted({max(least, config.views >> k) for k in range(config.views.bit_length())}, reverse=True):
        way = replace(config, views=views)
        frozen = frozen_part(
            learn,
            views=views,
            **config.of_frozen,
        )
        pace = pace or measured(frozen, way, config.chosen_folds, bs)
        new = []
        for split, source, order in zip(("train", "valid"), frozen.sources, (drawn.train, drawn.valid), strict=True):
            stored = stored_scans(frozen.spec(source), source.digests, config.cache)
            paths = pd.Index(prepared.scans.loc[prepared.scans["split"] == split, "path"])
            place = pd.Index(list(source.dl.items["path"])).get_indexer(paths[order.rows])
            new.append(~stored[place])
        yield _Way(way, pace, bs, tests, (new[0], new[1]))


def _best(ways: list[_Way], drawn: Drawn, left: float) -> tuple[_Way, int] | None:
    """The first way in which all scans fit, else the shortest with the most scans that do; None where too few do."""
    every = len(drawn.train.rows)
    for way in ways:
        if way.times(every, drawn).all <= left:
            return way, every
    way, sizes = ways[-1], drawn.train.ends[drawn.train.ends >= drawn.train.least]
    low, high = -1, len(sizes) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if way.times(int(sizes[middle]), drawn).all <= left else (low, middle - 1)
    return None if low < 0 else (way, int(sizes[low]))


def _taken(prepared: Prepared, config: TrainConfig, drawn: Drawn, about: dict[str, Any]) -> Taken:
    scans = prepared.scans
    keep = np.array(scans["split"] == "test")
    numbers = (about["training_scans"]["taken"], about["validation_scans"]["taken"])
    for split, order, number in zip(("train", "valid"), (drawn.train, drawn.valid), numbers, strict=True):
        keep[np.flatnonzero(scans["split"] == split)[order.first(number)]] = True
    kept, unused = scans[keep].reset_index(drop=True), scans[~keep].reset_index(drop=True)
    return Taken(replace(prepared, scans=kept), unused, about)


def _say(
    taken: Taken, config: TrainConfig, way: _Way, took: Times, n: int, drawn: Drawn, test: tuple[float, float]
) -> None:
    about, learned = taken.about, taken.prepared.scans[taken.prepared.scans["split"] != "test"]
    parts = []
    if len(taken.unused):
        every = pd.concat([learned, taken.unused])["patient"].nunique()
        parts += [
            f"{n:,} of {about['training_scans']['of']:,} training and {about['validation_scans']['taken']:,} of "
            f"{about['validation_scans']['of']:,} validation scans are taken, of {learned['patient'].nunique():,} of "
            f"{every:,} patients; the others are listed in {UNUSED}"
        ]
    if way.config.views != config.views:
        parts += [f"{way.config.views} of {config.views} views"]
    if way.config.epochs != config.epochs:
        parts += [f"{way.config.epochs} of {config.epochs} epochs"]
    if parts:
        log.warning("--minutes %g: %s", config.minutes, "; ".join(parts))
    else:
        log.info("--minutes %g: all scans fit", config.minutes)
    if about["test"] == "later":
        log.warning(
            "the test scans would take %.1f of the %.1f minutes that are left: none is predicted now; octfast evaluate "
            "--split test predicts all of them",
            *(test[0] / 60, test[1] / 60),
        )
    log.info("%s", in_words(took, way.scans(n, drawn), way.config))
