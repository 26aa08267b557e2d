"""Units of scans that have one answer together: a volume, an eye or a patient; which scans are of which."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from octfast.errors import DataError, UsageError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("octfast")

LEVELS = ("scan", "volume", "eye", "patient")
# With fewer frames a volume is hardly one, and a column of that name may mean something else.
_FRAMES = 5


@dataclass(frozen=True)
class Units:
    """The units of a Scans table.

    Attributes
    ----------
    level : one of `LEVELS`.
    number : of each scan, the unit that it is of, from 0; units are numbered as they first appear.
    table : a row a unit: `patient`, the columns of `unit_columns`, `label`, `split`, `scans` (how many) and what was
        asked for beside these.
    """

    level: str
    number: np.ndarray
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    @property
    def first(self) -> np.ndarray:
        """Of each unit, the place of its first scan."""
        return np.unique(self.number, return_index=True)[1]

    @property
    def noun(self) -> str:
        """What several of them are called."""
        return f"{self.level}s"


def one(level: str) -> str:
    """One of a level, with its article."""
    return f"an {level}" if level == "eye" else f"a {level}"


def unit_columns(columns: Sequence[str], level: str) -> list[str]:
    """The columns that tell one unit from another: of an eye the patient too, of a volume the eye where it is known.

    Raises
    ------
    UsageError : the scans have no such column.
    """
    if level in ("eye", "volume") and level not in columns:
        raise UsageError(
            f"--level {level}: the scans have no column {level}",
            f"give a table with one, or another --level: {', '.join(_possible(columns))}",
        )
    keys = ["patient"]
    if level in ("eye", "volume") and "eye" in columns:
        keys.append("eye")
    return [*keys, "volume"] if level == "volume" else keys


def units_of(scans: pd.DataFrame, level: str, keep: Sequence[str] = ()) -> Units:
    """Which scans are of which unit.

    Parameters
    ----------
    scans : a Scans table, in which the scans of a unit have one label and one split, see `with_one_label`.
    keep : further columns of the scans that are the same for all of a unit.

    Raises
    ------
    UsageError : see `unit_columns`.
    """
    keys = unit_columns(list(scans.columns), level)
    number = _numbers(scans, keys)
    first = np.unique(number, return_index=True)[1]
    wanted = list(dict.fromkeys([*keys, "label", "split", *keep]))
    table = scans[[c for c in wanted if c in scans]].iloc[first].reset_index(drop=True)
    return Units(level, number, table.assign(scans=np.bincount(number, minlength=len(first))))


def choose_level(scans: pd.DataFrame, asked: str | None) -> str:
    """The level that is learned at: the one asked for, else a volume where labels are plainly those of volumes.

    Labels of a scan may agree within an eye or a patient by chance or by disease, so that these are never guessed.

    Raises
    ------
    UsageError : the scans have no such column.
    """
    if asked is not None:
        unit_columns(list(scans.columns), asked)
        return asked
    import pandas as pd

    for level in ("volume", "eye"):
        if level not in scans:
            continue
        number = pd.Series(_numbers(scans, unit_columns(list(scans.columns), level)), index=scans.index)
        sizes, labels = number.value_counts(), scans["label"].groupby(number).nunique()
        said = level == "volume" and "label_level" in scans and bool((scans["label_level"] == "volume").all())
        if not said and sizes.median() < (_FRAMES if level == "volume" else 2):
            continue
        mixed = int((labels > 1).sum())
        if mixed:
            log.info("labels are those of scans: they vary within %d of %d %ss", mixed, len(sizes), level)
            return "scan"
        if level == "volume":
            log.info(
                "--level volume: no label varies within the %d volumes (%g scans each in the middle), so that labels "
                "are taken for those of volumes; --level scan learns from each scan alone",
                *(len(sizes), sizes.median()),
            )
            return "volume"
        log.info("no label varies within an eye: where labels are an eye's, --level eye learns an answer for the eye")
    return "scan"


def with_one_label(scans: pd.DataFrame, level: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scans of units with one label, and the rest with a column `reason`; how many these are is said in the log.

    Raises
    ------
    DataError : no unit has one label, or one has scans in several splits.
    """
    number = units_of(scans, level).number
    if (scans["split"].groupby(number).nunique() > 1).any():
        raise DataError(f"{one(level)} has scans in several splits", f"give all scans of {one(level)} one split")
    mixed = scans["label"].groupby(number).transform("nunique").to_numpy() > 1
    if mixed.all():
        raise DataError(f"every {level} has scans of several labels", "labels are those of scans: --level scan")
    if mixed.any():
        log.warning(
            "left out: %d of %d %ss have scans of several labels (%d scans), and no one answer would be right for them",
            *(len(np.unique(number[mixed])), number.max() + 1, level, mixed.sum()),
        )
    left_out = scans[mixed].assign(reason=f"the {level} has scans of several labels").reset_index(drop=True)
    return scans[~mixed].reset_index(drop=True), left_out


def _numbers(scans: pd.DataFrame, keys: Sequence[str]) -> np.ndarray:
    """Of each scan the number of its unit; a scan of no volume is one of its own."""
    own = [scans[key] for key in keys]
    if "volume" in keys:
        blank = scans["volume"].isna() | (scans["volume"].astype(str) == "")
        own.append(scans["path"].where(blank, ""))
    return scans.groupby(own, sort=False, dropna=False).ngroup().to_numpy()


def _possible(columns: Sequence[str]) -> list[str]:
    return [level for level in LEVELS if level in ("scan", "patient") or level in columns]
