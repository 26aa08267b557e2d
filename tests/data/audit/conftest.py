from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from octfast.data.phantom.draw import write_phantoms


@pytest.fixture(scope="session")
def clean(tmp_path_factory) -> Path:
    """120 phantoms of 128 x 128, 40 of them for testing. Nobody writes into it."""
    return write_phantoms(tmp_path_factory.mktemp("audit") / "clean", 120, size=128, seed=5, test=1 / 3)


@pytest.fixture
def own(clean, tmp_path) -> Path:
    """A copy of the clean phantoms that a test may damage."""
    return Path(shutil.copytree(clean, tmp_path / "own"))
