"""A cross-validated run on phantoms, of which a few labels are wrong."""

import shutil
from pathlib import Path

import pytest

from octfast.run.folder import open_run
from octfast.train.job import train_classifier
from tests.conftest import quick


@pytest.fixture(scope="session")
def mislabelled(phantoms, tmp_path_factory):
    """The run; three CNV scans and a copy of a NORMAL one stand under DRUSEN. Nobody writes into it."""
    home = tmp_path_factory.mktemp("mislabelled")
    data = Path(shutil.copytree(phantoms, home / "data"))
    for file in sorted((data / "train" / "CNV").iterdir())[:3]:
        file.rename(data / "train" / "DRUSEN" / file.name)
    copied = sorted((data / "train" / "NORMAL").iterdir())[0]
    shutil.copy(copied, data / "train" / "DRUSEN" / copied.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        fields = quick(data, folds=3, views=1, epochs=4, head="linear", out=str(home / "run"))
        return open_run(train_classifier(**fields).path)


@pytest.fixture
def own_run(mislabelled, tmp_path):
    """A copy of the run that a test may write into."""
    return open_run(shutil.copytree(mislabelled.path, tmp_path / "run"))
