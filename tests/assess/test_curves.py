from __future__ import annotations

import warnings

import numpy as np
import pytest
from matplotlib.text import Text
from sklearn.metrics import average_precision_score, roc_auc_score

from octfast.assess.curves import plot_coverage_risk, plot_precision_recall, plot_reliability, plot_roc
from octfast.assess.metrics.abstain import coverage_risk, risk_area
from octfast.assess.metrics.referral import fix_operating_point
from octfast.assess.metrics.reliability import ece, reliability
from octfast.figure import save_figure
from octfast.model.temperature import rescale
from tests.assess.simulated import CLASSES, simulated

HOSTILE = ["$x$", "two\nlines", "a" * 90, "$\\frac{", "<b>bold</b>", "漢字", "100%", "_a", "\x1b[31mred", "plain"]


@pytest.fixture(scope="module")
def table():
    return simulated(600, 2.0, spread=2)


def words(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(Text))


def labels(figure) -> list[str]:
    return figure.axes[0].get_legend_handles_labels()[1]


def every(table, classes):
    return {
        "roc": plot_roc(table, classes, note="a note"),
        "pr": plot_precision_recall(table, classes, note="a note"),
        "reliability": plot_reliability(table, rescale(table, classes, 2.0), classes, note="a note"),
        "one": plot_reliability(table, None, classes, note="a note"),
        "risk": plot_coverage_risk(table, note="a note"),
    }


def test_the_areas_are_scikit_learns(table):
    for figure, name, score in (
        (plot_roc(table, CLASSES), "AUC", roc_auc_score),
        (plot_precision_recall(table, CLASSES), "AP", average_precision_score),
    ):
        for c, said in zip(CLASSES, labels(figure), strict=False):
            actual = table["label"] == c
            assert said == f"{c} (n={actual.sum()}): {name} {score(actual, table[f'p_{c}']):.3f}"


def test_lines_differ_without_colour(table):
    for figure in (plot_roc(table, CLASSES), plot_precision_recall(table, CLASSES)):
        named = [line for line in figure.axes[0].lines if "(n=" in line.get_label()]
        assert len({line.get_marker() for line in named}) == len({str(line._dash_pattern) for line in named}) == 4


def test_the_operating_point_lies_on_the_curve_of_referral(table):
    urgent = ["CNV", "DME"]
    threshold = fix_operating_point(table, urgent, 0.9).threshold
    figure = plot_roc(table, CLASSES, urgent=urgent, threshold=threshold)
    (curve,) = [line for line in figure.axes[0].lines if line.get_label().startswith("urgent referral")]
    (star,) = [line for line in figure.axes[0].lines if line.get_label().startswith("operating point")]
    x, y = star.get_xydata()[0]
    start, end = curve.get_xydata()[:-1], curve.get_xydata()[1:]
    along = np.clip(((np.array([x, y]) - start) * (end - start)).sum(1) / ((end - start) ** 2).sum(1), 0, 1)
    assert y >= 0.9 and np.hypot(*(start + along[:, None] * (end - start) - [x, y]).T).min() < 1e-9


def test_the_points_of_the_reliability_diagram(table):
    after = rescale(table, CLASSES, 2.0)
    figure = plot_reliability(table, after, CLASSES)
    assert labels(figure) == [
        f"before: ECE {ece(table, CLASSES):.3f}",
        f"after, T = 2: ECE {ece(after, CLASSES):.3f}",
    ]
    joined = [np.asarray(line.get_ydata(), float) for line in figure.axes[0].lines if line.get_marker() == "None"]
    for points, t in zip(figure.axes[0].containers, (table, after), strict=True):
        rows = reliability(t, CLASSES).query("count > 0")
        np.testing.assert_allclose(points.lines[0].get_ydata(orig=False), rows["accuracy"])
        assert any(
            len(line) == (rows["count"] >= 10).sum() and np.allclose(line, rows["accuracy"][rows["count"] >= 10])
            for line in joined
        )


def test_the_curve_of_risk(table):
    figure = plot_coverage_risk(table)
    curve = coverage_risk(table)
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), curve["risk"])
    assert f"{risk_area(curve):.4f}" in words(figure) and "p ≥ 0.9" in words(figure)


def test_each_figure_says_what_it_is_not(table):
    for figure in every(table, CLASSES).values():
        assert "a note  Not a medical device." in words(figure)


@pytest.mark.parametrize("n", [1, 2, 30, 400])
@pytest.mark.parametrize("classes", [HOSTILE, HOSTILE[:2]], ids=["ten", "two"])
def test_any_table_and_any_names_can_be_drawn(tmp_path, n, classes):
    for name, figure in every(simulated(n, classes=classes), classes).items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert save_figure(figure, tmp_path / f"{name}.png", dpi=40).stat().st_size > 1000
        assert not any(t.get_parse_math() for t in figure.findobj(Text))


def test_an_empty_table_is_no_error(table, tmp_path):
    for name, figure in every(table.head(0), CLASSES).items():
        save_figure(figure, tmp_path / f"{name}.png", dpi=40)


def test_no_class_is_left_out_of_the_legend_for_its_name():
    names = ["_a", "__", "_nolegend_", " b "]
    said = labels(plot_roc(simulated(300, classes=names), names))
    assert [s.split(" (n=")[0].strip() for s in said] == ["_a", "__", "_nolegend_", "b"]


def test_of_many_classes_the_hardest_are_named():
    names = [f"class {i}" for i in range(12)]
    figure = plot_roc(simulated(1500, classes=names, spread=1.5), names)
    assert len(labels(figure)) == 9 and labels(figure)[-1].startswith("4 others: AUC ≥ ")


def test_a_class_without_scans_is_counted():
    table = simulated(300).query("label != 'DME'")
    assert labels(plot_roc(table, CLASSES))[-1] == "1 without scans, or without others"
