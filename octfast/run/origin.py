"""What a run was made of: a fingerprint of its scans, the versions of the packages, the state of the git repository."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.files import path_below


def fingerprint(scans: pd.DataFrame, root: Path) -> str:
    """A digest of the path below `root`, the size, label, patient and split of every scan, in hex.

    A file that has gone meanwhile counts as one of size -1.
    """
    digest = hashlib.sha256()
    for row in scans.itertuples():
        path = str(row.path)
        name = path_below(path, root) or Path(path).name
        digest.update(f"{name}\t{_size(path)}\t{row.label}\t{row.patient}\t{row.split}\n".encode())
    return digest.hexdigest()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return -1


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    out = {"python": platform.python_version()}
    for package in ("octfast", "torch", "torchvision", "fastai", "timm", "pandas", "numpy", "pillow"):
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = "not installed"
    return out


def git_state() -> dict[str, Any] | None:
    """Commit of the folder that the run was started in, and whether it had changes; None outside of a repository."""
    try:
        commit, status = (
            subprocess.run(["git", *words], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
        return {"commit": commit, "changed": bool(status)}
    except (OSError, subprocess.SubprocessError):
        return None
