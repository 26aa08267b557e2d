from __future__ import annotations

import shutil
from pathlib import Path

from octfast.data.readers.folder import read_scans
from octfast.run.origin import fingerprint, git_state, versions


def test_a_fingerprint_is_of_the_scans_and_not_of_where_they_lie(own_phantoms, tmp_path):
    first = read_scans(own_phantoms)
    moved = shutil.copytree(own_phantoms, tmp_path / "moved")
    second = read_scans(moved)
    assert fingerprint(first, own_phantoms) == fingerprint(second, moved)
    other = second.assign(label=second["label"].replace("CNV", "DME"))
    assert fingerprint(other, moved) != fingerprint(second, moved)
    with Path(second["path"].iloc[0]).open("ab") as f:
        f.write(b"x")
    assert fingerprint(second, moved) != fingerprint(first, own_phantoms)


def test_outside_of_a_repository_there_is_no_git_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert git_state() is None


def test_the_versions_are_of_what_results_depend_on():
    assert {"python", "octfast", "torch", "fastai"} <= set(versions())
