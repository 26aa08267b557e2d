"""What a run's body gives of scans that the run does not have, kept in a store: asked again, no scan is run again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from octfast.console import track
from octfast.data.units import units_of
from octfast.errors import DataError
from octfast.files import in_threads, sha256_of
from octfast.model.bundle.read import load_bundle
from octfast.model.engine import Engine
from octfast.model.forward import run_pictures
from octfast.model.heads import POOLED
from octfast.model.pooling import pool
from octfast.run.folder import Run
from octfast.train.again.again import stored_features
from octfast.train.frozen.frozen import hash_of_body
from octfast.train.outcome.distance import pooled
from octfast.train.store.files import StoreSpec
from octfast.train.store.reuse import PICTURES, SCANS, digest_of
from octfast.train.store.store import open_store

log = logging.getLogger("octfast")

_BLOCK = 16
# So many scans stand in a key with what the network is shown of them.
_PROBES = 16


class BodyOfRun:
    """The frozen part of a run's model, with a store for what it gives.

    Parameters
    ----------
    cache : folder of the stores; None takes the run's, else the user's.

    Raises
    ------
    OctfastError : the run's model cannot be read.
    """

    def __init__(self, run: Run, cache: str | Path | None = None):
        self.run, self.cache = run, cache or run.config.get("cache")
        self.model, self.info = load_bundle(run.bundle, units=True)
        precision = run.config.get("precision", "auto")
        self.engine = Engine(self.model[0], "auto" if precision == "int8" else precision)

    def features(self, paths: Sequence[str], digests: np.ndarray) -> np.ndarray:
        """What the body gives of files, from the store where it has been there before.

        Parameters
        ----------
        digests : of the files, see `digests_of`.

        Returns
        -------
        float32 of shape (files, *what the body gives of one*).

        Raises
        ------
        DataError : a file cannot be read.
        OctfastError : see `octfast.train.store.store.open_store`.
        """
        order = np.argsort(np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0], kind="stable")
        probes = order[:_PROBES].tolist()
        shown = list(run_pictures(cast(Engine, _AsItIs()), self.info, [paths[i] for i in probes]))
        seen = [_numbers(picture) for _, picture, _ in shown]
        first = _numbers(next(run_pictures(self.engine, self.info, [paths[probes[0]]]))[1])
        spec = StoreSpec(
            key={
                "body": hash_of_body([self.model[0]]),
                "engine": self.engine.key,
                "precision": self.engine.precision,
                "arch": self.info.arch,
                SCANS: digest_of(digests),
                PICTURES: {
                    digests[i].tobytes().hex()[:20]: hashlib.sha256(x.numpy().tobytes()).hexdigest()[:20]
                    for i, x in zip(probes, seen, strict=True)
                },
                "shown": "as to be predicted",
                "device": self.engine.device.type,
                "versions": {p: version(p) for p in ("torch", "pillow", "numpy")},
            },
            scans=len(paths),
            views=1,
            dim=first.numel(),
            block=_BLOCK,
        )

        def fill(missing: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
            wanted = [paths[row] for rows in missing for row in rows]
            found = run_pictures(self.engine, self.info, wanted, _BLOCK)
            for rows in missing:
                yield np.stack([_numbers(next(found)[1]).flatten().numpy() for _ in rows])[:, None]

        with track("features of the pool", len(paths)) as update:
            store = open_store(spec, fill, digests=digests, cache=self.cache, progress=update)
        try:
            out = store.take(np.arange(len(store)), 0).astype(np.float32)
        finally:
            store.close()
        return out.reshape(len(paths), *first.shape)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """What the head makes of what the body gives, float32 of shape (scans, classes).

        Of a model of whole units a number a scan more, see `octfast.model.pooling`.
        """
        head = self.model[1].eval()
        with torch.no_grad():
            parts = [head(torch.from_numpy(features[i : i + 256])).numpy() for i in range(0, len(features), 256)]
        return np.concatenate(parts)

    def of_units(self, features: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What a model of volumes, eyes or patients makes of these.

        Parameters
        ----------
        features : of their scans, of shape (scans, dim).
        number : of each scan, the unit that it is of, from 0.

        Returns
        -------
        (features of units, the mean of their scans' weighed by how much each counts, of shape (units, dim); their
        logits, of shape (units, classes); how much each scan counts, see `octfast.model.pooling.pool`).
        """
        assert self.info.pooling is not None  # as of every model that answers for units
        outputs, unit = torch.from_numpy(self.logits(features)).double(), torch.tensor(number)
        logits, weight = pool(outputs, unit, int(number.max()) + 1, self.info.pooling)
        means = np.zeros((len(logits), features.shape[1]), dtype=np.float32)
        np.add.at(means, number, features * weight.numpy()[:, None].astype(np.float32))
        return means, logits.numpy(), weight.numpy()

    def known(self) -> np.ndarray:
        """Features of the run's training and validation scans, float32 of shape (scans, dim), maps as their means.

        Of a model of volumes, eyes or patients the features of these, see `of_units`.

        Raises
        ------
        OctfastError : the run's scans cannot be read.
        """
        config = self.run.config
        if config.get("unfreeze", "head") == "head" and config.get("head") in POOLED:
            stored = stored_features(self.run, self.cache, units=True)
            if self.info.level == "scan":
                return stored.features
            return self.of_units(stored.features, units_of(stored.scans, self.info.level).number)[0]
        scans = self.run.scans
        paths = scans.loc[scans["split"] != "test", "path"].tolist()
        return as_vectors(self.features(paths, digests_of(paths)))


def digests_of(paths: Sequence[str]) -> np.ndarray:
    """The SHA-256 of each file, uint8 of shape (files, 32)."""
    found = in_threads(lambda p: bytes.fromhex(sha256_of(Path(p))), paths)
    return np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, 32)


def as_vectors(features: np.ndarray) -> np.ndarray:
    """Maps of shape (scans, dim, H, W) as their means, vectors as they are."""
    return pooled(torch.from_numpy(features)).numpy()


class _AsItIs:
    """In the place of an engine: gives the pictures as the network would be shown them."""

    device = torch.device("cpu")

    def __call__(self, x: Tensor) -> Tensor:
        return x


def _numbers(found: Any) -> Tensor:
    if isinstance(found, DataError):
        raise found
    assert isinstance(found, Tensor)
    return found
