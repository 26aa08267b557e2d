"""Leaves out scans that have become unreadable since they were checked, so that one of them ends no training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pandas as pd

from octfast.data.prepare import Prepared, check_file
from octfast.errors import DataError
from octfast.files import in_threads

log = logging.getLogger("octfast")

T = TypeVar("T")
# More than so many of all scans are no damaged files but a folder that has gone.
_MOST = 0.5


def with_readable(step: Callable[[Prepared], T], prepared: Prepared, splits: tuple[str, ...]) -> tuple[T, Prepared]:
    """Run a step over scans; where it meets some that cannot be read, run it again without them.

    Parameters
    ----------
    splits : that the step reads.

    Returns
    -------
    (what the step gave; the scans it was given last, with what was left out).

    Raises
    ------
    DataError : too few can be read. Whatever the step raises where all scans can be read passes through.
    """
    while True:
        try:
            return step(prepared), prepared
        except (DataError, OSError):
            fewer = without_unreadable(prepared, splits)
            if fewer is None:
                raise
            prepared = fewer


def without_unreadable(prepared: Prepared, splits: tuple[str, ...]) -> Prepared | None:
    """The scans without those of these splits that cannot be read now, which are said; None where all can be.

    Raises
    ------
    DataError : more than half of the scans, a class or a split would go.
    """
    log.info("a scan cannot be read: checking all of %s again", " and ".join(splits))
    asked = prepared.scans["split"].isin(splits)
    scans = prepared.scans[asked]
    reason = pd.Series([said for said, _ in in_threads(check_file, scans["path"])], index=scans.index, dtype=object)
    good, bad = scans[reason == ""], scans.assign(reason=reason)[reason != ""]
    if not len(bad):
        return None
    gone = [s for s in splits if s != "test" and not (good["split"] == s).any()]
    classes = set(scans["label"]) - set(good["label"]) if "train" in splits else set()
    if len(bad) > _MOST * len(scans) or gone or classes:
        what = f", all of {', '.join(sorted(map(str, [*gone, *classes])))} among them" if gone or classes else ""
        raise DataError(
            f"{len(bad)} of {len(scans)} files that could be read before training cannot be read any more{what}",
            "see that the folder or drive of the scans is there, and train again",
        )
    for row in bad.head(5).itertuples():
        log.warning("left out, unreadable since training began: %s (%s)", row.path, row.reason)
    if len(bad) > 5:
        log.warning("left out, unreadable since training began: %d more", len(bad) - 5)
    left = prepared.scans.drop(index=bad.index).reset_index(drop=True)
    return replace(prepared, scans=left, left_out=pd.concat([prepared.left_out, bad], ignore_index=True))
