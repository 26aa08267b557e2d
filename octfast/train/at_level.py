"""At which level a training learns: whether a label is that of a scan, or of a volume, an eye or a patient."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pandas as pd
from fastai.learner import Learner

from octfast.data.prepare import Prepared
from octfast.data.scans import check_trainable
from octfast.data.units import choose_level, one, units_of, with_one_label
from octfast.errors import UsageError
from octfast.model.pooling import pooling_in_words, pooling_of
from octfast.train.config import TrainConfig
from octfast.train.frozen.bags import units_a_batch

log = logging.getLogger("octfast")


def at_level(prepared: Prepared, config: TrainConfig) -> tuple[Prepared, TrainConfig]:
    """The scans that are learned from at the level asked for or chosen, and the config that says which that is.

    Raises
    ------
    UsageError : the scans lack the column of the level, or a pooling is asked for where each is learned from alone.
    DataError : too few units have one label.
    """
    level = choose_level(prepared.scans, config.level)
    if level != "scan" and config.level is None and (why := config.against_units or _too_few(prepared.scans)):
        log.warning("each scan is learned from alone, with the label of its %s: %s", level, why)
        level = "scan"
    if level == "scan" and config.pooling is not None:
        raise UsageError(
            f"--pooling {config.pooling}: each of these scans has its own answer",
            "leave it out; or say what one label is of: --level volume, eye or patient",
        )
    if level == "scan":
        return prepared, replace(config, level=level)
    scans, left_out = with_one_label(prepared.scans, level)
    check_trainable(scans, "the data", f"give each {level} one label, or learn from each scan alone: --level scan")
    units = units_of(scans, level)
    for split, own in units.table.groupby("split", sort=False):
        log.info("%s: %d %s of %d scans", split, len(own), units.noun, own["scans"].sum())
    log.info("the answer for %s is %s", one(level), pooling_in_words(pooling_of(config.chosen_pooling, config.top_k)))
    left_out = pd.concat([prepared.left_out, left_out], ignore_index=True)
    return replace(prepared, scans=scans, left_out=left_out), replace(config, level=level)


def _too_few(scans: pd.DataFrame) -> str:
    """Why there can be no folds, by which units are judged; empty where there can."""
    patients = scans[scans["split"] != "test"].groupby("label")["patient"].nunique()
    return "" if patients.min() > 1 else f"{patients.idxmin()} has one patient alone, and units are judged by folds"


def bags_of(learn: Learner) -> dict[str, Any]:
    """What `frozen_learner` is to know of the units of a Learner's scans; nothing at the level of scans."""
    if learn.oct.level == "scan":
        return {}
    scans = pd.concat([pd.DataFrame(dl.items) for dl in (learn.dls.train, learn.dls.valid)], ignore_index=True)
    units = units_of(scans, learn.oct.level)
    return {"units": units, "units_a_batch": units_a_batch(len(scans), len(units))}
