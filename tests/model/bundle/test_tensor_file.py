"""The reader of model.safetensors, and what the safetensors library would do with the same files."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from octfast.errors import BundleError
from octfast.model.bundle.info import MODEL_FILE
from octfast.model.bundle.tensor_file import TensorFile


@pytest.fixture
def file(tmp_path):
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1 << 16)}, tmp_path / MODEL_FILE)
    return tmp_path / MODEL_FILE


def test_it_reads_what_the_library_writes(file):
    with TensorFile(file) as opened:
        read = opened.read()
    assert opened.entries["a"].shape == (2, 3) and opened.entries["a"].dtype == torch.float32
    with safe_open(file, "pt") as theirs:
        assert set(theirs.keys()) == set(read)
        assert all(torch.equal(theirs.get_tensor(name), tensor) for name, tensor in read.items())


# The risks for which this package has a reader of its own. When the library no longer has them, it can go.

CUT_WHILE_OPEN = """
import os, sys
from safetensors import safe_open
with safe_open(sys.argv[1], "pt") as opened:
    os.truncate(sys.argv[1], 4096)
    opened.get_tensor("b").sum()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is mapped cannot be cut there")
def test_a_file_that_is_cut_while_it_is_open_ends_the_library_but_not_the_reader(file, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(file.read_bytes())
    ended = subprocess.run([sys.executable, "-c", CUT_WHILE_OPEN, other], capture_output=True)
    assert ended.returncode < 0 and not ended.stderr  # by a signal, so that no Python could catch it
    with TensorFile(file) as opened:
        os.truncate(file, 4096)
        with pytest.raises(BundleError, match="was cut short while it was read"):
            opened.read()


def test_a_name_that_stands_twice_is_refused_by_the_reader_alone(tmp_path):
    entry = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    header = f"{{{entry}, {entry}}}".encode()
    (tmp_path / MODEL_FILE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with safe_open(tmp_path / MODEL_FILE, "pt") as theirs:
        assert list(theirs.keys()) == ["a"]
    with pytest.raises(BundleError, match="'a' stands twice"):
        TensorFile(tmp_path / MODEL_FILE)


def test_a_header_of_many_megabytes_is_refused_before_it_is_read(tmp_path):
    header = json.dumps({"__metadata__": {"a": "x" * (9 << 20)}}).encode()
    (tmp_path / MODEL_FILE).write_bytes(len(header).to_bytes(8, "little") + header)
    with safe_open(tmp_path / MODEL_FILE, "pt") as theirs:
        assert len(theirs.metadata()["a"]) == 9 << 20
    with pytest.raises(BundleError, match=r"a header of [0-9,]+ bytes is no model"):
        TensorFile(tmp_path / MODEL_FILE)


@pytest.mark.parametrize(
    "entries, rest",
    [
        ([[0, 8], [4, 12]], 12),  # overlapping
        ([[0, 8], [12, 20]], 20),  # with a gap
        ([[0, 8], [8, 16]], 12),  # beyond the end
        ([[0, 8], [8, 16]], 20),  # bytes that nothing speaks of
        ([[8, 0], [8, 16]], 16),
    ],
)
def test_tensors_that_do_not_lie_end_to_end_are_refused(tmp_path, entries, rest):
    header = json.dumps(
        {str(i): {"dtype": "F32", "shape": [2], "data_offsets": where} for i, where in enumerate(entries)}
    ).encode()
    (tmp_path / MODEL_FILE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(rest))
    with pytest.raises(BundleError, match="cannot read"):
        TensorFile(tmp_path / MODEL_FILE)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path, length):
    """Eight bytes of length begin with 80 02, as a pickle does, where the header has 640 bytes."""
    entry = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header = json.dumps(entry).encode().ljust(length)
    file = tmp_path / MODEL_FILE
    file.write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    assert file.read_bytes()[:1] == b"\x80"
    with TensorFile(file) as opened:
        assert list(opened.entries) == ["x"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("held", [None, {"a": 1}, b"x" * 300, list(range(70_000))])
def test_a_pickle_of_any_kind_is_called_one(tmp_path, protocol, held):
    (tmp_path / MODEL_FILE).write_bytes(pickle.dumps(held, protocol))
    with pytest.raises(BundleError, match="pickle"):
        TensorFile(tmp_path / MODEL_FILE)
