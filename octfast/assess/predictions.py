"""The Predictions table of a run's split, read where it was made before, else made; or of the folds of several runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from octfast.assess.checks import check_level, check_table
from octfast.console import track
from octfast.data.prepare import check_file
from octfast.data.scans import load_scans, save_scans
from octfast.errors import BundleError, DataError, UsageError
from octfast.files import in_threads
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.read import load_bundle, read_info
from octfast.model.device import find_device
from octfast.model.forward import predict_scans
from octfast.model.temperature import rescale
from octfast.model.units import predict_units
from octfast.run.folder import FOLD, Run, open_run

log = logging.getLogger("octfast")


def run_predictions(
    run: Run, split: str = "valid", temperature: float | None = None, device: str | None = None
) -> tuple[pd.DataFrame, BundleInfo]:
    """The Predictions table of a split of a run at the temperature that its model has now, and what that model is.

    Training leaves the tables of valid and test in the run folder; only where one is missing is the model run, once,
    and the table kept. Scans that cannot be read are left out and said, and the table is then not kept. A table made
    before the model was calibrated is rescaled as it is read; its file stays.

    Parameters
    ----------
    split : "valid", "test" or "train".
    temperature : to give the table at another one; 1 is uncalibrated.
    device : that the model runs on, where it does; None takes a GPU where there is one.

    Raises
    ------
    UsageError : another word, or no such device.
    DataError : the run has no scans in that split, or none of them can be read.
    BundleError : the run has no trained model, or a table that is not of it or was edited, see `check_table`.
    """
    if split not in ("train", "valid", "test"):
        raise UsageError(f"no split named {split!r}", "one of valid, test, train")
    info = read_info(run.bundle)
    table = run.predictions(split)
    if table is not None:
        file = run.predictions_file(split)
        check_table(table, _scans_of(run, split, table if info.level != "scan" else None), info.classes, file)
        check_level(table, info, file)
        return rescale(table, info.classes, temperature or info.temperature), info
    scans = run.scans
    part = scans[scans["split"] == split].reset_index(drop=True)
    if part.empty:
        there = ", ".join(sorted(scans["split"].unique()))
        raise DataError(f"the run {run.path.name} has no {split} scans", f"it has {there}")
    if split != "test" and run.config.get("chosen", {}).get("folds"):
        raise DataError(
            f"the run {run.path.name} has lost {run.predictions_file(split).name}, and its model has learned from the "
            f"{split} scans, so that its own answers for them would look too good",
            "copy the file from where the run was made, train again, or look at --split test",
        )
    on = find_device(device)
    model, info = load_bundle(run.bundle, units=True)

    def predict(scans: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        with track(f"predicting {split}", len(scans)) as update:
            precision = run.config.get("precision", "auto")
            given: dict[str, Any] = {"precision": precision, "device": on, "progress": update}
            if info.level == "scan":
                return predict_scans(model, info, scans, **given), None
            return predict_units(model, info, scans, **given)

    try:
        table, each = predict(part)
        run.save_predictions(table, split)
        if each is not None:
            save_scans(each, run.scan_answers_file(split), run.root)
    except DataError:
        fewer, left_out = readable_scans(part)
        if left_out.empty:
            raise
        # Without some scans it is no table of the split, which a later question is to find whole.
        table, _ = predict(fewer)
        log.warning("%d of %d %s scans are left out; the predictions are not kept", len(left_out), len(part), split)
    except OSError as e:
        log.warning("the predictions could not be kept for the next time: %s: %s", e.filename, e.strerror)
    return rescale(table, info.classes, temperature or info.temperature), info


def readable_scans(scans: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scans that can be read, and the rest with a column `reason`; the first of those are said in the log.

    Raises
    ------
    DataError : none can be.
    """
    reasons = []
    with track("checking files", len(scans)) as update:
        for n, (reason, _) in enumerate(in_threads(check_file, scans["path"]), 1):
            reasons.append(reason)
            update(n, len(scans))
    bad = np.array([reason != "" for reason in reasons])
    left_out = scans.assign(reason=reasons)[bad].reset_index(drop=True)
    for row in left_out.head(5).itertuples():
        log.warning("left out, unreadable: %s (%s)", row.path, row.reason)
    if len(left_out) > 5:
        log.warning("left out, unreadable: %d more", len(left_out) - 5)
    if bad.all():
        raise DataError(f"none of the {len(scans):,} files can be read", f"the first: {left_out['reason'].iloc[0]}")
    return scans[~bad].reset_index(drop=True), left_out


def scan_answers(run: Run, split: str) -> pd.DataFrame:
    """How each scan of a split counted, of a run that answers for units: `attention` and `alone_<class>` a scan.

    Raises
    ------
    OctfastError : see `run_predictions`; or the table is missing.
    """
    run_predictions(run, split)
    file = run.scan_answers_file(split)
    table = load_scans(file, run.root)
    if "attention" not in table or not pd.api.types.is_numeric_dtype(table["attention"]):
        raise BundleError(f"{file} does not say how scans counted", "train again, or give another run")
    return table


def _scans_of(run: Run, split: str, units: pd.DataFrame | None = None) -> pd.DataFrame | None:
    """The run's scans of a split, or None, and a word, where its table of scans is lost.

    Parameters
    ----------
    units : a table of units, of which the scans are given that stand for them.
    """
    if not (run.path / "scans.csv").exists():
        log.warning("%s has no scans.csv: whether predictions are of its scans cannot be checked", run.path.name)
        return None
    scans = run.scans
    scans = scans[scans["split"] == split]
    return scans if units is None else scans[scans["path"].isin(units["path"])]


def held_out_predictions(run: Run, temperature: float | None = None) -> tuple[pd.DataFrame, BundleInfo]:
    """The predictions that a run's calibration and thresholds rest on: those of scans by a head that never saw them.

    They are of all training and validation scans where the run was cross-validated, else of validation. See
    `run_predictions` for the parameter and what is raised.
    """
    table, info = run_predictions(run, "valid", temperature)
    if FOLD in table and run.predictions_file("train").exists():
        training, _ = run_predictions(run, "train", temperature)
        if FOLD in training:
            table = pd.concat([training, table], ignore_index=True)
    return table, info


def out_of_fold(runs: Sequence[Run | str | Path]) -> tuple[pd.DataFrame, tuple[str, ...], int]:
    """The validation predictions of the runs of a cross-validation, one below the other.

    Parameters
    ----------
    runs : the runs, their folders, or folders of such folders.

    Returns
    -------
    (the Predictions table, every scan predicted by a model that was not trained on its patient; the classes; the
    number of runs).

    Raises
    ------
    UsageError : fewer than two runs.
    DataError : they differ in their classes, or two hold the same patient or scan out, so that they are no folds.
    BundleError : a folder is no run, or the run is damaged.
    """
    opened = _open_all(runs)
    if len(opened) < 2:
        raise UsageError(
            "out-of-fold predictions need the runs of two folds or more", "name each: --folds RUN --folds RUN"
        )
    tables, classes = [], None
    for run in opened:
        table, info = run_predictions(run, "valid")
        if classes is None:
            classes = info.classes
        elif classes != info.classes:
            raise DataError(
                f"{run.path.name} has other classes ({', '.join(info.classes)}) than {opened[0].path.name}",
                "give the runs of one data set",
            )
        tables.append(table.assign(fold=run.path.name))
    together = pd.concat(tables, ignore_index=True)
    for what in ("path", "patient"):
        folds = together.groupby(what)["fold"].nunique()
        if (folds > 1).any():
            twice = folds.index[folds > 1][0]
            raise DataError(
                f"these runs are not the folds of one cross-validation: {what} {twice} is held out by "
                f"{folds[twice]} of them",
                "train each with --splits FILE --fold N of one octfast data split --folds",
            )
    return together, classes or (), len(opened)


def _open_all(runs: Sequence[Run | str | Path]) -> list[Run]:
    opened: dict[Path, Run] = {}
    for given in runs:
        if isinstance(given, Run):
            opened[given.path] = given
            continue
        folder = Path(given).expanduser()
        inner = [f for f in sorted(folder.iterdir()) if _is_run(f)] if folder.is_dir() and not _is_run(folder) else []
        for path in [f for f in inner if _has_ended(f)] or [folder]:
            run = open_run(path)
            opened[run.path] = run
    return list(opened.values())


def _has_ended(folder: Path) -> bool:
    """Whether a run has a trained model; of one that has none yet it is said that it is passed over."""
    if (folder / "model").is_dir():
        return True
    log.warning("passed over: %s has no trained model, its training has not ended", folder.name)
    return False


def _is_run(folder: Path) -> bool:
    file = folder / "config.json"
    try:
        return file.is_file() and isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        return False
