from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octfast.errors import UsageError
from octfast.train.config import TrainConfig


@pytest.mark.parametrize(
    "wrong",
    [
        *({"epochs": 0}, {"epochs": -3}, {"lr": 0}, {"lr": -0.001}, {"lr": float("nan")}, {"lr": 11}),
        *({"bs": 0}, {"bs": 1}, {"patience": 0}, {"views": -1}, {"size": 16}, {"seed": -1}, {"workers": -1}),
        *({"unfreeze": "block4"}, {"unfreeze": ""}, {"format": "gif"}, {"dpi": 10}),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_its_option(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=f"--{name}") as e:
        TrainConfig(**wrong)
    assert e.value.exit_code == 2 and e.value.hint and "\n" not in e.value.message


def test_the_nearest_word_is_given():
    with pytest.raises(UsageError) as e:
        TrainConfig(unfreeze="blok5")
    assert e.value.hint == "did you mean block5?"


@given(st.integers(1, 500))
def test_by_default_patience_lasts_for_half_of_the_cycle(epochs):
    assert TrainConfig(epochs=epochs).chosen_patience >= max(3, epochs / 2)
    assert TrainConfig(epochs=epochs, patience=2).chosen_patience == 2


def test_it_is_saved_as_json_whole():
    config = TrainConfig(data="scans", lr=0.01, weights=Path("w.safetensors"))
    said = json.loads(json.dumps(config.to_dict()))
    assert set(said) == {f.name for f in fields(TrainConfig)}
    assert said["data"] == "scans" and said["lr"] == 0.01 and said["weights"] == "w.safetensors"
    assert TrainConfig(**said).to_dict() == config.to_dict()


def test_it_does_not_change():
    with pytest.raises(FrozenInstanceError):
        TrainConfig().epochs = 3


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"augment": "strong"}, "one view is the scans as they are\nadd --views 4"),
        ({"augment": "none", "views": 4}, "4 views would be the same"),
        ({"augment": "strog", "views": 4}, "did you mean strong"),
    ],
)
def test_an_augmentation_that_does_nothing_is_refused(fields, says):
    with pytest.raises(UsageError, match=says):
        TrainConfig(**fields)
    TrainConfig(augment="strong", unfreeze="all")
    TrainConfig(augment="none", views=0)


def test_its_words_are_those_of_what_it_asks():
    import octfast.data.loaders as loaders
    import octfast.figure as figure
    from octfast.train.config import AUGMENT, FORMATS

    assert (AUGMENT, FORMATS) == (loaders.AUGMENT, figure.FORMATS)
