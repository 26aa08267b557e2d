"""The part of a picture that is seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from octfast.data.fit import FITS, box_of, hides
from octfast.data.loaders import BScan, oct_dataloaders
from octfast.data.preprocess import resize
from octfast.errors import UsageError
from octfast.train.frozen.views import describe
from tests.pictures import scan

SIDES = st.integers(1, 3000)


@given(SIDES, SIDES)
def test_the_box_is_the_largest_square_in_the_middle(width, height):
    left, top, right, bottom = box_of(width, height, "crop")
    assert right - left == bottom - top == min(width, height)
    # To half a pixel, which goes to the right and to the bottom.
    assert 0 <= width - right - left <= 1 and 0 <= height - bottom - top <= 1
    assert hides(width, height, "crop") is (width != height)
    assert box_of(width, height, "squeeze") == (0, 0, width, height)


def test_an_unknown_word_is_refused_with_the_nearest():
    with pytest.raises(UsageError) as e:
        box_of(2, 1, "cropp")
    assert e.value.hint == "did you mean crop?"


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 9))
def test_what_lies_outside_of_the_box_plays_no_part(height, width, seed):
    """The filter of a resize with a box would read beyond its border."""
    one, other = scan(height, width, seed), scan(height, width, seed + 10)
    left, top, right, bottom = box_of(width, height, "crop")
    other[top:bottom, left:right] = one[top:bottom, left:right]
    seen = [np.asarray(resize(Image.fromarray(a), 16, "crop")) for a in (one, other)]
    assert np.array_equal(*seen)
    cut = Image.fromarray(one[top:bottom, left:right])
    assert np.array_equal(seen[0], np.asarray(resize(cut, 16, "squeeze")))


@pytest.fixture
def two_halves(tmp_path) -> dict[str, str]:
    """Folders of the same scans, their sides beyond the square in the middle white in one and black in the other."""
    for side, grey in (("white", 255), ("black", 0)):
        for label in ("A", "B"):
            for n in range(4):
                picture = np.full((48, 120), grey, np.uint8)
                picture[:, 36:84] = scan(48, 48, seed=n)
                (tmp_path / side / label).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(tmp_path / side / label / f"{label}-{n}-1.png")
    return {side: str(tmp_path / side) for side in ("white", "black")}


@pytest.mark.parametrize("augment", ["none", "default"])
def test_training_and_validation_look_at_the_same_box(two_halves, augment):
    batches = []
    for folder in two_halves.values():
        given = {"size": 32, "bs": 2, "valid": 0.25, "augment": augment, "num_workers": 0, "device": "cpu"}
        dls = oct_dataloaders(folder, fit="crop", **given)
        batches.append((dls.train.one_batch()[0], dls.valid.one_batch()[0]))
    for one, other in zip(*batches, strict=True):
        assert one.shape[2:] == (32, 32) and (one == other).all()


def test_transforms_of_ones_own_get_the_box(two_halves):
    seen = set()

    def note(x):
        if not isinstance(x, Image.Image):
            return x
        seen.add(x.size)
        return BScan(x.resize((32, 32)))

    given = {"size": 32, "bs": 2, "valid": 0.25, "num_workers": 0, "device": "cpu"}
    oct_dataloaders(two_halves["white"], fit="crop", item_tfms=note, **given).train.one_batch()
    assert seen == {(48, 48)}


def test_what_is_hidden_is_noted(two_halves):
    given = {"size": 32, "bs": 2, "valid": 0.25, "num_workers": 0, "device": "cpu"}
    dls = {fit: oct_dataloaders(two_halves["white"], fit=fit, **given) for fit in FITS}
    assert any("8 of 8 scans are longer than 1.5 : 1, and of these 60%" in n.text for n in dls["crop"].notes)
    assert not any("longer" in n.text for n in dls["squeeze"].notes)
    # Stores of activations made before there was a choice are found by what their transforms were described as then.
    about = {fit: [describe(t) for t in dls[fit].train.after_item.fs] for fit in FITS}
    assert "fit" not in str(about["squeeze"]) and "'fit': 'crop'" in str(about["crop"])
