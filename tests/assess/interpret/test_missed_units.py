"""Missed volumes, eyes and patients: the scans that counted most in each, and a strip of all of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.assess.interpret.interpret import interpret_run
from octfast.assess.interpret.missed_units import frames_of, plot_units
from octfast.model.bundle.write import update_info
from tests.pictures import scan

LEVEL = "volume"


@pytest.fixture
def tables(tmp_path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two volumes of one patient, of four scans and of two."""
    rows = []
    for volume, attention in (("a", [0.1, 0.6, 0.05, 0.25]), ("b", [0.3, 0.7])):
        for frame, weight in enumerate(attention):
            path = tmp_path / f"{volume}{frame}.png"
            Image.fromarray(scan(40, 50, seed=frame)).save(path)
            # Numbered against the order of the names.
            rows.append((str(path), "p", volume, 9 - frame, weight, weight / 2, 1 - weight / 2))
    each = pd.DataFrame(rows, columns=["path", "patient", "volume", "frame", "attention", "alone_CNV", "alone_NORMAL"])
    units = pd.DataFrame({"patient": "p", "volume": ["b", "a"], "label": "CNV", "predicted": "NORMAL"})
    return units.assign(probability=0.8, loss=[1.0, 2.0]), each


def test_the_scans_that_counted_most_in_the_order_of_the_units(tables):
    found = frames_of(*tables, LEVEL)
    assert found["unit"].tolist() == ["p / b", "p / b", "p / a", "p / a", "p / a"]
    assert found["rank"].tolist() == [1, 2, 1, 2, 3]
    assert found["attention"].tolist() == [0.7, 0.3, 0.6, 0.25, 0.1]
    assert found["frame"].tolist() == [8, 9, 8, 6, 9]


def test_the_most_suspicious_scans_whatever_counted(tables):
    units, each = tables
    each = each.assign(attention=0.25, alone_CNV=[0.1, 0.2, 0.9, 0.3, 0.4, 0.5])
    found = frames_of(units, each, LEVEL, suspicious=["CNV"])
    assert found["alone_CNV"].tolist() == [0.5, 0.4, 0.9, 0.3, 0.2]
    # Of no class in particular, those of the unit's label.
    of_label = frames_of(units.assign(label="NORMAL"), each, LEVEL, suspicious=[])
    assert of_label["alone_NORMAL"].tolist() == each.set_index("path").loc[of_label["path"], "alone_NORMAL"].tolist()
    assert of_label.groupby("unit")["alone_NORMAL"].is_monotonic_decreasing.all()
    fig = plot_units(units, each, LEVEL, "Missed", asked=["CNV"], suspicious=True)
    assert fig.axes[0].get_title(loc="left") == "alone 50%, counts 25%"


def test_the_strip_has_every_scan_in_the_order_of_the_frames(tables):
    fig = plot_units(*tables, LEVEL, "Missed", asked=["CNV"], heat=lambda path, label: np.ones((40, 50), np.float32))
    strip = fig.axes[7]
    assert [tick.get_text() for tick in strip.get_xticklabels()] == ["6", "7", "8", "9"]
    assert [bar.get_height() for bar in strip.patches] == [0.25, 0.05, 0.6, 0.1]
    np.testing.assert_allclose(strip.lines[0].get_ydata(), [0.125, 0.025, 0.3, 0.05])
    assert "label CNV, taken for NORMAL (80%)" in strip.get_title(loc="left")
    assert [ax.get_title(loc="left") for ax in fig.axes[:3]] == ["counts 70%", "counts 30%", ""]


def test_a_scan_without_a_map_says_why(tables):
    """A blank picture would look as if there were nothing to see."""
    for heat, words in (
        (np.zeros((40, 50), np.float32), "nothing raised the score of CNV"),
        ("the body has no map", "no heat map: the body has no map"),
    ):
        fig = plot_units(*tables, LEVEL, "Missed", heat=lambda path, label, heat=heat: heat)
        assert fig.axes[0].get_xlabel().splitlines() == ["b1.png", words]
    assert plot_units(*tables, LEVEL, "Missed").axes[0].get_xlabel() == "b1.png"


def test_none_missed_and_a_scan_that_is_gone(tables, tmp_path):
    units, each = tables
    assert plot_units(units.head(0), each, LEVEL, "Missed").axes[0].texts[0].get_text() == "none"
    (tmp_path / "b1.png").unlink()
    assert "no such file" in plot_units(units, each, LEVEL, "Missed").axes[0].texts[0].get_text()


def test_what_a_model_that_cuts_does_not_see_is_marked(tables):
    maps = plot_units(*tables, LEVEL, "Missed", heat=lambda path, label: np.zeros((40, 50), np.float32), fit="crop")
    drawn = np.asarray(maps.axes[0].images[0].get_array(), dtype=int)
    plain = np.asarray(plot_units(*tables, LEVEL, "Missed").axes[0].images[0].get_array(), dtype=int)
    # Of 50 columns the 40 in the middle are seen.
    np.testing.assert_allclose(drawn[:, 5:45, 0], plain[:, 5:45], atol=1)
    assert (drawn[:, :4].sum() < 0.6 * 3 * plain[:, :4].sum()) and (drawn[:, 46:].sum() < 0.6 * 3 * plain[:, 46:].sum())
    lines = plot_units(*tables, LEVEL, "Missed", fit="crop")
    assert [tuple(p.get_bbox().extents) for p in lines.axes[0].patches] == [(4.5, -0.5, 44.5, 39.5)]
    for fig in (maps, lines):
        assert "within the lines" in fig.get_supxlabel()
    assert "within the lines" not in plot_units(*tables, LEVEL, "Missed").get_supxlabel()


def test_a_model_of_scans_shows_the_patients_that_it_missed(own_run):
    kept = {"rule": "top_k", "k": 1, "temperature": 1.0, "urgent": ["CNV", "DME"]}
    update_info(own_run.bundle, calibration={"units": {"patient": kept}})
    scans = own_run.predictions("test")
    found = interpret_run(own_run, "test", 1, heatmaps=False, urgent=[scans["label"].iloc[0]])
    assert found.figures["missed_units_patients"].is_file()
    listed = pd.read_csv(own_run.path / "missed-units-patients-test.csv")
    assert (listed["label"] == scans["label"].iloc[0]).all() and (listed["predicted"] != listed["label"]).all()
    assert any("The answer for a patient is each class's highest" in note for note in found.notes)
