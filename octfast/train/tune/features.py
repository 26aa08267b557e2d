"""What a search trains on: the stored features of every body, and the training of a head on some of their rows."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import fastai.callback.schedule  # noqa: F401  (gives Learner fit_one_cycle)
import numpy as np
import pandas as pd
import torch
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
from fastai.vision.learner import apply_init
from torch import nn

from octfast.data.prepare import Prepared
from octfast.errors import DataError, UsageError, WeightsError
from octfast.model.arch import find_arch
from octfast.model.engine import one_thread
from octfast.model.heads import pooled_head, set_dropout
from octfast.model.weights.load import cached_file
from octfast.train.build import new_dataloaders, new_learner
from octfast.train.config import TrainConfig
from octfast.train.frozen.dealt import share
from octfast.train.frozen.folds import draw_folds
from octfast.train.frozen.frozen import NextView, frozen_learner
from octfast.train.store.loader import StoreLoader
from octfast.train.store.rows import Rows
from octfast.train.store.store import FeatureStore
from octfast.train.tune.recipe import Recipe

log = logging.getLogger("octfast")

Stores = tuple[FeatureStore, FeatureStore]


@dataclass(frozen=True)
class Features:
    """The stored features of a search.

    Attributes
    ----------
    stores : by body and number of views, of the training and of the validation scans; of each body one view too.
    scans : the table of training, then validation scans.
    targets : their class indices.
    folds : of each; the last is held back from the search.
    classes : how many.
    bs, epochs : of each training.
    untrained : the bodies without pretrained weights.
    """

    stores: dict[tuple[str, int], Stores]
    scans: pd.DataFrame
    targets: torch.Tensor
    folds: np.ndarray
    classes: int
    bs: int
    epochs: int
    untrained: tuple[str, ...]

    def judge(self, recipe: Recipe, learned: np.ndarray, judged: np.ndarray, seed: int) -> np.ndarray:
        """Train a head by a recipe on some rows, and give its logits of others, float32 of shape (judged, classes).

        As `octfast train` trains a head, but for the weights of the last epoch instead of the best.
        """
        set_seed(seed)
        seen, asked = Rows(self.stores[recipe.arch, recipe.views], learned), Rows(self.stores[recipe.arch, 1], judged)
        head = pooled_head(recipe.head, seen.shape[2], self.classes)
        set_dropout(head, recipe.dropout)
        if recipe.head == "octfast":
            apply_init(head, nn.init.kaiming_normal_)
        bs = min(self.bs, len(learned))
        loaders = [
            StoreLoader(seen, self.targets[learned], bs=bs, shuffle=True, drop_last=True),
            StoreLoader(asked, self.targets[judged], bs=512),
        ]
        dls = DataLoaders(*loaders, device=torch.device("cpu"))
        learn = Learner(dls, head, CrossEntropyLossFlat(), opt_func=Adam, wd=recipe.wd, cbs=NextView())
        with learn.removed_cbs(learn._grab_cbs(ProgressCallback)), learn.no_bar(), learn.no_logging(), one_thread():
            learn.fit_one_cycle(self.epochs, recipe.lr)
        head.eval()
        with torch.no_grad():
            return np.concatenate([head(x).numpy() for x, _ in loaders[1]])

    def digest(self) -> str:
        """Of the scans, their classes, patients and folds."""
        columns = (self.scans[c] for c in ("path", "label", "patient"))
        lines = (f"{Path(p).name},{c},{n},{f}" for p, c, n, f in zip(*columns, self.folds, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:20]

    def close(self) -> None:
        """Close the stores."""
        for pair in self.stores.values():
            for store in pair:
                store.close()


def store_features(prepared: Prepared, config: TrainConfig, weights: dict[str, str], views: Sequence[int]) -> Features:
    """Run each body once a view, or find in the cache what it gave.

    Parameters
    ----------
    weights : of each body, see `weights_at_hand`.
    views : numbers of readings of the training scans.

    Raises
    ------
    DataError : too few patients for folds of which one is held back.
    """
    stores: dict[tuple[str, int], Stores] = {}
    for arch, file in weights.items():
        dls = new_dataloaders(prepared, config)
        learn = new_learner(dls, replace(config, arch=arch, weights=file))
        share(learn, prepared, config)
        for number in dict.fromkeys([1, *views]):
            stores[arch, number] = frozen_learner(
                learn,
                views=number,
                **config.of_frozen,
            ).stores
    scans = pd.concat([pd.DataFrame(dl.items) for dl in (dls.train, dls.valid)], ignore_index=True)
    folds = draw_folds(scans, config.chosen_folds + 1, config.seed)
    if folds is None or folds.max() < 2:
        raise DataError(
            "these patients cannot be divided into three folds or more, of which one is held back",
            "more patients of each class are needed; octfast train does without",
        )
    targets = torch.from_numpy(pd.Index(dls.vocab).get_indexer(pd.Index(scans["label"]))).long()
    untrained = tuple(a for a, w in weights.items() if w == "none")
    return Features(stores, scans, targets, folds, len(dls.vocab), dls.train.bs, config.epochs, untrained)


def weights_at_hand(archs: Sequence[str], given: Sequence[str], synthetic: bool) -> dict[str, str]:
    """The weights of each body that has some on this machine: a file, "auto" or "none".

    Parameters
    ----------
    given : "auto", "none" or a file; of one of several bodies as "vgg16_bn=FILE".
    synthetic : whether the scans are phantoms, for which an untrained body will do.

    Raises
    ------
    UsageError : an unknown body, or a file without the name of its body.
    WeightsError : no body has weights.
    """
    named = dict(w.split("=", 1) for w in given if w.partition("=")[0] in archs)
    plain = [w for w in given if w.partition("=")[0] not in archs]
    if len(plain) > 1 or (plain and plain[0] not in ("auto", "none") and len(archs) > 1):
        raise UsageError(f"--weights {plain[-1]}: of which body?", f"name it: --weights {archs[0]}={plain[-1]}")
    found, missing = {}, []
    for name in dict.fromkeys(archs):
        arch = find_arch(name)
        choice = named.get(name, plain[0] if plain else "auto")
        if choice == "auto":
            try:
                there = cached_file(arch.own_name, arch.library) is not None
            except WeightsError:
                there = False
            if not there and not synthetic:
                missing.append(name)
                continue
            choice = "auto" if there else "none"
        found[name] = choice
    if not found:
        raise WeightsError(
            f"no pretrained weights of {', '.join(missing)} are on this machine",
            "octfast train fetches them; or name a file: --weights FILE; or --weights none",
        )
    if missing:
        log.warning("left out, as their weights are not on this machine: %s", ", ".join(missing))
    return found
