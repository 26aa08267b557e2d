"""A review of a run: what is on the list, what is kept of each decision, and what it changes."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from octfast.assess.review.worklist import KINDS, review_list
from octfast.data.corrections import read_decisions
from octfast.deploy.review.session import Review
from octfast.errors import DataError, UsageError
from octfast.run.folder import open_run


def test_the_list_has_each_scan_once_with_all_reasons_and_the_likeliest_errors_first(mislabelled):
    found = review_list(mislabelled)
    assert found["path"].is_unique and set(found["split"]) <= {"train", "valid"}
    order = list(KINDS)
    ranks = [order.index(k) for k in found["kind"]]
    assert ranks == sorted(ranks) and (found["reasons"] != "").all()
    copies = found[found["kind"] == "duplicate-across-classes"]
    assert set(copies["label"]) == {"NORMAL", "DRUSEN"} and len({Path(p).name for p in copies["path"]}) == 1
    assert set(copies["related"]) == set(copies["path"])
    assert (found["suggested"] != found["label"]).all()
    np.testing.assert_allclose(found["p_actual"], [r[f"p_{r.label}"] for _, r in found.iterrows()], rtol=1e-6)


def test_without_pictures_no_file_is_read_and_a_kind_can_be_asked_for(mislabelled, tmp_path):
    gone = open_run(shutil.copytree(mislabelled.path, tmp_path / "run"), data=tmp_path)
    found = review_list(gone, pictures=False, kinds=("loss",))
    assert len(found) and set(found["kind"]) == {"loss"}
    with pytest.raises(UsageError, match="no reason named 'los'"):
        review_list(gone, kinds=("los",))


def test_of_a_run_without_folds_only_validation_is_listed_and_that_is_said(trained, said):
    assert set(review_list(trained, pictures=False)["split"]) == {"valid"}
    assert any("only its validation scans" in line for line in said())


def test_decisions_are_on_the_disk_at_once_and_come_back(own_run):
    review = Review(own_run, reviewer="AB", pictures=False)
    label = review.rows["label"][0]
    other = next(c for c in review.classes if c != label)
    review.decide(0, "relabel", other)
    review.decide(1, "leave out")
    review.decide(2, "relabel", review.rows["label"][2])  # the label that it has
    again = Review(own_run, reviewer="AB", pictures=False)
    assert again.done == {0: ("relabel", other), 1: ("leave out", ""), 2: ("agree", "")}
    assert again.undo() == 2 and again.undo() == 1
    again.decide(0, "agree")
    stands = read_decisions(own_run.path / "corrections.csv")
    assert list(zip(stands["decision"], stands["old"], strict=True)) == [("agree", label)]
    assert stands["reviewer"].iloc[0] == "AB" and not Path(stands["path"].iloc[0]).is_absolute()
    assert again.undo() == 0 and again.undo() is None
    assert read_decisions(again.file).empty


@pytest.mark.parametrize("wrong", [(0, "relabel", "ELSE"), (0, "undo", ""), (0, "burn", ""), (9999, "agree", "")])
def test_a_decision_that_cannot_be_is_refused_and_not_kept(own_run, wrong):
    review = Review(own_run, pictures=False)
    with pytest.raises(UsageError):
        review.decide(*wrong)
    assert not review.file.exists() and not review.done


def test_a_second_reviewer_sees_the_same_scans_and_not_what_was_decided(own_run):
    first = Review(own_run, reviewer="AB", pictures=False)
    for item in range(4):
        first.decide(item, "leave out")
    second = Review(own_run, reviewer="CD", second=True, blind=True, pictures=False)
    assert set(second.keys) == set(first.keys[:4])
    about = json.dumps(second.about()["items"])
    assert "leave out" not in about and "predicted" not in about and "reasons" not in about
    with pytest.raises(UsageError, match="blind"):
        second.heat_map(0)
    for item in range(4):
        second.decide(item, "leave out" if item else "agree")
    found = second.agreement()
    assert found["reviewers"] == ["AB", "CD"] and found["same"] == 3 and len(found["differing"]) == 1


def test_a_second_review_needs_initials_and_a_first(own_run):
    with pytest.raises(UsageError, match="initials"):
        Review(own_run, second=True)
    with pytest.raises(DataError, match="no decisions of another"):
        Review(own_run, reviewer="CD", second=True)


def test_training_again_takes_the_decisions_and_leaves_the_run_as_it_is(own_run):
    before = {p: p.read_bytes() for p in own_run.path.rglob("*") if p.is_file()}
    review = Review(own_run, pictures=False)
    with pytest.raises(UsageError, match="no label was changed"):
        review.train()
    review.decide(0, "relabel", review.rows["suggested"][0])
    review.decide(1, "leave out")
    found = review.train()
    assert (found["relabelled"], found["left_out"]) == (1, 1)
    assert found["scans"] == len(own_run.scans[own_run.scans["split"] != "test"]) - 2
    assert "--corrections" in found["command"]
    review.file.unlink()
    assert {p: p.read_bytes() for p in own_run.path.rglob("*") if p.is_file()} == before


def test_scans_like_it_are_of_other_patients(own_run):
    review = Review(own_run, pictures=False)
    patients = own_run.scans.set_index("path")["patient"]
    near = review.neighbours(0)
    assert len(near) == 4 and review.rows["patient"][0] not in set(patients[[n["path"] for n in near]])
    assert [n["distance"] for n in near] == sorted(n["distance"] for n in near)
    assert Image.open(io.BytesIO(review.neighbour(0, 3))).size <= (320, 320)
    with pytest.raises(UsageError, match="no neighbour 4"):
        review.neighbour(0, 4)


def test_pictures_are_the_scans(own_run):
    review = Review(own_run, pictures=False)
    shown = Image.open(io.BytesIO(review.picture(0)))
    assert np.array_equal(np.asarray(shown), np.asarray(Image.open(review.rows["path"][0]).convert("L")))
    heat = Image.open(io.BytesIO(review.heat_map(0)))
    assert heat.size == shown.size
