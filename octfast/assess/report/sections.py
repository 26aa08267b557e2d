"""The sections of a report on scans: counts, what went wrong, labels in doubt, patients, groups, limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.assess.interpret.label_errors import find_label_errors
from octfast.assess.metrics.definitions import metric
from octfast.assess.metrics.subgroups import small_group_note
from octfast.assess.report.page import Gallery
from octfast.assess.report.pictures import HeatPictures, shots
from octfast.assess.report.provenance import SPLIT_NAMES, Provenance
from octfast.assess.report.tables import difference_cell, estimate_grid
from octfast.errors import OctfastError
from octfast.notices import UNSEEN
from octfast.run.privacy import without_places

MOST_MISSED, _DOUBTS, _PATIENTS = 12, 20, 20


def missed_section(rows: pd.DataFrame, heat: HeatPictures) -> Gallery:
    """The urgent scans that were taken for another class, the surest misses first.

    Parameters
    ----------
    rows : of `octfast.assess.interpret.rows.missed_urgent`.
    """
    n = len(rows)
    if not n:
        return Gallery("None: every urgent scan was taken for an urgent class.", [])
    words = f"{n:,} urgent scan{'s were' if n > 1 else ' was'} taken for a class that is not urgent"
    words += f"; the {MOST_MISSED} surest misses are shown." if n > MOST_MISSED else "."
    return Gallery(words, shots(rows.head(MOST_MISSED), heat))


def top_section(rows: pd.DataFrame, k: int, heat: HeatPictures, among: str) -> Gallery:
    """The scans with the largest losses that were not shown before, or the units, each by the scan that counted most.

    Parameters
    ----------
    rows : those of the k largest losses.
    among : what was shown before, in words.
    """
    words = "The loss is large where the true class was given a small probability."
    again = k - len(rows)
    if again:
        words += f" Of the {k} largest, {again if again < k else 'all'} {'is' if again == 1 else 'are'} shown above, "
        words += f"among the {among}."
    return Gallery(words, shots(rows, heat))


def doubt_section(table: pd.DataFrame, classes: Sequence[str], split: str) -> dict[str, Any]:
    """Labels that confident learning suspects."""
    if split == "train":
        return {
            "rows": [],
            "words": "Not looked for: the model was trained on these labels and has learned some errors.",
        }
    try:
        found = find_label_errors(table, classes)
    except OctfastError as e:
        return {"rows": [], "words": f"Not looked for: {e.message}."}
    on = f"the {SPLIT_NAMES[split]} predictions of this model, which was not trained on these scans"
    if found.empty:
        return {"rows": [], "words": f"None is suspected by confident learning (cleanlab) on {on}."}
    more = f", of which {_DOUBTS} are shown" if len(found) > _DOUBTS else ""
    words = (
        f"Confident learning (cleanlab) suspects {len(found):,} label{'s' if len(found) > 1 else ''}{more}, on {on}. "
        "Most may be mistakes of the model: a list to look at, nothing was changed."
    )
    rows = [
        {
            "name": Path(str(r["path"])).name,
            "patient": str(r["patient"]),
            "label": str(r["label"]),
            "p_actual": f"{r['p_actual']:.1%}",
            "suggested": str(r["suggested"]),
            "p_suggested": f"{r['p_suggested']:.1%}",
        }
        for r in found.head(_DOUBTS).to_dict("records")
    ]
    return {"rows": rows, "words": words}


def patient_section(table: pd.DataFrame, units: pd.DataFrame, paired: pd.DataFrame) -> dict[str, Any]:
    """How many patients were right, those that were not, the worst first, and results for whole patients.

    Parameters
    ----------
    units, paired : of the Evaluation.
    """
    tables, against = unit_tables(units, len(table)), paired_table(paired)
    right = table["label"] == table["predicted"]
    grouped = table.assign(right=right).groupby("patient", sort=True)
    share = grouped["right"].mean()
    n, most, all_right = len(share), int((share > 0.5).sum()), int((share == 1).sum())
    words = (
        f"Of {n:,} patient{'s' if n != 1 else ''}, {most:,} had more than half of their scans right, and {all_right:,} "
        "all of them."
    )
    if n == len(table):
        return {
            "words": "Each scan is a patient of its own, so results by patient are those by scan.",
            "rows": [],
            "tables": tables,
            "paired": against,
        }
    rows: list[dict[str, Any]] = []
    for who, part in grouped:
        if part["right"].all():
            continue
        wrong = part[~part["right"]]
        rows.append(
            {
                "patient": str(who),
                "actual": ", ".join(sorted(set(part["label"].astype(str)))),
                "scans": len(part),
                "right": int(part["right"].sum()),
                "taken": ", ".join(sorted(set(wrong["predicted"].astype(str)))),
            }
        )
    rows.sort(key=lambda r: (r["right"] - r["scans"], r["patient"]))
    caption = f"Patients with a wrong answer{f', {_PATIENTS} of {len(rows)}' if len(rows) > _PATIENTS else ''}"
    return {"words": words, "rows": rows[:_PATIENTS], "caption": caption, "tables": tables, "paired": against}


def count_rows(known: Provenance) -> dict[str, Any] | None:
    """Scans a class and split, and patients a split, for a table: a column a split, a row a class."""
    if known.counts is None:
        return None
    there = [str(c) for c in known.counts.columns if c not in ("scans", "patients")]
    classes = [c for c in known.info.classes if c in there]
    classes += [c for c in there if c not in classes]
    rows = [{"name": c, "numbers": [int(n) for n in known.counts[c]]} for c in [*classes, "scans", "patients"]]
    rows[-2]["name"], rows[-1]["name"] = "all scans", "patients"
    return {"splits": [SPLIT_NAMES.get(str(s), "all") for s in known.counts.index], "rows": rows}


def left_out_rows(known: Provenance, most: int = 30) -> dict[str, Any] | None:
    """The files that were left out, for a table."""
    if known.left_out is None or known.left_out.empty:
        return None
    records = known.left_out.head(most).to_dict("records")
    rows = [
        {
            "name": Path(str(r["path"])).name,
            "label": str(r["label"]),
            "split": SPLIT_NAMES.get(str(r["split"]), str(r["split"])),
            "reason": without_places(str(r.get("reason", "")), [Path(str(r["path"])).parent]),
        }
        for r in records
    ]
    return {"total": len(known.left_out), "rows": rows}


def limits(known: Provenance, split: str) -> list[str]:
    """What the figures do not say."""
    others = (
        "A picture that is not an OCT scan of the retina, or shows another disease, is still given one of the classes."
    )
    if "unlike" in known.info.calibration:
        others = f"A scan unlike anything that it was trained on is marked and gets no class. {UNSEEN}"
    found = [
        "The labels are taken for the truth; who gave them, and how far graders agree, octfast cannot know.",
        "Heat maps show what raised the score of a class. They are not evidence of where a disease lies.",
        "One B-scan is judged at a time; a clinician sees the volume, the other eye and the patient.",
        others,
        "The scans judged here come from the data set that it was trained on: how it does elsewhere is not known.",
    ]
    if known.info.synthetic:
        found.insert(0, "All scans are synthetic phantoms: nothing here says anything of a real eye.")
    if split != "test":
        found.insert(
            0, f"These are {SPLIT_NAMES[split]} scans: the figures are better than those of new scans would be."
        )
    return found


def unit_tables(units: pd.DataFrame, scans: int) -> list[dict[str, Any]]:
    """Results for whole patients, eyes and volumes, for tables; none where each scan is a unit of its own."""
    rules = {"majority": "the class of most of its scans", "mean_probability": "the highest mean probability"}
    rules["fitted"] = "as was fitted on held-out scans"
    frame = units[units["n"] < scans]
    if frame.empty:
        return []
    rows = frame.assign(rule=[f"{u}: {rules.get(r, r)}" for u, r in zip(frame["unit"], frame["rule"], strict=True)])
    caption = "Whole patients, eyes or volumes, as the table of scans knows them, with 95% intervals"
    return [{"grid": estimate_grid(rows, "rule"), "first": "judged by", "of": "number", "caption": caption}]


def paired_table(paired: pd.DataFrame) -> dict[str, Any] | None:
    """What putting scans together changes against their mean, a row a level, for a table; None where nothing is."""
    if paired.empty:
        return None
    keys = list(dict.fromkeys(paired["metric"]))
    rows = []
    for unit, part in paired.groupby("unit", sort=False):
        known = {r.metric: difference_cell(r.difference, r.low, r.high) for r in part.itertuples()}
        rule = str(part["rule"].iloc[0]).replace("_", " ")
        rows.append({"name": f"{unit}s, {rule}", "n": int(part["n"].iloc[0]), "cells": [known[k] for k in keys]})
    return {"metrics": [metric(k).name for k in keys], "rows": rows}


def group_tables(groups: pd.DataFrame) -> list[dict[str, Any]]:
    """Results by the values of columns, a table a column, with a caution where a group is small."""
    tables = []
    shown = groups["section"].eq("overall") & groups["metric"].isin(["accuracy", "balanced_accuracy", "macro_roc_auc"])
    urgent = groups["section"].eq("referral") & groups["of"].eq("argmax")
    urgent &= groups["metric"].isin(["sensitivity", "specificity"])
    named = groups["metric"].where(~urgent, "urgent_" + groups["metric"].astype(str))
    frame = groups.assign(metric=named, n=groups["scans"])[shown | urgent]
    for column, part in frame.groupby("by", sort=False):
        name = str(column)
        small = part[part["small"]].drop_duplicates("group")
        tables.append(
            {
                "column": name,
                "grid": estimate_grid(part, "group", "patients"),
                "caption": f"Results by {name}, with 95% intervals",
                "notes": [small_group_note(name, str(r.group), r.scans, r.patients) for r in small.itertuples()],
            }
        )
    return tables
