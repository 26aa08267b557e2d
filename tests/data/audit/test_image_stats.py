from __future__ import annotations

import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from octfast.data.audit.image_stats import ImageStats, image_stats
from tests.data.audit.samples import files, save


def test_a_picture_of_nothing_but_near_white_is_looked_at(tmp_path):
    samples = np.full((96, 96), 250, np.uint8)
    samples[:, 48:] = 255
    stats = image_stats(save(Image.fromarray(samples), tmp_path / "white.png", "PNG"))
    assert stats.trouble == "" and stats.border == 1


def test_a_look_never_raises(tmp_path):
    assert image_stats(tmp_path / "gone.png").trouble == "unreadable"
    (tmp_path / "a.png").write_bytes(b"PK\x03\x04 something")
    assert image_stats(tmp_path / "a.png")[:2] == ("not-a-picture", "a zip archive")
    save(Image.fromarray(np.zeros((80, 80), np.float32)), tmp_path / "f.tif", "TIFF")
    assert image_stats(tmp_path / "f.tif").trouble == "unreadable"
    assert ImageStats().hashes is None


@given(cut=st.integers(1, 4000), flip=st.integers(0, 3999), value=st.integers(0, 255))
def test_a_look_at_a_damaged_file_never_raises(clean, tmp_path, cut, flip, value):
    data = bytearray(files(clean)[0].read_bytes()[:cut])
    data[flip % len(data)] = value
    path = tmp_path / "damaged.jpeg"
    path.write_bytes(data)
    stats = image_stats(path)
    assert stats.trouble in ("", "truncated", "not-a-picture", "unreadable")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for name in ("a.png", "b.png"):
        stats = image_stats(tmp_path / name)
        assert stats.trouble == "not-a-picture" and "not a plain file" in stats.detail


def test_a_jpeg_damaged_within_is_no_sound_scan(clean, tmp_path):
    data = files(clean)[0].read_bytes()
    (tmp_path / "cut.jpeg").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    middle = len(data) // 2
    (tmp_path / "wiped.jpeg").write_bytes(data[:middle] + bytes(600) + data[middle + 600 :])
    assert image_stats(tmp_path / "cut.jpeg").trouble == "truncated"
    assert image_stats(tmp_path / "wiped.jpeg").trouble in ("truncated", "unreadable")
