"""A finished run of whole units: its stored features, and its head trained on them again, on other labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
from torch import nn

from octfast.data.scans import load_scans
from octfast.data.units import Units, units_of
from octfast.errors import DataError, UsageError
from octfast.model.bundle.read import read_info
from octfast.model.engine import one_thread
from octfast.model.pooling import bag_head
from octfast.run.folder import FOLD, Run
from octfast.train.again.again import Stored, start_again, stored_features
from octfast.train.balance import balance_training
from octfast.train.frozen.bags import BagHeads, BagLoader, units_a_batch
from octfast.train.store.rows import Values

# Units that the heads are asked about at a time.
_AT_ONCE = 32


@dataclass(frozen=True)
class StoredUnits:
    """The volumes, eyes or patients of a run's training and validation, with the features of their scans.

    Attributes
    ----------
    scans : a row a unit, its `path` that of the scan that counted most.
    units : which scans of `of_scans` are of which unit.
    folds : the fold of each unit, from 0.
    of_scans : the features of the scans.
    pooling : see `octfast.model.pooling.pooling_of`.
    """

    scans: pd.DataFrame
    units: Units
    folds: np.ndarray
    of_scans: Stored
    pooling: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.of_scans.classes

    def out_of_fold(self, labels: Sequence[str], keep: np.ndarray | None = None) -> np.ndarray:
        """As `octfast.train.again.again.Stored.out_of_fold`, of units: logits of shape (units, classes)."""
        stored, fit = self.of_scans, self.of_scans.fit
        keep = np.ones(len(self.scans), bool) if keep is None else keep
        index = {c: i for i, c in enumerate(self.classes)}
        targets = torch.tensor([index[label] for label in labels])
        rows = np.flatnonzero(keep)
        heads = int(self.folds.max()) + 1
        if len(torch.unique(targets[rows])) < 2:
            raise UsageError("the labels that are left are of one class", "a classifier needs two or more")
        if int(self.folds[rows].max()) + 1 < heads:
            raise UsageError("all units of a fold are left out", "leave fewer of them out")
        set_seed(fit["seed"])
        weights = stored.weights_of(targets[rows], self.scans["split"].eq("train").to_numpy()[rows])
        head = bag_head(start_again(stored, weights), stored.head, self.pooling)
        model = BagHeads(nn.Identity(), head, heads)
        kept = np.flatnonzero(keep[self.units.number])
        place = np.full(len(self.scans), -1)
        place[rows] = np.arange(len(rows))
        number = place[self.units.number[kept]]
        units = Units(self.units.level, number, self.units.table.iloc[rows].reset_index(drop=True))
        learning = BagLoader(
            *(Values(stored.features[kept]), units, targets[rows], self.folds[rows], True),
            bs=units_a_batch(len(kept), len(rows)),
            shuffle=True,
            drop_last=True,
        )
        learn = Learner(
            DataLoaders(learning, learning.new(bs=1, shuffle=False, drop_last=False), device="cpu"),
            *(model, CrossEntropyLossFlat()),
            opt_func=Adam,
            wd=fit["wd"],
        )
        balance_training(learn, weights, fit.get("balance") or "none", fit.get("loss") or "cross_entropy")
        with one_thread(), learn.removed_cbs(learn._grab_cbs(ProgressCallback)), learn.no_logging(), learn.no_bar():
            learn.fit_one_cycle(fit["epochs"], fit["lr"])
            return self._answers(model.eval())

    @torch.inference_mode()
    def _answers(self, model: BagHeads) -> np.ndarray:
        """The logits of each unit by the head of its fold."""
        order = np.argsort(self.units.number, kind="stable")
        members = np.split(order, np.cumsum(np.bincount(self.units.number))[:-1])
        found = []
        for at in range(0, len(members), _AT_ONCE):
            own = members[at : at + _AT_ONCE]
            unit = torch.repeat_interleave(torch.arange(len(own)), torch.tensor([len(m) for m in own]))
            fold = torch.tensor(self.folds[at : at + len(own)])
            x = torch.from_numpy(self.of_scans.features[np.concatenate(own)])
            found.append(model(x, unit, fold)[torch.arange(len(own)), fold])
        return torch.cat(found).float().numpy()


def stored_units(run: Run) -> StoredUnits:
    """The units of a run that answers for these, with the stored features of their scans.

    Raises
    ------
    DataError : the run does not say how its scans counted, or in which folds.
    OctfastError : see `octfast.train.again.again.stored_features`.
    """
    info = read_info(run.bundle)
    stored = stored_features(run, units=True)
    each = [load_scans(f, run.root) for s in ("train", "valid") if (f := run.scan_answers_file(s)).exists()]
    known = pd.concat(each, ignore_index=True).set_index("path") if each else pd.DataFrame()
    if not {FOLD, "attention"} <= set(known) or not set(stored.scans["path"]) <= set(known.index):
        raise DataError(
            f"{run.path.name} has lost its predictions-train-scans.csv or predictions-valid-scans.csv",
            "copy them from where the run was made, or train again",
        )
    scans = stored.scans.drop(columns=[FOLD, "attention"], errors="ignore").join(known[[FOLD, "attention"]], on="path")
    units = units_of(scans, info.level, keep=[FOLD])
    counted = scans.assign(_unit=units.number).sort_values(
        ["_unit", "attention"], ascending=[True, False], kind="stable"
    )
    most = counted.drop_duplicates("_unit")["path"].to_numpy()
    assert info.pooling is not None
    return StoredUnits(
        scans=units.table.assign(path=most),
        units=units,
        folds=units.table[FOLD].to_numpy(dtype=int),
        of_scans=stored,
        pooling=info.pooling,
    )
