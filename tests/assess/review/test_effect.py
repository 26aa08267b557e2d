"""What corrected labels change: the same scans, folds and seeds, and only the labels differ."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from octfast.assess.review.effect import effect_of
from octfast.errors import DataError, UsageError
from octfast.train.again.again import Stored, stored_features
from octfast.train.job import train_classifier
from tests.conftest import quick

CLASSES = ("CNV", "DME", "NORMAL")


@pytest.fixture(scope="module")
def flipped():
    """Features of 60 patients with 3 scans each that tell the classes apart, and 12 patients with a wrong label."""
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 3, 60), 3)
    features = (rng.normal(size=(180, 24)) + 2 * np.eye(3, 24)[truth]).astype(np.float32)
    patient = np.repeat(np.arange(60), 3)
    labels = np.where(patient < 12, (truth + 1) % 3, truth)
    scans = pd.DataFrame(
        {
            "path": [f"/scans/{i}.png" for i in range(180)],
            "label": np.asarray(CLASSES, dtype=object)[labels],
            "patient": [f"p{i}" for i in patient],
            "split": "train",
        }
    )
    fit = {"epochs": 5, "lr": 2e-3, "wd": 0.1, "seed": 0}
    return Stored(scans, features, CLASSES, patient % 5, "linear", fit), np.asarray(CLASSES, dtype=object)[truth]


def test_putting_labels_right_lowers_the_loss_on_the_scans_that_nobody_changed(flipped):
    stored, truth = flipped
    wrong = stored.scans["label"] != truth
    found = effect_of(stored, pd.DataFrame({"path": stored.scans["path"][wrong], "new": truth[wrong]}))
    loss = found.figures["log_loss"]
    assert found.relabelled == 36 and found.left_out == 0 and (found.scans, found.patients) == (144, 48)
    assert loss["difference"] == pytest.approx(loss["after"] - loss["before"])
    assert loss["low"] < loss["difference"] < loss["high"] < 0
    assert found.figures["accuracy"]["after"] >= found.figures["accuracy"]["before"]


def test_what_is_left_out_is_neither_learned_from_nor_judged(flipped):
    stored, truth = flipped
    wrong = stored.scans["label"] != truth
    found = effect_of(stored, pd.DataFrame({"path": stored.scans["path"][wrong], "new": ""}))
    assert (found.relabelled, found.left_out, found.scans) == (0, 36, 144)
    labels, keep = stored.scans["label"], ~wrong.to_numpy()
    one, other = stored.out_of_fold(labels.tolist(), keep), stored.out_of_fold(list(truth), keep)
    assert np.array_equal(one, other)


def test_no_change_is_no_difference_and_training_again_is_the_same_training(flipped):
    stored, _ = flipped
    found = effect_of(stored, pd.DataFrame({"path": ["/scans/0.png"], "new": [stored.scans["label"][0]]}))
    assert found.relabelled == 0 and found.scans == 180
    assert all(f["difference"] == f["low"] == f["high"] == 0 for f in found.figures.values())


def test_each_scan_is_judged_by_a_head_that_never_saw_its_patient(flipped):
    stored, truth = flipped
    labels = stored.scans["label"].tolist()
    before = stored.out_of_fold(labels)
    # Other labels within one fold change the heads of the other folds alone.
    mine = stored.folds == 2
    after = stored.out_of_fold([truth[i] if mine[i] else label for i, label in enumerate(labels)])
    assert np.array_equal(before[mine], after[mine]) and not np.allclose(before[~mine], after[~mine])


def test_training_again_follows_the_balance_and_the_loss_of_the_run(flipped, phantoms, tmp_path):
    stored, truth = flipped
    rare = np.flatnonzero(truth == "CNV")[6:]
    keep = ~np.isin(np.arange(len(truth)), rare)
    shares = np.array([(truth[keep] == c).mean() for c in CLASSES])

    def probabilities(**recipe):
        again = replace(stored, fit={**stored.fit, "epochs": 30, "lr": 1e-2, **recipe})
        return softmax(again.out_of_fold(truth.tolist(), keep)[keep], axis=1)

    plain = probabilities()
    assert np.array_equal(plain, probabilities(balance="none", loss="cross_entropy"))
    for balance in ("weights", "sample"):
        # They stay those of the frequencies at hand.
        balanced = probabilities(balance=balance)
        assert not np.allclose(balanced, plain, atol=1e-3)
        np.testing.assert_allclose(balanced.mean(0), shares, atol=0.05)
    assert probabilities(loss="focal").max(1).mean() < plain.max(1).mean() - 0.01
    how = {"views": 1, "folds": 3, "epochs": 1, "balance": "sample", "loss": "focal"}
    run = train_classifier(**quick(phantoms, out=str(tmp_path / "run"), **how))
    fit = stored_features(run).fit
    assert (fit["balance"], fit["loss"]) == ("sample", "focal")


def test_what_leaves_nothing_to_learn_or_to_judge_is_refused(flipped):
    stored, _ = flipped
    every = pd.DataFrame({"path": stored.scans["path"], "new": ""})
    with pytest.raises(DataError, match="every scan was changed"):
        effect_of(stored, every)
    with pytest.raises(UsageError, match="one class"):
        effect_of(stored, every[stored.scans["label"] != "CNV"])
