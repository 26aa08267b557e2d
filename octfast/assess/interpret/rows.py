"""Which scans to look at, chosen from one Predictions table: what ClassificationInterpretation answers with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from octfast.assess.metrics.referral import urgent_score


def confusion_matrix(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Counts of actual (rows) against predicted (columns), classes in the order of their index."""
    counts = pd.crosstab(table["label"], table["predicted"])
    counts = counts.reindex(index=list(classes), columns=list(classes), fill_value=0)
    counts.index.name, counts.columns.name = "actual", "predicted"
    return counts


# A picture or a table of more classes is too large to be read, and its picture for memory.
MOST_CLASSES = 20


def confused_classes(counts: pd.DataFrame, most: int = MOST_CLASSES) -> list[str]:
    """The classes of a confusion matrix that were confused most, as labels and as predictions, in its order."""
    values = counts.to_numpy()
    wrong = values.sum(0) + values.sum(1) - 2 * np.diag(values)
    chosen = np.sort(np.argsort(-wrong, kind="stable")[:most])
    return [counts.index[i] for i in chosen]


def most_confused(table: pd.DataFrame) -> pd.DataFrame:
    """Pairs that were confused: `actual`, `predicted`, `scans`, `patients`; the most frequent first."""
    wrong = table[table["label"] != table["predicted"]]
    pairs = wrong.groupby(["label", "predicted"]).agg(scans=("path", "size"), patients=("patient", "nunique"))
    pairs = pairs.reset_index().rename(columns={"label": "actual"})
    return pairs.sort_values(["scans", "actual", "predicted"], ascending=[False, True, True], ignore_index=True)


def top_losses(table: pd.DataFrame, k: int = 9, *, largest: bool = True) -> pd.DataFrame:
    """The k rows with the largest (or smallest) loss, each scan once; `p_actual` is the probability of the label."""
    rows = table.sort_values(["loss", "path"], ascending=[not largest, True]).drop_duplicates("path").head(k)
    return with_p_actual(rows).reset_index(drop=True)


def easiest_right(table: pd.DataFrame, k: int = 9) -> pd.DataFrame:
    """The k rightly classified rows with the smallest loss, as `top_losses` gives them."""
    return top_losses(table[table["label"] == table["predicted"]], k, largest=False)


def hardest_wrong(table: pd.DataFrame, k: int = 9) -> pd.DataFrame:
    """The k wrongly classified rows with the largest loss, as `top_losses` gives them."""
    return top_losses(table[table["label"] != table["predicted"]], k)


def missed_urgent(table: pd.DataFrame, urgent: Sequence[str]) -> pd.DataFrame:
    """Urgent scans whose predicted class is not urgent, the surest misses first.

    Returns
    -------
    Rows as `top_losses` gives them, with `p_urgent`, the sum of the probabilities of the urgent classes; the lowest
    first.
    """
    named = list(urgent)
    rows = table[table["label"].isin(named) & ~table["predicted"].isin(named)].drop_duplicates("path")
    rows = with_p_actual(rows).assign(p_urgent=urgent_score(rows, named))
    return rows.sort_values(["p_urgent", "path"], ignore_index=True)


def montage_rows(table: pd.DataFrame, classes: Sequence[str], per_class: int = 6) -> pd.DataFrame:
    """A cross-section of each actual class: scans from its smallest loss to its largest, evenly by rank.

    Where a class has enough patients each scan is of another one, namely the one with its middle loss.

    Returns
    -------
    Rows as `top_losses` gives them, at most `per_class` a class, classes in the order of their index.
    """
    parts = []
    for name in classes:
        rows = top_losses(table[table["label"] == name], len(table), largest=False)
        if rows["patient"].nunique() >= per_class:
            middle = rows.groupby("patient", sort=False).cumcount()
            most = rows.groupby("patient")["path"].transform("size")
            rows = rows[middle == most // 2].reset_index(drop=True)
        ranks = np.linspace(0, len(rows) - 1, min(per_class, len(rows))).round().astype(int)
        parts.append(rows.iloc[ranks])
    return pd.concat(parts, ignore_index=True)


def with_p_actual(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `p_actual`, the probability of the label."""
    return rows.assign(p_actual=np.exp(-rows["loss"]))
