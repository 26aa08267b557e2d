"""Scans like this one beside each answer of the page: the nearest scans that the model of a run was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from octfast.assess.similar import Known, body_of
from octfast.data.preprocess import decode_grey
from octfast.errors import BundleError, DataError
from octfast.run.folder import Run, open_run

if TYPE_CHECKING:
    import torch

NEAR = 3
# The longer side of the small pictures, in pixels.
SMALL = 240
SHOWN_TO_ALL = "Scans of the training set are shown to whoever opens this page."
# Below this distance a scan of the run is compared with the asked one, pixel by pixel.
_PERHAPS_THE_SAME = 0.02


class Neighbour(NamedTuple):
    """A scan of the run: its class, its distance as `octfast.assess.similar.similar` has it, and its file."""

    label: str
    distance: float
    path: str


class Similar:
    """The training and validation scans of a run that are most like a picture.

    Nothing is known of whose picture it is, but where it is a scan of the run, to the pixel: then the scans of that
    patient are left out.

    Parameters
    ----------
    run : see `run_with_scans`.
    device : where its body runs; None takes the CPU.

    Raises
    ------
    OctfastError : see `octfast.train.again.again.stored_features`.
    """

    def __init__(self, run: Run, device: torch.device | None = None):
        # Here, as it brings fastai, which a page without neighbours does not need.
        from octfast.train.again.again import stored_features

        self._known = Known(stored_features(run, units=True))
        self._body = body_of(run, device)

    def beside(self, grey: Image.Image) -> list[Neighbour]:
        """The nearest `NEAR` scans, the nearest first; none where the body gives no numbers."""
        known = self._known
        features = self._body([grey])
        if not np.isfinite(features).all():
            return []
        (distances,), (places,) = known.nearest(known.standardise(features), NEAR)
        labels, paths = known.scans["label"], known.scans["path"]
        found = [
            Neighbour(labels.iloc[j], max(float(d), 0.0), paths.iloc[j]) for d, j in zip(distances, places, strict=True)
        ]
        samples = np.asarray(grey)
        own = {
            known.patients[j]
            for near, j in zip(found, places, strict=True)
            if near.distance < _PERHAPS_THE_SAME and _is_copy(near.path, samples)
        }
        return [near for near, j in zip(found, places, strict=True) if known.patients[j] not in own][:NEAR]


def thumbnail(path: str) -> Image.Image | None:
    """A small grey picture of a scan; None where the file is gone since."""
    try:
        grey = decode_grey(path)
    except DataError:
        return None
    grey.thumbnail((SMALL, SMALL))
    return grey


def run_with_scans(folder: str | Path, data: str | Path | None = None) -> Run:
    """A run whose training and validation scans are at hand.

    Parameters
    ----------
    data : where the scans lie now; None takes the folder that they were trained from.

    Raises
    ------
    BundleError : it is no run folder, as a bundle alone is none.
    DataError : a scan is missing.
    """
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise BundleError(
            f"--similar shows training scans, and {path} is no run folder that knows of any",
            "give the run folder, or leave --similar out",
        )
    run = open_run(folder, data)
    scans = run.scans
    files = scans.loc[scans["split"] != "test", "path"]
    missing = [f for f in files if not Path(f).is_file()]
    if missing:
        raise DataError(
            f"--similar shows training scans, and {len(missing):,} of {len(files):,} are missing, such as {missing[0]}",
            "say with --data where the scans lie now, or leave --similar out",
        )
    return run


def _is_copy(path: str, samples: np.ndarray) -> bool:
    try:
        return np.array_equal(np.asarray(decode_grey(path)), samples)
    except DataError:
        return False
