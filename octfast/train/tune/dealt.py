"""Recipes of a search, judged by several processes: each trains the head of another trial on the same features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from octfast.processes import Computed, Content, Group, Kinds, current
from octfast.train.assist import kinds as kinds_of_training
from octfast.train.store.rows import Rows, Values
from octfast.train.tune.features import Features
from octfast.train.tune.recipe import Recipe


def kinds() -> Kinds:
    """The questions of a search that another process answers, see `octfast.processes.Group.assist`."""
    helper = _Helper()
    return {**kinds_of_training(), "features": helper.take, "judge": helper.judge}


def share_features(features: Features) -> None:
    """Give the other processes, where there are any, the features of a search, about 5 KB a scan and view."""
    if (group := current()) is None:
        return
    about: dict[str, Any] = {"stores": [], "classes": features.classes, "bs": features.bs, "epochs": features.epochs}
    arrays = {"targets": features.targets.numpy()}
    for number, ((arch, views), stores) in enumerate(features.stores.items()):
        rows = Rows(stores)
        values = np.empty((views, len(rows), rows.shape[2]), stores[0].spec.dtype)
        for view in range(views):
            values[view] = rows.take(np.arange(len(rows)), view)
        arrays[str(number)] = values
        about["stores"].append([arch, views])
    group.tell("features", about, arrays)
    group.shared = features


def judge_all(
    features: Features, recipes: Sequence[Recipe], learned: np.ndarray, judged: np.ndarray, seed: int
) -> list[np.ndarray]:
    """What `Features.judge` gives by each recipe, divided among the processes that work together."""
    group: Group | None = current()
    if group is None or group.shared is not features:
        return [features.judge(recipe, learned, judged, seed) for recipe in recipes]
    about = {"recipes": [recipe.to_dict() for recipe in recipes], "seed": seed}
    arrays = {"learned": learned, "judged": judged}
    own = _judging(features, recipes, learned, judged, seed)
    return [np.array(given["logits"]) for _, given in group.deal("judge", about, len(recipes), own, arrays)]


def _judging(
    features: Features, recipes: Sequence[Recipe], learned: np.ndarray, judged: np.ndarray, seed: int
) -> Computed:
    def compute(claims: Iterator[int]) -> Iterator[Content]:
        for k in claims:
            yield {}, {"logits": features.judge(recipes[k], learned, judged, seed)}

    return compute


class _Helper:
    """What a process knows of the search of process 0."""

    def take(self, about: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the features."""
        stores: Any = {(arch, views): (Values(arrays[str(n)]),) for n, (arch, views) in enumerate(about["stores"])}
        targets = torch.from_numpy(arrays["targets"].copy())
        known = {"classes": about["classes"], "bs": about["bs"], "epochs": about["epochs"]}
        self.features = Features(stores, pd.DataFrame(), targets, np.zeros(0), **known, untrained=())

    def judge(self, about: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Computed:
        """Judge recipes, as in `judge_all`."""
        recipes = [Recipe(**recipe) for recipe in about["recipes"]]
        return _judging(self.features, recipes, arrays["learned"], arrays["judged"], about["seed"])
