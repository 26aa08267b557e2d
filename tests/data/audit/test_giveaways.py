from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.data.audit.audit import audit
from octfast.data.audit.giveaways import giveaway_findings, giveaways
from octfast.data.audit.image_stats import ImageStats
from octfast.data.readers.folder import read_scans
from tests.data.audit.samples import scan_table


def made(n: int = 40, per: int = 3, classes: str = "ABC") -> tuple[pd.DataFrame, list[ImageStats]]:
    """Scans of `n` patients a class in which nothing tells the class."""
    rng = np.random.default_rng(0)
    rows = [(f"/d/{c}-{c}{p}-{i}.png", c, f"{c}{p}", "train") for c in classes for p in range(n) for i in range(per)]
    stats = [ImageStats(format="PNG", mode="L", width=512, height=496, brightness=rng.normal(60, 9)) for _ in rows]
    return scan_table(*rows), stats


def test_nothing_is_given_away_by_chance():
    scans, stats = made()
    found = giveaways(scans, stats)
    assert found["property"].tolist() == ["brightness"] and found["low"].iloc[0] < 1 / 3 + 0.1
    assert not list(giveaway_findings(found))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("white border", {"border": 0.2}),
        ("brightness", {"brightness": 120.0}),
        ("size", {"width": 768}),
        ("format", {"format": "JPEG"}),
        ("sharpness", {"texture": np.full((2, 512), 255, dtype=np.uint8)}),
    ],
)
def test_a_property_of_one_class_alone_names_the_class(name, change):
    scans, stats = made()
    stats = [s._replace(**change) if c == "B" else s for s, c in zip(stats, scans["label"], strict=True)]
    found = giveaways(scans, stats)
    assert found["property"].iloc[0] == name and found["label"].iloc[0] == "B" and found["told"].iloc[0] > 0.97
    findings = [f for f in giveaway_findings(found) if f.detail.startswith(f"the {name} alone gives the class")]
    assert len(findings) == 1 and "it tells B from the others in 100%" in findings[0].detail


def test_devices_of_their_own_give_all_classes_away():
    scans, stats = made()
    scans["Device"] = scans["label"].map({"A": "Cirrus", "B": "Spectralis", "C": "Topcon"})
    (finding,) = giveaway_findings(giveaways(scans, stats))
    assert "the column Device alone gives the class in 100% of scans (100% to 100%)" in finding.detail


def test_a_patient_is_never_learned_from_and_asked_about():
    # Every patient has a size of its own, which a tree could learn by heart.
    scans, stats = made(n=30, per=10)
    sizes = {p: 400 + 7 * i for i, p in enumerate(np.random.default_rng(1).permutation(scans["patient"].unique()))}
    stats = [s._replace(width=sizes[p], brightness=50.0) for s, p in zip(stats, scans["patient"], strict=True)]
    (row,) = giveaways(scans, stats).itertuples()
    assert row.property == "size" and row.low < 1 / 3 < row.high + 0.1 and row.right < 0.6


def test_too_few_patients_and_unreadable_files_are_left_aside():
    scans, stats = made(n=5)
    assert giveaways(scans, stats).empty
    scans, stats = made(classes="AB")
    assert giveaways(scans, [s._replace(trouble="empty") for s in stats]).empty


def test_white_wedges_painted_on_one_class_are_found(own):
    for path in read_scans(own)["path"]:
        if "CNV" in path:
            with Image.open(path) as image:
                samples = np.array(image.convert("L"))
            samples[:12, :40] = 255
            Image.fromarray(samples).save(path)
    found = audit(own)
    (row,) = found.summary().query("check == 'gives-class-away'").itertuples()
    assert row.severity == "warning" and "the white border alone" in row.detail and "tells CNV from" in row.detail
    assert found.to_dict()["properties"][0]["property"] == "white border"
