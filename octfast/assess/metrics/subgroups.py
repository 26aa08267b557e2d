"""Parts of a Predictions table: groups by a column, and whole patients, eyes and volumes as one row each."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from octfast.data.readers.load import as_numbers
from octfast.errors import UsageError

log = logging.getLogger("octfast")

# Below this many patients an interval says little; below this many scans a metric hangs on single ones.
_FEW_PATIENTS, _FEW_SCANS = 20, 50
_MOST_GROUPS = 30
_NUMBERS_AS_GROUPS = 10
_NOT_GIVEN = "(not given)"


def grouped(table: pd.DataFrame, column: str) -> pd.Series:
    """The group of each row, by a column: its values as text; numbers of more than ten values in four equal parts.

    Raises
    ------
    UsageError : no such column, or more than thirty groups.
    """
    own = [c for c in table.columns if not c.startswith("p_") and c not in ("path", "probability", "loss")]
    if column not in table:
        near = difflib.get_close_matches(column, own, n=1, cutoff=0.5)
        raise UsageError(
            f"--by {column}: the scans have no such column",
            f"did you mean {near[0]}?" if near else f"they have {', '.join(own)}",
        )
    values = table[column]
    given = values.notna() & (values.astype(str).str.strip() != "")
    # In a file a number that is missing makes text of all the others.
    values = as_numbers(values.where(given))
    number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if number:
        given &= np.isfinite(values.astype(float))
        values = values.where(given)
    if number and values.nunique() > _NUMBERS_AS_GROUPS:
        parts = pd.qcut(values, 4, duplicates="drop")
        ranges = values.groupby(parts, observed=True).agg(["min", "max"])
        names = {interval: f"{low:.10g} to {high:.10g}" for interval, low, high in ranges.itertuples()}
        text = parts.map(names).astype(object)
        log.info("--by %s: numbers, in four parts: %s", column, ", ".join(names.values()))
        order = list(names.values())
    else:
        text = values.map(_value_name).astype(object)
        # As numbers where they are, so that 9 stands before 10.
        order = [_value_name(v) for v in sorted(values[given].unique(), key=lambda v: v if number else str(v))]
        order = list(dict.fromkeys(order))
    if len(order) > _MOST_GROUPS:
        raise UsageError(
            f"--by {column}: {len(order):,} groups, more than {_MOST_GROUPS}", "name a column with fewer values"
        )
    text = text.where(given, _NOT_GIVEN)
    return pd.Series(
        pd.Categorical(text, categories=list(dict.fromkeys([*order, _NOT_GIVEN]))), index=table.index, name=column
    )


def _value_name(value: Any) -> str:
    """A value as a group's name; a whole number without the .0 that a gap in its column gave it."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def is_small(scans: int, patients: int) -> bool:
    """Whether a group is too small for its metrics to be told from chance."""
    return scans < _FEW_SCANS or patients < _FEW_PATIENTS


def small_group_note(column: str, group: str, scans: int, patients: int) -> str:
    """The warning that a group is too small."""
    of = f"{scans:,} scan{'s' * (scans != 1)} of {patients:,} patient{'s' * (patients != 1)}"
    return f"{column} {group}: only {of}; interpret its figures with caution."


def units(table: pd.DataFrame, classes: Sequence[str]) -> Iterator[tuple[str, str, pd.DataFrame, list[str]]]:
    """Whole patients, and eyes and volumes where there are such columns, by either rule of putting scans together.

    A unit whose scans have more than one label is left out, as no one answer would be right for it.

    Yields
    ------
    (unit; "majority" of the predicted classes or "mean_probability"; a table with `label`, `predicted` and `patient`,
    a row a unit; what to know of it). In a tie, the majority is the class with the higher mean probability.
    """
    keys = {"patient": ["patient"]}
    if "eye" in table:
        keys["eye"] = ["patient", "eye"]
    if "volume" in table:
        keys["volume"] = [*keys.get("eye", ["patient"]), "volume"]
    k = len(classes)
    index = {c: i for i, c in enumerate(classes)}
    for unit, columns in keys.items():
        number = table.groupby(columns, sort=False, dropna=False).ngroup().to_numpy()
        n = int(number.max()) + 1
        actual = table["label"].map(index).to_numpy(dtype=int)
        counts = np.zeros((n, k), dtype=int)
        np.add.at(counts, (number, actual), 1)
        mixed = (counts > 0).sum(1) > 1
        votes = np.zeros((n, k))
        np.add.at(votes, (number, table["predicted"].map(index).to_numpy(dtype=int)), 1)
        p = table[[f"p_{c}" for c in classes]].to_numpy(dtype=float)
        mean = np.stack([np.bincount(number, p[:, i], n) for i in range(k)], 1) / np.bincount(number)[:, None]
        first = np.zeros(n, dtype=int)
        first[number[::-1]] = np.arange(len(table))[::-1]
        notes = []
        if mixed.any():
            notes = [f"{mixed.sum():,} of {n:,} {unit}s have scans of several classes and count for no {unit} figure."]
        names = np.asarray(classes, dtype=object)
        rows = pd.DataFrame({"patient": table["patient"].to_numpy()[first], "label": names[counts.argmax(1)]})
        # Votes are whole numbers and mean probabilities at most 1, so the latter decide ties alone.
        for rule, best in (("majority", votes + 0.5 * mean), ("mean_probability", mean)):
            yield unit, rule, rows.assign(predicted=names[best.argmax(1)])[~mixed], notes
