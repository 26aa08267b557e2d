from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.data.volumes import volume_files as files
from tests.deploy.predict.conftest import bundle  # noqa: F401
from tests.pictures import scan


@pytest.fixture
def here(octfast, bundle):  # noqa: F811
    """The command, and in the current folder three scans, one broken one and a volume."""
    for n in range(3):
        Image.fromarray(scan(seed=n)).save(f"{n}.png")
    Path("9.jpeg").write_bytes(b"broken")
    files.write_vol(Path("v.vol"), files.frames_of(3))
    return lambda *words: octfast("predict", bundle, *words, "--precision", "fp32", "--device", "cpu")


def test_a_pipe_gets_csv_and_a_file_that_cannot_be_read_is_told_by_the_exit_code(here):
    ended = here("0.png", "9.jpeg", "1.png")
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert ended.code == 1 and [r["path"] for r in rows] == ["0.png", "9.jpeg", "1.png"]
    assert [bool(r["error"]) for r in rows] == [False, True, False]
    assert (
        "2 scans read, " in ended.err and ", 1 could not be read" in ended.err and "Not a medical device." in ended.err
    )
    assert here("0.png", "1.png").code == 0


def test_json_lines_in_a_pipe(here):
    ended = here("*.png", "--format", "jsonl", "--top-k", 2)
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert ended.code == 0 and len(rows) == 3 and rows[0]["predicted_2"] != rows[0]["predicted"]


def test_out_and_a_summary(here):
    ended = here(".", "--out", "out.csv", "--abstain-below", 0.99)
    assert ended.code == 1 and "6 scans read" in ended.out and "1 volume" in ended.out and "abstained" in ended.out
    assert "Volumes, the most urgent first" in ended.out and "out-volumes.csv" in ended.out
    assert len(Path("out.csv").read_text().splitlines()) == 8
    assert here(".", "--out", "out.csv").code == 2
    # Its own table lies among the scans now, and is no input.
    assert here(".", "--out", "out.csv", "--force").code == 1


def test_json_for_programs(here):
    said = json.loads(here("0.png", "v.vol", "--json").out)
    assert said["scans"] == 4 and said["failed"] == 0 and len(said["rows"]) == 4 and said["note"]
    assert said["volumes"][0]["frames"] == 3
    said = json.loads(here("v.vol", "--json", "--out", "o.jsonl").out)
    assert "rows" not in said and said["files"] == ["o.jsonl", "o-volumes.jsonl"]


def test_a_row_a_volume(here):
    (row,) = csv.DictReader(io.StringIO(here("v.vol", "0.png", "--volume-summary").out))
    assert row["path"] == "v.vol" and row["frames"] == "3" and row["eye"] == "R"


def test_names_on_standard_input(here, monkeypatch):
    class Stdin:
        buffer = io.BytesIO(b"1.png\nv.vol\n")

    monkeypatch.setattr("sys.stdin", Stdin())
    rows = list(csv.DictReader(io.StringIO(here("-").out)))
    assert [r["path"] for r in rows] == ["1.png", "v.vol", "v.vol", "v.vol"]


def test_a_terminal_gets_a_table(here, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    ended = here("0.png", "v.vol")
    assert "v.vol (B-scan 2, R)" in ended.out and "Volumes" in ended.out and "Not a medical device." in ended.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["0.png", "--top-k", 9], "4 classes"),
        (["0.png", "--format", "xml"], "no format named 'xml'"),
        (["0.png", "--resume"], "--resume"),
        (["0.png", "--abstain-below", 2], "not a probability"),
    ],
)
def test_usage_errors(here, words, said):
    ended = here(*words)
    assert ended.code == 2 and said in ended.err and "what to do:" in ended.err


def test_no_model(octfast):
    ended = octfast("predict", "nowhere", "x.png")
    assert ended.code == 1 and "error:" in ended.err


def test_a_reader_that_leaves_early_is_no_error(here, bundle):  # noqa: F811
    names = ["0.png", "1.png", "2.png"] * 40
    command = [sys.executable, "-m", "octfast", "predict", str(bundle), *names, "--device", "cpu", "--bs", "1"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert running.stdout is not None and running.stderr is not None
    assert running.stdout.readline().startswith(b"path,")
    running.stdout.close()
    said = running.stderr.read()
    assert running.wait(60) == 141 and b"Traceback" not in said and b"BrokenPipe" not in said


def test_rows_that_are_asked_for_come_in_a_terminal_too(here, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    ended = here("0.png", "a\x1b[31m.png", "--format", "csv")
    assert [r["path"] for r in csv.DictReader(io.StringIO(ended.out))] == ["0.png", "a\\x1b[31m.png"]
    assert "Not a medical device." in ended.err
    (row,) = csv.DictReader(io.StringIO(here("v.vol", "--volume-summary", "--format", "csv").out))
    assert row["frames"] == "3"


def test_resuming_what_is_whole_counts_nothing(here):
    here("0.png", "--out", "out.csv")
    ended = here("0.png", "--out", "out.csv", "--resume")
    assert ended.code == 0 and "0 scans" not in ended.out and "out.csv" in ended.out and "finished already" in ended.err


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent in another way there")
def test_ctrl_c_while_standard_input_is_open(here, bundle):  # noqa: F811
    """A thread waits for a further name meanwhile, which must not bring Python down."""
    command = [sys.executable, "-m", "octfast", "predict", str(bundle), "-", "--device", "cpu"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    # What was started in the background ignores Ctrl-C, and so would all that it starts.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)
    finally:
        signal.signal(signal.SIGINT, heard)
    with process as running:
        assert running.stdin is not None and running.stdout is not None and running.stderr is not None
        running.stdin.write(b"gone.png\n")
        running.stdin.flush()
        assert running.stdout.readline().startswith(b"path,") and running.stdout.readline().startswith(b"gone.png,")
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130
        said = running.stderr.read()
    assert said.strip().endswith(b"stopped") and b"Fatal" not in said
