"""What a training leaves: the model, its calibration, and predictions of scans that it did not learn from."""

from __future__ import annotations

import logging
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.learner import Learner
from fastcore.basics import noop

from octfast.console import track
from octfast.data.phantom.draw import is_synthetic
from octfast.data.prepare import Prepared
from octfast.data.scans import describe_scans, save_scans
from octfast.data.units import units_of
from octfast.errors import DataError
from octfast.figure import Files
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import save_bundle
from octfast.model.device import describe_device
from octfast.model.fit_aggregation import keep_aggregations
from octfast.model.forward import headline, predict_scans, predictions_table
from octfast.model.temperature import calibrate_bundle, rescale
from octfast.model.units import predict_units, unit_tables
from octfast.notices import SYNTHETIC_NOTE
from octfast.run.folder import FOLD, REMINDER, Run
from octfast.run.origin import fingerprint, git_state, versions
from octfast.train.frozen.frozen import FrozenLearner
from octfast.train.learner import bundle_info
from octfast.train.leave_out import with_readable
from octfast.train.outcome.distance import keep_distance
from octfast.train.outcome.quality import keep_quality
from octfast.train.plots import plot_history

log = logging.getLogger("octfast")


def leave_results(
    run: Run, learn: Learner, trainee: Learner, prepared: Prepared, about: dict[str, Any], precision: str
) -> Prepared:
    """Write the model, calibrate it, and write its predictions of the scans that are held out, with their figures.

    Parameters
    ----------
    learn : the whole Learner.
    trainee : the Learner that was fitted, which may be of stored activations.
    about : as config.json has it.

    Returns
    -------
    The scans without those that could not be read any more.

    Raises
    ------
    DataError : validation cannot be read any more.
    """
    info = _save_model(run, learn, about, prepared.scans)
    held_out, prepared = with_readable(
        lambda p: _held_out(trainee, learn, p.scans, info, precision), prepared, ("valid",)
    )
    info = calibrate_bundle(run.bundle, held_out)
    info = keep_distance(run, trainee, learn, prepared.scans, info, precision)
    info = keep_quality(run, prepared.scans, info)
    held_out = rescale(held_out, info.classes, info.temperature)
    if info.level != "scan":
        _save_scan_answers(run, _held_out_units(trainee, prepared.scans, info)[1])
    else:
        info = keep_aggregations(run.bundle, held_out, info)
    for split, table in held_out.groupby("split"):
        _save_predictions(run, table.reset_index(drop=True), str(split))
    if FOLD in held_out:
        run.write_json("metrics-folds.json", headline(held_out))
    later = about["chosen"].get("minutes", {}).get("test") == "later"
    if (prepared.scans["split"] == "test").any() and not later:
        prepared = _predict_test(run, learn, prepared, info, precision)
    _remind(learn, info)
    return prepared


@contextmanager
def removed_on_failure(run: Run, keep_folder: bool) -> Iterator[None]:
    """Remove the run folder, or what is in it, when it turns out that nothing can be written into it."""
    try:
        yield
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        if keep_folder:
            run.path.mkdir()
        raise


def surroundings(prepared: Prepared, learn: Learner, source: str | None) -> dict[str, Any]:
    """What config.json says of the scans, the weights, the software and the machine.

    Parameters
    ----------
    source : the folder or file that the scans were read from, where it is known.
    """
    return {
        "classes": {name: i for i, name in enumerate(learn.dls.vocab)},
        "data": {
            "root": str(prepared.root),
            "source": source,
            "synthetic": is_synthetic(prepared.scans),
            "fingerprint": fingerprint(prepared.scans, prepared.root),
            "corrected": None if prepared.corrected is None else asdict(prepared.corrected),
        },
        "weights_report": learn.oct.weights.to_dict(),
        "versions": versions(),
        "machine": {
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            **describe_device(torch.device(learn.dls.device or "cpu")),
        },
        "git": git_state(),
    }


def save_scan_tables(run: Run, prepared: Prepared) -> None:
    """Write scans.csv, and left-out.csv where scans were left out."""
    save_scans(prepared.scans, run.path / "scans.csv", prepared.root)
    if len(prepared.left_out):
        save_scans(prepared.left_out, run.path / "left-out.csv", prepared.root)


def _save_model(run: Run, learn: Learner, about: dict[str, Any], scans: pd.DataFrame) -> BundleInfo:
    """Write the bundle and the figure of the history; `about` : as config.json has it."""
    synthetic = about["data"]["synthetic"]
    training = {
        "seed": about["seed"],
        "epochs": about["chosen"].get("epochs", about["epochs"]),
        "scans": describe_scans(scans).to_dict("index"),
        "versions": about["versions"],
    }
    info = bundle_info(learn, training=training, synthetic=synthetic)
    save_bundle(run.path / "model", learn.model, info)
    title = "synthetic phantoms" if synthetic else Path(about["data"]["source"] or about["data"]["root"]).name
    history = run.history
    if history["valid_loss"].notna().any():
        files = Files(about["format"], about["dpi"])
        files.save(plot_history(history, f"{about['arch']}, {title}"), run.figures / "history")
    return info


def _predict(learn: Learner, scans: pd.DataFrame, info: BundleInfo, precision: str) -> pd.DataFrame:
    """The Predictions table of scans of one split."""
    with track(f"predicting {scans['split'].iloc[0]}", len(scans)) as update:
        return predict_scans(learn.model, info, scans, precision=precision, device=learn.dls.device, progress=update)


def _held_out(trainee: Learner, learn: Learner, scans: pd.DataFrame, info: BundleInfo, precision: str) -> pd.DataFrame:
    """The Predictions table of validation, or of training and validation by the heads of their folds."""
    if info.level != "scan":
        return _held_out_units(trainee, scans, info)[0]
    valid = scans[scans["split"] == "valid"]
    if not isinstance(trainee, FrozenLearner):
        return _predict(learn, valid, info, precision)
    if trainee.folds is None:
        # Their activations are stored, so that they need no forward pass.
        with trainee.no_bar(), trainee.no_logging():
            outputs, _ = trainee.get_preds(act=noop)
        return predictions_table(valid, outputs.float().cpu().numpy(), info.classes)
    both = pd.concat([scans[scans["split"] == "train"], valid]).assign(**{FOLD: trainee.folds})
    return predictions_table(both, trainee.out_of_fold(), info.classes)


def _held_out_units(trainee: Learner, scans: pd.DataFrame, info: BundleInfo) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The Predictions table of training and validation units by the heads of their folds, and that of their scans."""
    assert isinstance(trainee, FrozenLearner) and trainee.units is not None
    both = pd.concat([scans[scans["split"] == s] for s in ("train", "valid")], ignore_index=True)
    both = both.assign(**{FOLD: trainee.folds})
    units = units_of(both, info.level, keep=[FOLD])
    assert info.pooling is not None
    return unit_tables(both, units, trainee.out_of_fold(), info.classes, info.pooling, info.temperature)


def _predict_test(run: Run, learn: Learner, given: Prepared, info: BundleInfo, precision: str) -> Prepared:
    """Predict the test scans; gives what is left of all scans."""

    def predict(prepared: Prepared) -> pd.DataFrame:
        scans = prepared.scans[prepared.scans["split"] == "test"].reset_index(drop=True)
        if info.level == "scan":
            return _predict(learn, scans, info, precision)
        with track("predicting test", len(scans)) as update:
            given: dict[str, Any] = {"precision": precision, "device": learn.dls.device, "progress": update}
            table, each = predict_units(learn.model, info, scans, **given)
        _save_scan_answers(run, each)
        return table

    try:
        table, prepared = with_readable(predict, given, ("test",))
    except DataError as e:
        log.warning("no predictions of test: %s; octfast evaluate makes them when they can be read", e.message)
        return given
    _save_predictions(run, table, "test")
    return prepared


def _save_predictions(run: Run, table: pd.DataFrame, split: str) -> None:
    run.save_predictions(table, split)
    run.write_json(f"metrics-{split}.json", headline(table))


def _save_scan_answers(run: Run, each: pd.DataFrame) -> None:
    """Write how each scan of a unit counted, a file a split."""
    for split, rows in each.groupby("split"):
        save_scans(rows.reset_index(drop=True), run.scan_answers_file(str(split)), run.root)


def _remind(learn: Learner, info: BundleInfo) -> None:
    """Say once more at the end what makes this model worth little."""
    reminder = {"kind": REMINDER}
    if learn.oct.weights.source == "none":
        words = "remember: the body of this model is untrained; with pretrained weights it would do better"
        log.warning(words, extra=reminder)
    if info.synthetic:
        log.warning("remember: %s", SYNTHETIC_NOTE, extra=reminder)
