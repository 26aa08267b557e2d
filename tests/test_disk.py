"""What the disk refuses is said with the file's name, and leaves no half-written file under any."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from octfast.files import disk_errors_of, whole_file, write_text
from tests.conftest import Ended


@contextmanager
def files_up_to(size: int):
    """No file may grow beyond so many bytes; a full disk ends a write in the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def error(ended: Ended, code: int = 1) -> str:
    """The line that says what is wrong, of a command that ended with it and what to do."""
    assert ended.code == code and ended.lines[-1].startswith("what to do: "), ended
    assert ended.lines[-2].startswith("error: ")
    return ended.lines[-2]


def parts(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.endswith((".part", ".tmp"))]


def test_a_file_that_cannot_grow_is_named_with_the_room(tmp_path):
    write_text(tmp_path / "x.txt", "as it was")
    with (
        files_up_to(1000),
        pytest.raises(OSError, match=r"more than \d+ bytes are needed for it, and .* free") as e,
    ):
        write_text(tmp_path / "x.txt", "x" * 5000)
    assert e.value.errno == errno.EFBIG and e.value.filename == str(tmp_path / "x.txt")
    assert (tmp_path / "x.txt").read_text() == "as it was" and not parts(tmp_path)


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_an_error_that_has_lost_its_file_is_given_it(tmp_path, raised):
    with pytest.raises(OSError, match="No space left on device: more than") as e, whole_file(tmp_path / "x") as part:
        part.write_text("half")
        raise raised
    assert e.value.filename == str(tmp_path / "x") and not list(tmp_path.iterdir())


def test_other_errors_pass_as_they_are(tmp_path):
    for raised in (ValueError("a"), FileNotFoundError(errno.ENOENT, "No such file", "scan.jpeg")):
        with pytest.raises(type(raised)) as e, disk_errors_of(tmp_path / "x"):
            raise raised
        assert e.value is raised


@pytest.mark.skipif(os.name == "nt", reason="there is no limit on the size of a file")
@pytest.mark.parametrize("most", [300, 3_000, 30_000])
def test_training_on_a_full_disk_is_one_sentence(octfast_train, phantoms, tmp_path, most):
    with files_up_to(most):
        ended = octfast_train(phantoms, "--out", tmp_path / "run", "--cache", tmp_path / "cache")
    assert str(tmp_path) in error(ended)
    assert not parts(tmp_path) and "Logging error" not in ended.err


@pytest.mark.skipif(os.name == "nt", reason="there is no limit on the size of a file")
@pytest.mark.parametrize(
    ("words", "code"),
    [("report RUN", 1), ("interpret RUN --no-heatmaps", 1), ("predict RUN SCAN --out OUT/a.csv", 2)],
)
def test_other_commands_on_a_full_disk(octfast, own_run, tmp_path, words, code):
    given = {"RUN": str(own_run.path), "SCAN": own_run.scans["path"].iloc[-1], "OUT/a.csv": str(tmp_path / "a.csv")}
    with files_up_to(10):
        ended = octfast(*[given.get(w, w) for w in words.split()])
    assert str(tmp_path) in error(ended, code)
    assert not [p for p in parts(tmp_path) if "a.csv" not in p.name], "but for the journal that --resume goes on with"


@pytest.mark.skipif(os.name == "nt", reason="there is no limit on the size of a file")
def test_an_export_for_torch_on_a_full_disk_ends_no_process(octfast, own_run, tmp_path):
    with files_up_to(20_000):
        ended = octfast("export", own_run.path, "--format", "torch", "--out", tmp_path / "x.pt2")
    assert "x.pt2" in error(ended, 2) and not (tmp_path / "x.pt2").exists() and not parts(tmp_path)


def test_figures_that_cannot_be_saved_are_printed(octfast, own_run):
    file = own_run.path / "metrics-test.json"
    file.unlink()
    (file / "in the way").mkdir(parents=True)
    ended = octfast("evaluate", own_run.path, "--split", "test", "--resamples", 100)
    assert ended.code == 1 and "accuracy" in ended.out.lower()
    assert f"error: the figures could not be saved in the run folder: {file}" in ended.err


def test_predictions_that_cannot_be_kept_are_used(octfast, own_run):
    file = own_run.predictions_file("test")
    kept = own_run.predictions("test")
    file.unlink()
    (own_run.path / ".in the way").touch()
    with files_up_to(10):
        ended = octfast("evaluate", own_run.path, "--split", "test", "--resamples", 100, "--json")
    assert ended.code == 1 and "could not be kept" in ended.err and f'"scans": {len(kept)}' in ended.out


def test_a_run_folder_whose_figures_are_a_file(octfast, own_run):
    import shutil

    shutil.rmtree(own_run.figures)
    own_run.figures.write_text("no folder")
    ended = octfast("interpret", own_run.path, "--no-heatmaps")
    assert str(own_run.figures) in error(ended) and own_run.figures.read_text() == "no folder"


def test_the_weights_of_a_run_have_the_permissions_of_its_other_files(trained):
    modes = {p.stat().st_mode for p in (trained.path / "checkpoints" / "best.safetensors", trained.path / "scans.csv")}
    assert len(modes) == 1
