"""The trained run's model as a predictor, and the scans that it has not seen."""

from __future__ import annotations

import shutil

import pytest

from octfast.deploy.predictor import load
from octfast.model.bundle.write import update_info


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
    """The trained run's model with a temperature and an operating point."""
    folder = shutil.copytree(trained.bundle, tmp_path_factory.mktemp("bundle") / "model")
    operating = {"urgent": ["CNV", "DME"], "sensitivity": 0.95, "threshold": 0.5}
    update_info(folder, temperature=1.7, calibration={"split": "valid", "operating": operating})
    return folder


@pytest.fixture(scope="module")
def predictor(bundle):
    return load(bundle, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def scans(trained):
    return trained.scans[trained.scans["split"] == "test"].reset_index(drop=True)
