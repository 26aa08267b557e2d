"""Phantom volumes: disease in a few neighbouring frames, the same pixels in every format, and tables that say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from octfast.data.phantom.volumes import make_volume, write_volumes
from octfast.data.volumes.about import About
from octfast.data.volumes.kinds import kind_of
from octfast.data.volumes.reader import VolumeReader
from octfast.errors import UsageError


def frames_and_about(path: Path) -> tuple[np.ndarray, About, list[float | None]]:
    with VolumeReader() as reader:
        about, *scans = reader.read_all(path, "folder" if path.is_dir() else kind_of(path))
    assert isinstance(about, About)
    return np.stack([s.pixels for s in scans]), about, [s.position_mm for s in scans]


def test_the_disease_lies_in_a_few_neighbouring_frames_and_nowhere_else():
    ill = make_volume("DME", 1234567, frames=9, diseased=(2, 4))
    well = make_volume("NORMAL", 1234567, frames=9)
    at = np.flatnonzero(ill.extent)
    assert 2 <= len(at) <= 4 and (np.diff(at) == 1).all() and ill.extent.max() > 0.8 and ill.extent[at].min() > 0.3
    assert not well.extent.any()
    same = (ill.frames == well.frames).all(axis=(1, 2))
    assert (same == (ill.extent == 0)).all()


def test_layers_change_smoothly_from_frame_to_frame():
    frames = make_volume("NORMAL", 7654321, frames=13).frames.astype(float)
    # The brightest row of each column, smoothed, is the pigment epithelium.
    rows = np.stack([np.stack([f.reshape(496, 32, 16).mean(2)]).argmax(1)[0] for f in frames])
    assert np.abs(np.diff(np.median(rows, axis=1))).max() <= 6


def test_a_volume_is_the_same_again_and_another_visit_is_the_same_eye():
    first, again, later = (make_volume("CNV", 1, visit=v, frames=3, diseased=(1, 1)) for v in (0, 0, 1))
    assert (first.frames == again.frames).all() and (first.frames != later.frames).any()
    assert (first.extent == later.extent).all()


@pytest.mark.parametrize("kind", ["tiff", "dicom", "vol", "heyex"])
def test_every_format_holds_the_same_pixels_and_says_what_it_can(tmp_path, kind):
    if kind == "dicom":
        pytest.importorskip("pydicom", minversion="3")
    given = {"frames": 3, "diseased": (1, 1), "size": 48, "classes": ("CNV", "NORMAL"), "seed": 3}
    folders = {k: write_volumes(tmp_path / k, 3, kind=k, **given) for k in ("png", kind)}
    tables = {k: pd.read_csv(f / "volumes.csv") for k, f in folders.items()}
    pd.testing.assert_frame_equal(tables["png"].drop(columns="path"), tables[kind].drop(columns="path"))
    assert list(tables[kind]) == ["volume", "label", "patient", "eye", "path"]
    assert (folders["png"] / "frames.csv").read_bytes() == (folders[kind] / "frames.csv").read_bytes()
    row = tables[kind].iloc[0]
    plain, _, _ = frames_and_about(folders["png"] / tables["png"].iloc[0]["path"])
    found, about, positions = frames_and_about(folders[kind] / row["path"])
    np.testing.assert_array_equal(found, plain)
    if kind == "tiff":
        return
    assert (about.patient, about.eye) == (str(row["patient"]), row["eye"])
    assert positions == pytest.approx([0, 2.88, 5.76]) and about.between_um == pytest.approx(2880)
    assert about.lateral_um == pytest.approx(11.5 * 512 / 48, rel=1e-4)
    assert (about.slo is not None) == (kind in ("vol", "heyex"))


@pytest.mark.parametrize(
    ("given", "said"),
    [({"frames": 1}, "1 frames"), ({"frames": 3, "diseased": (2, 4)}, "2 to 4"), ({"kind": "avi"}, "avi")],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path, given, said):
    with pytest.raises(UsageError, match=said):
        write_volumes(tmp_path / "out", 4, **given)
    assert not list(tmp_path.iterdir())
