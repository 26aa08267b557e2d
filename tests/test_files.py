from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octfast.errors import UsageError
from octfast.files import (
    in_threads,
    is_offline,
    is_taken,
    new_folder,
    numbered_folder,
    path_below,
    sha256_of,
    usable_cores,
    whole_file,
)
from octfast.files import write_text as write
from octfast.notices import Note


def test_a_file_is_whole_or_as_it_was(tmp_path):
    file = write(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), whole_file(file) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and file.read_text() == "old"
    with whole_file(file, durable=True) as part:
        part.write_text("new")
        assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and file.read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_file_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        file = write(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_name_as_long_as_file_systems_allow(tmp_path):
    assert write(tmp_path / ("ä" * 125), "x").read_text() == "x"


def test_what_is_taken(tmp_path):
    assert not is_taken(tmp_path / "none") and not is_taken(tmp_path)
    file = write(tmp_path / "file", "")
    assert is_taken(file) and is_taken(tmp_path)
    with pytest.raises(UsageError, match="not empty"):
        new_folder(tmp_path)
    with pytest.raises(UsageError, match="cannot write to"):
        new_folder(file / "inner")
    assert new_folder(tmp_path / "a" / "b") == new_folder(tmp_path / "a" / "b")


def test_two_that_ask_at_once_get_two_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(numbered_folder, [tmp_path / "runs" / "x"] * 20))
    assert len(set(made)) == 20 and {p.name for p in made} == {"x", *(f"x-{n}" for n in range(2, 21))}


def test_a_digest_of_several_is_of_them_in_a_row(tmp_path):
    files = [write(tmp_path / name, name * 10) for name in "ab"]
    assert sha256_of(*files) == hashlib.sha256(b"a" * 10 + b"b" * 10).hexdigest()


@pytest.mark.parametrize(("said", "meant"), [("1", True), ("TRUE", True), (" on ", True), ("0", False), ("", False)])
def test_offline(monkeypatch, said, meant):
    monkeypatch.setenv("OCTFAST_OFFLINE", said)
    assert is_offline() is meant


def test_cores():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_notes_of_old_files_are_strings():
    note = Note("leak", "two patients are in both")
    assert Note.from_json(note.to_json()) == note and str(note) == note.text
    assert Note.from_json("plain") == Note("", "plain")


def test_the_working_folder_is_a_folder_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert numbered_folder(Path("run")).is_dir()


def test_an_address_is_refused_wherever_a_file_or_folder_is_asked_for(octfast, own_run):
    address = "https://example.org/oct/model.safetensors"
    for words in (
        ("show", own_run.path, address),
        ("show", address, "scan.png"),
        ("predict", address, "scan.png"),
        ("model", "show", address),
        ("interpret", address),
        ("train", *("--arch", "test_resnet", "--weights", address)),
    ):
        ended = octfast(*words)
        assert ended.code == 1 and f"{address} is an address on the web" in ended.err, words
        assert "what to do: download it and give" in ended.err or "what to do: download the run" in ended.err, words


def test_threads_are_a_bounded_number_of_items_ahead_and_keep_their_order():
    begun = []

    def items():
        for i in range(200):
            begun.append(i)
            yield i

    found = in_threads(lambda i: i * i, items(), threads=3, ahead=8)
    for n in range(200):
        assert next(found) == n * n
        assert len(begun) <= n + 1 + 8
    assert list(found) == []


def test_what_a_thread_raises_is_raised_in_its_place():
    found = in_threads(lambda i: 1 // (5 - i), range(1000), threads=2, ahead=4)
    assert [next(found) for _ in range(5)] == [0, 0, 0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)


@given(st.lists(st.sampled_from(["a", "..", ".", "", ".b", "c d", "a.png"]), max_size=5), st.sampled_from(["/", "/a"]))
def test_a_path_below_a_folder_is_that_of_pathlib(parts, root):
    path = Path("/a/" + "/".join(parts))
    below = path.relative_to(root).as_posix() if path.is_relative_to(root) else ""
    assert path_below("/a/" + "/".join(parts), Path(root)) == below
    assert path_below("/elsewhere/a.png", Path("/else")) == ""
