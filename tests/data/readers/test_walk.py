from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from octfast.data.audit.audit import audit
from octfast.data.explore import explore
from octfast.data.prepare import prepare
from octfast.data.readers.read import read_data
from octfast.data.readers.walk import LeftOut, is_scan, walk
from octfast.errors import DataError
from tests.data.test_scans import touch


@pytest.fixture
def closed(monkeypatch):
    """Makes a folder one that cannot be looked into; root can look into all."""

    def close(folder: Path, code: int = errno.EACCES) -> None:
        scandir = os.scandir

        def refuse(path="."):
            if os.fspath(path) == str(folder):
                raise OSError(code, os.strerror(code), str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)

    return close


@pytest.mark.parametrize("inner", ["CNV", "CNV/p1", ""])
@pytest.mark.parametrize("code", [errno.EACCES, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_looked_into_is_refused(tmp_path, closed, inner, code):
    touch(tmp_path, "CNV/p1/CNV-1-1.png", "DME/DME-1-1.png", "NORMAL/NORMAL-1-1.png")
    closed(tmp_path / inner if inner else tmp_path, code)
    for use in (read_data, prepare, audit, explore):
        with pytest.raises(DataError, match="cannot look into 1 folder") as e:
            use(tmp_path)
        assert os.strerror(code) in e.value.message and e.value.hint


def test_what_a_system_hides_may_be_closed(tmp_path, closed):
    touch(tmp_path, "A/1.png", "B/2.png", ".Trashes/x.png")
    closed(tmp_path / ".Trashes")
    assert len(read_data(tmp_path)) == 2


def test_a_path_longer_than_the_system_takes_is_refused(tmp_path):
    touch(tmp_path, "A/1.png", "B/2.png")
    here = os.open(tmp_path / "A", os.O_RDONLY)
    try:
        for _ in range(20):
            os.mkdir("x" * 250, dir_fd=here)
            inner = os.open("x" * 250, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        os.close(os.open("lost.png", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    finally:
        os.close(here)
    with pytest.raises(DataError, match="cannot look into 1 folder"):
        read_data(tmp_path)


def test_links_are_followed_but_never_in_a_circle(tmp_path, said):
    data = tmp_path / "data"
    touch(data, "A/1.png", "B/2.png")
    touch(tmp_path, "away/deep/3.png", "single.png")
    (data / "A" / "more").symlink_to(tmp_path / "away")
    (data / "B" / "single.png").symlink_to(tmp_path / "single.png")
    (data / "B" / "again.png").symlink_to(data / "A" / "1.png")
    (data / "A" / "up").symlink_to(data)
    (tmp_path / "away" / "back").symlink_to(data / "A")
    (data / "B" / "gone.png").symlink_to("nowhere")
    scans = read_data(data)
    assert sorted(os.path.relpath(p, data) for p in scans["path"]) == [
        "A/1.png",
        "A/more/deep/3.png",
        "B/2.png",
        "B/single.png",
    ]
    lines = said()
    assert any("left out: 3 links that lead nowhere, or back" in line for line in lines)
    assert any("left out: 1 links to scans that are read themselves" in line for line in lines)


def test_pipes_named_like_pictures_are_never_opened(tmp_path, said):
    touch(tmp_path, "A/1.png", "B/2.png")
    os.mkfifo(tmp_path / "A" / "pipe.png")
    os.mkfifo(tmp_path / "A" / "IM1")
    assert len(read_data(tmp_path)) == 2
    assert any("left out: 1 pipes, sockets or devices" in line for line in said())


def test_a_deep_tree_needs_no_deep_stack(tmp_path):
    made = [tmp_path / "d"]
    made[0].mkdir()
    while len(made) < 1500:
        made.append(made[-1] / "d")
        made[-1].mkdir()
    try:
        (made[-1] / "1.png").touch()
        assert sum(len(f.files) for f in walk(tmp_path, LeftOut()).all()) == 1
    finally:
        # What cleans up after the tests has a stack.
        (made[-1] / "1.png").unlink()
        for folder in reversed(made):
            folder.rmdir()


def test_pictures_without_an_ending_are_known_by_their_first_bytes(tmp_path):
    for name, head in (("a", b"\xff\xd8\xff\xe0"), ("b.scan", b"II*\0"), ("c", b"RIFF....WEBPVP8 ")):
        (tmp_path / name).write_bytes(head)
        assert is_scan(str(tmp_path / name))
    (tmp_path / "d.txt").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "e").write_bytes(b"nothing")
    assert not is_scan(str(tmp_path / "d.txt")) and not is_scan(str(tmp_path / "e"))
    assert not is_scan(str(tmp_path / "none"))
