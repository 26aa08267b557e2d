"""Finds which scans belong together: of one patient, or the same file under two names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import pandas as pd

from octfast.console import track
from octfast.data.readers.names import patient_key
from octfast.files import in_threads


def identical_files(paths: Sequence[str]) -> np.ndarray:
    """Which files are the same, byte for byte: an int array of shape (len(paths),), equal for equal files.

    Only files that share their size with another are read. An empty or missing file equals no other.
    """
    sizes = pd.Series([_size(p) for p in paths], dtype=np.int64)
    alike = np.flatnonzero(sizes.duplicated(keep=False).to_numpy() & (sizes > 0).to_numpy())
    keys: list[str] = [f"alone {i}" for i in range(len(paths))]
    with track("comparing files", len(alike), "files") as update:
        for n, (i, digest) in enumerate(
            zip(alike, in_threads(_digest, (paths[int(i)] for i in alike)), strict=True), 1
        ):
            keys[i] = digest or keys[i]
            update(n, len(alike))
    return pd.factorize(np.array(keys, dtype=object))[0]


def linked_groups(scans: pd.DataFrame, identical: np.ndarray) -> np.ndarray:
    """Groups of scans that must stay in one split: linked by a patient, an identical file, or a chain of these.

    Patients that differ by leading zeros alone, as 7 and 007, are linked too.

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
    patients = pd.factorize(scans["patient"].astype(str).map(patient_key))[0]
    # Scans, patients and files are the nodes; a scan is joined to its patient and to its content.
    nodes = np.arange(n)
    ends = np.concatenate([n + patients, n + patients.max(initial=-1) + 1 + identical])
    size = int(ends.max(initial=0)) + 1
    graph = coo_matrix((np.ones(2 * n), (np.tile(nodes, 2), ends)), shape=(size, size))
    return pd.factorize(connected_components(graph, directed=False)[1][:n])[0]


def group_names(scans: pd.DataFrame) -> list[str]:
    """The group of each scan that must stay in one split, by the name of its first patient; see `linked_groups`."""
    group = linked_groups(scans, identical_files(scans["path"].astype(str).tolist()))
    patients = scans["patient"].astype(str).reset_index(drop=True)
    return patients.groupby(group).transform("min").tolist()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a Path of each of a million takes its time
    except OSError:
        return 0


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as f:  # noqa: PTH123
            digest = hashlib.blake2b(digest_size=20)
            while block := f.read(1 << 20):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()
