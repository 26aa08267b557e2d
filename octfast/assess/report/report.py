"""write_report(run, split) -> Path: one page that holds all a reader asks of a run, and a model card beside it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.assess.evaluate import evaluate_run
from octfast.assess.interpret.heatmap import check_method
from octfast.assess.interpret.missed_units import MOST_UNITS
from octfast.assess.interpret.neighbours import NEAR, plot_neighbours
from octfast.assess.interpret.rows import missed_urgent, top_losses
from octfast.assess.metrics.metrics import Evaluation
from octfast.assess.predictions import run_predictions, scan_answers
from octfast.assess.report import results
from octfast.assess.report import sections as parts
from octfast.assess.report.claim import NO, NOT_APPLICABLE, PARTLY, YES, ClaimFacts, claim_answers
from octfast.assess.report.model_card import model_card
from octfast.assess.report.page import (
    Claim,
    Data,
    Errors,
    Groups,
    Head,
    Page,
    Plot,
    Published,
    Referral,
    Repeat,
    Summary,
    Training,
)
from octfast.assess.report.pictures import HeatPictures, figure_picture
from octfast.assess.report.provenance import (
    SPLIT_NAMES,
    Provenance,
    again,
    cautions,
    patients_in_words,
    repeat_rows,
    run_provenance,
    shared_in_words,
    splits_in_words,
    train_command,
    training_rows,
)
from octfast.assess.report.render import render_page, write_whole
from octfast.assess.report.tables import find
from octfast.assess.report.units import missed_of, missed_units_section
from octfast.assess.similar import label_words
from octfast.assess.similar import similar as similar_scans
from octfast.errors import OctfastError
from octfast.run.folder import Run, open_run
from octfast.train.plots import plot_history

log = logging.getLogger("octfast")

REPORT, CARD = "report.html", "MODEL_CARD.md"


def write_report(
    run: Run | str | Path | None = None,
    split: str | None = None,
    *,
    by: Sequence[str] = (),
    k: int = 9,
    heatmaps: bool = True,
    method: str = "gradcam",
    similar: bool = False,
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
    similar : whether to draw the largest losses beside the scans of other patients that are most like them.
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
    page = _page(run, known, split, table, evaluation, by, k, HeatPictures(run, method, heatmaps), similar, asked)
    write_whole(run.path / CARD, model_card(known, split, evaluation, page.summary.cautions, page.limits))
    return write_whole(run.path / REPORT, render_page(page))


def _chosen_split(run: Run, known: Provenance) -> str:
    if run.predictions_file("test").exists() or (known.counts is not None and "test" in known.counts.index):
        return "test"
    log.warning("the run has no test scans: the report is of validation, on which the epoch was chosen")
    return "valid"


def _page(
    run: Run,
    known: Provenance,
    split: str,
    table: pd.DataFrame,
    evaluation: Evaluation,
    by: Sequence[str],
    k: int,
    heat: HeatPictures,
    similar: bool,
    given: dict[str, Any],
) -> Page:
    """Everything that the page shows."""
    info, asked = known.info, evaluation.settings
    classes, urgent, operating = list(info.classes), list(asked["urgent"]), asked["operating"]
    missed = missed_urgent(table, urgent) if urgent else table.iloc[:0]
    top = top_losses(table, k)
    of_units = missed_of(table, info, urgent, lambda: scan_answers(run, split))
    above = of_units[0].units.head(MOST_UNITS) if info.level != "scan" else missed.head(parts.MOST_MISSED)
    below = top[~top["path"].isin(above["path"])]
    heat.prepare(*([above] if info.level == "scan" else []), below, *(found.labels for found in of_units))
    history, no_history = _history(known)
    # The heat maps are drawn with the galleries, so the words on them come after.
    judged_units = [missed_units_section(found, heat) for found in of_units]
    missed_shots = parts.missed_section(missed, heat) if urgent and info.level == "scan" else None
    among = f"urgent {info.level}s that were missed" if urgent else f"{info.level}s that were wrong"
    top_shots = parts.top_section(below, len(top), heat, among)
    near, no_near = _near(run, top, info.level) if similar and len(top) else (None, "")
    doubts = parts.doubt_section(table, classes, split)
    errors = Errors(missed_shots, judged_units, top_shots, doubts, heat.bar(), heat.words, near, no_near)
    referral = results.referral_section(evaluation.referral, table, urgent, operating) if urgent else None
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
        operating=operating is not None,
        calibrated=info.temperature != 1,
        label_errors=bool(errors.doubts["rows"]),
        groups=tuple(by),
    )
    own_costs = given.get("costs") is not None
    incomparable = results.why_not_published(known, urgent)
    judged = f"{len(table):,} {SPLIT_NAMES[split]} scans of {known.data}"
    compared = results.published_rows(evaluation.overall, evaluation.referral, judged, own_costs)
    return Page(
        Head(
            title=f"{info.arch} on {known.data}: results on {SPLIT_NAMES[split]} scans",
            run_name=known.name,
            split=split,
            split_name=SPLIT_NAMES[split],
            synthetic=info.synthetic,
            classes=classes,
            counts=evaluation.counts,
        ),
        Summary(_tiles(evaluation, referral), cautions(known, split, len(table))),
        Data(
            split_counts=parts.count_rows(known),
            patients=patients_in_words(known),
            shared=shared_in_words(known),
            splits=splits_in_words(known),
            release=known.release,
            notes=known.notes,
            left_out=parts.left_out_rows(known),
            missing=known.missing.get("counts", ""),
            left_out_missing=known.missing.get("left_out", ""),
        ),
        Training(training_rows(known), history, no_history),
        results.results_section(table, evaluation),
        referral,
        Published([] if incomparable else compared, incomparable, results.cost_words(asked["costs"], own_costs)),
        results.calibration_section(table, info, split, _validation(run)),
        errors,
        Groups(
            parts.patient_section(table, evaluation.units, evaluation.paired),
            parts.group_tables(evaluation.groups),
            _no_groups(known, by),
        ),
        Repeat(_commands(known, split, by, heat.method, similar, given), repeat_rows(known)),
        parts.limits(known, split),
        _claim(facts),
    )


def _claim(facts: ClaimFacts) -> Claim:
    answers = claim_answers(facts)
    n = {s: sum(a.status == s for a in answers) for s in (YES, PARTLY, NO, NOT_APPLICABLE)}
    words = f"Of 44, {n[YES]} are answered, {n[PARTLY]} in part, {n[NO]} are not"
    if idle := n[NOT_APPLICABLE]:
        words += f", and {idle} {'does' if idle == 1 else 'do'} not apply"
    return Claim([(name, list(items)) for name, items in groupby(answers, key=lambda a: a.section)], words)


def _tiles(evaluation: Evaluation, referral: Referral | None) -> list[dict[str, Any]]:
    counts = evaluation.counts
    right = f"{counts['right']:,} of {counts['scans']:,} scans right"
    tiles = [{"what": "Accuracy", "cell": find(evaluation.overall, "accuracy"), "of": right}]
    if referral:
        n = referral.by_class
        for metric, of in (
            ("sensitivity", f"{n.tp:,} of {n.tp + n.fn:,} urgent scans referred"),
            ("specificity", f"{n.tn:,} of {n.fp + n.tn:,} other scans not referred"),
        ):
            shown = find(evaluation.referral, metric, point="argmax")
            tiles.append({"what": f"Urgent referral: {metric}", "cell": shown, "of": of})
    else:
        shown = find(evaluation.overall, "balanced_accuracy")
        tiles.append({"what": "Balanced accuracy", "cell": shown, "of": "mean of the sensitivities of the classes"})
    return tiles


def _history(known: Provenance) -> tuple[Plot | None, str]:
    """The curves of training, or why there are none."""
    if known.history is None:
        return None, known.missing.get("history", "")
    rows = known.history.apply(pd.to_numeric, errors="coerce").dropna(subset=["epoch", "train_loss", "valid_loss"])
    if rows.empty:
        return None, "The history cannot be drawn: history.csv holds something that is not a number."
    best = rows.loc[rows["valid_loss"].idxmin()]
    alt = (
        f"Loss and accuracy over {len(rows)} epochs. The lowest validation loss, {best['valid_loss']:.3f}, is that of "
        f"epoch {best['epoch']:.0f}."
    )
    caption = "Loss and accuracy by epoch: dashed training, solid validation, a star at the epoch that was kept."
    return Plot(figure_picture(plot_history(rows.astype({"epoch": int})), alt), caption), ""


def _near(run: Run, top: pd.DataFrame, level: str) -> tuple[Plot | None, str]:
    """The largest losses beside the scans most like them, or why there are none."""
    try:
        near = similar_scans(run, top["path"].tolist(), NEAR)
    except OctfastError as e:
        log.warning("no similar scans: %s", e.message)
        return None, f"No similar scans: {e.message}."
    alt = f"{len(top)} scans, each beside the {NEAR} training and validation scans of other patients most like it"
    caption = "Distance: 0 is the same picture, 1 nothing in common, by the features that the model sees."
    caption = " ".join(filter(None, (caption, label_words(level))))
    return Plot(figure_picture(plot_neighbours(top, near, ""), alt), caption), ""


def _validation(run: Run) -> pd.DataFrame | None:
    """The predictions of validation where there are any; the model is not run for them."""
    try:
        return run_predictions(run, "valid")[0] if run.predictions_file("valid").exists() else None
    except OctfastError:
        return None


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


def _commands(
    known: Provenance, split: str, by: Sequence[str], method: str, similar: bool, given: dict[str, Any]
) -> str:
    """The commands that train and report the same again; the folders of this machine are not named."""
    import shlex

    words = ["octfast", "report", again(known), "--split", split]
    for column in by:
        words += ["--by", column]
    words += [] if method == "gradcam" else ["--method", method]
    words += ["--similar"] if similar else []
    if given.get("urgent") is not None:
        words += ["--urgent", ",".join(given["urgent"]) or "none"]
    if given.get("prevalence"):
        words += ["--prevalence", ",".join(f"{c}={share:g}" for c, share in given["prevalence"].items())]
    words += [] if given.get("costs") is None else ["--costs", "COSTS.csv"]
    for name in ("sensitivity", "resamples"):
        if given.get(name) not in (None, 2000):
            words += [f"--{name}", f"{given[name]:g}"]
    return f"{train_command(known)}\n{shlex.join(words)}"
