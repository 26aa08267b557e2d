"""A review of a run that answers for volumes: what is listed and decided is a volume, with all of its scans."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.assess.review.worklist import review_list
from octfast.data.also import add_scans, read_labelled
from octfast.data.corrections import apply_corrections, read_decisions
from octfast.data.phantom.draw import write_phantoms
from octfast.data.units import units_of, with_one_label
from octfast.deploy.review.app import make_review_app
from octfast.deploy.review.session import Review
from octfast.deploy.suggest.suggest import save_suggestions, scans_file, suggest
from octfast.errors import DataError, UsageError
from octfast.run.folder import open_run
from tests.deploy.review.labelling import label_four


@pytest.fixture
def own_run(of_volumes, tmp_path):
    return open_run(shutil.copytree(of_volumes.path, tmp_path / "run"))


def test_units_are_listed_each_once_with_the_reasons_that_its_scans_give(of_volumes):
    found = review_list(of_volumes)
    assert not found.duplicated(["patient", "eye", "volume"]).any() and found["path"].is_unique
    copies = found[found["kind"] == "duplicate-across-classes"]
    assert set(copies["label"]) == {"CNV", "NORMAL"} and len(copies) == 2
    assert copies["reasons"].str.contains(r"1 of its \d scans, such as").all() and (copies["related"] != "").all()


def test_a_decision_holds_for_all_scans_of_a_unit(own_run, said):
    review = Review(own_run, reviewer="AB", pictures=False)
    label = review.rows["label"][0]
    other = next(c for c in review.classes if c != label)
    review.decide(0, "relabel", other)
    review.decide(1, "leave out")
    scans = own_run.scans
    of = units_of(scans, "volume").number
    first, second = (of[scans["path"].tolist().index(review.rows["path"][i])] for i in (0, 1))
    sizes = (of == first).sum(), (of == second).sum()
    kept = read_decisions(review.file)
    assert len(kept) == sum(sizes) and set(kept["reviewer"]) == {"AB"}
    changed, left, done = apply_corrections(scans, review.file, own_run.root)
    assert (done.relabelled, done.left_out) == sizes and set(left["path"]) == set(scans["path"][of == second])
    before = scans.set_index("path")["label"].loc[changed["path"]].to_numpy()
    assert set(changed["path"][changed["label"] != before]) == set(scans["path"][of == first])
    # No unit has two labels then, which would leave it out.
    assert with_one_label(changed, "volume")[1].empty
    again = Review(own_run, reviewer="AB", pictures=False)
    assert again.done == {0: ("relabel", other), 1: ("leave out", "")}
    assert again.undo() == 1 and again.undo() == 0 and read_decisions(again.file).empty


def test_training_again_counts_units(own_run):
    review = Review(own_run, pictures=False)
    with pytest.raises(UsageError, match="no label was changed"):
        review.train()
    other = next(c for c in review.classes if c != review.rows["label"][0])
    review.decide(0, "relabel", other)
    review.decide(1, "leave out")
    found = review.train()
    scans = own_run.scans
    units = len(units_of(scans[scans["split"] != "test"].reset_index(drop=True), "volume"))
    assert (found["scans"], found["relabelled"], found["left_out"], found["differing"]) == (units - 2, 1, 1, 0)
    assert np.isfinite(list(found["figures"]["log_loss"].values())).all()
    assert "--level volume" in found["command"] and "--corrections" in found["command"]
    json.dumps(found)


def test_reviewers_agree_about_units(own_run):
    for who in ("AB", "CD"):
        review = Review(own_run, reviewer=who, second=who == "CD", pictures=False)
        for item in range(2):
            review.decide(item, "leave out" if who == "AB" and item else "agree")
    found = review.agreement()
    assert found["scans"] == 2 and found["same"] == 1 and len(found["differing"]) == 1


def test_the_scans_that_counted_most_are_shown(own_run):
    review = Review(own_run, pictures=False)
    item = review.about()["items"][0]
    shares = [scan["share"] for scan in item["counted"]]
    assert (
        item["scans"] == len(shares) == 3
        and shares == sorted(shares, reverse=True)
        and sum(shares) == pytest.approx(1, abs=1e-3)
    )
    assert item["name"] == " / ".join(str(review.rows[c][0]) for c in ("patient", "eye", "volume"))
    pictures = [review.picture(0, of) for of in range(len(shares))]
    for of, scan in enumerate(item["counted"]):
        path = next(p for p in review.scans[0]["path"] if Path(p).name == scan["name"])
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(pictures[of]))), np.asarray(Image.open(path).convert("L"))
        )
    with pytest.raises(UsageError, match="there is no scan 3"):
        review.picture(0, 3)
    near = review.neighbours(0)
    assert len(near) == 4 and all(set(n) == {"path", "name", "label", "distance"} for n in near)


def test_the_page_asks_for_the_scans_of_a_unit(own_run):
    testclient = pytest.importorskip("starlette.testclient")
    pytest.importorskip("python_multipart")
    review = Review(own_run, pictures=False)
    with testclient.TestClient(make_review_app(review), base_url="http://127.0.0.1:8731") as client:
        assert client.get("/api/list").json()["level"] == "volume" and "whole volumes" in client.get("/").text
        small, large = (client.get(f"/api/scan/0?of=1{q}") for q in ("&small=1", ""))
        assert small.status_code == large.status_code == 200
        assert max(Image.open(io.BytesIO(small.content)).size) <= 320
        assert client.get("/api/scan/0?of=x").status_code == 400 and client.get("/api/scan/0?of=9").status_code == 422


@pytest.fixture
def suggestions(own_run, tmp_path) -> Path:
    """Four volumes of three scans of a pool, two a patient."""
    drawn = write_phantoms(tmp_path / "pool", 12, seed=81, size=64, test=0)
    scans = sorted(p for p in drawn.rglob("*") if p.suffix in (".jpeg", ".png"))
    about = {"path": scans, "patient": [f"n{i // 6}" for i in range(12)], "volume": [f"0{i // 3}" for i in range(12)]}
    pd.DataFrame(about).to_csv(tmp_path / "pool.csv", index=False)
    return save_suggestions(suggest(own_run, tmp_path / "pool.csv", 4), tmp_path / "suggestions.csv")


def test_volumes_of_a_pool_get_a_label_with_all_of_their_scans(own_run, suggestions):
    of = pd.read_csv(scans_file(suggestions), dtype=str)
    review = Review(own_run, pool=suggestions, reviewer="AB")
    assert [i["name"] for i in review.about()["items"]] == [
        f"{patient} / {volume}" for patient, volume in of.drop_duplicates("rank")[["patient", "volume"]].to_numpy()
    ]
    assert [c["name"] for c in review.item(1)["counted"]] == [Path(p).name for p in of["path"][of["rank"] == "2"]]
    assert review.picture(1, 2).startswith(b"\x89PNG") and len(review.neighbours(0)) == 4
    first, second = label_four(review)
    labels = read_labelled(suggestions.parent / "labels.csv")
    want = of[of["rank"].isin(["1", "2"])].set_index("path")
    assert sorted(labels["path"]) == sorted(want.index) and list(labels["volume"]) == list(
        want["volume"][labels["path"]]
    )
    assert list(labels["label"]) == [first if want["rank"][p] == "1" else second for p in labels["path"]]
    both, left = add_scans(own_run.scans, suggestions.parent / "labels.csv")
    units = units_of(both[both["patient"].isin(set(labels["patient"]))].reset_index(drop=True), "volume")
    assert left.empty and list(units.table["scans"]) == [3, 3]
    again = Review(own_run, pool=suggestions, reviewer="AB")
    assert again.done == {0: ("relabel", first), 1: ("relabel", second), 2: ("leave out", "")}
    assert "--level volume" in again.command and again.command.endswith("labels.csv")
    other = Review(own_run, pool=suggestions, reviewer="CD")
    for item, new in enumerate((first, first)):
        other.decide(item, "relabel", new)
    assert (other.agreement()["scans"], other.agreement()["same"]) == (2, 1)


def test_a_pool_of_another_kind_is_refused(own_run, trained, suggestions, octfast, tmp_path):
    with pytest.raises(UsageError, match="does not suggest scans"):
        Review(trained, pool=suggestions)
    of = pd.read_csv(scans_file(suggestions))
    of[of["rank"] > 1].to_csv(scans_file(suggestions), index=False)
    with pytest.raises(DataError, match="of other suggestions"):
        Review(own_run, pool=suggestions)
    scans_file(suggestions).unlink()
    with pytest.raises(DataError, match="suggestions-scans"):
        Review(own_run, pool=suggestions)
    pd.read_csv(suggestions).drop(columns="scans").to_csv(suggestions, index=False)
    with pytest.raises(UsageError, match="does not suggest volumes"):
        Review(own_run, pool=suggestions)


def test_the_command_lists_units(octfast, of_volumes):
    done = octfast("review", of_volumes.path, "--list", "--no-pictures")
    assert done.code == 0 and "volumes that deserve a look" in done.out
