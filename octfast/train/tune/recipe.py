"""What a search chooses: a recipe of body, views, head, dropout, weight decay and rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from octfast.model.heads import POOLED


@dataclass(frozen=True)
class Recipe:
    """How a head is trained: the body and views that its features are of, and options of `octfast train`."""

    arch: str
    views: int
    head: str = "linear"
    dropout: float = 0.25
    wd: float = 0.1
    lr: float = 0.0015

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        """One line for a person."""
        views = f", {self.views} views" if self.views > 1 else ""
        what = f"{self.arch}{views}, {self.head}, dropout {self.dropout:.2f}"
        return f"{what}, weight decay {self.wd:.2g}, rate {self.lr:.2g}"


def suggest(trial: Any, archs: Sequence[str], views: Sequence[int]) -> Recipe:
    """The recipe that an Optuna trial is to try."""
    return Recipe(
        arch=trial.suggest_categorical("arch", list(archs)),
        views=trial.suggest_categorical("views", list(views)),
        head=trial.suggest_categorical("head", list(POOLED)),
        dropout=trial.suggest_float("dropout", 0, 0.8, step=0.05),
        wd=trial.suggest_float("wd", 1e-3, 1, log=True),
        lr=trial.suggest_float("lr", 3e-4, 1e-2, log=True),
    )
