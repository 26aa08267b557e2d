"""How far two reviewers of the same scans agree, and where they do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from octfast.data.corrections import LEAVE_OUT, RELABEL
from octfast.errors import DataError


@dataclass(frozen=True)
class Agreement:
    """Two reviewers, on the scans that both decided about.

    Attributes
    ----------
    reviewers : their initials.
    scans : how many both decided about.
    same : how many of these they gave the same label.
    kappa : Cohen's kappa (Educational and Psychological Measurement 1960), unweighted: agreement beyond chance; None
        where both gave every scan the same single label, which leaves nothing to be agreed on.
    differing : `path`, `old`, and a column a reviewer with the label given, or "leave out".
    """

    reviewers: tuple[str, str]
    scans: int
    same: int
    kappa: float | None
    differing: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "reviewers": list(self.reviewers),
            "scans": self.scans,
            "same": self.same,
            "kappa": self.kappa,
            "differing": self.differing.to_dict("records"),
        }


def agreement(decisions: pd.DataFrame, unit_of: Mapping[str, str] | None = None) -> Agreement:
    """
    Parameters
    ----------
    decisions : of `octfast.data.corrections.read_decisions`, by two reviewers.
    unit_of : where whole units were decided about, of each scan the path that stands for its unit, so that a unit
        counts once; see `octfast.assess.review.units.unit_of_scans`.

    Raises
    ------
    DataError : not two reviewers, or no scan that both decided about.
    """
    from sklearn.metrics import cohen_kappa_score

    if unit_of is not None:
        decisions = decisions.assign(path=[unit_of.get(path, path) for path in decisions["path"]])
        decisions = decisions.drop_duplicates(["path", "reviewer"], keep="last")
    names = sorted(decisions["reviewer"].unique())
    if len(names) != 2:
        who = ", ".join(name or "one without a name" for name in names)
        raise DataError(
            f"agreement is between two reviewers, and there are {len(names)}: {who}",
            "let each give initials: octfast review --reviewer AB",
        )
    given = decisions["old"].where(decisions["decision"] != RELABEL, decisions["new"])
    given = given.where(decisions["decision"] != LEAVE_OUT, LEAVE_OUT)
    wide = decisions.assign(given=given).pivot(index="path", columns="reviewer", values="given")[names].dropna()
    if wide.empty:
        raise DataError("no scan was decided about by both reviewers", "octfast review --second shows the same scans")
    first, second = wide[names[0]], wide[names[1]]
    same = int((first == second).sum())
    one = len(set(first) | set(second)) == 1
    old = decisions.drop_duplicates("path").set_index("path")["old"]
    differing = wide[first != second].assign(old=old).reset_index()[["path", "old", *names]]
    differing.columns.name = None
    kappa = None if one else float(cohen_kappa_score(first, second))
    return Agreement((names[0], names[1]), len(wide), same, kappa, differing)
