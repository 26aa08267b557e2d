"""What the tests share: an empty machine, phantoms, one trained run, and the command line called in this process."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Before torch, fastai and huggingface_hub are imported, which read them once. One thread, as the threads of two test
# processes on two cores wait for each other ten times longer than they work.
HOME = Path(tempfile.mkdtemp(prefix="octfast-tests-"))
os.environ.update(
    OCTFAST_CACHE=str(HOME / "cache"),
    OCTFAST_KEY=str(HOME / "pseudonym.key"),
    TORCH_HOME=str(HOME / "torch"),
    HF_HOME=str(HOME / "hf"),
    OCTFAST_OFFLINE="1",
    OMP_NUM_THREADS="1",
    MPLBACKEND="agg",
    COLUMNS="200",
)
for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "FORCE_COLOR"):
    os.environ.pop(name, None)

import logging  # noqa: E402

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

SHARED = Path(__file__).parents[1].parent / "shared"

settings.register_profile(
    "octfast", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
settings.load_profile("octfast")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_configure(config):
    # What is skipped is listed in this file, to be run again where more is installed: pytest @FILE.
    if (file := os.environ.get("OCTFAST_SKIPPED")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Skipped(Path(file)))


def pytest_unconfigure():
    shutil.rmtree(HOME, ignore_errors=True)


class _Skipped:
    """Writes the names of the tests and modules that were skipped, a line each."""

    def __init__(self, file: Path):
        self.file, self.names = file, set()

    def pytest_runtest_logreport(self, report):
        if report.skipped:
            self.names.add(report.nodeid)

    def pytest_collectreport(self, report):
        if report.skipped:
            self.names.add(report.nodeid)

    def pytest_sessionfinish(self):
        self.file.write_text("".join(f"{name}\n" for name in sorted(self.names)), encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory):
    """A training sets runs/latest below the current folder: not in the checkout, where the user's own runs may lie."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def _own_log():
    """The command line sends octfast's log to the terminal alone; give it back, so that caplog sees it again."""
    log = logging.getLogger("octfast")
    before = log.level, log.propagate, list(log.handlers)
    yield
    log.setLevel(before[0])
    log.propagate = before[1]
    log.handlers[:] = before[2]


@pytest.fixture
def said(caplog):
    """The lines of octfast's log so far."""
    caplog.set_level(logging.INFO, logger="octfast")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "octfast"]


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """72 phantoms of 64 x 64 in OCT2017's layout, 16 of them for testing. Nobody writes into it."""
    from octfast.data.phantom.draw import write_phantoms

    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", 72, size=64)


@pytest.fixture
def own_phantoms(phantoms, tmp_path) -> Path:
    """A copy of the phantoms that a test may damage."""
    return Path(shutil.copytree(phantoms, tmp_path / "phantoms"))


@pytest.fixture(scope="session")
def trained(phantoms, tmp_path_factory):
    """A finished run of three epochs on the phantoms, its rate found by lr_find. Nobody writes into it."""
    from octfast.train.job import train_classifier

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        return train_classifier(**quick(phantoms, epochs=3, lr=None))


@pytest.fixture(scope="session")
def of_volumes(phantoms, tmp_path_factory):
    """A run on volumes of three scans, of which one NORMAL volume has a copy of a scan of a CNV volume."""
    from octfast.run.folder import open_run
    from octfast.train.job import train_classifier
    from tests.bags import bag_table

    home = tmp_path_factory.mktemp("of_volumes")
    data = Path(shutil.copytree(phantoms, home / "data"))
    copied, over = (sorted((data / "train" / c).iterdir())[0] for c in ("CNV", "NORMAL"))
    shutil.copy(copied, over)
    table = bag_table(data, data / "scans.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        fields = quick(table, folds=2, views=1, epochs=3, head="linear", level="volume", out=str(home / "run"))
        return open_run(train_classifier(**fields).path)


@pytest.fixture
def own_run(trained, tmp_path):
    """A copy of the trained run that a test may damage, the phantoms where they were."""
    from octfast.run.folder import open_run

    return open_run(shutil.copytree(trained.path, tmp_path / "own-run"))


def quick(data, **fields) -> dict:
    """Fields of a TrainConfig for a small network on small scans, in full precision, untrained."""
    small = {"arch": "test_resnet", "size": 64, "weights": "none", "views": 2, "folds": 0, "epochs": 2, "lr": 0.003}
    return {**small, "valid": "0.25", "precision": "fp32", "workers": 0, "data": str(data), **fields}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


@pytest.fixture
def octfast(tmp_path, monkeypatch, capsys):
    """Call the `octfast` command in this process, in an empty folder; anything but SystemExit fails the test."""
    from octfast.__main__ import main

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*words: object) -> Ended:
        monkeypatch.setattr("sys.argv", ["octfast", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return Ended(int(ended.value.code or 0), shown.out, shown.err)

    return call


@pytest.fixture
def octfast_train(octfast):
    """Call `octfast train` for a small network on small scans."""

    def call(*words: object) -> Ended:
        small = ["--arch", "test_resnet", "--size", 64, "--weights", "none", "--views", 1, "--folds", 0, "--epochs", 1]
        return octfast("train", *small, "--lr", 0.003, "--valid", 0.25, "--precision", "fp32", "--workers", 0, *words)

    return call
