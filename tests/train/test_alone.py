from __future__ import annotations

import os

import pytest
import torch

from octfast.data.loaders import oct_dataloaders
from octfast.errors import OctfastError
from octfast.train.frozen.frozen import frozen_learner
from octfast.train.learner import oct_learner


@pytest.fixture
def loaders(phantoms):
    return oct_dataloaders(phantoms, size=32, bs=16, num_workers=0, valid=0.25)


def learner(loaders, tmp_path):
    return oct_learner(loaders, arch="test_resnet", weights="none", path=tmp_path)


@pytest.fixture
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_launcher_left_ruins_no_weights(loaders, tmp_path, alone, said, frozen, when):
    def leave():
        alone.setenv("RANK", "1")
        alone.setenv("WORLD_SIZE", "2")

    if when == "before":
        leave()
    learn = learner(loaders, tmp_path)
    if frozen:
        learn = frozen_learner(learn, views=1, precision="fp32", cache=tmp_path / "cache")
    if when == "after":
        leave()
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=5, show_plot=False)
        assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
        learn.fit(1, 1e-3)
        assert len(learn.get_preds()[0]) == len(learn.dls.valid_ds)
    assert learn.save("kept") is not None
    assert sum("RANK=1, WORLD_SIZE=2 in the environment is removed" in line for line in said()) == 1
    assert "RANK" not in os.environ


def test_one_of_several_processes_that_has_not_joined_is_refused_in_a_sentence(loaders, tmp_path, alone):
    learn = learner(loaders, tmp_path)
    alone.setenv("MASTER_ADDR", "127.0.0.1")
    alone.setenv("RANK", "0")
    alone.setenv("WORLD_SIZE", "1")
    with learn.no_bar(), learn.no_logging():
        learn.validate()
    alone.setenv("WORLD_SIZE", "2")
    for run in (lambda: learn.fit(1), lambda: learn.lr_find(num_it=2, show_plot=False), learn.validate):
        with pytest.raises(OctfastError, match="has not joined the others"):
            run()
    assert os.environ["WORLD_SIZE"] == "2"
