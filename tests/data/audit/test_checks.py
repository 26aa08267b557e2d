from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.data.audit.audit import quick_audit
from octfast.data.audit.checks import check_table, copy_findings, wilson
from octfast.data.readers.folder import read_scans
from tests.data.audit.samples import files, scan_table


def checks(scans: pd.DataFrame) -> set[tuple[str, str]]:
    return {(f.severity, f.check) for f in check_table(scans)}


def test_missing_and_tiny_classes():
    many = [(f"/d/train/{c}/{c}-{i}{k}-1.png", c, f"{k}{i}", "train") for k, c in enumerate("AB") for i in range(30)]
    assert checks(scan_table(*many)) == set()
    lacking = [(f"/d/test/A/A-t{i}-1.png", "A", f"t{i}", "test") for i in range(12)]
    found = check_table(scan_table(*many, *lacking))
    assert [(f.severity, f.check, f.detail) for f in found] == [("error", "class-missing", "test has no scan of B")]
    tiny = [(f"/d/test/B/B-u{i}-1.png", "B", f"u{i}", "test") for i in range(3)]
    assert checks(scan_table(*many, *lacking, *tiny)) == {("warning", "few-scans")}


def test_a_small_validation_split_is_said_with_its_interval():
    def table(n: int) -> pd.DataFrame:
        train = [(f"/d/{c}-t{k}{i}-1.png", c, f"t{k}{i}", "train") for k, c in enumerate("AB") for i in range(30)]
        valid = [(f"/v/{c}-v{k}{i}-1.png", c, f"v{k}{i}", "valid") for k, c in enumerate("AB") for i in range(n // 2)]
        return scan_table(*train, *valid)

    (finding,) = check_table(table(32))
    assert finding.check == "small-validation"
    assert "29 of 32 right" in finding.detail and "75.8% to 96.8%" in finding.detail and "21 points" in finding.detail
    assert check_table(table(400)) == []


@pytest.mark.parametrize("right, scans, low, high", [(29, 32, 0.7578, 0.9676), (966, 1000, 0.9529, 0.9755)])
def test_wilson(right, scans, low, high):
    # By Wilson's formula; the second is the interval of Kermany's figure, 95.3 to 97.6 in facts.
    z, p = 1.959964, right / scans
    middle, half = p + z * z / (2 * scans), z * np.sqrt(p * (1 - p) / scans + z * z / (4 * scans**2))
    assert wilson(right, scans) == pytest.approx(
        ((middle - half) / (1 + z * z / scans), (middle + half) / (1 + z * z / scans)), abs=1e-6
    )
    assert wilson(right, scans) == pytest.approx((low, high), abs=1e-3)


def test_names_in_two_places():
    rows = [
        ("/d/train/CNV/CNV-1-1.jpeg", "CNV", "1", "train"),
        ("/d/train/DME/DME-2-1.jpeg", "DME", "2", "train"),
        ("/d/test/CNV/cnv-1-1.jpeg", "CNV", "1", "test"),
        ("/d/train/CNV/0001.png", "CNV", "train/CNV/0001.png", "train"),
        ("/d/train/DME/0001.png", "DME", "train/DME/0001.png", "train"),
    ]
    found = [f for f in check_table(scan_table(*rows)) if f.check == "same-name"]
    assert [(f.severity, f.path, f.related) for f in found] == [
        ("note", "", ""),
        ("warning", "/d/test/CNV/cnv-1-1.jpeg", "/d/train/CNV/CNV-1-1.jpeg"),
    ]


def test_the_quick_audit_finds_leaks_without_decoding(own, monkeypatch):
    a, b, c = files(own)[:3]
    shutil.copy(a, own / "test" / "CNV" / "CNV-99003-1.jpeg")
    shutil.copy(b, own / "train" / "DME" / "DME-99004-1.jpeg")
    shutil.copy(c, own / "train" / "CNV" / "CNV-99005-1.jpeg")
    scans = read_scans(own)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a picture was opened"))
    assert [(f.severity, f.check) for f in quick_audit(scans)] == [
        ("error", "duplicate-across-splits"),
        ("error", "duplicate-across-classes"),
    ]


def test_the_quick_audit_of_clean_phantoms_is_empty(clean):
    assert quick_audit(read_scans(clean)) == []


def test_the_table_is_not_looked_through_again_for_each_copy():
    class Counted(pd.DataFrame):
        reads = 0

        def __getitem__(self, key):
            Counted.reads += 1
            return super().__getitem__(key)

    table = Counted(scan_table(*((f"/d/train/A/A-{i}-1.png", "A", f"{i}", "train") for i in range(100))))
    few = list(copy_findings(table, [(0, 1, "duplicate", "the same bytes")]))
    reads, Counted.reads = Counted.reads, 0
    many = list(copy_findings(table, [(0, i, "duplicate", "the same bytes") for i in range(1, 100)]))
    assert few == many[:1] and len(many) == 99
    assert Counted.reads == reads
