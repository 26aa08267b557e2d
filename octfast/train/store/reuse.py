"""What other stores hold of the same scans, made in the same way: a scan more or less in a set costs itself alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from octfast.train.store import files
from octfast.train.store.files import StoreSpec
from octfast.train.store.reader import FeatureStore

# Entries of a key that are about which scans there are; all others are about how they are made.
SCANS, PICTURES = "scans", "pictures"


class Known:
    """Rows of other stores, by the content of their scans; while it is open `clear_stores` leaves these stores alone.

    A row counts where its block there is recorded and its checksum is right.

    Parameters
    ----------
    features : the folder of all stores.
    spec : of the store that is to be made. Its key has `scans`, the SHA-256 of all digests, and `pictures`, of a few
        scans what their views look like, by their digests: stores that disagree about one are of other transforms.
    digests : of the scans, uint8 of shape (scans, 32); None where nothing is known of them.
    missing : whether a scan is wanted, of shape (scans,).
    """

    def __init__(self, features: Path, spec: StoreSpec, digests: np.ndarray | None, missing: np.ndarray):
        self._stores: list[FeatureStore] = []
        # Of each scan the store that knows it, or -1, and its row there.
        self._store = np.full(spec.scans, -1, dtype=np.int64)
        self._row = np.zeros(spec.scans, dtype=np.int64)
        if digests is None:
            return
        for folder in sorted(features.glob("*")):
            wanted = missing & (self._store < 0)
            if not wanted.any():
                break
            described = files.described_in(folder)
            if folder.name == spec.hash or described is None or not is_alike(described, spec):
                continue
            # Another process may be clearing it, and damage is nothing that a store to be made need mind.
            with suppress(OSError, ValueError, TypeError, KeyError, files.UnusableError):
                self._take_in(folder, described, digests, wanted)

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Which of these scans are known."""
        return self._store[rows] >= 0

    def take(self, rows: np.ndarray) -> np.ndarray:
        """What is known of these scans, of shape (len(rows), views, dim)."""
        out = None
        for number in np.unique(self._store[rows]):
            here = self._store[rows] == number
            values = self._stores[number].take_all(self._row[rows[here]])
            out = np.empty((len(rows), *values.shape[1:]), values.dtype) if out is None else out
            out[here] = values
        assert out is not None
        return out

    def close(self) -> None:
        """Let go of the stores."""
        for store in self._stores:
            store.close()

    def _take_in(self, folder: Path, described: Mapping[str, Any], digests: np.ndarray, wanted: np.ndarray) -> None:
        scans, views, dim = map(int, described["shape"])
        spec = StoreSpec(described["key"], scans, views, dim, described["dtype"], int(described["block"]))
        store = FeatureStore(folder, spec, warm=True)
        try:
            theirs = read_digests(folder, spec)
            recorded = files.read_record(folder, spec.blocks)
            order = np.argsort(_short(theirs), kind="stable")
            mine = np.flatnonzero(wanted)
            found = order[np.minimum(np.searchsorted(_short(theirs)[order], _short(digests[mine])), scans - 1)]
            same = (theirs[found] == digests[mine]).all(axis=1)
            mine, found = mine[same], found[same]
            whole = {b for b in np.unique(found // spec.block).tolist() if files.is_whole(folder, spec, b, recorded[b])}
            good = np.isin(found // spec.block, list(whole))
        except BaseException:
            store.close()
            raise
        if not good.any():
            store.close()
            return
        self._store[mine[good]], self._row[mine[good]] = len(self._stores), found[good]
        self._stores.append(store)


def is_alike(described: Mapping[str, Any], spec: StoreSpec) -> bool:
    """Whether a store was made as `spec` would be, of whatever scans."""
    ours = spec.described()
    try:
        key, pictures = dict(described["key"]), described["key"][PICTURES]
        shared = pictures.keys() & ours["key"][PICTURES].keys()
        if not shared or any(pictures[k] != ours["key"][PICTURES][k] for k in shared):
            return False
        same = all(described[name] == ours[name] for name in ("version", "dtype", "block"))
        return same and described["shape"][1:] == ours["shape"][1:] and _recipe(key) == _recipe(ours["key"])
    except (KeyError, TypeError, AttributeError):
        return False


def digest_of(digests: np.ndarray) -> str:
    """The SHA-256 of the digests of all scans, in hex, as a key has it."""
    return hashlib.sha256(digests.tobytes()).hexdigest()


def read_digests(folder: Path, spec: StoreSpec) -> np.ndarray:
    """The digests of the scans of a store, of shape (scans, 32). Raises ValueError where they are damaged."""
    digests = np.frombuffer((folder / files.DIGESTS).read_bytes(), dtype=np.uint8).reshape(spec.scans, 32)
    if digest_of(digests) != spec.key[SCANS]:
        raise ValueError(f"{files.DIGESTS} is damaged")
    return digests


def _recipe(key: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name not in (SCANS, PICTURES)}


def _short(digests: np.ndarray) -> np.ndarray:
    """The first eight bytes of each digest, to search by."""
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64)[:, 0]
