from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import accuracy_score, top_k_accuracy_score

from octfast.assess.interpret.show import class_accuracy, plot_scan, show_scan
from octfast.errors import DataError, UsageError
from octfast.figure import save_figure
from tests.assess.interpret.test_interpretation import CLASSES, predictions, tables
from tests.assess.interpret.test_plots import words
from tests.pictures import scan


@given(tables(), st.integers(1, 4))
@settings(max_examples=60)
def test_accuracy_and_top_k_accuracy_are_scikit_learns(found, k):
    rows = class_accuracy(found, CLASSES, k).set_index("class")
    p = found[[f"p_{c}" for c in CLASSES]].to_numpy()
    labels = found["label"].to_numpy()
    assert list(rows.index) == [*CLASSES, "all"]
    for name in rows.index:
        chosen = np.ones(len(found), dtype=bool) if name == "all" else labels == name
        assert rows.loc[name, "scans"] == chosen.sum()
        if not chosen.any():
            assert np.isnan(rows.loc[name, "accuracy"]) and np.isnan(rows.loc[name, f"top{k}_accuracy"])
            continue
        assert rows.loc[name, "accuracy"] == pytest.approx(accuracy_score(labels[chosen], found["predicted"][chosen]))
        # scikit-learn takes no k of all classes, where every scan counts.
        wanted = top_k_accuracy_score(labels[chosen], p[chosen], k=k, labels=CLASSES) if k < 4 else 1
        assert rows.loc[name, f"top{k}_accuracy"] == pytest.approx(wanted)


def test_ties_go_to_the_first_class_as_the_prediction_does():
    found = predictions(["CNV", "DME", "DRUSEN", "NORMAL"], np.zeros((4, 4)))
    assert list(class_accuracy(found, CLASSES, 1)["top1_accuracy"]) == [1, 0, 0, 0, 0.25]
    assert list(class_accuracy(found, CLASSES, 3)["top3_accuracy"]) == [1, 1, 1, 0, 0.75]
    with pytest.raises(UsageError, match="top-0"):
        class_accuracy(found, CLASSES, 0)


def test_a_random_scan_is_the_same_for_the_same_seed(own_run):
    shown = [show_scan(own_run, seed=s) for s in (0, 0, *range(1, 8))]
    assert shown[0].path == shown[1].path and len({s.path for s in shown}) > 3
    test = own_run.predictions("test").set_index("path")
    for one in shown:
        row = test.loc[one.path]
        assert (one.label, one.predicted) == (row["label"], row["predicted"])
        assert list(one.table["probability"]) == sorted((row[f"p_{c}"] for c in CLASSES), reverse=True)
        assert one.file.parent == own_run.figures and one.file.name.startswith("show-")


def test_without_a_seed_it_is_another_scan_each_time_whose_seed_is_given(own_run):
    shown = [show_scan(own_run) for _ in range(12)]
    assert len({s.path for s in shown}) > 2
    assert all(show_scan(own_run, seed=s.seed).path == s.path for s in shown[:3])
    assert show_scan(own_run, shown[0].path).seed is None


def test_a_named_scan_is_looked_up_and_another_file_is_run(own_run, tmp_path):
    row = own_run.predictions("valid").iloc[3]
    by_path, by_name = show_scan(own_run, row["path"]), show_scan(own_run, row["path"].rsplit("/", 1)[1])
    assert by_path.path == by_name.path == row["path"] and by_path.label == row["label"]
    assert by_path.table["probability"].iloc[0] == pytest.approx(row["probability"])
    for folder, label in (("DME", "DME"), ("elsewhere", None)):
        copy = tmp_path / folder / "copy.png"
        copy.parent.mkdir()
        Image.open(row["path"]).save(copy)
        shown = show_scan(own_run, copy, k=2)
        assert shown.label == label and len(shown.table) == 2
        assert shown.table["probability"].iloc[0] == pytest.approx(row["probability"], abs=1e-3)


def test_scans_that_cannot_be_shown(own_run, own_phantoms, tmp_path):
    from octfast.run.folder import open_run

    with pytest.raises(DataError, match=r"no such file: nothing\.png"):
        show_scan(own_run, "nothing.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(DataError, match="not a picture"):
        show_scan(own_run, tmp_path / "text.png")
    with pytest.raises(UsageError, match="likeliest"):
        show_scan(own_run, k=0)
    with pytest.raises(UsageError, match="--seed -1"):
        show_scan(own_run, seed=-1)
    run = open_run(own_run.path, own_phantoms)
    for file in own_phantoms.rglob("*.jpeg"):
        file.unlink()
    with pytest.raises(DataError, match="no such file"):
        show_scan(run)


def test_without_test_scans_one_of_validation_is_shown(own_run, said):
    scans = pd.read_csv(own_run.path / "scans.csv", dtype=str).query("split != 'test'")
    scans.to_csv(own_run.path / "scans.csv", index=False)
    own_run.predictions_file("test").unlink()
    assert show_scan(own_run).path in set(own_run.predictions("valid")["path"])
    assert any("validation" in line for line in said())


@pytest.mark.parametrize("name", ["$a$", "<b>", "a" * 90, "\\alpha_1"])
@pytest.mark.parametrize("label", [True, False])
def test_the_bars_and_their_names(tmp_path, name, label):
    likely = pd.DataFrame({"class": [name, "B$"], "probability": [0.75, 0.25]})
    figure = plot_scan(Image.fromarray(scan()), likely, "B$" if label else None, f"{name}.png", "a note")
    bars = figure.axes[1]
    assert [b.get_width() for b in bars.patches] == [0.75, 0.25]
    assert bars.patches[0].get_y() < bars.patches[1].get_y() and bars.yaxis_inverted()
    ticks = [t.get_text() for t in bars.get_yticklabels()]
    assert ticks[0].startswith(name[:20]) and ticks[1] == ("B$ (label)" if label else "B$")
    text = words(figure)
    assert "75.0%" in text and "a note" in text and "Not a medical device" in text
    assert ("label not known" in text) != label
    save_figure(figure, tmp_path / "f.png")
