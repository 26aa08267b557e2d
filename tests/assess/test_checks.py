"""An edited table of predictions is refused, with the row and what is wrong with it."""

from __future__ import annotations

import numpy as np
import pytest

from octfast.assess.checks import check_table
from octfast.assess.predictions import run_predictions
from octfast.errors import BundleError


def relabelled(table, row):
    """Every scan that was wrong is labelled as it was predicted: an accuracy of 1."""
    return table.assign(label=table["predicted"])


def cell(column, value):
    def edit(table, row):
        table = table.copy()
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
        return table.infer_objects()

    return edit


def relabelled_with_its_loss(table, row):
    table = relabelled(table, row)
    return table.assign(loss=-np.log(table["probability"]))


EDITS = {
    "labels as predicted": (relabelled, "has a loss that is not that of its label"),
    "labels and losses": (relabelled_with_its_loss, r"is labelled \w+, and \w+ in scans.csv"),
    "p of 7.5": (cell("p_DME", 7.5), "not between 0 and 1"),
    "p of -1": (cell("p_DME", -1.0), "not between 0 and 1"),
    "no number": (cell("p_DME", np.nan), "not between 0 and 1"),
    "sum": (lambda t, row: t.assign(**{c: t[c] / 2 for c in t if c.startswith("p_")}), "do not sum to 1"),
    "loss": (cell("loss", 0.0), "has a loss"),
    "infinite loss": (cell("loss", np.inf), "has a loss"),
    "probability": (cell("probability", 0.9999), "has another probability"),
    "predicted": (
        lambda t, row: t.assign(predicted=[{"CNV": "DME"}.get(c, "CNV") for c in t["predicted"]]),
        "not the most probable",
    ),
    "a scan twice": (lambda t, row: t.loc[[*t.index, row]], "more often than in scans.csv"),
    "another scan": (lambda t, row: t.assign(path=t["path"].str.replace("CNV", "XYZ")), "no scan of this split"),
}


@pytest.fixture(scope="module")
def valid(trained):
    scans = trained.scans
    return trained.predictions("valid"), scans[scans["split"] == "valid"], list(trained.config["classes"])


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_table_is_refused(valid, tmp_path, edit):
    table, scans, classes = valid
    change, match = EDITS[edit]
    wrong = int(np.flatnonzero(table["label"] != table["predicted"])[0])
    check_table(table, scans, classes, tmp_path / "p.csv")
    with pytest.raises(BundleError, match=match) as e:
        check_table(change(table, wrong), scans, classes, tmp_path / "p.csv")
    assert str(tmp_path / "p.csv") in e.value.message and e.value.hint


def test_that_scans_are_missing_is_said(valid, tmp_path, said):
    table, scans, classes = valid
    right = table[table["label"] == table["predicted"]]
    check_table(right, scans, classes, tmp_path / "p.csv")
    assert f"lacks {len(table) - len(right)} of the {len(table)} scans" in said()[-1]


def test_a_run_says_so_and_makes_it_again_when_it_is_deleted(own_run):
    table = own_run.predictions("valid")
    own_run.save_predictions(relabelled_with_its_loss(table, 0), "valid")
    with pytest.raises(BundleError, match=r"predictions-valid.csv was edited"):
        run_predictions(own_run)
    own_run.predictions_file("valid").unlink()
    made, _ = run_predictions(own_run)
    assert list(made["label"]) == list(table["label"])


def test_a_probability_too_small_for_a_number_is_none(valid, tmp_path):
    table, scans, classes = valid
    columns = [f"p_{c}" for c in classes]
    sure = table.copy()
    sure[columns] = (sure[columns].to_numpy() == sure[columns].max(axis=1).to_numpy()[:, None]).astype(float)
    sure["probability"] = 1.0
    sure["loss"] = np.where(sure["label"] == sure["predicted"], 0.0, 800.0)
    check_table(sure, scans, classes, tmp_path / "p.csv")
