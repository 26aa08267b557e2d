from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from octfast.errors import OctfastError
from octfast.train.callbacks import FrozenEval, History, SaveBest, StopEarly, TrainBar


class Scripted(nn.Module):
    """Its validation loss is the next of a script, and its one weight grows by one an epoch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return torch.stack([self.weight + 0 * x, -self.weight + 0 * x], 1)


def learner(losses: list[float], folder: Path, train_loss: float = 1.0) -> Learner:
    items = [(torch.tensor(0.0), torch.tensor(0)) for _ in range(4)]
    dls = DataLoaders(*(DataLoader(items, bs=4, num_workers=0) for _ in range(2)), device="cpu")
    model = Scripted()
    script = iter(losses)

    def loss(pred, y, reduction="mean"):
        if model.training:
            return train_loss - model.weight
        return torch.tensor(next(script))

    return Learner(
        dls, model, loss_func=loss, opt_func=SGD, lr=1.0, metrics=accuracy, path=folder, wd=0, moms=(0, 0, 0)
    )


def fit(losses, patience, folder, fits=1, extra=()):
    learn = learner(losses, folder)
    best = SaveBest(folder / "best.safetensors")
    cbs = [History(folder / "history.csv"), best, StopEarly(patience=patience), *extra]
    with learn.no_bar(), learn.no_logging():
        for _ in range(fits):
            learn.fit(len(losses) // fits, 1.0, cbs=cbs)
    return learn, best, pd.read_csv(folder / "history.csv")


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(1, 5))
@settings(max_examples=50)
def test_the_lowest_loss_is_kept_and_patience_respected(script, patience):
    losses = [float(v) for v in script]
    best_at, ends = 0, len(losses)
    for epoch, value in enumerate(losses):
        if value < losses[best_at]:
            best_at = epoch
        if epoch - best_at >= patience:
            ends = epoch + 1
            break
    with tempfile.TemporaryDirectory() as folder:
        learn, best, history = fit(losses, patience, Path(folder))
        assert list(history["valid_loss"]) == losses[:ends]
        assert best.best_epoch == best_at
        # The weight was epoch + 1 at the end of each epoch.
        assert learn.model.weight.item() == best_at + 1
        assert not list(Path(folder).rglob("*.pth"))


def test_two_fits_keep_the_best_of_both(tmp_path):
    learn, best, history = fit([5.0, 1.0, 3.0, 2.0], 9, tmp_path, fits=2)
    assert list(history["epoch"]) == [1, 2, 3, 4]
    assert best.best_epoch == 1 and learn.model.weight.item() == 2


def test_it_is_said_when_training_stops_early(tmp_path, said):
    fit([3.0, 1.0, 2.0, 2.0, 0.5], 2, tmp_path)
    assert "stopped early: no lower valid_loss in 2 epochs since epoch 2" in said()
    assert sum(line.startswith("epoch ") for line in said()) == 4


def test_the_history_is_on_the_disk_when_an_epoch_ends(tmp_path):
    rows = []

    class Look(Callback):
        order = 56

        def after_epoch(self):
            rows.append(len(pd.read_csv(tmp_path / "history.csv")))

    fit([3.0, 2.0, 1.0], 5, tmp_path, extra=[Look()])
    assert rows == [1, 2, 3]


def test_the_columns_of_the_history(tmp_path):
    _, _, history = fit([3.0, 2.0], 5, tmp_path)
    assert list(history.columns) == [
        *("epoch", "train_loss", "valid_loss", "train_accuracy", "accuracy", "lr", "seconds"),
    ]
    assert list(history["accuracy"]) == [1.0, 1.0] and list(history["lr"]) == [1.0, 1.0]
    assert (history["seconds"] >= 0).all()


def test_nothing_is_written_while_predictions_are_made(tmp_path):
    learn = learner([1.0] * 9, tmp_path)
    learn.add_cbs([History(tmp_path / "history.csv"), SaveBest(tmp_path / "best.safetensors"), StopEarly(patience=1)])
    with learn.no_bar(), learn.no_logging():
        learn.get_preds(ds_idx=1, with_loss=False)
    assert not (tmp_path / "history.csv").exists() and not (tmp_path / "best.safetensors").exists()


def test_a_loss_that_is_no_number_ends_with_what_to_do(tmp_path):
    learn = learner([1.0, 1.0], tmp_path, train_loss=float("nan"))
    with learn.no_bar(), learn.no_logging(), pytest.raises(OctfastError, match="epoch 1 is nan") as e:
        learn.fit(2, 1.0, cbs=[History(tmp_path / "history.csv")])
    assert "--lr" in e.value.hint


def test_frozen_modules_are_in_eval_mode_whenever_training_starts(tmp_path):
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout(0.5), nn.Conv2d(4, 4, 1)))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model = nn.Sequential(body.requires_grad_(False), head)
    items = [(torch.randn(3, 8, 8), torch.tensor(i % 2)) for i in range(8)]
    dls = DataLoaders(*(DataLoader(items, bs=4, num_workers=0) for _ in range(2)), device="cpu")
    seen = []

    class Look(Callback):
        def before_batch(self):
            if self.training:
                seen.append({n: m.training for n, m in self.model.named_modules() if not list(m.children())})

    before = {k: v.clone() for k, v in body.state_dict().items()}
    learn = Learner(dls, model, loss_func=nn.CrossEntropyLoss(), cbs=[FrozenEval(), Look()], path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 0.1)
    assert len(seen) == 4
    for modes in seen:
        assert not any(on for name, on in modes.items() if name.startswith("0."))
        assert modes["1.2"] and modes["1.3"]
    assert all(torch.equal(v, before[k]) for k, v in body.state_dict().items())


def test_nothing_is_printed(tmp_path, capsys):
    fit([3.0, 2.0, 2.0, 2.0], 2, tmp_path)
    assert capsys.readouterr().out == ""


def test_only_what_this_training_saved_is_loaded(tmp_path):
    """A fit that never improves leaves the weights as they are, whatever lies under the file's name."""
    (tmp_path / "best.safetensors").write_bytes(b"not weights")
    learn, best, _ = fit([float("inf")] * 2, 5, tmp_path)
    assert best.best_epoch is None and best.last_saved_path is None and learn.model.weight.item() == 2
    assert (tmp_path / "best.safetensors").read_bytes() == b"not weights"


def test_loggers_are_told_where_the_best_weights_are(tmp_path):
    _, best, _ = fit([2.0, 1.0], 5, tmp_path)
    assert best.last_saved_path == tmp_path / "best.safetensors"


def test_the_bar_is_told_of_each_batch_and_not_of_predictions(tmp_path):
    told = []
    learn = learner([1.0] * 9, tmp_path)
    learn.add_cb(TrainBar(lambda done, of: told.append((done, of))))
    with learn.no_bar(), learn.no_logging():
        learn.fit(3)
        assert told == [(i + 1, 6) for i in range(6)]
        learn.get_preds(ds_idx=1, with_loss=False)
    assert len(told) == 6
