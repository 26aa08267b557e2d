"""What a comparison with the training scans gives: figures, periods and sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from octfast.notices import NOTICE

# What stands beside every result, as a table of differences invites to read more into it.
LIMITS = (
    "A difference says that these scans are unlike those the model was trained on, not that its answers are wrong; and "
    "no difference is no proof that they are right: that takes labels (octfast evaluate). Shares of classes move when "
    "other patients come as well as when a model errs. A disease that the model has not seen, on the same device, is "
    "mostly not noticed. Training scans are answered by the heads of their folds, new ones by the model that learned "
    "from all of them."
)


@dataclass(frozen=True)
class Drift:
    """How scans that a model was asked about compare with its training scans.

    Attributes
    ----------
    table : a row a figure: `figure`, `of` (the class, or ""), `training`, `new`, `difference` with its 95% interval
        `low` and `high` (patients of both sides resampled), `test`, `statistic`, `p`, `p_adjusted` and `moved`.
    periods : with dates a row a period: `period`, `scans`, `patients`, `unlike` with `low` and `high`, means, and the
        share of each class; else empty.
    words : what moved and what did not, a sentence each.
    about : counts, where patients come from, and what could not be compared.
    training, new : a row a scan, as the picture is drawn from.
    classes : of the model.
    labels : shares of the classes by the labels of the training and validation scans.
    """

    table: pd.DataFrame
    periods: pd.DataFrame
    words: list[str]
    about: dict[str, Any]
    training: pd.DataFrame
    new: pd.DataFrame
    classes: tuple[str, ...]
    labels: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "words": self.words,
            "limits": LIMITS,
            "about": self.about,
            "labels": self.labels,
            "figures": _records(self.table),
            "periods": _records(self.periods),
            "notice": NOTICE,
        }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON takes them: null for what there is none of."""
    plain = table.astype(object)
    return plain.where(plain.notna(), None).to_dict("records")
