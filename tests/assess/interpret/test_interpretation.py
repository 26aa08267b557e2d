from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.interpret import ClassificationInterpretation as FastaiInterpretation
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics

from octfast.assess.interpret.interpretation import ClassificationInterpretation
from octfast.assess.interpret.rows import confusion_matrix, most_confused, top_losses
from octfast.data.loaders import oct_dataloaders
from octfast.errors import UsageError
from octfast.model.forward import predictions_table
from octfast.train.learner import oct_learner
from tests.data.splits.test_hold_out import table

CLASSES = ["CNV", "DME", "DRUSEN", "NORMAL"]


def predictions(labels: list[str], logits: np.ndarray, classes=CLASSES) -> pd.DataFrame:
    scans = table([(label, str(i // 2)) for i, label in enumerate(labels)])
    return predictions_table(scans, logits, classes)


@st.composite
def tables(draw):
    labels = draw(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=30))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return predictions(labels, rng.normal(0, 3, (len(labels), 4)))


def fastais(interp: ClassificationInterpretation) -> FastaiInterpretation:
    """fastai's own class on the same data."""
    return FastaiInterpretation(interp.learn, interp.dl, interp.losses)


@given(tables())
@settings(max_examples=60)
def test_the_confusion_matrix_is_scikit_learns(found):
    ours = confusion_matrix(found, CLASSES)
    theirs = metrics.confusion_matrix(found["label"], found["predicted"], labels=CLASSES)
    np.testing.assert_array_equal(ours, theirs)
    interp = ClassificationInterpretation(found, CLASSES)
    np.testing.assert_array_equal(interp.confusion_matrix(), theirs)
    np.testing.assert_array_equal(fastais(interp).confusion_matrix(), theirs)
    assert list(ours.index) == list(ours.columns) == CLASSES


@given(tables())
@settings(max_examples=60)
def test_most_confused_is_fastais(found):
    ours = most_confused(found)
    interp = ClassificationInterpretation(found, CLASSES)
    theirs = fastais(interp).most_confused()
    assert interp.most_confused() == theirs
    pd.testing.assert_frame_equal(interp.confused_pairs(), ours)
    assert {(r.actual, r.predicted, r.scans) for r in ours.itertuples()} == {(a, p, int(n)) for a, p, n in theirs}
    assert list(ours["scans"]) == sorted(ours["scans"], reverse=True)
    assert ours["scans"].sum() == (found["label"] != found["predicted"]).sum()
    for row in ours.itertuples():
        pair = found[(found["label"] == row.actual) & (found["predicted"] == row.predicted)]
        assert row.patients == pair["patient"].nunique()


@given(tables(), st.integers(1, 40), st.booleans())
@settings(max_examples=60)
def test_top_losses_show_each_scan_once(found, k, largest):
    twice = pd.concat([found, found], ignore_index=True)
    rows = top_losses(twice, k, largest=largest)
    assert len(rows) == min(k, len(found)) and rows["path"].is_unique
    assert list(rows["loss"]) == sorted(found["loss"], reverse=largest)[:k]
    np.testing.assert_allclose(
        fastais(ClassificationInterpretation(found, CLASSES)).top_losses(len(rows), largest)[0], rows["loss"]
    )
    for row in rows.to_dict("records"):
        assert row["p_actual"] == pytest.approx(row[f"p_{row['label']}"])


def test_equal_losses_stand_in_the_order_of_their_paths():
    found = predictions(["CNV"] * 5, np.zeros((5, 4)))
    for largest in (True, False):
        rows = top_losses(found.sample(frac=1, random_state=0), 3, largest=largest)
        assert list(rows["path"]) == list(found["path"][:3])


@pytest.fixture(scope="module")
def learner(phantoms):
    dls = oct_dataloaders(phantoms, size=64, valid=0.25, num_workers=0, device="cpu", bs=4)
    return oct_learner(dls, "test_resnet", weights="none")


@pytest.fixture
def calls(learner):
    """How many batches the model was called with."""
    seen = []
    hook = learner.model.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    yield seen
    hook.remove()


def test_the_model_runs_once_a_batch_whatever_is_asked_afterwards(learner, calls, capsys):
    with learner.no_bar():
        interp = ClassificationInterpretation.from_learner(learner)
    scans = len(learner.dls.valid_ds)
    assert sum(calls) == scans and len(calls) == -(-scans // 4) > 2
    before = list(calls)
    interp.plot_top_losses(4)
    interp.plot_top_losses(4, largest=False)
    interp.plot_confusion_matrix()
    interp.confusion_matrix()
    interp.most_confused()
    interp.print_classification_report()
    interp.top_losses(5, items=True)
    interp.show_results([0, 1])
    assert calls == before
    assert "precision" in capsys.readouterr().out


def test_it_agrees_with_fastais_own(learner):
    with learner.no_bar():
        ours, theirs = (c.from_learner(learner) for c in (ClassificationInterpretation, FastaiInterpretation))
        np.testing.assert_array_equal(ours.confusion_matrix(), theirs.confusion_matrix())
        assert ours.most_confused() == theirs.most_confused()
        wanted = theirs.top_losses(6)
    values, rows = ours.top_losses(6)
    np.testing.assert_allclose(values, wanted[0], atol=1e-4)
    assert rows.tolist() == wanted[1].tolist()
    np.testing.assert_allclose(ours.losses, theirs.losses, atol=1e-4)
    assert list(ours.vocab) == CLASSES


def test_the_table_is_whole(learner):
    with learner.no_bar():
        found = ClassificationInterpretation.from_learner(learner).table
        p, y = learner.get_preds(ds_idx=1)
    scans = learner.dls.valid.items
    assert list(found.columns) == [
        *("path", "label", "patient", "split", "predicted", "probability", "loss"),
        *(f"p_{c}" for c in CLASSES),
    ]
    assert list(found["path"]) == list(scans["path"]) and list(found["label"]) == list(scans["label"])
    np.testing.assert_allclose(found[[f"p_{c}" for c in CLASSES]], p, atol=1e-6)
    assert [CLASSES[i] for i in y] == list(found["label"])


def test_the_items_of_the_top_losses_are_rows(learner):
    with learner.no_bar():
        interp = ClassificationInterpretation.from_learner(learner)
    losses, rows, items = interp.top_losses(3, items=True)
    np.testing.assert_allclose(items["loss"], losses)
    assert list(items["path"]) == list(interp.table["path"].iloc[rows.tolist()])
    assert len(interp.top_losses(10_000)[0]) == len(interp.table) == len(interp.top_losses()[0])
    assert list(interp[torch.tensor([2, 0])]["path"]) == list(interp.table["path"].iloc[[2, 0]])


def test_the_training_scans_can_be_looked_at_too(learner):
    with learner.no_bar():
        found = ClassificationInterpretation.from_learner(learner, ds_idx=0).table
    # Each once and in order, though training drops a last short batch and mixes them.
    assert list(found["path"]) == list(learner.dls.train.items["path"])


@pytest.mark.parametrize("split", ["valid", "test", "train"])
def test_from_a_run(own_run, split):
    interp = ClassificationInterpretation.from_run(own_run, split)
    assert list(interp.table["path"]) == list(own_run.scans.query("split == @split")["path"])
    assert interp.confusion_matrix().sum() == len(interp.table)
    assert ClassificationInterpretation.from_run(own_run.path, split).table.shape == interp.table.shape


def test_from_the_latest_run(trained, monkeypatch):
    monkeypatch.chdir(trained.path.parent.parent)
    assert len(ClassificationInterpretation.from_run().table) == len(trained.predictions("valid"))


def titles(figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes if ax.images]


def test_the_arguments_of_fastais_tutorials_work(trained):
    interp = ClassificationInterpretation.from_run(trained)
    assert len(titles(interp.plot_top_losses(5, nrows=1, figsize=(17, 4)))) == 5
    assert interp.plot_top_losses(2, figsize=(11, 4), dpi=50).get_size_inches().tolist() == [11, 4]
    first, rest = interp.plot_top_losses(6), interp.plot_top_losses(range(2, 6))
    assert titles(first)[2:] == titles(rest)
    assert len(titles(interp.plot_top_losses(10_000))) == len(interp.table)
    figure = interp.plot_confusion_matrix(figsize=(12, 12), dpi=60)
    assert figure.get_size_inches().tolist() == [12, 12]
    shares = interp.plot_confusion_matrix(normalize=True, norm_dec=3).axes[0].texts
    assert all(t.get_text().replace(".", "").isdigit() and len(t.get_text()) in (1, 5) for t in shares)


def test_heat_maps_of_a_run_and_of_a_learner(trained, learner):
    with learner.no_bar():
        both = [ClassificationInterpretation.from_run(trained), ClassificationInterpretation.from_learner(learner)]
    for interp in both:
        figure = interp.plot_top_losses(2, heatmaps=True)
        assert sum(bool(ax.images) for ax in figure.axes) == 4
        assert interp.heat_maps() is interp.heat_maps("gradcam") and len(interp.heat_maps()) == 2
        assert len(interp.plot_montage(2).axes) >= 8
    with pytest.raises(UsageError, match="no heat maps of this Learner"):
        ClassificationInterpretation(both[0].table, CLASSES).plot_top_losses(2, heatmaps="occlusion")


@pytest.fixture
def plt():
    from matplotlib import pyplot

    pyplot.close("all")
    yield pyplot
    pyplot.close("all")


PLOTS = ["plot_confusion_matrix", "plot_top_losses", "plot_montage", "plot_roc", "plot_precision_recall"]
PLOTS += ["plot_reliability", "plot_coverage_risk"]


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_pyplots_current_figure_and_savefig_saves_it(trained, tmp_path, plt, name):
    plot = getattr(ClassificationInterpretation.from_run(trained), name)
    given = plot()
    assert plt.gcf() is given and plt.get_fignums() == [1]
    plt.savefig(tmp_path / "saved.png", dpi=40)
    with Image.open(tmp_path / "saved.png") as saved:
        assert np.allclose(saved.size, given.get_size_inches() * 40, atol=1) and np.asarray(saved)[..., :3].std() > 5
    # The next one does not draw over it, but on an empty figure that somebody made for it.
    assert plot() is not given and plt.get_fignums() == [1, 2]
    own = plt.figure(figsize=(5, 4))
    assert plot() is own and own.axes and own.get_size_inches().tolist() == [5, 4]


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_keeps_to_the_axes_that_it_is_given(trained, plt, name):
    fig, (left, right) = plt.subplots(1, 2)
    right.plot([0, 1])
    plotted = getattr(ClassificationInterpretation.from_run(trained), name)(ax=left)
    if plotted is not left:  # one of several parts takes the place of the axes
        assert plotted in fig.subfigs and plotted.axes and left not in fig.axes
    assert right in fig.axes and len(right.lines) == 1 and plt.get_fignums() == [1]
    fig.canvas.draw()


def test_the_current_axes_are_drawn_in_while_they_are_empty(trained, plt):
    interp = ClassificationInterpretation.from_run(trained)
    ax = plt.subplot(1, 2, 1)
    assert interp.plot_confusion_matrix() is ax and ax.images
    ax = plt.subplot(1, 2, 2)
    assert interp.plot_roc() is ax and ax.lines and len(plt.get_fignums()) == 1


def test_axes_without_a_place_in_a_grid_are_refused_for_a_grid(trained, plt):
    with pytest.raises(UsageError, match="several parts"):
        ClassificationInterpretation.from_run(trained).plot_top_losses(2, ax=plt.axes([0, 0, 1, 1]))


def test_scans_of_any_width_stand_in_line(trained, tmp_path, plt):
    interp = ClassificationInterpretation.from_run(trained)
    table = interp.top_scans(4).copy()
    for i, width in enumerate((512, 768, 512, 1536)):
        file = tmp_path / f"{width}-{i}.png"
        Image.fromarray(np.zeros((496, width), np.uint8)).save(file)
        table.loc[i, "path"] = str(file)
    figure = interp.plot_scans(table, "widths", ncols=4, place=None)
    figure.canvas.draw()
    boxes = [ax.get_position() for ax in figure.axes if ax.images]
    assert len({round(b.y0, 3) for b in boxes}) == 1 and len({round(b.y1, 3) for b in boxes}) == 1
    for ax, width in zip(figure.axes, (512, 768, 512, 1536), strict=True):
        # The whole scan, in its own shape.
        assert np.ptp(ax.get_xlim()) >= width - 1 and np.ptp(ax.get_ylim()) >= 495 and ax.get_aspect() == 1
