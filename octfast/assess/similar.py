"""Scans like this one: the nearest training and validation scans of a run by its body's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from octfast.assess.directions import Directions
from octfast.errors import DataError, UsageError
from octfast.run.folder import Run

if TYPE_CHECKING:
    import torch

    from octfast.model.prefetch import Picture
    from octfast.train.again.again import Stored

COLUMNS = ("path", "neighbour", "label", "distance", "rank")


def similar(
    run: Run,
    paths: Sequence[str | Path],
    n: int = 5,
    *,
    same_patient: bool = False,
    stored: Stored | None = None,
) -> pd.DataFrame:
    """The scans of a run that are most like these.

    Features come from the run's store where it is at hand; else the body runs over the run's scans once, and the store
    is kept. Scans that are not among them are run through the body.

    Parameters
    ----------
    paths : scans of the run, or others.
    n : neighbours of each, at most.
    same_patient : whether scans of the patient of a scan of the run may be among its neighbours.
    stored : what `stored_features(run)` gave, where it is at hand.

    Returns
    -------
    A row a neighbour, the nearest first: `path` as it was given, `neighbour` (the file), its `label`, which of a run
    that answers for volumes, eyes or patients is that of the whole (see `label_words`), `distance`
    (0 is the same picture, 1 nothing in common, 2 the opposite: one minus the cosine of the standardised features) and
    `rank` from 1.

    Raises
    ------
    UsageError : n is below 1.
    DataError : a file cannot be read.
    OctfastError : see `octfast.train.again.again.stored_features`.
    """
    if n < 1:
        raise UsageError(f"n is {n}: at least one neighbour", "such as 5")
    # Here, as it brings fastai, which a page or report without neighbours does not need.
    from octfast.train.again.again import stored_features

    known = Known(stored or stored_features(run, units=True))
    table, patients = known.scans, known.patients
    where = {path: i for i, path in enumerate(table["path"])}
    rows = [_row(path, where) for path in paths]
    asked = np.zeros((len(rows), known.features.shape[1]), dtype=np.float32)
    strange = [i for i, row in enumerate(rows) if row is None]
    if strange:
        asked[strange] = known.standardise(features_of(run, [paths[i] for i in strange]))
    for i, row in enumerate(rows):
        if row is not None:
            asked[i] = known.features[row]
    found = []
    if len(rows):
        distances, places = known.nearest(asked, n)
        for path, row, away, at in zip(paths, rows, distances, places, strict=True):
            keep = [
                (d, j)
                for d, j in zip(away, at, strict=True)
                if row is None or (j != row and (same_patient or patients[j] != patients[row]))
            ][:n]
            for rank, (d, j) in enumerate(keep, start=1):
                found.append((str(path), table["path"].iloc[j], table["label"].iloc[j], max(float(d), 0.0), rank))
    return pd.DataFrame(found, columns=list(COLUMNS))


def label_words(level: str) -> str:
    """What a neighbour's label is of, where a run's labels are not those of scans; else "".

    Parameters
    ----------
    level : of the run, one of `octfast.data.units.LEVELS`.
    """
    if level == "scan":
        return ""
    return f"A label is that of the whole {level} which the scan is of; what it names may show in other scans alone."


class Known:
    """The features of a run's scans, made ready once to be asked for neighbours many times.

    Attributes
    ----------
    scans : the Scans table.
    patients : of each of its rows, as text.
    features : standardised, each row of length 1; float32 of shape (scans, dim).
    """

    def __init__(self, stored: Stored):
        from sklearn.neighbors import NearestNeighbors

        self.scans = stored.scans
        self.patients = stored.scans["patient"].astype(str).to_numpy()
        self._directions = Directions(stored.features)
        self.features = self.standardise(stored.features)
        # As many more as a patient has scans, so that enough are left without them.
        self._most = int(pd.Series(self.patients).value_counts().max())
        # Half of that of rows of length one is the distance by the cosine, which would copy all of them.
        self._near = NearestNeighbors(algorithm="brute", metric="sqeuclidean").fit(self.features)

    def standardise(self, features: np.ndarray) -> np.ndarray:
        """What the body gives of pictures, of shape (pictures, dim), as `features` are."""
        return self._directions.of(features)

    def nearest(self, asked: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances and rows, nearest first: so many that n are left without the scans of any one patient.

        Parameters
        ----------
        asked : standardised, of shape (pictures, dim).
        """
        distances, rows = self._near.kneighbors(asked, min(len(self.features), n + self._most))
        return distances / 2, rows


def features_of(run: Run, paths: Sequence[str | Path]) -> np.ndarray:
    """What a run's body gives of files, float32 of shape (files, dim), in the precision that the run was trained in.

    Raises
    ------
    DataError : a file cannot be read.
    """
    return body_of(run)([str(p) for p in paths])


def body_of(run: Run, device: torch.device | None = None) -> Callable[[Sequence[Picture]], np.ndarray]:
    """A run's body, loaded once; asked for pictures, it gives what `features_of` gives of files.

    Parameters
    ----------
    device : None takes the CPU.
    """
    from torch import Tensor

    from octfast.model.bundle.read import load_bundle
    from octfast.model.engine import Engine
    from octfast.model.forward import run_pictures

    model, info = load_bundle(run.bundle, units=True)
    precision = run.config.get("precision", "auto")
    engine = Engine(model[0], "auto" if precision == "int8" else precision, device)

    def ask(pictures: Sequence[Picture]) -> np.ndarray:
        out = []
        for _, features, _ in run_pictures(engine, info, list(pictures)):
            if isinstance(features, DataError):
                raise features
            assert isinstance(features, Tensor)
            out.append(features.flatten().numpy())
        return np.stack(out) if out else np.zeros((0, 0), dtype=np.float32)

    return ask


def _row(path: str | Path, where: dict[str, int]) -> int | None:
    """The row of a scan of the run, as it was given or from where it lies."""
    given = str(path)
    if given in where:
        return where[given]
    return where.get(str(Path(path).expanduser().absolute()), where.get(str(Path(path).expanduser().resolve())))
