from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.assess.interpret.plots import plot_confusion_matrix, plot_montage, plot_top_losses
from octfast.assess.interpret.rows import confusion_matrix, montage_rows, top_losses
from octfast.figure import save_figure
from octfast.model.forward import predictions_table
from octfast.train.plots import plot_history, plot_lr_find
from tests.pictures import scan, write_broken


def drawn(folder: Path, names: list[str], classes=("A", "B")) -> pd.DataFrame:
    """A Predictions table of scans that lie in a folder, every second one wrong."""
    for i, name in enumerate(names):
        Image.fromarray(scan(60, 80 + 4 * i, seed=i)).save(folder / name)
    scans = pd.DataFrame(
        {"path": [str(folder / n) for n in names], "label": classes[0], "patient": "1", "split": "valid"}
    )
    logits = np.array([[2.0 + i, 0.0] if i % 2 else [0.0, 2.0 + i] for i in range(len(names))])
    return predictions_table(scans, logits, list(classes))


def words(figure) -> str:
    parts = [figure.get_suptitle(), figure.get_supxlabel()]
    for ax in figure.axes:
        parts += [ax.get_title(loc=loc) for loc in ("left", "center")] + [t.get_text() for t in ax.texts]
    return "\n".join(parts)


def test_a_scan_is_shown_whole_with_both_probabilities(tmp_path):
    found = drawn(tmp_path, ["a.png", "b.png", "c.png"])
    figure = plot_top_losses(top_losses(found, 3), "Top losses", "a note")
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == 3
    for ax, row in zip(shown, top_losses(found, 3).itertuples(), strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), np.asarray(Image.open(row.path)))
        title = ax.get_title(loc="left")
        assert f"label A ({row.p_A:.0%})" in title and f"predicted {row.predicted} ({row.probability:.0%})" in title
        assert f"loss {row.loss:.2f}" in title and ("wrong" in title) == (row.predicted != "A")
        assert Path(row.path).name in [t.get_text() for t in ax.texts]
    assert "a note" in words(figure) and "Not a medical device" in words(figure)


@pytest.mark.parametrize("name", ["a b.png", "ä漢.png", "$x_1$ 100%.png", "[1] <b>.png", "x" * 120 + ".png", "a$.png"])
def test_any_name_can_be_drawn(tmp_path, name):
    found = drawn(tmp_path, [name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = save_figure(plot_top_losses(top_losses(found, 1)), tmp_path / "out" / "f.png")
    with Image.open(file) as figure:
        assert figure.width > 300
    assert [p.name for p in file.parent.iterdir()] == ["f.png"]


@pytest.mark.parametrize("name", ["$a$", "a_b^c", "<b>", "a" * 90, "[0]", "\\alpha"])
def test_any_class_can_be_drawn(tmp_path, name):
    found = drawn(tmp_path, ["a.png", "b.png"], (name, "B$"))
    for i, figure in enumerate(
        [plot_top_losses(found.assign(p_actual=0.5)), plot_confusion_matrix(confusion_matrix(found, [name, "B$"]))]
    ):
        assert save_figure(figure, tmp_path / f"{i}.png").stat().st_size > 1000


def test_a_scan_that_is_gone_or_broken_is_said_in_its_place(tmp_path):
    found = drawn(tmp_path, ["a.png", "b.png"])
    broken = write_broken(tmp_path / "broken")["truncated.jpeg"]
    found.loc[0, "path"], found.loc[1, "path"] = "/nowhere/gone.png", str(broken)
    text = words(plot_top_losses(top_losses(found, 2)))
    assert "no such file" in text and "damaged within: Premature end of JPEG" in " ".join(text.split())


def test_no_scans_is_no_error(tmp_path):
    found = drawn(tmp_path, ["a.png"]).head(0)
    save_figure(plot_top_losses(top_losses(found, 3)), tmp_path / "f.png")


def test_the_cells_of_a_confusion_matrix():
    counts = pd.DataFrame([[3, 1, 0], [0, 2, 0], [0, 0, 0]], index=list("ABC"), columns=list("ABC"))
    figure = plot_confusion_matrix(counts, "mine", "a note")
    cells = [t.get_text() for t in figure.axes[0].texts]
    assert cells == ["3\n75%", "1\n25%", "0\n0%", "0\n0%", "2\n100%", "0\n0%", "0", "0", "0"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["A\n(n=4)", "B\n(n=2)", "C\n(n=0)"]
    assert figure.axes[0].get_xlabel() == "predicted" and figure.axes[0].get_ylabel() == "label"
    assert "mine" in words(figure) and "Not a medical device" in words(figure)


def test_many_classes_still_fit():
    names = [f"class number {i}" for i in range(12)]
    counts = pd.DataFrame(np.eye(12, dtype=int), index=names, columns=names)
    figure = plot_confusion_matrix(counts)
    assert figure.get_figwidth() > 12 and len(figure.axes[0].texts) == 144


def test_the_history_marks_its_best_epoch(tmp_path):
    history = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [3.0, 2.0, 1.0], "valid_loss": [3.0, 1.0, 2.0]})
    history["accuracy"] = history["train_accuracy"] = [0.2, 0.5, 0.7]
    left, right = plot_history(history, "title").axes
    labels = left.get_legend_handles_labels()[1]
    assert labels == ["training", "validation", "best: epoch 2"]
    assert left.lines[0].get_linestyle() == "--" and list(left.lines[1].get_ydata()) == [3.0, 1.0, 2.0]
    assert right.get_ylabel() == "accuracy"
    assert len(plot_history(history.drop(columns=["accuracy", "train_accuracy"])).axes) == 2
    plot_lr_find([1e-4, 1e-3], [2.0, 1.0], 1e-3)


def test_each_scan_stands_beside_its_heat_map(tmp_path):
    found = top_losses(drawn(tmp_path, ["a.png", "b$.png", "c.png"], ("A$", "B")), 3)
    broken = write_broken(tmp_path / "broken")["truncated.jpeg"]
    found.loc[2, "path"] = str(broken)
    asked = []

    def heat(path, name):
        asked.append((path, name))
        if path == str(broken):
            return "cannot decode it"
        with Image.open(path) as scan:
            return np.full((scan.height, scan.width), float(len(asked) == 1), np.float32)

    figure = plot_top_losses(found, "Top losses", "a note", heat=heat)
    assert asked == list(zip(found["path"], found["predicted"], strict=True))
    scans = [ax for ax in figure.axes if ax.images]
    assert len(scans) == 4
    for ax, row in zip(scans[::2], found.itertuples(), strict=False):
        np.testing.assert_array_equal(ax.images[0].get_array(), np.asarray(Image.open(row.path)))
    # All heat, then none: the scan as it is.
    drawn_over, plain = (np.asarray(ax.images[0].get_array()) for ax in scans[1::2])
    assert (drawn_over != np.asarray(Image.open(found["path"][0]))[..., None]).any(axis=2).all()
    np.testing.assert_array_equal(plain[..., 0], np.asarray(Image.open(found["path"][1])))
    text = words(figure)
    assert f"what raised the score of\n{found['predicted'][0]}" in text
    assert f"nothing raised the score of\n{found['predicted'][1]}" in text
    assert "no heat map: cannot decode it" in text and "a note" in text
    assert "not evidence of disease location" in text and "Not a medical device" in text
    assert any("share of the strongest" in ax.get_ylabel() for ax in figure.axes)
    save_figure(figure, tmp_path / "f.png")


def test_the_montage_has_a_line_a_class(tmp_path):
    found = drawn(tmp_path, ["a.png", "b.png", "c.png"], ("A$", "B"))
    rows = montage_rows(found, ["A$", "B"])
    figure = plot_montage(rows, "Montage", "a note", classes=["A$", "B"])
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == 3
    for ax, row in zip(shown, rows.itertuples(), strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), np.asarray(Image.open(row.path)))
        said = "right" if row.predicted == "A$" else "wrong: B"
        assert ax.get_title(loc="left") == f"{said} ({row.probability:.0%})"
    assert {"A$", "B"} <= {ax.get_ylabel() for ax in figure.axes} and "no scans" in words(figure)
    assert "Not a medical device" in words(figure)
    save_figure(figure, tmp_path / "f.png")
    save_figure(plot_montage(rows.head(0)), tmp_path / "g.png")
