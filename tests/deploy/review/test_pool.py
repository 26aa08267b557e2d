"""Scans of a pool get labels on the page, at once on the disk in a file that training takes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import octfast
from octfast.data.also import read_labelled
from octfast.data.phantom.draw import write_phantoms
from octfast.deploy.review.session import Review
from octfast.deploy.suggest.suggest import save_suggestions
from octfast.errors import DataError, UsageError
from tests.deploy.review.labelling import label_four


@pytest.fixture
def suggestions(trained, tmp_path) -> Path:
    pool = write_phantoms(tmp_path / "pool", 6, seed=80, size=64, test=0)
    return save_suggestions(octfast.suggest(trained, pool, 4), tmp_path / "suggestions.csv")


def test_labels_are_kept_at_once_and_training_reads_them(own_run, suggestions):
    table = pd.read_csv(suggestions, dtype=str)
    review = Review(own_run, pool=suggestions, reviewer="AB")
    assert [r["name"] for r in review.about()["items"]] == [Path(p).name for p in table["path"]]
    assert review.about()["labelling"] and review.item(0)["label"] == ""
    first, second = label_four(review)
    found = read_labelled(suggestions.parent / "labels.csv")
    assert list(found["path"]) == list(table["path"][:2]) and list(found["label"]) == [first, second]
    assert list(found["patient"]) == list(table["patient"][:2])
    again = Review(own_run, pool=suggestions, reviewer="AB")
    assert again.done == {0: ("relabel", first), 1: ("relabel", second), 2: ("leave out", "")}
    assert "--also" in again.command and again.command.endswith("labels.csv")
    assert len(again.neighbours(0)) == 4 and again.picture(0).startswith(b"\x89PNG")


def test_what_a_pool_has_not_is_refused(own_run, suggestions, tmp_path):
    review = Review(own_run, pool=suggestions)
    with pytest.raises(UsageError, match="no label yet"):
        review.decide(0, "agree")
    with pytest.raises(UsageError, match="octfast train"):
        review.train()
    with pytest.raises(UsageError, match="--second"):
        Review(own_run, pool=suggestions, second=True, reviewer="CD")
    review.decide(0, "relabel", review.classes[0])
    with pytest.raises(UsageError, match="holds labels of a pool"):
        Review(own_run, review.file, pictures=False)
    other = tmp_path / "other.csv"
    pd.DataFrame({"path": ["a.png"]}).to_csv(other, index=False)
    with pytest.raises(DataError, match="lacks the columns"):
        Review(own_run, pool=other)
