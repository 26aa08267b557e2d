"""The sections of a report on results: curves, urgent referral, published figures, calibration and abstaining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from octfast.assess.calibration.conformal import coverage_intervals, coverage_of_sets, prediction_sets
from octfast.assess.curves import plot_coverage_risk, plot_precision_recall, plot_reliability, plot_roc
from octfast.assess.interpret.rows import most_confused
from octfast.assess.metrics.abstain import coverage_risk
from octfast.assess.metrics.definitions import metric
from octfast.assess.metrics.metrics import PREVALENCE, SMALL_GROUP, Evaluation
from octfast.assess.metrics.referral import referral_table
from octfast.assess.metrics.reliability import calibration_scores
from octfast.assess.report.page import Calibration, Plot, Referral, Results
from octfast.assess.report.pictures import figure_picture
from octfast.assess.report.provenance import SPLIT_NAMES, Provenance
from octfast.assess.report.tables import (
    EMPTY,
    cell,
    confusion_rows,
    estimate_grid,
    estimate_rows,
    find,
    methods_in_words,
)
from octfast.errors import DataError, OctfastError
from octfast.figure import Figure
from octfast.model.bundle.info import BundleInfo
from octfast.model.temperature import fit_table, rescale

# Kermany et al., Cell 2018, on its 1,000 test scans: accuracy, sensitivity, specificity, weighted error, AUC.
_PUBLISHED = (
    ("Kermany et al., trained on 108,312 scans", (0.966, 0.978, 0.974, 0.066, 0.999), ((0.953, 0.976), *[None] * 4)),
    ("Kermany et al., trained on 1,000 a class", (0.934, 0.966, 0.940, 0.127, 0.988), (None,) * 5),
    ("six experts, mean (range)", (None, None, None, 0.048, None), (*[None] * 3, (0.004, 0.105), None)),
)
_MOST_CLASSES = 20
_COMPARED = ("accuracy", "sensitivity", "specificity", "weighted_error", "roc_auc")


def results_section(table: pd.DataFrame, evaluation: Evaluation) -> Results:
    """The metrics over all classes and of each class, the confusion matrix and the curves."""
    asked, per_class = evaluation.settings, evaluation.per_class
    at_prevalence = per_class["metric"].str.endswith("_at_prevalence")
    problems: list[str] = []
    threshold = (asked["operating"] or {}).get("threshold")
    return Results(
        overall=estimate_rows(evaluation.overall),
        overall_methods=methods_in_words(evaluation.overall),
        resampled=f"The bootstrap draws patients {asked['resamples']:,} times (seed {asked['seed']}).",
        per_class=estimate_grid(per_class[~at_prevalence], "class"),
        at_prevalence=estimate_grid(per_class[at_prevalence], "class") if asked["prevalence"] else None,
        prevalence=next((n.text for n in evaluation.remarks if n.kind == PREVALENCE), ""),
        confusion=confusion_rows(evaluation.confusion) if len(asked["classes"]) <= _MOST_CLASSES else None,
        confused=most_confused(table).head(10).to_dict("records"),
        curves=curve_figures(table, asked["classes"], per_class, problems, asked["urgent"], threshold),
        problems=problems,
        notes=[n.text for n in evaluation.remarks if n.kind not in (PREVALENCE, SMALL_GROUP)],
    )


def drawn(problems: list[str], what: str, make: Callable[[], Figure], alt: str, caption: str) -> list[Plot]:
    """A figure with its caption in a list; an empty list, and a sentence among the problems, if it cannot be drawn."""
    try:
        return [Plot(figure_picture(make(), alt), caption)]
    except (OctfastError, ValueError) as e:
        problems.append(f"{what} cannot be drawn: {str(e).splitlines()[0]}.")
        return []


def curve_figures(
    table: pd.DataFrame,
    classes: Sequence[str],
    per_class: pd.DataFrame,
    problems: list[str],
    urgent: Sequence[str] = (),
    threshold: float | None = None,
) -> list[Plot]:
    """ROC and precision-recall curves of the classes, with the areas under them as their alternative text.

    Parameters
    ----------
    urgent : classes whose referral has a curve too, with `threshold`, its operating point, upon it.
    """
    also = "; the thick line is urgent referral" if urgent else ""
    also += ", the star its operating point" if urgent and threshold is not None else ""

    def areas(key: str) -> str:
        return "; ".join(f"{c} {find(per_class, key, **{'class': c}).text}" for c in list(classes)[:12])

    return [
        *drawn(
            problems,
            "ROC curves",
            lambda: plot_roc(table, classes, urgent=urgent, threshold=threshold),
            f"ROC curves of each class against the others. Area: {areas('roc_auc')}.",
            f"ROC: what share of a class is found, for each share of the others that is called so by mistake{also}.",
        ),
        *drawn(
            problems,
            "Precision-recall curves",
            lambda: plot_precision_recall(table, classes),
            f"Precision-recall curves of each class. Average precision: {areas('average_precision')}.",
            "Precision and recall: of those called so, how many are; of those that are, how many are found.",
        ),
    ]


def referral_section(
    referral: pd.DataFrame, table: pd.DataFrame, urgent: Sequence[str], operating: dict[str, Any] | None
) -> Referral:
    """Urgent referral at the highest probability and at the operating point.

    Parameters
    ----------
    referral : of an Evaluation.
    operating : the operating point as an Evaluation's settings have it, or None.
    """
    point = operating or {}
    threshold = point.get("threshold")
    points = {"argmax": "by the predicted class", "operating": "at the operating point"}
    there = [p for p in points if (referral["point"] == p).any()]
    rows = []
    for key in dict.fromkeys(referral["metric"]):
        cells = [find(referral, key, point=p) for p in there]
        if (referral[referral["metric"] == key]["point"] == "score").any():
            cells = [find(referral, key, point="score")]
        rows.append({"name": metric(key).name, "meaning": metric(key).meaning, "cells": cells})
    counts = {p: referral_table(table, urgent, threshold if p == "operating" else None) for p in there}
    return Referral(
        list(urgent),
        [points[p] for p in there],
        rows,
        [(points[p], c) for p, c in counts.items()],
        threshold,
        _fixed(point),
        methods_in_words(referral, "point", points),
    )


def _fixed(point: dict[str, Any]) -> str:
    """Where the operating point comes from, in words."""
    wanted = point.get("wanted")
    aim = f" for a sensitivity of {100 * wanted:.4g}%" if wanted is not None and wanted == wanted else ""
    of = f" ({point['urgent_scans']:,} urgent scans)" if point.get("urgent_scans") else ""
    return f"fixed on {point.get('fixed_on', 'validation')}{of}{aim}"


def published_rows(
    overall: pd.DataFrame, referral: pd.DataFrame, judged: str, own_costs: bool = False
) -> list[dict[str, Any]]:
    """This run's figures above the published ones; without a weighted error where it has other costs than theirs."""
    own = [
        find(overall, "accuracy"),
        find(referral, "sensitivity", point="argmax"),
        find(referral, "specificity", point="argmax"),
        EMPTY if own_costs else find(overall, "weighted_error"),
        find(referral, "roc_auc"),
    ]
    rows: list[dict[str, Any]] = [{"model": "this run", "judged": judged, "cells": own}]
    for model, values, intervals in _PUBLISHED:
        cells = [cell(m, v, *(i or (None, None))) for m, v, i in zip(_COMPARED, values, intervals, strict=True)]
        rows.append({"model": model, "judged": "their 1,000 test scans", "cells": cells})
    return rows


def why_not_published(known: Provenance, urgent: Sequence[str]) -> str:
    """Why the published figures cannot stand beside those of a run, or "" where they can."""
    if known.info.synthetic:
        return "Results on synthetic phantoms are compared with no published figure."
    if set(known.info.classes) != {"CNV", "DME", "DRUSEN", "NORMAL"} or set(urgent) != {"CNV", "DME"}:
        return "Published figures are for CNV, DME, DRUSEN and NORMAL, with CNV and DME urgent: not for these classes."
    return ""


def cost_words(costs: dict[str, Any] | None, own: bool = False) -> str:
    """What the weighted error is, or "" where there are no costs.

    Parameters
    ----------
    own : whether they are other costs than Kermany's.
    """
    if not costs:
        return ""
    if own:
        dearest = max(v for row in costs.values() for v in row.values())
        return (
            f"Weighted error: the mean cost of a scan, by costs that were given, of up to {dearest:g} a scan; they "
            "stand in the metrics file. It cannot be compared with a weighted error by Kermany's costs."
        )
    return (
        "Weighted error: the mean cost of a scan, by Kermany's costs: 4 for an urgent scan called NORMAL, 2 for one "
        "called DRUSEN, 1 for any other mistake, 0 for a right answer."
    )


def calibration_section(table: pd.DataFrame, info: BundleInfo, split: str, valid: pd.DataFrame | None) -> Calibration:
    """What the temperature is or why there is none, the reliability before and after, abstention and sets."""
    problems: list[str] = []
    classes = info.classes
    fitted = info.temperature != 1
    before = rescale(table, classes, 1.0) if fitted else table
    after = table if fitted else None
    on = SPLIT_NAMES[split]
    if fitted:
        kept = info.calibration
        where = f"held-out {info.level}s"
        if isinstance(kept.get("scans"), int) and isinstance(kept.get("patients"), int):
            where = f"{kept['scans']:,} {where} of {kept['patients']:,} patients"
        low, high = (kept.get("temperature_interval") or [None, None])[:2]
        ends = f" (95% interval {low:.3g} to {high:.3g})" if isinstance(low, float) and isinstance(high, float) else ""
        words = (
            f"The probabilities are scaled with a temperature of {info.temperature:.3g}{ends}, fitted on {where}. "
            "Above 1 means that the model was overconfident, below 1 underconfident. No predicted class changes."
        )
    else:
        words = f"The probabilities are as the model gives them, not calibrated: {_why_not(valid, info)}"
    tables = [before] if after is None else [before, after]
    scores = [calibration_scores(t, classes) for t in tables]
    names = {
        "nll": "log-loss",
        "brier": "Brier score",
        "ece": "calibration error (ECE, 15 bins)",
        "ece_by_chance": "expected if perfectly calibrated",
    }
    rows = [{"name": name, "numbers": [f"{s[key]:.3f}" for s in scores]} for key, name in names.items()]
    errors = " before and ".join(f"{s['ece']:.3f}" for s in scores)
    shown = f"Calibration error {errors}{' after' if fitted else ''}."
    figures = drawn(
        problems,
        "The reliability diagram",
        lambda: plot_reliability(before, after, classes),
        f"Reliability diagram on {on}. {shown}",
        "Reliability: how often the model is right, by how sure it is. On the diagonal its probabilities are true.",
    ) + drawn(
        problems,
        "The coverage-risk curve",
        lambda: plot_coverage_risk(table),
        f"Share of wrong answers on {on} if only the surest scans are answered.",
        "Coverage and risk: the share of wrong answers if the model answers only where it is surest.",
    )
    return Calibration(
        words,
        ["before", "after"] if fitted else ["as it is"],
        rows,
        figures,
        problems,
        abstain_rows(table),
        sets_section(table, info, split),
    )


def _why_not(valid: pd.DataFrame | None, info: BundleInfo) -> str:
    if valid is None or valid.empty:
        return "there are no validation predictions to fit a temperature on."
    try:
        fit = fit_table(valid, info.classes)
    except DataError as e:
        return f"{e.message}."
    return f"octfast calibrate would fit a temperature of {fit.temperature:.3g} on held-out scans."


def abstain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What comes of answering only the surest share of the scans."""
    curve = coverage_risk(table)
    rows = []
    for wanted in (1.0, 0.95, 0.9, 0.8, 0.7, 0.5):
        enough = curve[curve["coverage"] >= wanted - 1e-9]
        if enough.empty:
            continue
        row = enough.iloc[0]
        entry = {
            "coverage": f"{row['coverage']:.0%}",
            "scans": int(row["scans"]),
            "threshold": f"{row['threshold']:.3f}",
            "wrong": int(row["wrong"]),
            "risk": cell("accuracy", row["risk"], row["risk_low"], row["risk_high"]),
        }
        if entry not in rows:
            rows.append(entry)
    return rows


def sets_section(table: pd.DataFrame, info: BundleInfo, split: str) -> dict[str, Any] | None:
    """Prediction sets as they were fitted on validation, with what they cover here; None where none were fitted."""
    kept = info.calibration.get("conformal")
    try:
        wanted, threshold = float(kept["coverage"]), float(kept["threshold"])  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        return None
    held = prediction_sets(table, info.classes, threshold)
    found, ends = coverage_of_sets(table, held), coverage_intervals(table, held)
    words = (
        f"Instead of one class the model can give all with a probability of {threshold:.3g} or more. The threshold was "
        f"fitted on held-out scans so that the set of a new patient's scan holds the true class in {wanted:.0%} "
        f"of cases; on the {SPLIT_NAMES[split]} scans in {found['coverage']:.1%}{_between(ends['coverage'])}, or by "
        f"patient in {found['coverage_by_patient']:.1%}{_between(ends['coverage_by_patient'])}, with "
        f"{found['mean_size']:.2f} classes on average."
    )
    return {"words": words, "sizes": sorted(found["sizes"].items())}


def _between(ends: list[float | None]) -> str:
    low, high = ends
    return "" if low is None or high is None else f" (95% interval {100 * low:.1f} to {100 * high:.1f})"
