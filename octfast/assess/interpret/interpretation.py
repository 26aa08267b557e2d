"""fastai's ClassificationInterpretation over one Predictions table: the model runs once, whatever is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.data.transforms import CategoryMap
from fastai.interpret import ClassificationInterpretation as _FastaiInterpretation
from fastai.learner import Learner
from matplotlib.axes import Axes
from torch import nn

from octfast.assess import curves
from octfast.assess.interpret import plots, rows
from octfast.assess.interpret.heatmap import HeatMaps
from octfast.assess.interpret.label_errors import find_label_errors
from octfast.assess.predictions import run_predictions
from octfast.errors import UsageError
from octfast.figure import pyplot_place
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.read import load_bundle
from octfast.model.device import find_device
from octfast.model.forward import predictions_table
from octfast.model.units import scan_view
from octfast.run.folder import Run, open_run


class ClassificationInterpretation(_FastaiInterpretation):
    """fastai's ClassificationInterpretation over a Predictions table: the model runs once, whatever is asked after.

    All of fastai's methods work, with fastai's arguments: `confusion_matrix`, `plot_confusion_matrix`,
    `most_confused`, `top_losses`, `print_classification_report`, `show_results`. `plot_top_losses` shows each scan
    once, with the probability of its label and of the predicted class, and beside it with `heatmaps=True` what raised
    the score of that one.

    The plots keep to matplotlib's habit: they draw in the axes given as `ax`, else on pyplot's current figure if it is
    empty, else on a new one, and give back what they drew on. A notebook shows it once; `plt.savefig` saves it.

    Further methods give tables: `confusion`, `confused_pairs`, `top_scans`, `easiest_right`, `hardest_wrong`,
    `missed_urgent`, `label_errors`. `octfast interpret` asks nothing but this class.

        interp = ClassificationInterpretation.from_learner(learn)
        interp = ClassificationInterpretation.from_run("runs/latest", "test")

    Attributes
    ----------
    table : the Predictions table.
    classes : in the order of their index.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        classes: Sequence[str],
        model: Callable[[], tuple[nn.Sequential, BundleInfo]] | None = None,
        fit: str = "squeeze",
    ):
        self._model, self._fit = model, fit
        self._heat: dict[str, HeatMaps] = {}
        self.table, self.classes = table.reset_index(drop=True), list(classes)
        vocab = CategoryMap(self.classes, sort=False)
        losses = torch.tensor(self.table["loss"].to_numpy(dtype=float))
        recorded: Any = _Recorded(self.table, self.classes)
        super().__init__(recorded, SimpleNamespace(items=self.table, vocab=vocab), losses)

    @classmethod
    def from_learner(cls, learn: Learner, ds_idx: int = 1, dl=None, act=None) -> ClassificationInterpretation:
        """Run a Learner's model once over one of its DataLoaders (1: validation) whose items are a Scans table."""
        # It takes seconds to import, and a run is interpreted without it.
        from octfast.train.learner import bundle_info, fit_of

        if dl is None:
            dl = learn.dls[ds_idx].new(shuffle=False, drop_last=False)
        probabilities, _ = learn.get_preds(dl=dl, act=act)
        logits = torch.log(probabilities.double().clamp_min(1e-30)).numpy()
        scans = dl.items.drop(columns="is_valid", errors="ignore")
        table = predictions_table(scans, logits, list(learn.dls.vocab))
        known = hasattr(learn, "oct")
        model = (lambda: (learn.model, bundle_info(learn))) if known else None
        return cls(table, list(learn.dls.vocab), model, fit_of(learn.dls))

    @classmethod
    def from_run(
        cls, run: Run | str | Path | None = None, split: str = "valid", device: str | None = None
    ) -> ClassificationInterpretation:
        """The predictions of a run's split; None takes the newest run.

        device : that the model runs on, also for heat maps; None takes a GPU where there is one.

        Raises
        ------
        OctfastError : see `octfast.assess.predictions.run_predictions`.
        """
        run = run if isinstance(run, Run) else open_run(run)
        on = find_device(device)
        table, info = run_predictions(run, split, device=device)

        def model() -> tuple[nn.Sequential, BundleInfo]:
            network, info = scan_view(*load_bundle(run.bundle, units=True))
            return network.to(on), info

        return cls(table, info.classes, model, info.fit)

    def __getitem__(self, idxs) -> pd.DataFrame:
        """Rows of the Predictions table."""
        return self.table.iloc[idxs.tolist() if hasattr(idxs, "tolist") else idxs]

    def confusion(self) -> pd.DataFrame:
        """Counts of the label (rows) against the predicted class (columns)."""
        return rows.confusion_matrix(self.table, self.classes)

    def confusion_matrix(self) -> np.ndarray:
        """The counts of `confusion`, of shape (classes, classes), as fastai gives them."""
        return self.confusion().to_numpy(copy=True)

    def confused_pairs(self) -> pd.DataFrame:
        """What fastai's `most_confused` lists, with the number of patients; see `rows.most_confused`."""
        return rows.most_confused(self.table)

    def top_losses(self, k: int | None = None, largest: bool = True, items: bool = False) -> tuple:
        """The k largest (or smallest) losses and their rows, all by default; with `items` the rows of the table too."""
        return super().top_losses(None if k is None else min(k, len(self.losses)), largest, items)

    def top_scans(self, k: int = 9, largest: bool = True) -> pd.DataFrame:
        """The k scans with the largest (or smallest) loss, each once; see `rows.top_losses`."""
        return rows.top_losses(self.table, k, largest=largest)

    def easiest_right(self, k: int = 9) -> pd.DataFrame:
        """The k rightly classified scans with the smallest loss."""
        return rows.easiest_right(self.table, k)

    def hardest_wrong(self, k: int = 9) -> pd.DataFrame:
        """The k wrongly classified scans with the largest loss."""
        return rows.hardest_wrong(self.table, k)

    def missed_urgent(self, urgent: Sequence[str]) -> pd.DataFrame:
        """The scans of urgent classes whose predicted class is not urgent; see `rows.missed_urgent`."""
        return rows.missed_urgent(self.table, urgent)

    def label_errors(self) -> pd.DataFrame:
        """The scans whose label is suspected; see `octfast.assess.interpret.label_errors.find_label_errors`."""
        return find_label_errors(self.table, self.classes)

    def heat_maps(self, method: str = "gradcam") -> HeatMaps:
        """The heat maps of this model, each computed once: `heat_maps().get(path, class)`.

        Raises
        ------
        UsageError : see `octfast.assess.interpret.heatmap.heat_maps`; or the Learner is none of `oct_learner`.
        """
        if self._model is None:
            raise UsageError("no heat maps of this Learner", "make it with oct_learner")
        if method not in self._heat:
            self._heat[method] = HeatMaps(*self._model(), method)
        return self._heat[method]

    def plot_scans(
        self, scans: pd.DataFrame, title: str, *, heatmaps: bool | str = False, ax: Axes | None = None, **kwargs
    ) -> Any:
        """Scans in a grid, each with its label and its predicted class, their probabilities and its loss.

        Parameters
        ----------
        scans : rows of one of this class's tables.
        heatmaps : True, "gradcam", "hirescam" or "occlusion" to show beside each what raised its predicted class's
            score.
        ax : one of plt.subplots, in whose place the grid is drawn.
        kwargs : see `octfast.assess.interpret.plots.plot_top_losses`.
        """
        if heatmaps:
            maps = self.heat_maps("gradcam" if heatmaps is True else heatmaps)
            maps.compute(scans["path"], scans["predicted"])
            kwargs.setdefault("heat", maps.get)
        kwargs.setdefault("fit", self._fit)
        return plots.plot_top_losses(scans, title, **_placed(ax, kwargs))

    def plot_top_losses(
        self, k: int | Sequence[int] = 9, largest: bool = True, nrows: int | None = None, **kwargs
    ) -> Any:
        """The k scans with the largest (or smallest) loss, or those at the ranks `k`, in `nrows` lines.

        See `plot_scans` for what else can be given.
        """
        scans = self.top_scans(k if isinstance(k, int) else len(self.table), largest)
        if not isinstance(k, int):
            scans = scans.iloc[[rank for rank in k if rank < len(scans)]]
        if nrows:
            kwargs.setdefault("ncols", max(1, -(-len(scans) // nrows)))
        return self.plot_scans(scans, **{"title": "Top losses", **kwargs})

    def show_results(self, idxs: Sequence[int], **kwargs) -> Any:
        """The scans in the given rows of the table, as `plot_scans` shows them."""
        return self.plot_scans(rows.with_p_actual(self[idxs]), **{"title": "Results", **kwargs})

    def plot_montage(self, per_class: int = 6, *, ax: Axes | None = None, **kwargs) -> Any:
        """A line of scans a class, from its smallest loss to its largest; see `plot_montage` in `plots`.

        Of more than 20 classes, those 20 are shown that were confused most.
        """
        given = _placed(ax, {"fit": self._fit, **kwargs})
        classes = given.pop("classes", None) or self.classes
        if len(classes) > rows.MOST_CLASSES:
            said = f"The {rows.MOST_CLASSES} of {len(classes)} classes that were confused most."
            given["note"] = f"{said}  {given.get('note', '')}".strip()
            classes = rows.confused_classes(self.confusion().loc[classes, classes])
        return plots.plot_montage(rows.montage_rows(self.table, classes, per_class), classes=classes, **given)

    def plot_confusion_matrix(
        self,
        normalize: bool = False,
        title: str = "Confusion matrix",
        cmap: str = "Blues",
        norm_dec: int = 2,
        plot_txt: bool = True,
        *,
        ax: Axes | None = None,
        **kwargs,
    ) -> Any:
        """Counts and the share of each labelled class; shares alone, with `norm_dec` decimals, if `normalize`.

        See `octfast.assess.interpret.plots.plot_confusion_matrix` for what else can be given.
        """
        if normalize:
            kwargs["text"] = lambda count, share: f"{share:.{norm_dec}f}"
        if not plot_txt:
            kwargs["text"] = lambda count, share: ""
        return plots.plot_confusion_matrix(self.confusion(), title, cmap=cmap, **_placed(ax, kwargs))

    def plot_roc(self, *, ax: Axes | None = None, **kwargs) -> Any:
        """The ROC of each class against the others; see `octfast.assess.curves.plot_roc`."""
        return curves.plot_roc(self.table, self.classes, **_placed(ax, kwargs))

    def plot_precision_recall(self, *, ax: Axes | None = None, **kwargs) -> Any:
        """Precision against recall of each class; see `octfast.assess.curves.plot_precision_recall`."""
        return curves.plot_precision_recall(self.table, self.classes, **_placed(ax, kwargs))

    def plot_reliability(self, *, ax: Axes | None = None, **kwargs) -> Any:
        """How often the model is right by how sure it is, before and after its temperature where it has one.

        See `octfast.assess.curves.plot_reliability`.
        """
        before, after = curves.before_and_after(self.table, self.classes)
        return curves.plot_reliability(before, after, self.classes, **_placed(ax, kwargs))

    def plot_coverage_risk(self, *, ax: Axes | None = None, **kwargs) -> Any:
        """How wrong it is if it answers only where it is surest; see `octfast.assess.curves.plot_coverage_risk`."""
        return curves.plot_coverage_risk(self.table, **_placed(ax, kwargs))


def _placed(ax: Axes | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a plot with the place to draw it in; `place=None` among them makes a figure without pyplot."""
    return kwargs if "place" in kwargs else {**kwargs, "place": pyplot_place(ax)}


class _Recorded:
    """Stands where fastai's Interpretation asks its Learner for predictions again, and gives those of the table."""

    def __init__(self, table: pd.DataFrame, classes: list[str]):
        index = {c: i for i, c in enumerate(classes)}
        self.preds = torch.tensor(table[[f"p_{c}" for c in classes]].to_numpy(dtype=float))
        self.targs = torch.tensor([index[c] for c in table["label"]])
        self.decoded = torch.tensor([index[c] for c in table["predicted"]])

    def get_preds(self, *args, with_decoded: bool = False, **kwargs) -> tuple:
        return (self.preds, self.targs, self.decoded) if with_decoded else (self.preds, self.targs)
