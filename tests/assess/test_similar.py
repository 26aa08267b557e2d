"""The nearest scans of a run: of other patients, nearest first, the same whether stored or computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from octfast.assess.similar import similar
from octfast.errors import DataError, UsageError
from octfast.train.again.again import stored_features


@pytest.fixture(scope="module")
def stored(trained):
    return stored_features(trained)


def test_neighbours_are_of_other_patients_and_nearest_first(trained, stored):
    patient = trained.scans.set_index("path")["patient"].to_dict()
    paths = list(stored.scans["path"][:6])
    found = similar(trained, paths, n=3, stored=stored)
    assert list(found.columns) == ["path", "neighbour", "label", "distance", "rank"]
    assert list(found["path"].unique()) == paths and (found.groupby("path").size() == 3).all()
    assert all(patient[row.path] != patient[row.neighbour] for row in found.itertuples())
    for _, of in found.groupby("path"):
        assert of["distance"].is_monotonic_increasing and list(of["rank"]) == [1, 2, 3]
    labels = trained.scans.set_index("path")["label"]
    assert list(labels[found["neighbour"]]) == list(found["label"])


def test_scans_of_the_patient_come_where_they_are_asked_for(trained, stored):
    patient = trained.scans.set_index("path")["patient"].to_dict()
    many = stored.scans["patient"].value_counts().index[0]
    paths = list(stored.scans["path"][stored.scans["patient"] == many])
    assert len(paths) > 1
    found = similar(trained, paths, n=len(stored.scans), same_patient=True, stored=stored)
    assert any(patient[row.path] == patient[row.neighbour] for row in found.itertuples())
    assert (found["path"] != found["neighbour"]).all()


def test_many_scans_have_the_neighbours_that_each_has_alone(trained, stored):
    paths = list(stored.scans["path"][:40])
    found = similar(trained, paths, n=4, stored=stored)
    for path in (paths[0], paths[-1]):
        alone = similar(trained, [path], n=4, stored=stored)
        own = found[found["path"] == path]
        assert list(own["neighbour"]) == list(alone["neighbour"])
        assert list(own["distance"]) == pytest.approx(list(alone["distance"]), abs=1e-5)


def test_a_copy_outside_of_the_run_is_nearest_to_its_original(trained, stored, tmp_path):
    original = Path(stored.scans["path"][0])
    copy = Path(shutil.copy(original, tmp_path / f"copy{original.suffix}"))
    (nearest,) = similar(trained, [copy], n=1, stored=stored).itertuples()
    assert nearest.neighbour == str(original) and nearest.distance < 1e-3
    assert nearest.path == str(copy)


def test_scans_of_a_model_of_volumes_are_near_by_what_its_body_gives(of_volumes, tmp_path):
    table = of_volumes.scans.set_index("path")
    original = Path(table.index[table["split"] == "train"][0])
    copy = Path(shutil.copy(original, tmp_path / f"copy{original.suffix}"))
    (nearest,) = similar(of_volumes, [copy], n=1).itertuples()
    assert nearest.neighbour == str(original) and nearest.distance < 1e-3
    assert nearest.label == table["label"][str(original)]
    others = similar(of_volumes, [original], n=5)
    assert not (table["patient"][others["neighbour"]] == table["patient"][str(original)]).any()


def test_what_cannot_be_is_said(trained, stored, tmp_path):
    with pytest.raises(UsageError, match="at least one"):
        similar(trained, [], n=0, stored=stored)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad\.png"):
        similar(trained, [bad], stored=stored)
    Image.new("L", (64, 64), 90).save(tmp_path / "grey.png")
    assert len(similar(trained, [tmp_path / "grey.png"], n=10_000, stored=stored)) == len(stored.scans)
    assert similar(trained, [], stored=stored).empty
