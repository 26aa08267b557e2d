"""Whether a table of predictions is what its model gave of the scans of its run: an edited one is refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from octfast.data.units import unit_columns
from octfast.errors import BundleError, UsageError
from octfast.model.bundle.info import BundleInfo
from octfast.model.temperature import table_temperature

log = logging.getLogger("octfast")

_AGAIN = "delete it, and it is made again; where the run was cross-validated, copy it from where the run was made"
# Tables hold all digits of their numbers; those of other programs may hold fewer.
_TOLERANCE = 1e-3


def check_table(table: pd.DataFrame, scans: pd.DataFrame | None, classes: Sequence[str], file: Path) -> None:
    """
    Parameters
    ----------
    table : as it was read from `file`.
    scans : the Scans table of the run, of the same split; None where it is lost, so that only the numbers are checked.

    Raises
    ------
    BundleError : columns are missing or hold what they cannot; the probabilities of a row are not between 0 and 1 or
        do not sum to 1; the predicted class is not the most probable; the loss is not that of the label; a scan is
        not of this split in scans.csv, or has another label there; several temperatures.
    """
    probabilities = [f"p_{c}" for c in classes]
    numbers = ["probability", "loss", *probabilities]
    whole = {"predicted", *numbers} <= set(table.columns) and all(
        pd.api.types.is_numeric_dtype(table[name]) for name in numbers
    )
    if not whole or not (set(table["label"]) | set(table["predicted"])) <= set(classes):
        raise BundleError(f"{file} is damaged, or not of this run's model", _AGAIN)
    try:
        table_temperature(table)
    except BundleError as e:
        raise BundleError(f"{file}: {e.message}", e.hint) from None
    for wrong, what in _numbers(table, classes):
        if wrong.any():
            row = int(wrong.argmax())
            raise BundleError(
                f"{file} was edited or damaged: row {row + 2}, of {Path(table['path'].iloc[row]).name}, {what}", _AGAIN
            )
    if scans is not None:
        _compare(table, scans, file)


def check_level(table: pd.DataFrame, info: BundleInfo, file: Path) -> None:
    """
    Raises
    ------
    BundleError : the table is not of what the model answers for: of scans, or a row a volume, an eye or a patient.
    """
    if info.level == "scan":
        return
    try:
        keys = unit_columns(list(table.columns), info.level)
    except UsageError:
        keys = []
    if not keys or "scans" not in table or table.duplicated(keys).any():
        raise BundleError(f"{file} is not a table of {info.level}s, for which the model answers", _AGAIN)


def _numbers(table: pd.DataFrame, classes: Sequence[str]) -> list[tuple[np.ndarray, str]]:
    """Which rows hold numbers that no model gives, and what is wrong with them."""
    p = table[[f"p_{c}" for c in classes]].to_numpy(dtype=float)
    loss, probability = table["loss"].to_numpy(dtype=float), table["probability"].to_numpy(dtype=float)
    index = {c: i for i, c in enumerate(classes)}
    rows = np.arange(len(table))
    of_label = p[rows, table["label"].map(index).to_numpy(dtype=int)]
    of_predicted = p[rows, table["predicted"].map(index).to_numpy(dtype=int)]
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = -np.log(of_label)
        # A probability below what a number can hold is 0, and its loss is any large one.
        far = ~(np.abs(loss - expected) <= _TOLERANCE * (1 + expected)) & ~((of_label < 1e-30) & (loss > 60))
    return [
        (~((p >= 0) & (p <= 1 + 1e-9)).all(axis=1), "has a probability that is not between 0 and 1"),
        (~(np.abs(p.sum(axis=1) - 1) <= _TOLERANCE), "has probabilities that do not sum to 1"),
        (~(of_predicted >= p.max(axis=1, initial=0) - 1e-9), "predicts a class that is not the most probable"),
        (~(np.abs(probability - of_predicted) <= _TOLERANCE), "has another probability than its predicted class"),
        (far, "has a loss that is not that of its label"),
    ]


def _compare(table: pd.DataFrame, scans: pd.DataFrame, file: Path) -> None:
    """Raises BundleError where the scans and labels are not those of the run."""
    both = ["path", "label"]
    known, found = scans.groupby(both).size(), table.groupby(both).size()
    counts = pd.concat({"known": known, "found": found}, axis=1).fillna(0)
    if missing := int((counts["known"] - counts["found"]).clip(lower=0).sum()):
        log.warning("%s lacks %d of the %d scans of its split in scans.csv", file, missing, len(scans))
    other = counts[counts["found"] > counts["known"]]
    if other.empty:
        return
    path, label = other.index[0]
    name, labels = Path(path).name, scans.loc[scans["path"] == path, "label"]
    if labels.empty:
        what = f"{name} is no scan of this split in scans.csv"
    elif label not in set(labels):
        what = f"{name} is labelled {label}, and {labels.iloc[0]} in scans.csv"
    else:
        what = f"{name} stands there more often than in scans.csv"
    raise BundleError(f"{file} was edited or damaged: {what}", _AGAIN)
