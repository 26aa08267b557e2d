"""write_report(run, split) -> Path: one page that holds all a reader asks of a run, and a model card beside it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.assess.evaluate import evaluate_run
from octfast.assess.interpret.heatmap import check_method
from octfast.assess.interpret.rows import missed_urgent, most_confused, top_losses
from octfast.assess.metrics.metrics import AT_PREVALENCE, Evaluation
from octfast.assess.predictions import run_predictions
from octfast.assess.report import results
from octfast.assess.report import sections as parts
from octfast.assess.report.claim import ClaimFacts, claim_answers
from octfast.assess.report.model_card import model_card
from octfast.assess.report.pictures import HeatPictures, figure_picture
from octfast.assess.report.provenance import (
    SPLIT_NAMES,
    Provenance,
    cautions,
    patients_in_words,
    repeat_rows,
    run_provenance,
    shared_in_words,
    splits_in_words,
    train_command,
    training_rows,
)
from octfast.assess.report.render import octfast_version, render_page, write_whole
from octfast.assess.report.tables import confusion_rows, estimate_grid, estimate_rows, find, methods_in_words
from octfast.errors import OctfastError
from octfast.notices import SYNTHETIC_NOTE
from octfast.run.folder import Run, open_run
from octfast.train.plots import plot_history

log = logging.getLogger("octfast")

REPORT, CARD = "report.html", "MODEL_CARD.md"
_MOST_CLASSES = 20
_SECTIONS = (
    ("summary", "Summary"),
    ("data", "Data"),
    ("training", "Training"),
    ("results", "Results"),
    ("referral", "Urgent referral"),
    ("calibration", "Calibration"),
    ("errors", "Errors"),
    ("groups", "Patients and groups"),
    ("repeat", "How to repeat it"),
    ("limits", "Limits"),
    ("claim", "CLAIM checklist"),
)


def write_report(
    run: Run | str | Path | None = None,
    split: str | None = None,
    *,
    by: Sequence[str] = (),
    k: int = 9,
    heatmaps: bool = True,
    method: str = "gradcam",
    **asked: Any,
) -> Path:
    """Judge a run on a split and write report.html and MODEL_CARD.md into its folder.

    The page is one file that asks nothing of the network and runs no script. The model runs at most once over the
    split, and once more for each scan that is shown with a heat map. What is missing is said in its place.

    Parameters
    ----------
    run : a run or its folder; None takes the newest.
    split : "test", "valid" or "train"; None takes test, or valid where the run has no test scans.
    by : columns of the Scans table, whose groups are judged one by one.
    k : how many of the largest losses to show.
    heatmaps, method : whether to draw heat maps, and how; see `octfast.assess.interpret.heatmap.heat_maps`.
    asked : further parameters of `octfast.assess.evaluate.evaluate_run`.

    Returns
    -------
    The path of report.html.

    Raises
    ------
    OctfastError : see `octfast.assess.predictions.run_predictions`, `octfast.assess.evaluate.evaluate_run` and
        `octfast.assess.interpret.heatmap.check_method`.
    """
    if heatmaps:
        check_method(method)
    run = run if isinstance(run, Run) else open_run(run)
    known = run_provenance(run)
    split = split or _chosen_split(run, known)
    table, _ = run_predictions(run, split)
    evaluation = evaluate_run(run, split, by_group=by, **asked)
    context = _context(run, known, split, table, evaluation, by, k, HeatPictures(run, method, heatmaps), asked)
    write_whole(run.path / CARD, model_card(known, split, evaluation, context["cautions"], context["limits"]))
    return write_whole(run.path / REPORT, render_page(context))


def _chosen_split(run: Run, known: Provenance) -> str:
    if run.predictions_file("test").exists() or (known.counts is not None and "test" in known.counts.index):
        return "test"
    log.warning("the run has no test scans: the report is of validation, on which the epoch was chosen")
    return "valid"


def _context(
    run: Run,
    known: Provenance,
    split: str,
    table: pd.DataFrame,
    evaluation: Evaluation,
    by: Sequence[str],
    k: int,
    heat: HeatPictures,
    given: dict[str, Any],
) -> dict[str, Any]:
    """Everything the template shows."""
    info, asked = known.info, evaluation.settings
    classes, urgent = list(info.classes), list(asked["urgent"])
    referral = None
    missed = missed_urgent(table, urgent) if urgent else table.iloc[:0]
    if urgent:
        referral = results.referral_section(evaluation.referral, table, urgent, asked["operating"])
    incomparable = results.why_not_published(known, urgent)
    judged = f"{len(table):,} {SPLIT_NAMES[split]} scans of {known.data}"
    top = top_losses(table, k)
    above = missed.head(parts.MOST_MISSED)
    below = top[~top["path"].isin(above["path"])]
    heat.prepare(above, below)
    problems: list[str] = []
    point = (asked["operating"] or {}).get("threshold")
    curves = results.curve_figures(table, classes, evaluation.per_class, problems, urgent, point)
    doubts = parts.doubt_section(table, classes, split)
    patients = parts.patient_section(table)
    patients["tables"] = parts.unit_tables(evaluation.units, len(table))
    facts = ClaimFacts(
        split=split,
        synthetic=info.synthetic,
        scans=evaluation.counts["scans"],
        patients=evaluation.counts["patients"],
        own_patients=known.own_patients,
        shared=None if known.shared is None else len(known.shared),
        left_out=0 if known.left_out is None else len(known.left_out),
        pretrained=known.pretrained,
        history=known.history is not None,
        heat_maps=not heat.problem and len(top) > 0,
        referral=bool(urgent),
        operating=asked["operating"] is not None,
        calibrated=info.temperature != 1,
        label_errors=bool(doubts["rows"]),
        groups=tuple(by),
    )
    history = _history(known)
    own = {name for name, value in given.items() if value is not None}
    answers = claim_answers(facts)
    counted = {s: sum(a.status == s for a in answers) for s in ("yes", "partly", "no", "does not apply")}
    at_prevalence = evaluation.per_class["metric"].str.endswith("_at_prevalence")
    return {
        "octfast_version": octfast_version(),
        "made": f"{datetime.now():%d %B %Y}",
        "title": f"{info.arch} on {known.data}: results on {SPLIT_NAMES[split]} scans",
        "sections": _SECTIONS,
        "section_names": dict(_SECTIONS),
        "run_name": known.name,
        "gone": {"counts": "", "history": "", "left_out": "", **known.missing},
        "split": split,
        "split_name": SPLIT_NAMES[split],
        "synthetic": info.synthetic,
        "synthetic_note": SYNTHETIC_NOTE,
        "classes": classes,
        "counts": evaluation.counts,
        "tiles": _tiles(evaluation, referral),
        "cautions": cautions(known, split, len(table)),
        "split_counts": parts.count_rows(known),
        "patients_words": patients_in_words(known),
        "shared_words": shared_in_words(known),
        "splits_words": splits_in_words(known),
        "release": known.release,
        "notes": known.notes,
        "left_out": parts.left_out_rows(known),
        "training_rows": training_rows(known),
        "history": history,
        "overall": estimate_rows(evaluation.overall),
        "overall_methods": methods_in_words(evaluation.overall),
        "resampled": f"The bootstrap draws patients {asked['resamples']:,} times (seed {asked['seed']}).",
        "evaluation_notes": _general_notes(evaluation, by),
        "per_class": estimate_grid(evaluation.per_class[~at_prevalence], "class"),
        "at_prevalence": estimate_grid(evaluation.per_class[at_prevalence], "class") if asked["prevalence"] else None,
        "prevalence_words": next((n for n in evaluation.notes if n.startswith(AT_PREVALENCE)), ""),
        "confusion": confusion_rows(evaluation.confusion) if len(classes) <= _MOST_CLASSES else None,
        "confused": most_confused(table).head(10).to_dict("records"),
        "curves": curves,
        "curve_problems": problems,
        "referral": referral,
        "referral_missing": "No class is named as urgent, so there is no referral to judge; --urgent CLASS names some.",
        "published": []
        if incomparable
        else results.published_rows(evaluation.overall, evaluation.referral, judged, own_costs="costs" in own),
        "published_missing": incomparable,
        "cost_words": results.cost_words(asked["costs"], own="costs" in own),
        "calibration": results.calibration_section(table, info, split, _validation(run), []),
        "abstain": results.abstain_rows(table),
        "sets": results.sets_section(table, info, split),
        "sets_missing": "None were fitted on validation; octfast calibrate fits them.",
        "missed": parts.missed_section(missed, heat) if urgent else None,
        "top": parts.top_section(below, len(top), heat),
        "heat_bar": heat.bar(),
        "heat_words": heat.words,
        "doubts": doubts,
        "patients": patients,
        "groups": {
            "tables": parts.group_tables(evaluation.groups, evaluation.notes),
            "missing": _no_groups(known, by),
        },
        "commands": _commands(known, split, by, heat.method, given),
        "repeat_rows": repeat_rows(known),
        "limits": parts.limits(known, split),
        "claim": [(name, list(items)) for name, items in groupby(answers, key=lambda a: a.section)],
        "claim_counts": _counted(counted),
    }


def _counted(answers: dict[str, int]) -> str:
    """How many items of CLAIM are answered, in words."""
    words = f"Of 44, {answers['yes']} are answered, {answers['partly']} in part, {answers['no']} are not"
    idle = answers["does not apply"]
    return words if not idle else f"{words}, and {idle} {'does' if idle == 1 else 'do'} not apply"


def _tiles(evaluation: Evaluation, referral: dict[str, Any] | None) -> list[dict[str, Any]]:
    counts = evaluation.counts
    right = f"{counts['right']:,} of {counts['scans']:,} scans right"
    tiles = [{"what": "Accuracy", "cell": find(evaluation.overall, "accuracy"), "of": right}]
    if referral:
        n = referral["argmax"]
        for metric, of in (
            ("sensitivity", f"{n['found']:,} of {n['urgent']:,} urgent scans referred"),
            ("specificity", f"{n['let_go']:,} of {n['others']:,} other scans not referred"),
        ):
            shown = find(evaluation.referral, metric, point="argmax")
            tiles.append({"what": f"Urgent referral: {metric}", "cell": shown, "of": of})
    else:
        shown = find(evaluation.overall, "balanced_accuracy")
        tiles.append({"what": "Balanced accuracy", "cell": shown, "of": "mean of the sensitivities of the classes"})
    return tiles


def _history(known: Provenance) -> dict[str, Any] | None:
    if known.history is None:
        return None
    rows = known.history.apply(pd.to_numeric, errors="coerce").dropna(subset=["epoch", "train_loss", "valid_loss"])
    if rows.empty:
        known.missing["history"] = "The history cannot be drawn: history.csv holds what is no number."
        return None
    best = rows.loc[rows["valid_loss"].idxmin()]
    alt = (
        f"Loss and accuracy over {len(rows)} epochs. The lowest validation loss, {best['valid_loss']:.3f}, is that of "
        f"epoch {best['epoch']:.0f}."
    )
    caption = "Loss and accuracy by epoch: dashed training, solid validation, a star at the epoch that was kept."
    return {"picture": figure_picture(plot_history(rows.astype({"epoch": int})), alt), "caption": caption}


def _validation(run: Run) -> pd.DataFrame | None:
    """The predictions of validation where there are any; the model is not run for them."""
    try:
        return run_predictions(run, "valid")[0] if run.predictions_file("valid").exists() else None
    except OctfastError:
        return None


def _general_notes(evaluation: Evaluation, by: Sequence[str]) -> list[str]:
    """The notes of an evaluation less those that stand elsewhere on the page."""
    elsewhere = (AT_PREVALENCE, *(f"{column} " for column in by))
    return [note for note in evaluation.notes if not note.startswith(elsewhere)]


def _no_groups(known: Provenance, by: Sequence[str]) -> str:
    if by:
        return ""
    if known.columns:
        named = ", ".join(known.columns[:12])
        return (
            f"No subgroups were asked for. The table of scans has these columns: {named} (octfast report --by COLUMN)."
        )
    return (
        "No subgroups: the table of scans has no further columns. With a table that has a device, an age or a sex, "
        "octfast report --by COLUMN shows results for each."
    )


def _commands(known: Provenance, split: str, by: Sequence[str], method: str, given: dict[str, Any]) -> str:
    """The commands that train and report the same again; the folders of this machine are not named."""
    import shlex

    words = ["octfast", "report", known.name, "--split", split]
    for column in by:
        words += ["--by", column]
    words += [] if method == "gradcam" else ["--method", method]
    if given.get("urgent") is not None:
        words += ["--urgent", ",".join(given["urgent"]) or "none"]
    if given.get("prevalence"):
        words += ["--prevalence", ",".join(f"{c}={share:g}" for c, share in given["prevalence"].items())]
    words += [] if given.get("costs") is None else ["--costs", "COSTS.csv"]
    for name in ("sensitivity", "resamples"):
        if given.get(name) not in (None, 2000):
            words += [f"--{name}", f"{given[name]:g}"]
    return f"{train_command(known)}\n{shlex.join(words)}"
