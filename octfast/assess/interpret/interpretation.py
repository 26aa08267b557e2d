"""fastai's ClassificationInterpretation over one Predictions table: the model runs once, whatever is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from fastai.data.transforms import CategoryMap
from fastai.interpret import ClassificationInterpretation as _FastaiInterpretation
from fastai.learner import Learner
from torch import nn

from octfast.assess.interpret.heatmap import HeatMaps
from octfast.assess.interpret.plots import plot_confusion_matrix, plot_montage, plot_top_losses
from octfast.assess.interpret.rows import confusion_matrix, montage_rows, most_confused, top_losses, with_p_actual
from octfast.assess.predictions import run_predictions
from octfast.errors import UsageError
from octfast.figure import Figure
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.read import load_bundle
from octfast.model.forward import predictions_table
from octfast.run.folder import Run, open_run
from octfast.train.learner import bundle_info

__all__ = ["ClassificationInterpretation", "confusion_matrix", "most_confused", "top_losses"]


class ClassificationInterpretation(_FastaiInterpretation):
    """fastai's ClassificationInterpretation over a Predictions table: the model runs once, whatever is asked after.

    All of fastai's methods work, with fastai's arguments: `confusion_matrix`, `plot_confusion_matrix`,
    `most_confused`, `top_losses`, `print_classification_report`, `show_results`. `plot_top_losses` shows each scan
    once, with the probability of its own class and of the predicted one, and beside it with `heatmaps=True` what
    raised the score of that one. The plots give back their Figure.

        interp = ClassificationInterpretation.from_learner(learn)
        interp = ClassificationInterpretation.from_run("runs/latest", "test")

    Attributes
    ----------
    table : the Predictions table.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        classes: Sequence[str],
        model: Callable[[], tuple[nn.Sequential, BundleInfo]] | None = None,
    ):
        self._model = model
        self._heat: dict[str, HeatMaps] = {}
        self.table = table.reset_index(drop=True)
        vocab = CategoryMap(list(classes), sort=False)
        losses = torch.tensor(self.table["loss"].to_numpy(dtype=float))
        recorded: Any = _Recorded(self.table, list(classes))
        super().__init__(recorded, SimpleNamespace(items=self.table, vocab=vocab), losses)

    @classmethod
    def from_learner(cls, learn: Learner, ds_idx: int = 1, dl=None, act=None) -> ClassificationInterpretation:
        """Run a Learner's model once over one of its DataLoaders (1: validation) whose items are a Scans table."""
        if dl is None:
            dl = learn.dls[ds_idx].new(shuffle=False, drop_last=False)
        probabilities, _ = learn.get_preds(dl=dl, act=act)
        logits = torch.log(probabilities.double().clamp_min(1e-30)).numpy()
        scans = dl.items.drop(columns="is_valid", errors="ignore")
        table = predictions_table(scans, logits, list(learn.dls.vocab))
        known = hasattr(learn, "arch_found")
        return cls(table, list(learn.dls.vocab), (lambda: (learn.model, bundle_info(learn))) if known else None)

    @classmethod
    def from_run(cls, run: Run | str | Path | None = None, split: str = "valid") -> ClassificationInterpretation:
        """The predictions of a run's split; None takes the newest run."""
        run = run if isinstance(run, Run) else open_run(run)
        table, info = run_predictions(run, split)
        return cls(table, info.classes, lambda: load_bundle(run.bundle))

    def __getitem__(self, idxs) -> pd.DataFrame:
        """Rows of the Predictions table."""
        return self.table.iloc[idxs.tolist() if hasattr(idxs, "tolist") else idxs]

    def top_losses(self, k: int | None = None, largest: bool = True, items: bool = False) -> tuple:
        """The k largest (or smallest) losses and their rows, all by default; with `items` the rows of the table too."""
        return super().top_losses(None if k is None else min(k, len(self.losses)), largest, items)

    def plot_top_losses(
        self,
        k: int | Sequence[int] = 9,
        largest: bool = True,
        nrows: int | None = None,
        heatmaps: bool | str = False,
        **kwargs,
    ) -> Figure:
        """The k scans with the largest (or smallest) loss, or those at the places `k`, in `nrows` lines.

        With `heatmaps` (True, "gradcam" or "occlusion") each stands beside what raised its predicted class's score.
        See `octfast.assess.interpret.plots.plot_top_losses` for what else can be given.
        """
        if isinstance(k, int):
            rows = top_losses(self.table, k, largest=largest)
        else:
            rows = top_losses(self.table, len(self.table), largest=largest)
            rows = rows.iloc[[place for place in k if place < len(rows)]]
        if nrows:
            kwargs.setdefault("ncols", max(1, -(-len(rows) // nrows)))
        if heatmaps:
            maps = self.heat_maps("gradcam" if heatmaps is True else heatmaps)
            maps.compute(rows["path"], rows["predicted"])
            kwargs.setdefault("heat", maps.get)
        return plot_top_losses(rows, **kwargs)

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

    def plot_montage(self, per_class: int = 6, **kwargs) -> Figure:
        """A line of scans a class, from its smallest loss to its largest; see `plot_montage` in `plots`."""
        rows = montage_rows(self.table, list(self.vocab), per_class)
        return plot_montage(rows, **{"classes": list(self.vocab), **kwargs})

    def plot_confusion_matrix(
        self,
        normalize: bool = False,
        title: str = "Confusion matrix",
        cmap: str = "Blues",
        norm_dec: int = 2,
        plot_txt: bool = True,
        **kwargs,
    ) -> Figure:
        """Counts and the share of each actual class; shares alone, to `norm_dec` places, if `normalize`.

        See `octfast.assess.interpret.plots.plot_confusion_matrix` for what else can be given.
        """
        if normalize:
            kwargs["text"] = lambda count, share: f"{share:.{norm_dec}f}"
        if not plot_txt:
            kwargs["text"] = lambda count, share: ""
        return plot_confusion_matrix(confusion_matrix(self.table, list(self.vocab)), title, cmap=cmap, **kwargs)

    def show_results(self, idxs: Sequence[int], **kwargs) -> Figure:
        """The scans in the given rows of the table, as `plot_top_losses` shows them."""
        return plot_top_losses(with_p_actual(self[idxs]), **{"title": "Results", **kwargs})


class _Recorded:
    """Stands where fastai's Interpretation asks its Learner for predictions again, and gives those of the table."""

    def __init__(self, table: pd.DataFrame, classes: list[str]):
        index = {c: i for i, c in enumerate(classes)}
        self.preds = torch.tensor(table[[f"p_{c}" for c in classes]].to_numpy(dtype=float))
        self.targs = torch.tensor([index[c] for c in table["label"]])
        self.decoded = torch.tensor([index[c] for c in table["predicted"]])

    def get_preds(self, *args, with_decoded: bool = False, **kwargs) -> tuple:
        return (self.preds, self.targs, self.decoded) if with_decoded else (self.preds, self.targs)
