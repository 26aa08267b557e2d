"""A finished run's stored features, and its head trained on them again within seconds, on other labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
from torch import nn

from octfast.data.loaders import batch_size, oct_dataloaders
from octfast.data.prepare import Prepared
from octfast.errors import UsageError
from octfast.model.bundle.read import load_bundle
from octfast.model.engine import one_thread
from octfast.model.heads import POOLED, pooled_head, set_dropout
from octfast.run.folder import FOLD, Run
from octfast.train.balance import balance_training, class_weights, start_balanced
from octfast.train.frozen.folds import FoldLoader, draw_folds
from octfast.train.frozen.frozen import frozen_learner
from octfast.train.frozen.together import HeadsTogether
from octfast.train.learner import oct_splitter
from octfast.train.store.rows import Rows, Values

log = logging.getLogger("octfast")


@dataclass(frozen=True)
class Stored:
    """The features of a run's training and validation scans, with what its head was trained by.

    Attributes
    ----------
    scans : the Scans table, training before validation.
    features : float32 of shape (scans, dim).
    classes : in the order of their index.
    folds : the fold of each scan, from 0.
    head : one of `octfast.model.heads.POOLED`.
    fit : `epochs`, `lr`, `wd`, `dropout`, `balance`, `loss` and `seed` of the training.
    """

    scans: pd.DataFrame
    features: np.ndarray
    classes: tuple[str, ...]
    folds: np.ndarray
    head: str
    fit: dict[str, Any] = field(default_factory=dict)

    def out_of_fold(self, labels: Sequence[str], keep: np.ndarray | None = None) -> np.ndarray:
        """Train the heads of the folds anew on these labels, and let each judge the scans of its fold.

        Parameters
        ----------
        labels : of all scans.
        keep : which scans are learned from; None takes all. The others are judged all the same.

        Returns
        -------
        Logits of shape (scans, classes), each row by a head that was trained without the patient.

        Raises
        ------
        UsageError : fewer than two classes are left.
        """
        keep = np.ones(len(self.scans), bool) if keep is None else keep
        index = {c: i for i, c in enumerate(self.classes)}
        targets = torch.tensor([index[label] for label in labels])
        rows = np.flatnonzero(keep)
        if len(torch.unique(targets[rows])) < 2:
            raise UsageError("the labels that are left are of one class", "a classifier needs two or more")
        set_seed(self.fit["seed"])
        weights = self.weights_of(targets[rows], self.scans["split"].eq("train").to_numpy()[rows])
        head = start_again(self, weights)
        heads = int(self.folds.max()) + 1
        model = HeadsTogether(head, heads)
        learning = FoldLoader(
            Values(self.features[rows]),
            targets[rows],
            self.folds[rows],
            True,
            heads,
            bs=batch_size(len(rows)),
            shuffle=True,
            drop_last=True,
        )
        # Answers are asked for once, at the end; a Learner needs something to validate on all the same.
        asked = FoldLoader(Values(self.features[:1]), targets[:1], self.folds[:1], False, heads, bs=1)
        loaders = DataLoaders(learning, asked, device="cpu")
        learn = Learner(loaders, model, CrossEntropyLossFlat(), opt_func=Adam, wd=self.fit["wd"])
        balance_training(learn, weights, self._balance, self.fit.get("loss") or "cross_entropy")
        with one_thread(), learn.removed_cbs(learn._grab_cbs(ProgressCallback)), learn.no_logging(), learn.no_bar():
            learn.fit_one_cycle(self.fit["epochs"], self.fit["lr"])
            folds = torch.tensor(self.folds)
            with torch.inference_mode():
                outputs = model.eval()(torch.from_numpy(self.features), folds)
        return outputs[torch.arange(len(outputs)), folds].float().numpy()

    @property
    def _balance(self) -> str:
        return self.fit.get("balance") or "none"

    def weights_of(self, targets: torch.Tensor, training: np.ndarray) -> torch.Tensor:
        """The weights of classes, as a training has them: by what is trained on, without validation.

        Parameters
        ----------
        targets : class indices of what is learned from.
        training : which of these the run trained on.
        """
        if self._balance == "none":
            return torch.ones(len(self.classes))
        counted = targets[torch.from_numpy(training)] if training.any() else targets
        return class_weights(torch.bincount(counted, minlength=len(self.classes)).tolist(), self._balance)


def start_again(stored: Stored, weights: torch.Tensor) -> nn.Sequential:
    """A head of single scans as the run began with; `weights` : of the classes."""
    head = pooled_head(stored.head, stored.features.shape[1], len(stored.classes))
    if stored.fit.get("dropout") is not None:
        set_dropout(head, stored.fit["dropout"])
    if stored.head == "octfast":
        head.apply(_kaiming)
    start_balanced(head, weights)
    return head


def stored_features(run: Run, cache: str | Path | None = None, *, units: bool = False) -> Stored:
    """The features that a run's body gives of its training and validation scans, from the store where it is at hand.

    Where it is not, the body runs over the scans once more, and the store is kept.

    Parameters
    ----------
    units : whether a run will do that answers for whole volumes, eyes or patients; `folds` then says
        nothing, see `octfast.train.again.again_units`.

    Raises
    ------
    UsageError : more than a head was trained, or a head that is not one of octfast's own.
    OctfastError : the scans or the model cannot be read.
    """
    config = run.config
    if config.get("unfreeze", "head") != "head" or config.get("head") not in POOLED:
        raise UsageError(
            f"the run {run.path.name} trained more than a head on stored features", "train again with octfast train"
        )
    model, info = load_bundle(run.bundle, units=units)
    scans = run.scans
    scans = scans[scans["split"] != "test"].reset_index(drop=True)
    as_then: dict[str, Any] = {"size": info.size, "fit": info.fit, "bs": config["chosen"]["bs"], "seed": config["seed"]}
    # Prepared, so that nothing is said again that the training said.
    prepared = Prepared(scans, scans.iloc[:0].assign(reason=""), run.root)
    dls = oct_dataloaders(prepared, **as_then, num_workers=0)
    for dl in dls.loaders:
        norm = next(t for t in dl.after_batch.fs if isinstance(t, Normalize))
        norm.mean, norm.std = (torch.tensor(v, device=norm.mean.device).view(1, 3, 1, 1) for v in (info.mean, info.std))
    learn = Learner(
        dls,
        model.requires_grad_(True),
        loss_func=CrossEntropyLossFlat(),
        opt_func=Adam,
        splitter=oct_splitter,
        train_bn=False,
    )
    learn.freeze()
    fast = frozen_learner(
        learn,
        views=1,
        seed=config["seed"],
        engine=config.get("engine", "auto"),
        precision=config.get("precision", "auto"),
        cache=cache or config.get("cache"),
    )
    try:
        rows = Rows(fast.stores)
        features = rows.take(np.arange(len(rows)), 0)
    finally:
        fast.close()
    table = pd.concat([pd.DataFrame(dl.items) for dl in (dls.train, dls.valid)], ignore_index=True)
    given = config.get("wd")
    return Stored(
        scans=table,
        features=features,
        classes=tuple(info.classes),
        folds=np.zeros(len(table), dtype=int) if info.level != "scan" else _folds(run, table, config),
        head=config["head"],
        fit={
            "epochs": config["epochs"],
            "lr": config["chosen"]["lr"],
            "wd": given if given is not None else 0.1 if config["head"] in ("linear", "root") else None,
            "dropout": config.get("dropout"),
            "balance": config.get("balance"),
            "loss": config.get("loss"),
            "seed": config["seed"],
        },
    )


def _folds(run: Run, scans: pd.DataFrame, config: dict[str, Any]) -> np.ndarray:
    """The folds that the run was cross-validated by, else folds drawn anew."""
    tables = [t for t in (run.predictions("train"), run.predictions("valid")) if t is not None and FOLD in t]
    if tables:
        known = pd.concat(tables).drop_duplicates("path").set_index("path")[FOLD]
        if set(scans["path"]) <= set(known.index):
            return known.loc[scans["path"]].to_numpy(dtype=int)
    folds = draw_folds(scans, config.get("folds") or 5, config["seed"])
    if folds is None:
        raise UsageError(f"the scans of {run.path.name} cannot be divided into folds", "see the warning above")
    log.info("%d folds by patient are drawn, as the run was not cross-validated", folds.max() + 1)
    return folds


def _kaiming(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight)
