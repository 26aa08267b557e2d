"""Files are looked through once, and again only where something has changed."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from octfast.assess.review import kept
from octfast.run.folder import Run

COLUMNS = ["path", "label", "patient", "split"]


@pytest.fixture
def looked(trained, tmp_path, monkeypatch):
    """A run folder of its own with scans of the trained run, and how often its files were looked through."""
    (tmp_path / "config.json").write_text((trained.path / "config.json").read_text())
    times, real = [], kept.audit

    def counting(scans):
        times.append(len(scans))
        return real(scans)

    monkeypatch.setattr(kept, "audit", counting)
    return Run(tmp_path), trained.scans[COLUMNS].head(12), times


def test_the_second_look_reads_no_file_and_finds_the_same(looked):
    run, scans, times = looked
    first = kept.audit_findings(run, scans)
    again = kept.audit_findings(run, scans)
    assert times == [12] and len(first)
    pd.testing.assert_frame_equal(again, first)
    assert str(run.root) not in json.dumps(json.loads((run.path / "audit.json").read_text())["findings"])


def test_another_label_or_a_changed_file_is_looked_at_anew(looked, tmp_path):
    run, scans, times = looked
    kept.audit_findings(run, scans)
    other = scans.assign(label=["DME" if label == "CNV" else "CNV" for label in scans["label"]])
    kept.audit_findings(run, other)
    assert len(times) == 2
    kept.audit_findings(run, scans)
    assert len(times) == 3
    file = Path(scans["path"].iloc[3])
    stamp = file.stat()
    try:
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**9))
        kept.audit_findings(run, scans)
    finally:
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert len(times) == 4


@pytest.mark.parametrize("content", ["{", "[]", '{"key": 1}', '{"key": "x", "findings": [[1]]}'])
def test_a_damaged_file_is_made_again(looked, content):
    run, scans, times = looked
    (run.path / "audit.json").write_text(content)
    expected = kept.audit_findings(run, scans)
    pd.testing.assert_frame_equal(kept.audit_findings(run, scans), expected)
    assert times == [12]
