from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octfast.data.loaders import oct_dataloaders
from octfast.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, decode_grey, normalise, preprocess
from octfast.data.readers.folder import read_scans
from octfast.errors import DataError
from tests.pictures import scan, write_broken, write_kinds


@pytest.mark.parametrize("size", [64, 224])
def test_the_validation_dataloader_gives_the_same_numbers(phantoms, size):
    dls = oct_dataloaders(phantoms, size=size, valid=0.25, num_workers=0, device="cpu")
    seen = torch.cat([x for x, _ in dls.valid]).as_subclass(torch.Tensor)
    paths = list(dls.valid.items["path"])
    assert len(seen) == len(paths) > 4 and seen.shape[1:] == (3, size, size)
    for x, path in zip(seen, paths, strict=True):
        assert torch.equal(x, preprocess(path, size))


def test_it_does_so_for_pictures_of_every_kind(tmp_path):
    kinds = write_kinds(tmp_path / "A")
    write_kinds(tmp_path / "B")
    scans = read_scans(tmp_path).assign(split="valid")
    train = scans.groupby("label").head(1).assign(split="train")
    import pandas as pd

    table = pd.concat([train, scans], ignore_index=True)
    dls = oct_dataloaders(table, size=48, num_workers=0, device="cpu", allow_leaks=True)
    seen = torch.cat([x for x, _ in dls.valid]).as_subclass(torch.Tensor)
    assert len(seen) == 2 * len(kinds)
    for x, path in zip(seen, dls.valid.items["path"], strict=True):
        assert torch.equal(x, preprocess(path, 48)), path


def test_the_numbers_are_grey_resized_and_normalised(tmp_path):
    Image.fromarray(scan()).save(tmp_path / "a.png")
    x = preprocess(tmp_path / "a.png", 32, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    grey = np.asarray(Image.fromarray(scan()).resize((32, 32), Image.Resampling.BILINEAR)) / 255
    assert x.dtype == torch.float32 and x.shape == (3, 32, 32)
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 1.0), (0.3, 2.0)]):
        np.testing.assert_allclose(x[channel].numpy(), (grey - mean) / std, atol=1e-6)


def test_a_file_its_bytes_and_its_picture_are_the_same(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(scan()).save(file)
    wanted = preprocess(file, 40)
    for source in (str(file), file.read_bytes(), Image.open(file)):
        assert torch.equal(preprocess(source, 40), wanted)


def grey_of(path) -> np.ndarray:
    picture = decode_grey(path)
    assert picture.mode == "L"
    return np.asarray(picture)


@pytest.mark.parametrize(
    "kind", ["grey.png", "sixteen.png", "sixteen.tif", "la.png", "still.gif", "scan.bmp", "animated.gif"]
)
def test_grey_survives_whatever_it_is_kept_in(tmp_path, kind):
    np.testing.assert_array_equal(grey_of(write_kinds(tmp_path)[kind]), scan())


@pytest.mark.parametrize("kind", ["rgba.png", "scan.webp"])
def test_colour_becomes_luma_and_transparency_is_dropped(tmp_path, kind):
    colour = np.random.default_rng(2).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey_of(write_kinds(tmp_path)[kind]), luma, atol=1)


@given(st.integers(0, 65535))
@settings(max_examples=30)
def test_sixteen_bits_have_65535_as_white(value):
    file = io.BytesIO()
    Image.fromarray(np.full((2, 3), value, np.uint16)).save(file, "PNG")
    (found,) = np.unique(grey_of(file.getvalue()))
    assert found == value // 257


def test_one_pixel_is_a_picture(tmp_path):
    x = preprocess(write_kinds(tmp_path)["dot.png"], 16)
    assert x.shape == (3, 16, 16) and len(x[0].unique()) == 1


@given(st.integers(1, 90), st.integers(1, 90), st.integers(16, 70))
@settings(max_examples=25)
def test_any_shape_is_squeezed_and_nothing_is_cropped(height, width, size):
    # A bright frame of an eighth: were anything cropped away, some of it would be dark.
    grey = np.zeros((height * 8, width * 8), np.uint8)
    grey[:height], grey[-height:], grey[:, :width], grey[:, -width:] = 255, 255, 255, 255
    x = preprocess(Image.fromarray(grey), size, mean=(0, 0, 0), std=(1, 1, 1))[0]
    assert min(x[0].min(), x[-1].min(), x[:, 0].min(), x[:, -1].min()) > 0.95
    assert x[size // 2, size // 2] < 0.05


def test_white_and_black_keep_their_value():
    low, high = normalise(np.array([[0, 255]], np.uint8))[:, 0].unbind(1)
    np.testing.assert_allclose(low, [-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)], rtol=1e-6)
    np.testing.assert_allclose(high, [(1 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)], rtol=1e-6)


@pytest.mark.parametrize(
    "kind", ["empty.jpeg", "truncated.jpeg", "head-only.jpeg", "text.jpeg", "web.png", "floats.tif", "integers.tif"]
)
def test_what_cannot_be_decoded_is_an_error_that_names_it(tmp_path, kind):
    file = write_broken(tmp_path)[kind]
    with pytest.raises(DataError) as e:
        preprocess(file, 32)
    assert str(file) in e.value.message and "\n" not in e.value.message and e.value.hint


@pytest.mark.parametrize("source", ["/nowhere/scan.png", "/tmp", "", "nul\0l", b"", b"GIF89a"])
def test_no_picture_at_all(source):
    with pytest.raises(DataError):
        decode_grey(source)


@pytest.mark.parametrize("mode", ["HSV", "LAB", "F", "YCbCr", "RGBX"])
def test_a_picture_of_any_mode_is_read_or_refused(mode):
    try:
        assert decode_grey(Image.new(mode, (4, 4))).mode == "L"
    except DataError as e:
        assert e.hint


def test_an_enormous_picture_is_refused(monkeypatch, tmp_path):
    Image.fromarray(scan()).save(tmp_path / "a.png")
    monkeypatch.setattr("octfast.data.decode.MAX_PIXELS", 100)
    with pytest.raises(DataError, match="80 x 60 pixels"):
        decode_grey(tmp_path / "a.png")
