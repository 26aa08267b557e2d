"""Spoilt volumes: each is read or refused with a sentence, quickly, and the next one is read again."""

from __future__ import annotations

import time
from random import Random

import pytest

from octfast.data.volumes.about import About
from octfast.data.volumes.reader import VolumeReader
from octfast.errors import DataError
from tests.data.volumes import volume_files as files

COUNT = 15
NEEDS = {"dicom": "pydicom", "vol": "numpy", **dict.fromkeys(("e2e", "fda", "fds", "img"), "oct_converter")}


@pytest.fixture(scope="module")
def reader():
    with VolumeReader(seconds=20) as reader:
        yield reader


@pytest.mark.parametrize("kind", files.SUFFIXES)
def test_a_spoilt_volume_is_read_or_refused_with_a_sentence(reader, tmp_path, kind):
    pytest.importorskip(NEEDS[kind])
    good = files.write_kind(kind, tmp_path / f"good{files.SUFFIXES[kind]}", files.frames_of())
    content = good.read_bytes()
    assert len(list(reader.read(good, kind))) >= 2
    draw = Random(f"volumes {kind}")
    for n in range(COUNT):
        path = tmp_path / f"{n}{files.SUFFIXES[kind]}"
        path.write_bytes(files.spoil(content, draw))
        begun = time.monotonic()
        try:
            # What is said of it is read of every second one.
            for found in reader.read_all(path, kind) if n % 2 else reader.read(path, kind):
                if isinstance(found, About):
                    assert found.eye in ("R", "L", "") and len(found.patient) <= 64
                else:
                    assert found.pixels.ndim == 2 and found.pixels.size
        except DataError as e:
            assert e.message and "\n" not in e.message and "crashed" not in e.message, (n, e)
        assert time.monotonic() - begun < 15
    assert len(list(reader.read(good, kind))) >= 2
    assert {p.name for p in tmp_path.iterdir()} == {good.name, *(f"{n}{good.suffix}" for n in range(COUNT))}
