"""Draws a part of the scans, of all patients and classes, so that a smaller part lies within every larger one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from octfast.data.units import units_of

# So many scans of each class, or units, are the least to train on.
LEAST = 8

# Beyond these a class has scans by so high a power of its frequency: 1 would be its share, 0 as many as any other.
# Shares did worse by balanced accuracy and evenness by log-loss (docs/guides/laptop.md).
POWER = 0.5


@dataclass(frozen=True)
class Order:
    """In which order scans are drawn.

    Attributes
    ----------
    rows : places in the table, as they are drawn.
    ends : how many scans there are after each draw; one takes a scan, or all scans of a unit.
    least : the smallest sensible number of scans: so many draws of every class, or all that it has.
    """

    rows: np.ndarray
    ends: np.ndarray
    least: int

    def first(self, scans: int) -> np.ndarray:
        """The places of as many draws as make at most so many scans, ascending."""
        draws = int(np.searchsorted(self.ends, scans, side="right"))
        return np.sort(self.rows[: self.ends[draws - 1]] if draws else self.rows[:0])


def drawing_order(
    scans: pd.DataFrame, seed: int, level: str = "scan", least: int = LEAST, lead: int | None = None
) -> Order:
    """Put scans into an order to draw them in, so that the first n are of as many patients as can be.

    Within a class every patient gives a scan before one gives a second. After `least` of each class they take turns by
    the roots of their frequencies. What is drawn depends on the seed, file names and patients; not on the order of the
    table, nor on where it lies.

    Parameters
    ----------
    scans : a Scans table, of one split.
    level : at which units stay whole; see `octfast.data.units`.
    least : so many scans or units of each class come before any class has more.
    lead : the place of a scan to be drawn before any other.
    """
    if not len(scans):
        return Order(np.arange(0), np.arange(0), 0)
    number = np.arange(len(scans)) if level == "scan" else units_of(scans, level).number
    table = scans[["label", "patient"]].astype(str).reset_index(drop=True)
    table["name"] = [Path(p).name for p in scans["path"]]
    firsts = np.unique(number, return_index=True)[1]
    items = table.iloc[firsts].reset_index(drop=True)
    items["unit"] = np.arange(len(items))
    items["of_item"] = [_rank(seed, *words) for words in zip(items["name"], items["patient"], strict=True)]
    ranks = {patient: _rank(seed, patient) for patient in items["patient"].unique()}
    items["of_patient"] = items["patient"].map(ranks)
    items = items.sort_values(["of_item", "name", "unit"])
    items["turn"] = items.groupby(["label", "patient"]).cumcount()
    items = items.sort_values(["turn", "of_patient", "patient"], kind="stable")
    items["place"] = items.groupby("label").cumcount()
    share = (items["place"] + 0.5) / items.groupby("label")["place"].transform("size") ** POWER
    early = items["place"] < least
    items["late"], items["at"] = ~early, share.where(~early, items["place"])
    items["follows"] = items["unit"] != (-1 if lead is None else number[lead])
    drawn = items.sort_values(["follows", "late", "at", "label"], kind="stable")
    sizes = np.bincount(number)
    ends = np.cumsum(sizes[drawn["unit"]])
    members = np.split(np.argsort(number, kind="stable"), np.cumsum(sizes)[:-1])
    rows = np.concatenate([members[unit] for unit in drawn["unit"]])
    return Order(rows, ends, int(ends[int((early | ~items["follows"]).sum()) - 1]))


def _rank(seed: int, *words: str) -> int:
    """A number that looks random, the same for the same words."""
    content = "\n".join([str(seed), *words]).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "big")
