from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from octfast.deploy.predictor import Predictor
from octfast.errors import UsageError
from tests.model.bundle.test_bundle import info
from tests.pictures import scan


class TestLearner:
    def test_it_takes_what_a_predictor_takes(self, predictor):
        learn = predictor.to_learner()
        expected = predictor.probabilities(scan())[0]
        for picture in (scan(), Image.fromarray(scan()), Image.fromarray(scan()).convert("RGB")):
            assert np.abs(learn.predict(picture)[2].numpy() - expected).max() < 1e-3

    def test_training_it_leaves_the_predictor_alone(self, predictor, phantoms):
        from octfast.data.loaders import oct_dataloaders

        before = predictor.probabilities(scan())
        dls = oct_dataloaders(
            phantoms, size=64, valid=0.25, num_workers=0, mean=predictor.info.mean, std=predictor.info.std
        )
        learn = predictor.to_learner(dls)
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(1, 1e-3)
        body = {k: v for k, v in predictor.model.state_dict().items() if k.startswith("0.")}
        assert all(torch.equal(v, learn.model.state_dict()[k]) for k, v in body.items())
        assert not torch.equal(predictor.model[1][-1].weight, learn.model[1][-1].weight)
        assert np.array_equal(predictor.probabilities(scan()), before)

    def test_what_it_is_made_of_goes_into_a_bundle_again(self, predictor, tmp_path):
        from octfast.train.learner import bundle_info

        learn = predictor.to_learner()
        again = bundle_info(learn)
        for name in ("arch", "head", "classes", "size", "mean", "std", "weights"):
            assert getattr(again, name) == getattr(predictor.info, name), name

    def test_other_classes_are_refused(self, predictor):
        about = replace(predictor.info, classes=("A", "B", "C", "D"), calibration={})
        learn = Predictor(predictor.model, about, precision="fp32").to_learner()
        with pytest.raises(UsageError, match="A, B, C, D"):
            predictor.to_learner(learn.dls)

    def test_log_probabilities_of_the_articles_head(self):
        about = info("vgg16", "article", temperature=1.6)
        torch.manual_seed(1)
        body = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 8))
        model = nn.Sequential(body, nn.Sequential(nn.Linear(8, 3), nn.LogSoftmax(dim=1)))
        ask = Predictor(model, about, precision="fp32", device="cpu")
        assert np.abs(ask.to_learner().predict(scan())[2].numpy() - ask.probabilities(scan())[0]).max() < 1e-5
