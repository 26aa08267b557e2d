"""unit_learner: makes of a Learner of scans one whose head answers for whole volumes, eyes or patients."""

from __future__ import annotations

from typing import Any

import pandas as pd
from fastai.learner import Learner

from octfast.data.units import LEVELS, one, units_of
from octfast.errors import DataError, UsageError
from octfast.train.at_level import bags_of
from octfast.train.frozen.folds import draw_folds
from octfast.train.frozen.frozen import frozen_learner
from octfast.train.frozen.part import FrozenLearner
from octfast.train.learner import answer_for


def unit_learner(
    learn: Learner,
    level: str,
    *,
    pooling: str = "attention",
    k: int | None = None,
    folds: int = 5,
    seed: int = 0,
    **stored: Any,
) -> FrozenLearner:
    """A Learner that learns one answer for all scans of a volume, an eye or a patient, as `octfast train --level` does.

    Its epochs are of units, and validation is of all of them, each by the head of the fold that it is held out from.

        dls = oct_dataloaders("scans.csv")  # with the columns path, label, patient and eye
        fast = unit_learner(oct_learner(dls), "eye")
        fast.fit_one_cycle(10, 2e-3)
        save_run(fast, "runs/eyes")

    Parameters
    ----------
    learn : of `oct_learner`, untrained, its head on pooled features; its head is put into one that answers for units.
    level : "volume", "eye" or "patient".
    pooling, k : see `octfast.model.pooling.pooling_of`.
    folds : by patient; fewer are drawn where a class has fewer patients.
    seed : of the folds, and of what is stored.
    stored : further parameters of `octfast.train.frozen.frozen.frozen_learner`, such as `views` and `precision`.

    Raises
    ------
    UsageError : the scans do not say which unit they are of, the head is none on pooled features or is one for units
        already, or there is no such pooling.
    DataError : a unit has scans of several labels or splits, or there can be no folds.
    """
    if level not in LEVELS:
        raise UsageError(f"no level {level!r}", f"one of {', '.join(LEVELS[1:])}")
    if learn.oct.level != "scan" or level == "scan":
        raise UsageError(
            f"this Learner answers for {one(learn.oct.level)} already"
            if level != "scan"
            else "a Learner of scans answers for scans as it is",
            "give a new one: unit_learner(oct_learner(dls), 'eye')",
        )
    scans = pd.concat([pd.DataFrame(dl.items) for dl in (learn.dls.train, learn.dls.valid)], ignore_index=True)
    number = units_of(scans, level).number
    for column in ("label", "split"):
        mixed = int((scans[column].groupby(number).nunique() > 1).sum())
        if mixed:
            raise DataError(
                f"{mixed} of {number.max() + 1} {level}s have scans of several {column}s",
                "leave them out: from octfast.data.units import with_one_label; "
                f"scans, _ = with_one_label(scans, {level!r}); dls = oct_dataloaders(scans)"
                if column == "label"
                else f"give all scans of {one(level)} one split",
            )
    drawn = draw_folds(scans, folds, seed)
    if drawn is None:
        raise DataError(
            f"without folds by patient there is nothing to judge answers for {one(level)} by",
            "give two patients of every class or more",
        )
    answer_for(learn, level, pooling, k)
    return frozen_learner(learn, folds=drawn, seed=seed, **bags_of(learn), **stored)
