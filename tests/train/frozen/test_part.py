"""A FrozenLearner asked all that a Learner is asked: it answers as the whole Learner does, or says which call works."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.data import PartialDL
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.interpret import ClassificationInterpretation as FastaiInterpretation
from fastai.learner import load_learner
from fastai.torch_core import TensorImage
from fastai.vision.core import PILImage
from fastcore.basics import noop

from octfast.assess.interpret.interpretation import ClassificationInterpretation
from octfast.data.loaders import oct_dataloaders
from octfast.data.readers.folder import read_scans
from octfast.errors import UsageError
from octfast.train.callbacks import Callback, EpochLog
from octfast.train.frozen.folds import draw_folds
from octfast.train.frozen.frozen import frozen_learner
from octfast.train.learner import oct_learner


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def pair(phantoms, cache, tmp_path):
    """A function that makes a Learner, and one of its head on stored activations; both without progress bars."""

    def make(*, folds: int = 0, **kwargs):
        dls = oct_dataloaders(phantoms, size=64, valid=0.25, num_workers=0, device="cpu", bs=8)
        learn = oct_learner(dls, "test_resnet", weights="none", path=tmp_path, **kwargs)
        drawn = None
        if folds:
            scans = pd.concat([dls.train.items, dls.valid.items], ignore_index=True)
            drawn = draw_folds(scans, folds, 0)
        fast = frozen_learner(learn, precision="fp32", cache=cache, workers=1, folds=drawn)
        for each in (learn, fast):
            each.remove_cb(each.progress)
            each.logger = noop
        return learn, fast

    return make


@pytest.fixture
def both(pair):
    """Both after two epochs."""
    learn, fast = pair()
    fast.fit(2, 1e-2)
    return learn, fast


@pytest.fixture
def files(phantoms):
    return sorted((phantoms / "test").rglob("*.jpeg"))[:10]


def trained(fast, whole) -> bool:
    """Whether one more epoch changes the head."""
    before = [p.detach().clone() for p in whole.model[1].parameters()]
    fast.fit(1, 1e-2)
    return any(not torch.equal(a, b) for a, b in zip(before, whole.model[1].parameters(), strict=True))


def test_other_files_are_predicted_by_the_whole_model(both, files):
    learn, fast = both
    found, _ = fast.get_preds(dl=fast.dls.test_dl([str(f) for f in files]))
    expected, _ = learn.get_preds(dl=learn.dls.test_dl([str(f) for f in files]))
    assert found.shape == (10, 4) and torch.equal(found, expected)
    assert found.std(0).max() > 1e-3, "were all answers alike, this would show nothing"


def test_the_stored_activations_never_stand_in_for_other_scans(both, files):
    _, fast = both
    with pytest.raises(UsageError, match=r"training and validation scans alone\nask the whole.*test_dl\(files\)"):
        fast.stored.valid.new(files)
    assert fast.stored.test_dl([str(f) for f in files]).n == 10


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"ds_idx": 0},
        {"with_decoded": True},
        {"with_loss": True},
        {"act": noop},
        {"reorder": False},
        {"with_input": True},
    ],
    ids=lambda kwargs: next(iter(kwargs), "none"),
)
def test_get_preds_with_each_of_its_arguments_is_what_the_whole_says(both, kwargs):
    learn, fast = both
    # A DataLoader of training pictures would augment them; the store has them as they are.
    dl = learn.dls.test_dl(learn.dls.train.items, with_labels=True) if "ds_idx" in kwargs else None
    expected = learn.get_preds(dl=dl, **{k: v for k, v in kwargs.items() if k != "ds_idx"})
    found = fast.get_preds(**kwargs)
    assert len(found) == len(expected)
    for mine, its in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(mine), np.asarray(its), atol=1e-4)
    if "with_input" in kwargs:
        assert isinstance(found[0], TensorImage)


def test_a_batch_of_pictures_and_any_loader_are_answered(both):
    learn, fast = both
    batch = fast.dls.one_batch()
    assert batch[0].shape == (8, 3, 64, 64)
    assert torch.equal(fast.get_preds(dl=[batch])[0], learn.get_preds(dl=[batch])[0])
    assert torch.equal(fast.get_preds(dl=fast.dls.valid)[0], learn.get_preds(dl=learn.dls.valid)[0])
    assert fast.model is learn.model


def test_one_scan_is_predicted(both, files):
    learn, fast = both
    for item in (str(files[0]), files[0], PILImage.create(files[0])):
        name, _, p = fast.predict(item)
        assert name == learn.predict(str(files[0]))[0] and p.shape == (4,)
    assert len(fast.predict(files[0], with_input=True)) == 4


def test_validate_is_of_the_stored_scans_and_of_others(both, phantoms):
    learn, fast = both
    np.testing.assert_allclose(list(fast.validate()), list(learn.validate()), rtol=1e-4)
    test = read_scans(phantoms).query("split == 'test'")
    dl = fast.dls.test_dl(test, with_labels=True)
    np.testing.assert_allclose(list(fast.validate(dl=dl)), list(learn.validate(dl=dl)), rtol=1e-6)


def test_what_shows_pictures_shows_them(both):
    import matplotlib.pyplot as plt

    _, fast = both
    for show in (
        lambda: fast.dls.show_batch(max_n=4),
        lambda: fast.dls.train.show_batch(max_n=4, unique=True),
        lambda: fast.show_results(max_n=4),
        lambda: fast.stored.valid.show_batch(max_n=4),
    ):
        show()
        assert [len(ax.images) for ax in plt.gcf().axes if ax.has_data()] == [1] * 4
        plt.close("all")


def test_test_time_augmentation_is_the_wholes(both, files):
    _, fast = both
    assert fast.tta(n=1)[0].shape == (len(fast.dls.valid_ds), 4)
    assert fast.tta(dl=fast.dls.test_dl([str(f) for f in files]), n=1)[0].shape == (10, 4)


def test_interpretation_of_fastai_and_of_octfast(both):
    learn, fast = both
    interp = FastaiInterpretation.from_learner(fast)
    assert (interp.confusion_matrix() == FastaiInterpretation.from_learner(learn).confusion_matrix()).all()
    interp.plot_top_losses(2)
    ours = ClassificationInterpretation.from_learner(fast)
    assert (ours.confusion_matrix() == interp.confusion_matrix()).all()
    assert ours.heat_maps() is not None


def test_export_and_summary_are_of_the_whole(both, files, tmp_path):
    learn, fast = both
    fast.export("whole.pkl")
    assert load_learner(tmp_path / "whole.pkl").predict(str(files[0]))[0] == learn.predict(str(files[0]))[0]
    total = sum(p.numel() for p in learn.model.parameters())
    assert f"Total params: {total:,}" in str(fast.summary())
    assert trained(fast, learn)


def test_what_is_saved_is_the_whole_model(both):
    learn, fast = both
    before = [v.clone() for v in learn.model.state_dict().values()]
    fast.save("here")
    for loads in (fast, learn):
        trained(fast, learn)
        loads.load("here")
        assert all(torch.equal(a, b) for a, b in zip(before, learn.model.state_dict().values(), strict=True))
    assert trained(fast, learn)


@pytest.mark.parametrize("fit", ["fit", "fit_one_cycle", "fit_flat_cos"])
def test_every_way_of_fitting_trains_the_head_alone(pair, fit):
    learn, fast = pair()
    body = [v.clone() for v in learn.model[0].state_dict().values()]
    assert 1e-8 < fast.lr_find(num_it=10, show_plot=False).valley < 10
    getattr(fast, fit)(2, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(body, learn.model[0].state_dict().values(), strict=True))
    assert [row["epoch"] for row in learn.epoch_log.rows] == [1, 2], "the rate finder and validation are no epochs"


@pytest.mark.parametrize(
    "callback",
    [
        *(MixUp, CSVLogger, SaveModelCallback, EarlyStoppingCallback, ReduceLROnPlateau),
        *(lambda: GradientAccumulation(16), lambda: [ProgressCallback(), ShowGraphCallback()]),
    ],
    ids=["MixUp", "CSVLogger", "SaveModel", "EarlyStopping", "ReduceLROnPlateau", "GradientAccumulation", "ShowGraph"],
)
def test_callbacks_of_fastai_work(pair, callback):
    learn, fast = pair()
    fast.fit(2, 1e-2, cbs=callback())
    assert trained(fast, learn)
    assert len(learn.epoch_log.rows) == 3


def test_the_best_weights_that_fastai_saved_are_the_whole_models(pair):
    learn, fast = pair()
    fast.fit(3, 1e-2, cbs=SaveModelCallback(fname="best"))
    best = fast.get_preds()[0]
    trained(fast, learn)
    learn.load("best")
    torch.testing.assert_close(learn.get_preds()[0], best, atol=1e-4, rtol=0)


def test_with_folds_the_best_weights_that_fastai_saved_are_those_of_all_heads(pair):
    learn, fast = pair(folds=3)
    fast.fit(2, 1e-2, cbs=SaveModelCallback(fname="best", with_opt=True))
    best, held_out = learn.get_preds()[0], fast.out_of_fold()
    trained(fast, learn)
    torch.testing.assert_close(learn.load("best").get_preds()[0], best)
    np.testing.assert_allclose(fast.load("best", with_opt=True).out_of_fold(), held_out, atol=1e-5)
    assert fast.lr_find(num_it=5, show_plot=False).valley > 0


def test_mixed_precision_can_be_asked_for(pair):
    learn, fast = pair()
    fast.to_fp16().fit(1, 1e-2)
    assert trained(fast.to_fp32(), learn)


class AsksForPictures(Callback):
    """Asks in the middle of a fit what fastai's callbacks for TensorBoard and Weights & Biases ask."""

    def __init__(self, files):
        self.files, self.found = files, []

    def after_epoch(self):
        batch = self.dls.valid.one_batch()
        self.learn.one_batch(0, batch)
        out = self.loss_func.decodes(self.loss_func.activation(self.pred))
        x, y, its, outs = self.dls.valid.show_results(batch, out, show=False, max_n=4)
        assert x.shape == (4, 3, 64, 64) and len(its) == len(outs) == 4
        self.labels = [int(i) for i in y], [int(i) for i in batch[1][:4]]
        preds, _ = self.learn.get_preds(dl=self.dls.test_dl(self.files), inner=True)
        self.found.append(preds)


def test_a_callback_gets_pictures_in_the_middle_of_a_fit(pair, files):
    learn, fast = pair()
    asks = AsksForPictures([str(f) for f in files])
    fast.fit(1, 1e-2, cbs=asks)
    assert asks.labels[0] == asks.labels[1]
    assert torch.equal(asks.found[0], learn.get_preds(dl=learn.dls.test_dl(asks.files))[0])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda fast: fast.fit(1, cbs=CutMix()), r"CutMix cuts pictures[\s\S]*learn\.fit"),
        (lambda fast: fast.fit_one_cycle(1, cbs=[CutMix]), r"CutMix cuts pictures[\s\S]*learn\.fit"),
        (lambda fast: fast.fine_tune(1), r"fine_tune trains the frozen part[\s\S]*learn\.fine_tune"),
        (lambda fast: fast.unfreeze(), r"cannot be unfrozen here[\s\S]*learn\.unfreeze"),
        (lambda fast: fast.freeze_to(-2), r"cannot be unfrozen here[\s\S]*block5"),
        (lambda fast: setattr(fast, "dls", fast.stored), r"set learn\.dls, then call frozen_learner"),
        (lambda fast: setattr(fast, "model", fast.part), r"set learn\.model, then call frozen_learner"),
    ],
)
def test_what_stored_activations_cannot_do_is_refused_and_the_learner_still_works(pair, call, says):
    learn, fast = pair()
    fast.freeze()  # which it is
    with pytest.raises(UsageError, match=says):
        call(fast)
    assert trained(fast, learn)


def test_an_error_in_a_callback_leaves_the_learner_working(pair):
    class Fails(Callback):
        run_after = MixUp

        def before_batch(self):
            raise ValueError("no")

    learn, fast = pair()
    with pytest.raises(ValueError, match="no"):
        fast.fit(1, cbs=[MixUp(), Fails()])
    assert fast.model is learn.model and trained(fast, learn)


def test_a_body_that_was_trained_since_is_noticed(pair):
    learn, fast = pair()
    fast.fit(1, 1e-2)
    learn.unfreeze()
    assert trained(fast, learn), "nothing has changed yet"
    learn.fit(1, 1e-3)
    with pytest.raises(UsageError, match=r"has changed since[\s\S]*frozen_learner\(learn\) again"):
        fast.fit(1)
    with pytest.raises(UsageError, match="has changed"):
        fast.get_preds()


def test_closed_it_trains_no_more_and_answers_for_pictures(both, files):
    learn, fast = both
    fast.close()
    with pytest.raises(UsageError, match="are closed"):
        fast.fit_one_cycle(1)
    assert fast.predict(str(files[0]))[0] == learn.predict(str(files[0]))[0]


def test_the_groups_of_a_last_block_can_be_frozen_and_unfrozen(phantoms, cache):
    dls = oct_dataloaders(phantoms, size=32, valid=0.25, num_workers=0, device="cpu", bs=8)
    learn = oct_learner(dls, "resnet18", weights="none", unfreeze="block5")
    fast = frozen_learner(learn, precision="fp32", cache=cache)
    fast.freeze()
    assert fast.opt.frozen_idx == 1 and not any(p.requires_grad for p in learn.model[0].parameters())
    fast.freeze_to(-2)
    assert fast.opt.frozen_idx == 0 and all(p.requires_grad for p in learn.model[0][1].parameters())
    with pytest.raises(UsageError, match="cannot be unfrozen"):
        fast.freeze_to(0)


def test_with_folds_the_head_of_all_scans_answers(pair, files):
    learn, fast = pair(folds=3)
    fast.fit(2, 1e-2)
    np.testing.assert_allclose(fast.get_preds()[0], learn.get_preds()[0], atol=1e-4)
    assert fast.out_of_fold().shape == (len(fast.dls.train_ds) + len(fast.dls.valid_ds), 4)
    found, _ = fast.get_preds(dl=fast.dls.test_dl([str(f) for f in files]))
    assert torch.equal(found, learn.get_preds(dl=learn.dls.test_dl([str(f) for f in files]))[0])
    before = fast.out_of_fold()
    fast.save("heads")
    fast.fit(1, 1e-2)
    assert not np.array_equal(before, fast.out_of_fold())
    np.testing.assert_allclose(fast.load("heads").out_of_fold(), before, atol=1e-5)
    trained(fast, learn)
    found = learn.get_preds()[0]
    fast.save("mine")
    trained(fast, learn)
    torch.testing.assert_close(learn.load("mine").get_preds()[0], found)
    learn.save("whole")
    with pytest.raises(UsageError, match=r"whole-folds\.safetensors is not there"):
        fast.load("whole")
    for refused in (MixUp(), CutMix()):
        with pytest.raises(UsageError):
            fast.fit(1, cbs=refused)
    fast.fit(1, 1e-2)


def test_the_epochs_of_the_whole_and_of_its_part_are_one_history(pair):
    learn, fast = pair()
    fast.fit(2, 1e-2)
    fast.validate()
    fast.get_preds()
    learn.validate()
    learn.fit(1, 1e-3)
    rows = learn.epoch_log.rows
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {"train_loss", "valid_loss", "train_accuracy", "accuracy", "lr", "seconds"} <= set(rows[-1])
    assert fast._grab_cbs(EpochLog)[0].rows is rows


def test_scans_are_drawn_as_the_dataloaders_draw_them(phantoms, cache):
    drawn = []

    class Draws(Callback):
        def before_batch(self):
            if self.training:
                drawn.extend(self.y.tolist())

    weights = {"CNV": 30, "DME": 1, "DRUSEN": 1, "NORMAL": 1}
    more = [{"wgts": weights}, {"dl_type": PartialDL, "dl_kwargs": {"partial_n": 16}}]
    made = [oct_dataloaders(phantoms, size=64, valid=0.25, num_workers=0, device="cpu", bs=8, **m) for m in more]
    for dls, enough in zip(made, (lambda: drawn.count(0) > 0.6 * len(drawn), lambda: len(drawn) == 32), strict=True):
        drawn.clear()
        fast = frozen_learner(oct_learner(dls, "test_resnet", weights="none"), precision="fp32", cache=cache)
        with fast.no_bar(), fast.no_logging():
            fast.fit(2, 1e-3, cbs=Draws())
        assert enough(), drawn
        assert len(fast.get_preds(0)[0]) == len(dls.train_ds)
    with pytest.raises(UsageError, match="every scan once"):
        folds = np.arange(len(dls.train_ds) + len(dls.valid_ds)) % 3
        frozen_learner(oct_learner(dls, "test_resnet", weights="none"), precision="fp32", cache=cache, folds=folds)
