from __future__ import annotations

import struct
import time

import numpy as np
import pytest

from octfast.data.volumes.reader import VolumeReader
from octfast.errors import DataError
from tests.data.volumes import volume_files as files
from tests.data.volumes.test_reader import read, reader, refusal

__all__ = ["reader"]


def test_an_e2e_whose_directory_leads_back_into_itself(reader, tmp_path):
    pytest.importorskip("oct_converter")
    path = files.write_e2e(tmp_path / "a.e2e", [files.frames_of()])
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, 88 + 44, 88)
    path.write_bytes(raw)
    begun = time.monotonic()
    assert "back into itself" in refusal(reader, path)
    assert time.monotonic() - begun < 10


def test_an_e2e_that_numbers_its_scans_absurdly(reader, tmp_path):
    pytest.importorskip("oct_converter")
    path = files.write_e2e(tmp_path / "a.e2e", [files.frames_of()])
    raw = bytearray(path.read_bytes())
    struct.pack_into("<i", raw, 88 + 52 + 44 + 28, 1 << 30)
    path.write_bytes(raw)
    assert "numbers a B-scan 536,870,912" in refusal(reader, path)


def test_the_eye_of_one_volume_is_not_that_of_the_next(reader, tmp_path):
    frames = files.frames_of(3)
    path = files.write_e2e(tmp_path / "a.e2e", [frames, frames, frames], eyes="R?L")
    assert [s.eye for s in read(reader, path) if s.frame == 0] == ["R", "", "L"]


def test_an_e2e_is_read_as_oct_converter_reads_it(reader, tmp_path):
    pytest.importorskip("oct_converter")
    from oct_converter.readers import E2E

    from octfast.data.volumes.vendors import _let_it_run

    _let_it_run()
    path = files.write_e2e(tmp_path / "a.e2e", [files.frames_of(4), files.frames_of(2)[::-1]])
    file = E2E(path)
    file.read_all_metadata = dict
    theirs = [np.round(np.asarray(frame) * 255) for volume in file.read_oct_volume() for frame in volume.volume]
    np.testing.assert_array_equal(np.stack([s.pixels for s in read(reader, path)]), np.stack(theirs))


def test_large_volumes_in_one_e2e_take_no_more_memory_than_one(tmp_path):
    frames = np.repeat(np.repeat(files.frames_of(8, 62, 64), 8, axis=1), 8, axis=2)
    path = files.write_e2e(tmp_path / "a.e2e", [frames] * 9, eyes="RLRLRLRLR")
    with VolumeReader(memory=700 << 20) as reader:
        assert len(list(reader.read(path, "e2e"))) == 72


def test_an_e2e_cut_short_gives_what_is_there_and_says_so(reader, tmp_path):
    path = files.write_e2e(tmp_path / "a.e2e", [files.frames_of(4)])
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.rindex(b"MDbData") - 100])
    seen = []
    with pytest.raises(DataError, match="ends within a B-scan"):
        for scan in reader.read(path, "e2e"):
            seen.append(scan.frame)
    assert seen == [0, 1, 2]
