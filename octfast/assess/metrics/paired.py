"""What a way of putting scans together changes against the plain mean of their probabilities, on the same patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from octfast.assess.metrics.intervals import paired_interval
from octfast.assess.metrics.statistics import Key, Question, Statistics
from octfast.model.aggregation import MEAN, Aggregation
from octfast.model.units import aggregated_tables

# What is compared, and what it is called where whole units are judged.
PAIRED: dict[Key, str] = {
    ("overall", "", "nll"): "nll",
    ("overall", "", "macro_roc_auc"): "macro_roc_auc",
    ("referral", "score", "roc_auc"): "urgent_roc_auc",
    ("overall", "", "accuracy"): "accuracy",
}
COLUMNS = ["unit", "rule", "reference", "metric", "difference", "low", "high", "method", "n"]


def against_mean(
    table: pd.DataFrame,
    classes: Sequence[str],
    ways: Sequence[Aggregation],
    *,
    urgent: Sequence[str] = (),
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """The figures of whole units by some ways of putting their scans together, less those by the plain mean.

    Both are judged on the same units and the same resamples of patients.

    Parameters
    ----------
    table : the Predictions table of the scans.
    ways : one a level; one that is the plain mean itself, or whose units have one scan each, has no row.
    urgent, resamples, seed, level : see `octfast.assess.metrics.metrics.evaluate_table`.

    Returns
    -------
    `unit`, `rule` ("fitted", or the rule that was not), `reference` ("mean_probability"), `metric`, `difference` (rule
    minus reference), `low`, `high`, `method`, `n` units.
    """
    question = Question(tuple(classes), tuple(urgent))
    rows = []
    for how in ways:
        plain = Aggregation(how.level, MEAN)
        if (how.rule, how.temperature) == (plain.rule, plain.temperature):
            continue
        given, mean = (aggregated_tables(table, each, classes)[0] for each in (how, plain))
        if not (given["scans"] > 1).any():
            continue
        owner = pd.factorize(given["patient"])[0]
        both = [Statistics(part, question, owner) for part in (given, mean)]
        values, drawn = [s.values() for s in both], [s.resampled(resamples, seed) for s in both]
        for key, name in PAIRED.items():
            if key in values[0]:
                with np.errstate(invalid="ignore"):
                    spread = drawn[0][key] - drawn[1][key]
                found = paired_interval(values[0][key] - values[1][key], spread, level, both[0].single)
                method = found[-1].replace("over scans", f"over {how.level}s")
                rule = "fitted" if how.fitted else how.rule
                rows.append([how.level, rule, MEAN, name, *found[:-1], method, len(given)])
    return pd.DataFrame(rows, columns=COLUMNS)
