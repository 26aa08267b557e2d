"""Finds patients and identical files that are in two splits, and drops or refuses them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from octfast.console import track
from octfast.data.splits.hold_out import shared_patients
from octfast.errors import DataError

log = logging.getLogger("octfast")

# Of two splits with the same patient, the earlier of these keeps it.
_PRECEDENCE = ("test", "valid", "train")


def identical_files(paths: Sequence[str]) -> np.ndarray:
    """Which files are the same, byte for byte: an int array of shape (len(paths),), equal for equal files.

    Only files that share their size with another are read. An empty or missing file equals no other.
    """
    sizes = pd.Series([_size(p) for p in paths], dtype=np.int64)
    alike = np.flatnonzero(sizes.duplicated(keep=False).to_numpy() & (sizes > 0).to_numpy())
    keys: list[str] = [f"alone {i}" for i in range(len(paths))]
    with track("comparing files", len(alike), "files") as update, ThreadPoolExecutor(4) as pool:
        for n, (i, digest) in enumerate(zip(alike, pool.map(_digest, (paths[int(i)] for i in alike)), strict=True), 1):
            keys[i] = digest or keys[i]
            update(n, len(alike))
    return pd.factorize(np.array(keys, dtype=object))[0]


def linked_groups(scans: pd.DataFrame, identical: np.ndarray) -> np.ndarray:
    """Groups of scans that must stay in one split: linked by a patient, an identical file, or a chain of these.

    Parameters
    ----------
    scans : with `patient`.
    identical : of `identical_files`, of the same length.

    Returns
    -------
    An int array of shape (len(scans),), numbered from 0.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(scans)
    patients = pd.factorize(scans["patient"])[0]
    # Scans, patients and files are the nodes; a scan is joined to its patient and to its content.
    nodes = np.arange(n)
    ends = np.concatenate([n + patients, n + patients.max(initial=-1) + 1 + identical])
    size = int(ends.max(initial=0)) + 1
    graph = coo_matrix((np.ones(2 * n), (np.tile(nodes, 2), ends)), shape=(size, size))
    return pd.factorize(connected_components(graph, directed=False)[1][:n])[0]


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
        log.warning("%s: figures on these splits flatter the model", said)
        return
    raise DataError(
        f"{said}, which would flatter the model",
        "--drop-leaks leaves them out of training, octfast data split draws clean splits, --allow-leaks goes on",
    )


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _digest(path: str) -> str:
    try:
        with Path(path).open("rb") as f:
            digest = hashlib.blake2b(digest_size=20)
            while block := f.read(1 << 20):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()
