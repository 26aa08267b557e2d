from __future__ import annotations

import shutil

import pandas as pd
from matplotlib.figure import Figure

from octfast.data import explore as ex
from octfast.data import explore_figures as draw
from octfast.data.readers.folder import read_scans


def test_plots_draw_where_they_are_told_and_show_the_counts(folder):
    scans = ex.measure(read_scans(folder))
    left, middle, right = Figure().subplots(1, 3)
    assert draw.plot_counts(scans, left) is left
    assert sorted(bar.get_height() for bar in left.patches) == [1, 1, 2, 3]
    assert draw.plot_sizes(scans, middle) is middle
    assert [t.get_text() for t in middle.get_xticklabels()] == ["30", "40", "64"]
    assert [t.get_text() for t in middle.texts] == ["4", "1", "2"]
    assert draw.plot_brightness(scans, right) is right
    assert [t.get_text() for t in right.get_xticklabels()] == ["A\n(n=4)", "B\n(n=3)"]


def test_many_sizes_make_a_histogram_that_counts_all(folder):
    scans = ex.measure(read_scans(folder))
    many = pd.concat([scans.assign(width=range(100 + i, 170 + i, 10)) for i in range(5)], ignore_index=True)
    ax = draw.plot_sizes(many, Figure().subplots())
    # Stacked, so that the upper edges of the last split are the sums.
    assert sum(bar.get_height() for bar in ax.patches) == 35


def test_samples_are_of_different_patients_first(folder):
    fig = draw.plot_samples(read_scans(folder), per_class=3)
    titles = [ax.get_title() for ax in fig.axes]
    assert {t.split("-")[1] for t in titles[:3]} == {"1", "2", "3"}
    assert sorted(titles[3:]) == ["B-2-1.png", "B-4-1.jpeg", "B-4-2.jpeg"]
    assert [ax.get_title() for ax in draw.plot_samples(read_scans(folder), 3, seed=0).axes] == titles
    assert any([ax.get_title() for ax in draw.plot_samples(read_scans(folder), 3, s).axes] != titles for s in (1, 2, 3))


def test_names_with_signs_are_drawn_as_they_are(folder, tmp_path):
    shutil.move(folder / "train" / "A", folder / "train" / "$A_1^{2$")
    shutil.rmtree(folder / "test")
    (folder / "train" / "$A_1^{2$" / "A-1-1.png").rename(folder / "train" / "$A_1^{2$" / "a$b$.png")
    found = ex.explore(folder)
    assert found.save(tmp_path / "out")
    assert "a$b$.png" in {ax.get_title() for ax in found.figures()["samples"].axes}
