"""Finds patients and identical files that are in two splits, and drops or refuses them."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from octfast.data.splits.groups import identical_files
from octfast.data.splits.hold_out import shared_patients
from octfast.errors import DataError

log = logging.getLogger("octfast")

# Of two splits with the same patient, the earlier of these keeps it.
_PRECEDENCE = ("test", "valid", "train")


def drop_leaks(scans: pd.DataFrame, identical: np.ndarray | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Leave out the scans that leak into another split: test keeps all its scans, and validation goes before training.

    A scan is left out whose patient, or a byte-identical copy of which, stands in a split that goes before its own.
    The log says how many are. No file is changed.

    Parameters
    ----------
    scans : a Scans table.
    identical : of `identical_files`, where it is known already.

    Returns
    -------
    The scans that stay, and those left out with a column `reason`. No patient and no file of the first stands in two
    splits.

    Raises
    ------
    DataError : fewer than two classes are left to train on.
    """
    if identical is None:
        identical = identical_files(scans["path"].tolist())
    patients = pd.factorize(scans["patient"])[0]
    rank = scans["split"].map({split: i for i, split in enumerate(_PRECEDENCE)}).to_numpy()
    reason = np.full(len(scans), "", dtype=object)
    for i, split in enumerate(_PRECEDENCE[:-1]):
        # A scan that is left out already keeps no other scan out.
        first = (rank == i) & (reason == "")
        later = (rank > i) & (reason == "")
        copied = later & np.isin(identical, identical[first])
        shared = later & np.isin(patients, patients[first])
        reason[copied] = f"an identical file is in {split}"
        reason[shared] = f"the patient is in {split}"
    leaked = reason != ""
    dropped = scans[leaked].assign(reason=reason[leaked]).reset_index(drop=True)
    kept = scans[~leaked].reset_index(drop=True)
    for (split, why), rows in dropped.groupby(["split", "reason"]):
        log.warning("left out of %s: %d of %d scans, as %s", split, len(rows), (scans["split"] == split).sum(), why)
    left = kept.loc[kept["split"] == "train", "label"].nunique()
    if len(dropped) and left < 2:
        raise DataError(
            f"with the {len(dropped)} leaked scans left out, {left} classes are left to train on",
            "draw the splits anew: octfast data split DATA --test 0.15 --out splits.csv",
        )
    return kept, dropped


def refuse_leaks(scans: pd.DataFrame, allow: bool = False) -> None:
    """Refuse splits that share patients, or, where that is allowed, say in the log that they do.

    Raises
    ------
    DataError : patients stand in two splits, and `allow` is not set.
    """
    shared = shared_patients(scans)
    if shared.empty:
        return
    counts = ", ".join(f"{pair}: {n}" for pair, n in shared["splits"].value_counts().items())
    n = int(scans["patient"].isin(shared["patient"]).sum())
    who = "1 patient stands" if len(shared) == 1 else f"{len(shared)} patients stand"
    said = f"{who} in more than one split, with {n} scans ({counts})"
    if allow:
        log.warning("%s: figures on these splits will be too good", said)
        return
    raise DataError(
        f"{said}, which would make the model look better than it is",
        "--drop-leaks leaves them out of training, octfast data split draws clean splits, --allow-leaks goes on",
    )
