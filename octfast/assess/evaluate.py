"""Judge a run on one of its splits, or a trained model on other scans, and keep the metrics as metrics-<split>.json."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.assess.at_level import at_level, check_level_asked, levels_of
from octfast.assess.metrics.metrics import Evaluation, check_question, evaluate_table
from octfast.assess.metrics.paired import against_mean
from octfast.assess.metrics.referral import (
    SENSITIVITY,
    OperatingPoint,
    check_sensitivity,
    fix_operating_point,
    recorded_operating_point,
)
from octfast.assess.metrics.subgroups import grouped
from octfast.assess.predictions import held_out_predictions, readable_scans, run_predictions
from octfast.console import track
from octfast.data.readers.read import data_folder, read_data
from octfast.data.scans import SPLITS, load_scans, save_scans
from octfast.data.units import unit_columns, with_one_label
from octfast.errors import BundleError, DataError, OctfastError, UsageError
from octfast.model.aggregation import aggregation_of
from octfast.model.bundle.distance import load_distance
from octfast.model.bundle.info import INFO_FILE, BundleInfo
from octfast.model.bundle.read import load_bundle, read_info
from octfast.model.decide import urgent_classes
from octfast.model.device import find_device
from octfast.model.forward import headline, predict_scans
from octfast.model.units import predict_units
from octfast.notices import UNSEEN, Note
from octfast.run.folder import FOLD, Run, open_run
from octfast.run.privacy import within

log = logging.getLogger("octfast")

EVALUATIONS = Path("evaluations")
DATA_FILE = "data.json"
_TRAINED_ON = "these scans were trained on: the figures say nothing of new ones"


def evaluate_run(
    run: Run | str | Path | None = None,
    split: str | None = None,
    *,
    urgent: Sequence[str] | None = None,
    sensitivity: float | None = None,
    unit: str | None = None,
    device: str | None = None,
    **asked: Any,
) -> Evaluation:
    """Judge a run on a split and write metrics-<split>.json into its folder; the model runs only if it never has.

    Parameters
    ----------
    run : None takes the newest.
    split : "test", "valid" or "train"; None takes test where there is one, else valid.
    urgent : see `octfast.assess.metrics.metrics.evaluate_table`.
    sensitivity : of urgent referral, that the operating point is fixed for on validation; None takes the point that
        the bundle keeps, else one for 0.95.
    unit : "volume", "eye" or "patient" judges whole ones by what a model of scans says of theirs, see
        `octfast.assess.at_level.at_level`, and writes metrics-<split>-<level>s.json; None the model's own.
    device : that the model runs on where its predictions are not there yet; None takes a GPU where there is one.
    asked : the further parameters of `evaluate_table`.

    Raises
    ------
    OctfastError : see `run_predictions`, `at_level` and `evaluate_table`.
    """
    run = run if isinstance(run, Run) else open_run(run)
    if split is None:
        split = "test" if (run.scans["split"] == "test").any() else "valid"
        log.info("split: %s%s", split, "" if split == "test" else ", as there are no test scans")
    table, info = run_predictions(run, split, device=device)
    level = check_level_asked(unit, info)
    point, notes = operating_point(info, run, urgent, sensitivity, level)
    scans = table
    table, at, _, said = at_level(table, info, level)
    notes[:0] = said
    if split == "valid" and point:
        notes.append("The operating point was fixed on these very scans.")
    if split == "train":
        notes.append(f"{_TRAINED_ON[0].upper()}{_TRAINED_ON[1:]}.")
        log.warning(_TRAINED_ON)
    found = _paired(_evaluate(table, at, point, urgent, asked, level), scans, info, level)
    found = _with_notes(found, notes, _source(at, split, level, run=run.path.name))
    try:
        run.write_json(metrics_file(split, level, info), found.to_dict())
    except OSError as e:
        log.error("the figures could not be saved in the run folder: %s: %s", e.filename, e.strerror)
    return found


def metrics_file(split: str, level: str, info: BundleInfo) -> str:
    """The name of the file with the figures of a split; of another level than the model's that is in its name."""
    return f"metrics-{split}.json" if level == info.level else f"metrics-{split}-{level}s.json"


def evaluate_data(
    model: Run | str | Path,
    data: str | Path,
    out: str | Path | None = None,
    split: str | None = None,
    *,
    urgent: Sequence[str] | None = None,
    sensitivity: float | None = None,
    known_only: bool = False,
    precision: str | None = None,
    device: str | None = None,
    columns: dict[str, str | None] | None = None,
    unit: str | None = None,
    **asked: Any,
) -> Evaluation:
    """Judge a trained model on other scans than those it came from, in one forward pass.

    Writes predictions-<split>.csv (of units also predictions-<split>-scans.csv, how their scans counted),
    metrics-<split>.json and data.json (where the scans lie) into `out`, and left-out.csv where files cannot be read.

    Parameters
    ----------
    model : a run, its folder, or that of a bundle.
    data : what `octfast.data.readers.read.read_data` reads, with labels.
    out : a new or empty folder; None makes one, see `evaluation_folder`.
    split : of the data, or "all"; None takes test where there is one, else valid, else all.
    known_only : whether to leave out scans of classes that the model has not, rather than to refuse.
    precision : see `octfast.model.engine`; None takes the run's where it is known, else auto.
    device : see `octfast.model.device.find_device`; None takes a GPU where there is one.
    columns : `path_column` and so on, for a table.
    urgent, sensitivity, unit, asked : see `evaluate_run`.

    Raises
    ------
    DataError : scans that cannot be read, or with classes that the model has not.
    UsageError : a split that the data has not.
    """
    # What is wrong with the question is better said before the model has run.
    out = evaluation_folder(out, data)
    on = find_device(device)
    bundle, run = find_bundle_and_run(model)
    info = read_info(bundle)
    level = check_level_asked(unit, info)
    point, notes = operating_point(info, run, urgent, sensitivity, level)
    check_question(**asked)
    found = read_data(data, **(columns or {}), trainable=False)
    if level != "scan":
        unit_columns(list(found.columns), level)
    root = data_folder(data, found)
    for column in asked.get("by_group", ()):
        if column != "predicted":
            grouped(found, column)
    scans, split, said = _choose_split(found, split, data)
    scans, more = _known(scans, info, known_only)
    notes += [*said, *more]
    scans, left_out = readable_scans(scans)
    if info.level != "scan":
        scans, mixed = with_one_label(scans, info.level)
        left_out = pd.concat([left_out, mixed], ignore_index=True)
    if len(left_out):
        mixed_too = f" or their {info.level} has several labels" if info.level != "scan" else ""
        why = f"as they cannot be read{mixed_too}"
        notes.append(f"Left out, {why}: {len(left_out):,} files, listed in left-out.csv.")
    if run is not None:
        notes += _seen_before(scans, run)
    network, info = load_bundle(bundle, units=True)
    if precision is None:
        precision = run.config.get("precision", "auto") if run else "auto"
    each = None
    with track("predicting", len(scans)) as update:
        given: dict[str, Any] = {"precision": precision, "device": on, "progress": update}
        given["unlike"] = load_distance(bundle, info)
        if info.level == "scan":
            table = predict_scans(network, info, scans, **given)
        else:
            table, each = predict_units(network, info, scans, **given)
    of_scans = table
    table, at, counted, said = at_level(table, info, level)
    each = each if counted is None else counted
    notes += [*said, *_unlike_notes(table, level)]
    result = _paired(_evaluate(table, at, point, urgent, asked, level), of_scans, info, level)
    name = run.path.name if run else bundle.resolve().name
    source = _source(at, split, level, run=name, data=Path(data).resolve().name)
    result = _with_notes(result, notes, source)
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_scans(table, out / f"predictions-{split}.csv", root)
        if each is not None:
            save_scans(each, out / f"predictions-{split}-scans.csv", root)
        if len(left_out):
            save_scans(left_out, out / "left-out.csv", root)
        # Apart from the metrics, which are passed on.
        Run(out).write_json(DATA_FILE, {"root": str(root)})
        Run(out).write_json(f"metrics-{split}.json", result.to_dict())
    except OSError as e:
        raise UsageError(f"cannot write to {out}: {e.strerror or e}", "give another folder: --out FOLDER") from None
    return result


def evaluation_folder(out: str | Path | None, data: str | Path) -> Path:
    """The folder for the metrics on other scans; by default a new evaluations/<data>-<date>-<time>.

    Raises
    ------
    UsageError : it exists and is not empty.
    """
    if out is None:
        stem = re.sub(r"[^\w.-]+", "_", Path(data).resolve().stem) or "data"
        path = EVALUATIONS / f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
        n = 1
        while path.exists():
            n += 1
            path = path.with_name(f"{path.name.removesuffix(f'-{n - 1}')}-{n}")
        return path
    path = Path(out).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} exists and is not empty", "give another --out; nothing is ever overwritten")
    return path


def find_bundle_and_run(model: Run | str | Path | None) -> tuple[Path, Run | None]:
    """The folder of a bundle, and the run that it is of where that is known.

    Parameters
    ----------
    model : a run, a run folder, or a bundle; None takes the newest run.

    Raises
    ------
    BundleError : neither.
    """
    if model is None or isinstance(model, Run) or (Path(model).expanduser() / "config.json").is_file():
        run = model if isinstance(model, Run) else open_run(model)
        return run.bundle, run
    bundle = Path(model).expanduser()
    if not (bundle / INFO_FILE).is_file():
        raise BundleError(
            f"{bundle} is neither a run folder nor a trained model",
            "name first the run or the model, then the scans: octfast evaluate runs/latest DATA",
        )
    above = bundle.resolve().parent
    of_run = bundle.resolve().name == "model" and (above / "config.json").is_file()
    return bundle, open_run(above) if of_run else None


def operating_point(
    info: BundleInfo,
    run: Run | None,
    urgent: Sequence[str] | None = None,
    sensitivity: float | None = None,
    level: str | None = None,
) -> tuple[OperatingPoint | None, list[str]]:
    """The operating point of urgent referral: the bundle's, else one fixed on the run's validation scans.

    Parameters
    ----------
    level : see `evaluate_run`.

    Returns
    -------
    (None where there is neither, or no referral; what to know of it).
    """
    if sensitivity is not None:
        check_sensitivity(sensitivity)
    refer = urgent_classes(info.classes, urgent)
    if not refer:
        return None, []
    level = level or info.level
    calibration = info.calibration
    if level != info.level:
        calibration = aggregation_of(info.calibration, level, info.classes).calibration
    kept = recorded_operating_point(calibration, refer, sensitivity)
    if kept or run is None:
        return kept, []
    try:
        valid, _ = held_out_predictions(run)
    except OctfastError as e:
        return None, [f"No operating point, as there are no validation predictions: {within(run, e)}."]
    on = "out-of-fold predictions" if FOLD in valid and (valid["split"] == "train").any() else "validation"
    valid = at_level(valid, info, level)[0]
    point = fix_operating_point(valid, refer, SENSITIVITY if sensitivity is None else sensitivity, on)
    if point is None:
        return None, ["No operating point: validation has no urgent scans, or no others."]
    return point, []


def evaluation_root(folder: Path) -> Path:
    """Where the scans of an evaluation folder lay; `read_evaluation` says what is raised where it does not tell."""
    return Path(json.loads((folder / DATA_FILE).read_text(encoding="utf-8"))["root"])


def read_evaluation(folder: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The Predictions table and the metrics of an evaluation folder, as `evaluate_data` wrote them.

    Raises
    ------
    BundleError : it is none.
    """
    folder = Path(folder)
    files = sorted(folder.glob("metrics-*.json"))
    wrong = BundleError(
        f"{folder} is neither a run folder nor what octfast evaluate made", "give folders of octfast train or evaluate"
    )
    if len(files) != 1:
        raise wrong
    try:
        metrics = json.loads(files[0].read_text(encoding="utf-8"))
        split, classes = metrics["source"]["split"], metrics["classes"]
        table = load_scans(folder / f"predictions-{split}.csv", evaluation_root(folder))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, DataError):
        raise wrong from None
    if not {"predicted", "loss", *(f"p_{c}" for c in classes)} <= set(table.columns):
        raise wrong
    return table, metrics


def _evaluate(
    table: pd.DataFrame,
    info: BundleInfo,
    point: OperatingPoint | None,
    urgent: Sequence[str] | None,
    asked: dict[str, Any],
    unit: str,
) -> Evaluation:
    together = [aggregation_of(info.calibration, level, info.classes) for level in levels_of(table, info)]
    given: dict[str, Any] = {"operating_threshold": point, "aggregations": together, "unit": unit, **asked}
    with track("resampling", int(asked.get("resamples", 2000)), "resamples") as update:
        return evaluate_table(table, info.classes, urgent=urgent, progress=update, **given)


def _paired(found: Evaluation, scans: pd.DataFrame, info: BundleInfo, level: str) -> Evaluation:
    """With what putting scans together changes against their mean: at a level, or at all that were fitted.

    Parameters
    ----------
    scans : the Predictions table of the model.
    """
    if info.level != "scan":
        return found
    levels = levels_of(scans, info) if level == "scan" else [level]
    ways = [aggregation_of(info.calibration, each, info.classes) for each in levels]
    given = {key: found.settings[key] for key in ("urgent", "resamples", "seed", "level")}
    return replace(found, paired=against_mean(scans, info.classes, ways, **given))


def _with_notes(found: Evaluation, notes: Sequence[str], source: dict[str, Any]) -> Evaluation:
    return replace(found, remarks=[*(Note("", text) for text in notes), *found.remarks], source=source)


def _unlike_notes(table: pd.DataFrame, level: str = "scan") -> list[str]:
    """How much of the scans or units is unlike the training scans, and the figures without it; the log says so too."""
    if "distance" not in table:
        return []
    far = table["distance"] > 1
    patients = table.loc[far, "patient"].nunique()
    share = f"{far.sum():,} of {len(table):,} {level}s ({far.mean():.1%}), of {patients:,} patients"
    note = f"Unlike anything the model was trained on: {share}."
    if far.any():
        with_, without = headline(table), headline(table[~far]) if not far.all() else None
        note += f" octfast predict gives them no class; here they are counted. Accuracy {with_['accuracy']:.3f}, "
        note += f"loss {with_['loss']:.3f}; "
        note += (
            f"without them {without['accuracy']:.3f}, {without['loss']:.3f}." if without else "none is left without."
        )
        log.warning(note[0].lower() + note[1:-1])
    return [f"{note} {UNSEEN}"]


def _source(info: BundleInfo, split: str, level: str, **further: str) -> dict[str, Any]:
    return {
        "split": split,
        **further,
        "arch": info.arch,
        **({} if level == "scan" else {"level": level}),
        "temperature": info.temperature,
        "synthetic": info.synthetic,
    }


def _choose_split(scans: pd.DataFrame, split: str | None, data: str | Path) -> tuple[pd.DataFrame, str, list[str]]:
    there = [s for s in SPLITS if (scans["split"] == s).any()]
    if split is None:
        split = next((s for s in ("test", "valid") if s in there), "all")
        if split == "all":
            log.info("%s has no splits: all %d scans are used", Path(data).name, len(scans))
        else:
            log.info("split: %s, of %s", split, ", ".join(there))
    if split == "all":
        note = [f"All splits of the data were used: {', '.join(there)}."] if len(there) > 1 else []
        return scans, split, note
    if split not in there:
        raise UsageError(f"--split {split}: {data} has no such scans", f"it has {', '.join([*there, 'all'])}")
    return scans[scans["split"] == split].reset_index(drop=True), split, []


def _known(scans: pd.DataFrame, info: BundleInfo, known_only: bool) -> tuple[pd.DataFrame, list[str]]:
    """The scans whose class the model has, classes in the model's spelling."""
    spelled = {c.casefold(): c for c in info.classes}
    label = scans["label"].where(
        scans["label"].isin(info.classes), [spelled.get(str(v).casefold(), v) for v in scans["label"]]
    )
    changed = sorted(set(scans.loc[label != scans["label"], "label"]))
    if changed:
        log.info("taken for the model's classes, whatever their case: %s", ", ".join(changed))
    scans = scans.assign(label=label)
    strange = scans[~scans["label"].isin(info.classes)]
    if strange.empty:
        return scans, []
    counts = ", ".join(f"{c} ({n:,} scans)" for c, n in strange["label"].value_counts().items())
    if len(strange) == len(scans) or not known_only:
        raise DataError(
            f"the model has no class {counts}",
            f"it has {', '.join(info.classes)}"
            + ("" if len(strange) == len(scans) else "; to judge the others alone: --known-only"),
        )
    note = f"Left out, as the model has no such class: {counts}."
    log.warning(note[0].lower() + note[1:-1])
    return scans[scans["label"].isin(info.classes)].reset_index(drop=True), [note]


def _seen_before(scans: pd.DataFrame, run: Run) -> list[str]:
    """Notes where scans or patients played a part in training, said in the log too."""
    try:
        own = run.scans
    except OctfastError:
        return []
    n, notes = len(scans), []
    there = own.set_index("path")["split"]
    split = scans["path"].map(there[~there.index.duplicated()])
    trained, chosen = split == "train", split == "valid"
    if trained.any():
        notes.append(f"{trained.sum():,} of {n:,} scans were trained on: the figures are too good for new scans.")
    if chosen.any():
        notes.append(
            f"{chosen.sum():,} of {n:,} scans are of the run's validation, on which the epoch and the operating point "
            "were chosen: the figures are slightly too good."
        )
    # Files that lie elsewhere now, or other scans of the same people.
    others = scans[~split.isin(("train", "valid"))]
    known = others["patient"].isin(own.loc[own["split"] == "train", "patient"])
    if known.any():
        notes.append(
            f"{others.loc[known, 'patient'].nunique():,} patients of {known.sum():,} scans are called as patients that "
            "were trained on: if they are the same people, the figures are too good for new ones."
        )
    for note in notes:
        log.warning(note.removesuffix("."))
    return notes
