"""`octfast evaluate`: figures with intervals of a run's split, or of a trained model on other scans."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octfast.cli import options

if TYPE_CHECKING:
    import pandas as pd

    from octfast.assess.metrics.metrics import Evaluation


_OF_GROUPS = {
    "accuracy": ("overall", "", "accuracy"),
    "balanced accuracy": ("overall", "", "balanced_accuracy"),
    "urgent sensitivity": ("referral", "argmax", "sensitivity"),
    "urgent specificity": ("referral", "argmax", "specificity"),
    "sensitivity at the operating point": ("referral", "operating", "sensitivity"),
    "specificity there": ("referral", "operating", "specificity"),
}


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN|BUNDLE]", help="Run folder or trained model; by default the newest run."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DATA]", help="Other scans to judge it on: a folder, a table or a MedMNIST .npz, with labels."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="test, valid or train, of DATA also all; by default test where there is one, else valid."),
    ] = None,
    level: options.Level = None,
    by: options.By = None,
    urgent: options.Urgent = None,
    sensitivity: options.Sensitivity = None,
    prevalence: options.Prevalence = None,
    costs: options.Costs = None,
    resamples: options.Resamples = 2000,
    seed: options.BootstrapSeed = 0,
    top_k: Annotated[
        int, typer.Option(help="k of the top-k accuracy: is the truth among the k most probable classes?")
    ] = 2,
    abstain_below: Annotated[
        float | None,
        typer.Option(help="Also evaluate it without the scans whose predicted class is less probable than this."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures on DATA; by default a new one in evaluations/.")
    ] = None,
    known_only: Annotated[
        bool, typer.Option("--known-only", help="Leave out scans of DATA whose class the model does not have.")
    ] = False,
    tables: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write every table as CSV and LaTeX into this new folder.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also draw ROC, precision-recall, reliability and risk-coverage there."),
    ] = None,
    device: options.Device = "auto",
    format: options.FigureFormat = "png",
    dpi: options.Dpi = 120,
    path_column: options.PathColumn = None,
    label_column: options.LabelColumn = None,
    patient_column: options.PatientColumn = None,
    split_column: options.SplitColumn = None,
    patient_from: options.PatientFrom = None,
    label_from: options.LabelFrom = None,
    moved: options.Moved = None,
    as_json: options.Json = False,
) -> None:
    """Judge a trained model, each figure with its 95% interval.

    A run alone is judged on its own split, from the predictions that training left. With DATA the model runs once over
    those scans. Intervals are bootstrapped over patients, or Wilson's where each scan is a patient of its own. The
    operating point of urgent referral is fixed on validation scans, never on those it is judged on. Writes
    metrics-<split>.json into the run folder, or with predictions-<split>.csv into --out.

    Examples:

      octfast evaluate

      octfast evaluate runs/first --split test --by device --prevalence CNV=.02,DME=.03

      octfast evaluate --level eye

      octfast evaluate runs/first/model hospital.csv --sensitivity 0.98

      octfast evaluate --tables tables --figures curves --format pdf
    """
    from octfast.assess.at_level import at_level
    from octfast.assess.evaluate import (
        evaluate_data,
        evaluate_run,
        evaluation_folder,
        find_bundle_and_run,
        metrics_file,
        read_evaluation,
    )
    from octfast.assess.metrics.costs import parse_prevalence, read_costs
    from octfast.assess.paper import write_curves, write_tables
    from octfast.assess.predictions import run_predictions
    from octfast.console import print_json
    from octfast.errors import UsageError
    from octfast.figure import Files
    from octfast.files import is_taken
    from octfast.model.bundle.read import read_info
    from octfast.run.folder import open_run

    write = Files(format, dpi)
    for name, place in (("--tables", tables), ("--figures", figures)):
        if place is not None and is_taken(place):
            raise UsageError(f"{name} {place} exists and is not empty", "give another folder; nothing is overwritten")
    bundle, own = find_bundle_and_run(run)
    classes = read_info(bundle).classes
    asked: dict[str, Any] = {
        "urgent": split_names(urgent),
        "sensitivity": sensitivity,
        "prevalence": None if prevalence is None else parse_prevalence(prevalence, classes),
        "costs": None if costs is None else read_costs(costs, classes),
        "resamples": resamples,
        "seed": seed,
        "top_k": top_k,
        "abstain_below": abstain_below,
        "device": device,
        "by_group": by or (),
        "unit": level,
    }
    if moved is not None:
        if own is None:
            raise UsageError(f"--moved: {bundle} is a model without scans of its own", "leave it")
        own = open_run(own.path, moved)
    if data is not None:
        folder = evaluation_folder(out, data)
        columns = {
            "path_column": path_column,
            "label_column": label_column,
            "patient_column": patient_column,
            "split_column": split_column,
            "patient_from": patient_from,
            "label_from": label_from,
        }
        found = evaluate_data(own or bundle, data, folder, split, known_only=known_only, columns=columns, **asked)
    elif own is None:
        raise UsageError(f"{bundle} is a model without scans", f"name the scans: octfast evaluate {bundle} DATA")
    else:
        folder = own.path
        given = {"--out": out, "--known-only": known_only, "--label-column": label_column, "--path-column": path_column}
        given |= {"--patient-column": patient_column, "--split-column": split_column}
        given |= {"--patient-from": patient_from, "--label-from": label_from}
        idle = [name for name, value in given.items() if value]
        if idle:
            raise UsageError(f"{idle[0]} is for DATA, and none was given", "name the scans behind the run, or leave it")
        found = evaluate_run(own, split, **asked)
    split, judged_at = found.source["split"], found.source.get("level", "scan")
    info = read_info(bundle)
    files = [folder / (f"metrics-{split}.json" if data is not None else metrics_file(split, judged_at, info))]
    files += [] if tables is None else write_tables(found, tables)
    if figures is not None:
        # What training or this evaluation has left there; the model is not run again.
        if data is not None or own is None:
            judged = read_evaluation(folder)[0]
        else:
            judged = at_level(run_predictions(own, split)[0], info, judged_at)[0]
        files += write_curves(judged, found, figures, write)
    if as_json:
        print_json({**found.to_dict(), "file": str(files[0]), "files": [str(f) for f in files]})
        return
    _show(found)
    for file in files:
        print(file)


def _show(found: Evaluation) -> None:
    """Print the tables of an evaluation for a person."""
    from octfast.assess.metrics.definitions import metric
    from octfast.assess.metrics.metrics import PREVALENCE, SMALL_GROUP
    from octfast.console import plain_text, print_table
    from octfast.notices import SYNTHETIC_NOTE

    counts, settings = found.counts, found.settings
    noun = f"{found.source.get('level', 'scan')}s"
    where = found.source.get("data") or found.source.get("run")
    print(
        f"{plain_text(str(where))}, {found.source['split']}: {counts['right']:,} of {counts['scans']:,} {noun} right, "
        f"{counts['patients']:,} patients"
    )
    level = f"{settings['level']:.0%}"
    rows = [[metric(r.metric).name, number(r.value), ends(r), r.method] for r in found.overall.itertuples()]
    print_table("All classes", ["figure", "value", f"{level} interval", "interval by"], rows)
    per_class = found.per_class.set_index(["metric", "class"])
    rows = []
    for name in dict.fromkeys(found.per_class["metric"]):
        cells = [per_class.loc[(name, c)] for c in settings["classes"]]
        rows.append([metric(name).name, *(f"{number(c['value'])} ({ends(c)})" for c in cells)])
    heads = [f"{c} ({counts['classes'][c]['scans']:,} {noun})" for c in settings["classes"]]
    print_table(f"Each class against the others, {level} intervals", ["figure", *heads], rows)
    # Beside the table that it is about, as classes that were not named may have a share that no clinic has.
    for note in found.remarks:
        if note.kind == PREVALENCE:
            print(plain_text(note.text))
    _say_methods(found.per_class, "class")
    if len(found.referral):
        print_table(f"Urgent referral ({', '.join(settings['urgent'])} against the others)", *_referral(found, level))
        points = {"argmax": "by the predicted class", "operating": "at the operating point"}
        _say_methods(found.referral, "point", points)
    whole = found.units[found.units["n"] < counts["scans"]] if "level" in found.source else found.units
    if len(whole):
        print_table(f"Whole patients, eyes and volumes, {level} intervals", *_units(whole))
        rules = whole.assign(rule=whole["unit"] + " by " + whole["rule"].str.replace("_", " "))
        _say_methods(rules, "rule")
    if len(found.paired):
        print_table(*_paired(found.paired, level))
    if found.abstain is not None:
        print_table(*_abstaining(found.abstain, level, noun))
    for column in dict.fromkeys(found.groups["by"]):
        print_table(f"By {column}, {level} intervals", *_groups(found, column))
        own = found.groups[found.groups["by"] == column]
        names = {key: name for name, key in _OF_GROUPS.items()}
        shown = [names.get((r.section, r.of, r.metric), "") for r in own.itertuples()]
        _say_methods(own.assign(metric=shown)[[bool(name) for name in shown]], "group")
    few = [r.group for r in found.groups.itertuples() if r.small]
    if few:
        print("(small): fewer than 50 scans or 20 patients; interpret the figures with caution")
    for note in found.remarks:
        # What stands beside the tables already.
        if note.kind not in (PREVALENCE, SMALL_GROUP):
            print(plain_text(note.text))
    if found.source.get("synthetic"):
        print(SYNTHETIC_NOTE)
    print("Not a medical device.")


def _referral(found: Evaluation, level: str) -> tuple[list[str], list[list[str]]]:
    from octfast.assess.metrics.definitions import metric

    point = found.settings["operating"]
    heads = {"argmax": "by the predicted class", "score": "at every threshold"}
    if point:
        wanted = "" if point["wanted"] != point["wanted"] else f", for a sensitivity of {point['wanted']:g}"
        heads["operating"] = f"p of {point['threshold']:.3g} or more{wanted} on {point['fixed_on']}"
    points = [p for p in ("argmax", "operating", "score") if p in set(found.referral["point"])]
    cells = {(r.metric, r.point): f"{number(r.value)} ({ends(r)})" for r in found.referral.itertuples()}
    names = dict.fromkeys(found.referral["metric"])
    rows = [[metric(name).name, *(cells.get((name, p), "") for p in points)] for name in names]
    missed, noun = found.counts["missed_urgent"], found.source.get("level", "scan")
    rows.append([f"urgent {noun}s missed", *(_missed(missed, p, found.counts["urgent"]) for p in points)])
    return [f"figure, {level} interval", *(heads[p] for p in points)], rows


def _say_methods(figures: pd.DataFrame, by: str, names: dict[str, str] | None = None) -> None:
    """Say below a table how its intervals were made."""
    from octfast.assess.report.tables import methods_in_words
    from octfast.console import plain_text

    print(plain_text(" ".join(methods_in_words(figures, by, names))))


def _units(units: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    rows: list[list[Any]] = []
    metrics = list(dict.fromkeys(units["metric"]))
    for (unit, rule), part in units.groupby(["unit", "rule"], sort=False):
        cells = {r.metric: f"{number(r.value)} ({ends(r)})" for r in part.itertuples()}
        rows.append([unit, rule.replace("_", " "), int(part["n"].iloc[0]), *(cells.get(m, "") for m in metrics)])
    return ["unit", "scans put together by", "units", *(m.replace("_", " ") for m in metrics)], rows


def _paired(paired: pd.DataFrame, level: str) -> tuple[str, list[str], list[list[Any]]]:
    rows: list[list[Any]] = []
    for r in paired.itertuples():
        name = f"{r.unit}s ({r.n:,}), {str(r.rule).replace('_', ' ')}"
        value = "undefined" if r.difference != r.difference else f"{r.difference:+.3f}"
        sure = "*" if r.low > 0 or r.high < 0 else ""
        rows.append([name, r.metric.replace("_", " "), value, ends(r), sure, r.method])
    title = "Scans put together, less the mean of their probabilities (* where the interval leaves out 0)"
    return title, ["units", "figure", "difference", f"{level} interval", "", "interval by"], rows


def _abstaining(found: dict[str, Any], level: str, noun: str) -> tuple[str, list[str], list[list[str]]]:
    title = (
        f"Without answers below a probability of {found['below']:g}: {found['answered']:,} of {found['scans']:,} "
        f"{noun} answered, {found['wrong_avoided']:,} wrong answers avoided, {found['right_lost']:,} right ones lost"
    )
    names = {"coverage": "share answered", "accuracy": "accuracy of the answered"}
    rows = [[names[f["metric"]], number(f["value"]), ends(SimpleNamespace(**f)), f["method"]] for f in found["figures"]]
    return title, ["figure", "value", f"{level} interval", "interval by"], rows


def _missed(missed: dict[str, int], point: str, urgent: int) -> str:
    return f"{missed[point]:,} of {urgent:,}" if point in missed else ""


def _groups(found: Evaluation, column: str) -> tuple[list[str], list[list[Any]]]:
    own = found.groups[found.groups["by"] == column]
    cells = {(r.group, r.section, r.of, r.metric): f"{number(r.value)} ({ends(r)})" for r in own.itertuples()}
    names = [name for name, key in _OF_GROUPS.items() if any(k[1:] == key for k in cells)]
    rows: list[list[Any]] = []
    for group, part in own.groupby("group", sort=False):
        first = part.iloc[0]
        small = " (small)" if first["small"] else ""
        figures = [cells.get((group, *_OF_GROUPS[name]), "") for name in names]
        rows.append([f"{group}{small}", int(first["scans"]), int(first["patients"]), *figures])
    return [column, f"{found.source.get('level', 'scan')}s", "patients", *names], rows


def split_names(words: str | None) -> list[str] | None:
    """The names in CNV,DME; none of them in 'none', and None where nothing was given."""
    if words is None:
        return None
    return [] if words.strip().casefold() == "none" else [w.strip() for w in words.split(",") if w.strip()]


def number(value: float) -> str:
    """A figure as a table shows it."""
    return "undefined" if value != value else "unbounded" if value == float("inf") else f"{value:.3f}"


def ends(row: Any) -> str:
    """The interval of a row of figures."""
    if row.low != row.low:
        return "none"
    low = "-∞" if row.low == float("-inf") else f"{row.low:.3f}"
    return f"{low} to {'∞' if row.high == float('inf') else f'{row.high:.3f}'}"
