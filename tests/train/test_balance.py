"""Unequal classes: what the weights do, that probabilities stay those of the frequencies at hand, and what is said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import set_seed
from torch import nn

from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.read import load_bundle
from octfast.model.heads import body_and_head, pooled_head, shift_logits
from octfast.train.balance import BalancedLoss, balance_training, class_weights, say_rare, start_balanced
from octfast.train.frozen.folds import IGNORED
from octfast.train.job import train_classifier
from octfast.train.store.loader import StoreLoader
from tests.conftest import quick


class Rows:
    """Numbers in memory, in the place of a store."""

    def __init__(self, values: np.ndarray):
        self.values, self.shape = values, (len(values), 1, values.shape[1])

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray, view: int) -> np.ndarray:
        return self.values[rows]


def test_all_weigh_the_same_on_average_and_a_full_weight_makes_classes_alike():
    counts = [90, 9, 1, 0]
    for power in (0.5, 1):
        w = class_weights(counts, "weights", power).numpy()
        assert (w * np.maximum(counts, 1)).sum() == pytest.approx(101, abs=1e-3)
        assert w[1] / w[0] == pytest.approx(10**power)
    assert class_weights(counts, "none").tolist() == [1] * 4


@pytest.mark.parametrize("head", ["linear", "root", "octfast", "fastai", "article"])
def test_logits_are_shifted_in_the_last_layer_whatever_the_head(head):
    torch.manual_seed(0)
    if head == "fastai":
        arch = find_arch("test_resnet")
        top = body_and_head(make_network(arch, 64), arch, head, 3)[1].eval()
    elif head == "article":
        # As its head ends, without the network that it would take seconds to make.
        top = nn.Sequential(nn.Linear(8, 3), nn.LogSoftmax(1))
    else:
        top = pooled_head(head, 8, 3).eval()
    names = list(top.state_dict())
    norm = next((m for m in top if isinstance(m, nn.BatchNorm1d)), None)
    x = torch.randn(5, norm.num_features // 2, 2, 2) if head == "fastai" else torch.randn(5, 8)
    shift = torch.tensor([1.0, -2.0, 0.5])
    with torch.no_grad():
        before = top(x)
        shift_logits(top, shift)
        after = top(x)
    # Log-probabilities, the article's, come with the shift of the logits that they are made of.
    torch.testing.assert_close(after.softmax(1), (before + shift).softmax(1), rtol=1e-4, atol=1e-5)
    assert list(top.state_dict()) == names


def test_scans_that_a_head_is_not_to_learn_from_count_for_nothing():
    weights = class_weights([8, 2], "weights")
    logits, y = torch.randn(6, 2), torch.tensor([0, 1, 0, 0, 1, 0])
    for focal in (False, True):
        loss = BalancedLoss(weights, True, focal)
        targets = torch.stack([y, torch.full_like(y, IGNORED)], 1)
        targets[0, 0] = IGNORED
        both = torch.stack([logits, 9 * logits], 1)
        torch.testing.assert_close(loss(both, targets), loss(logits[1:], y[1:]))
    plain = torch.nn.functional.cross_entropy(logits + weights.log(), y, weight=weights)
    torch.testing.assert_close(BalancedLoss(weights, True, False)(logits, y), plain)


@pytest.mark.parametrize("balance", ["none", "weights", "sample"])
def test_probabilities_are_those_of_the_frequencies_at_hand(balance):
    rng = np.random.default_rng(0)
    y = rng.choice(3, 1500, p=[0.85, 0.12, 0.03])
    x = (rng.normal(size=(1500, 4)) + np.eye(3, 4)[y]).astype(np.float32)
    set_seed(0)
    head = pooled_head("linear", 4, 3)
    weights = class_weights(np.bincount(y).tolist(), balance)
    start_balanced(head, weights)
    targets = torch.tensor(y)
    loaders = [StoreLoader(Rows(x), targets, bs=50, shuffle=s, drop_last=s) for s in (True, False)]
    learn = Learner(DataLoaders(*loaders, device="cpu"), head, CrossEntropyLossFlat(), wd=0)
    balance_training(learn, weights, balance, "cross_entropy")
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(6, 0.02)
    logits, shares = learn.model.eval()(torch.tensor(x)).detach(), np.bincount(y) / 1500
    np.testing.assert_allclose(logits.softmax(1).mean(0), shares, atol=0.03)
    if balance != "none":
        # What was learned from, in which rare classes are as much more frequent.
        learned = (logits + weights.log()).softmax(1).mean(0).numpy()
        assert learned[0] < shares[0] - 0.06 and learned[2] > 2 * shares[2]
    # Validation is judged by the network alone, in nats.
    plain = torch.nn.functional.cross_entropy(learn.model(torch.tensor(x)), targets)
    assert learn.recorder.values[-1][1] == pytest.approx(plain.item(), rel=1e-4)
    if balance == "sample":
        drawn = np.bincount(y[np.array(loaders[0].get_idxs())]) / 1500
        assert drawn[2] > 0.06


def test_rare_classes_are_said_before_training(said):
    rows = [(c, f"{c}{i // 2}", "train") for c, n in {"A": 90, "B": 40, "C": 5}.items() for i in range(n)]
    say_rare(pd.DataFrame(rows, columns=["label", "patient", "split"]))
    (line,) = said()
    assert "C (5 of 135 scans, 3 patients)" in line and "A (" not in line


@pytest.mark.parametrize("how", [{"folds": 3, "views": 1, "balance": "sample"}, {"views": 0, "balance": "weights"}])
def test_a_run_with_balance_is_a_run_like_others(phantoms, tmp_path, how):
    run = train_classifier(**quick(phantoms, epochs=1, loss="focal", head="root", out=str(tmp_path / "run"), **how))
    weights = run.config["chosen"]["class_weights"]
    assert len(weights) == 4 and all(0.5 < w < 2 for w in weights.values())
    assert load_bundle(run.bundle)[1].head == "root"
    assert len(run.history) == 1 and len(run.predictions("test"))
