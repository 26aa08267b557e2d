from __future__ import annotations

import pandas as pd

from octfast.assess.report.tables import cell, confusion_rows, find, methods_in_words


def test_numbers_as_a_reader_reads_them():
    shown = cell("accuracy", 0.875, 0.7923, 0.9278)
    assert (shown.text, shown.interval) == ("87.5%", "79.2 to 92.8")
    assert (shown.at, round(shown.low, 2), round(shown.high, 2)) == (87.5, 79.23, 92.78)
    assert cell("roc_auc", 0.98765).text == "0.988" and cell("lr_positive", float("inf")).text == "∞"
    assert cell("ppv", float("nan"), float("nan"), float("nan")).text == "–"
    assert cell("lr_positive", 12.34, 3.21, float("inf")).interval == "3.21 to ∞"
    assert cell("cohen_kappa", -0.2, -0.4, 0.1).low == 0.0


def test_a_cell_is_found_by_its_row_and_is_empty_without_one():
    frame = pd.DataFrame(
        [["CNV", "ppv", 0.5, 0.25, 0.75, "Wilson"]], columns=["class", "metric", "value", "low", "high", "method"]
    )
    assert find(frame, "ppv", **{"class": "CNV"}).text == "50.0%"
    assert find(frame, "ppv", **{"class": "DME"}).text == find(frame, "npv").text == "–"


def test_intervals_made_otherwise_are_named():
    rows = [["a", "ppv", 0.5, "Wilson"], ["b", "ppv", 0.5, "Wilson"], ["a", "npv", 1.0, "none (resamples all equal)"]]
    words = methods_in_words(pd.DataFrame(rows, columns=["class", "metric", "value", "method"]), "class")
    assert words == ["Intervals by Wilson, unless said otherwise.", "No interval (resamples all equal): NPV."]


def test_a_confusion_matrix_frames_what_is_right():
    (first, second) = confusion_rows(pd.DataFrame([[3, 1], [0, 0]], index=["a", "b"], columns=["a", "b"]))
    assert [(c["count"], c["share"], c["right"]) for c in first["cells"]] == [(3, "75%", True), (1, "25%", False)]
    assert second["n"] == 0 and {c["share"] for c in second["cells"]} == {""}
