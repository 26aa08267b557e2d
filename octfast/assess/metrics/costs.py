"""What a mistake costs: Kermany's costs, or a matrix of the user's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from octfast.data.readers.load import load_table
from octfast.errors import DataError, UsageError

log = logging.getLogger("octfast")

_SHAPE = "a first column with the actual classes, then a column a predicted class"


def kermany_costs(classes: Sequence[str], urgent: Sequence[str]) -> pd.DataFrame | None:
    """The costs of Kermany et al., Cell 2018, figure S4A: actual by predicted.

    An urgent class called NORMAL costs 4, called DRUSEN 2, any other mistake 1. None where they would say no more
    than the error rate: without an urgent class, or with neither NORMAL nor DRUSEN.
    """
    if not urgent or not {"NORMAL", "DRUSEN"} & (set(classes) - set(urgent)):
        return None
    costs = pd.DataFrame(1.0 - np.eye(len(classes)), index=list(classes), columns=list(classes))
    for name, cost in (("NORMAL", 4.0), ("DRUSEN", 2.0)):
        if name in classes and name not in urgent:
            costs.loc[list(urgent), name] = cost
    return costs


def read_costs(file: str | Path, classes: Sequence[str]) -> pd.DataFrame:
    """A cost matrix from a CSV: a first column with the actual classes, then a column a predicted class.

    Returns
    -------
    Actual by predicted, in the order of `classes`.

    Raises
    ------
    DataError : the file cannot be read, lacks a class, or holds what is no cost.
    """
    file = Path(file)
    table = load_table(file)
    rows = table.iloc[:, 0].astype(str).str.strip()
    if rows.duplicated().any():
        raise DataError(f"{file.name} has two rows for {rows[rows.duplicated()].iloc[0]}", f"it needs {_SHAPE}")
    matrix = table.iloc[:, 1:].set_axis(rows, axis=0)
    for names, where in ((matrix.index, "row"), (matrix.columns, "column")):
        lacking = [c for c in classes if c not in names]
        if lacking:
            raise DataError(f"{file.name} has no {where} for {', '.join(lacking)}", f"it needs {_SHAPE}")
    further = sorted((set(matrix.index) | set(matrix.columns)) - set(classes))
    if further:
        log.warning("%s: left alone, as the model has no such class: %s", file.name, ", ".join(further))
    kept = matrix.loc[list(classes), list(classes)]
    return check_costs(kept.apply(pd.to_numeric, errors="coerce"), classes, file.name)


def check_costs(costs: pd.DataFrame, classes: Sequence[str], name: str = "costs") -> pd.DataFrame:
    """A cost matrix in the order of `classes`, as numbers.

    Raises
    ------
    UsageError : it lacks a class.
    DataError : a cost is no number of 0 or more.
    """
    lacking = [c for c in classes if c not in costs.index or c not in costs.columns]
    if lacking:
        raise UsageError(f"{name} has nothing for {', '.join(lacking)}", f"it needs {_SHAPE}")
    values = costs.loc[list(classes), list(classes)].astype(float)
    wrong = np.argwhere(~(np.isfinite(values.to_numpy()) & (values.to_numpy() >= 0)))
    if len(wrong):
        i, j = wrong[0]
        raise DataError(
            f"{name}: the cost of {classes[i]} called {classes[j]} is not a number of 0 or more",
            "give a number for each pair of classes, 0 for a right answer",
        )
    return values


def parse_prevalence(text: str, classes: Sequence[str]) -> dict[str, float]:
    """Prevalences from `CNV=.02,DME=.01`.

    Raises
    ------
    UsageError : not of that form, an unknown class, a share outside 0 to 1, or shares of more than 1 together.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.rpartition("=")
        name = name.strip()
        try:
            share = float(number)
        except ValueError:
            equals = ""
        if not equals or name in shares:
            raise UsageError(
                f"--prevalence {text}: {part!r} is not one CLASS=SHARE a class", "for example --prevalence CNV=.02"
            )
        shares[name] = share
    return check_prevalence(shares, classes)


def check_prevalence(shares: dict[str, float], classes: Sequence[str]) -> dict[str, float]:
    """The same shares, if they can be.

    Raises
    ------
    UsageError : see `parse_prevalence`.
    """
    for name, share in shares.items():
        if name not in classes:
            raise UsageError(f"prevalence: no class {name!r}", f"the model has {', '.join(classes)}")
        if not 0 < share < 1:
            raise UsageError(f"prevalence: {name}={share} is not between 0 and 1", "a share of patients, such as .02")
    total = sum(shares.values())
    complete = set(shares) == set(classes)
    if total > 1 + 1e-9 or (complete and total < 1 - 1e-6) or (not complete and total > 1 - 1e-9):
        rest = "must make 1 together" if complete else "must leave something for the other classes"
        raise UsageError(f"prevalence: the shares make {total:g} together", f"they {rest}")
    return shares


def class_shares(prevalence: dict[str, float], counts: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The share of every class, of shape (classes, b): as given, the others in proportion to their counts.

    Parameters
    ----------
    counts : scans of each class, of shape (classes, b).
    """
    given = np.array([prevalence.get(c, np.nan) for c in classes])
    free = np.isnan(given)
    rest = np.where(free[:, None], counts, 0.0)
    total = rest.sum(0)
    left = 1 - np.nansum(given)
    # Where the other classes have no scans, nothing is known of their share, and it must not be taken for none.
    even = np.full_like(rest, 1 / max(1, free.sum()))
    spread = np.divide(rest, total, out=even, where=total > 0) * left
    return np.where(free[:, None], spread, np.nan_to_num(given)[:, None])
