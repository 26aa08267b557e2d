"""train_classifier(config) -> Run: from a folder of scans to a trained model in a run folder."""

from __future__ import annotations

import hashlib
import logging
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import default_device
from fastcore.basics import noop

from octfast.console import track
from octfast.data.loaders import oct_dataloaders
from octfast.data.phantom.draw import default_phantoms, is_synthetic
from octfast.data.prepare import Prepared, log_scans, prepare
from octfast.data.scans import describe_scans, save_scans, write_csv
from octfast.data.splits.hold_out import validation_share
from octfast.errors import OctfastError, WeightsError
from octfast.figure import save_figure
from octfast.model.arch import find_arch
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import save_bundle
from octfast.model.engine import check_engine
from octfast.model.forward import headline, predict_scans, predictions_table
from octfast.model.heads import check_head
from octfast.model.temperature import calibrate_bundle, rescale
from octfast.notices import SYNTHETIC_NOTE
from octfast.run.folder import Run, new_run, set_latest
from octfast.train.callbacks import History, SaveBest, StopEarly, TrainBar
from octfast.train.config import TrainConfig
from octfast.train.frozen import FrozenLearner, frozen_learner
from octfast.train.learner import bundle_info, oct_learner, unfreeze_to
from octfast.train.plots import plot_history, plot_lr_find

log = logging.getLogger("octfast")

# Outside of these lr_find's valley is noise of a small set, not a rate. A head on stored features learns in the few
# hundred steps of a small set at 3e-3 to 5e-3 and hardly at less; a whole network is spoilt by so much.
_LR_RANGE = {"head": (3e-3, 1e-2), "block5": (2e-4, 1e-2), "all": (2e-4, 1e-2)}


def train_classifier(config: TrainConfig | None = None, **fields: Any) -> Run:
    """Train a classifier of B-scans as `octfast train` does.

    Parameters
    ----------
    config : every parameter; fields given by name replace the config's.

    Returns
    -------
    The run: its folder holds config.json, scans.csv, history.csv, the model, predictions and figures.

    Raises
    ------
    OctfastError : bad parameters, data or weights; the message says what to do.
    """
    config = replace(config or TrainConfig(), **fields)
    _check_names(config)
    given = config.out is not None and Path(config.out).expanduser().is_dir()
    run = new_run(config.out, config.arch.replace("/", "_"))
    with _logged(run) as notes:
        start = time.time()
        try:
            prepared = _prepared(config)
            scans, left_out, root = prepared.scans, prepared.left_out, prepared.root
            dls = oct_dataloaders(
                prepared, size=config.size, bs=config.bs, seed=config.seed, num_workers=config.workers
            )
            learn = _learner(dls, config)
        except BaseException:
            shutil.rmtree(run.path, ignore_errors=True)
            if given:
                run.path.mkdir()
            raise
        synthetic = config.data is None or is_synthetic(scans)
        save_scans(scans, run.path / "scans.csv", root)
        if len(left_out):
            save_scans(left_out, run.path / "left-out.csv", root)
        about: dict[str, Any] = {
            **config.to_dict(),
            "classes": {name: i for i, name in enumerate(dls.vocab)},
            "chosen": {"bs": dls.train.bs, "patience": config.chosen_patience, "device": str(dls.device)},
            "data": {
                "root": str(root),
                "source": config.data,
                "synthetic": synthetic,
                "fingerprint": _fingerprint(scans, root),
            },
            "weights_report": learn.oct.weights.to_dict(),
            "versions": _versions(),
            "machine": {"platform": platform.platform(), "threads": torch.get_num_threads()},
            "git": _git_state(),
            "notes": notes,
        }
        run.write_json("config.json", about)
        set_latest(run)
        learn.path, learn.model_dir = run.path, Path("checkpoints")
        trainee, chosen = _fit(learn, config, run)
        about["chosen"].update(chosen)
        training = {
            "seed": config.seed,
            "epochs": config.epochs,
            "scans": describe_scans(scans).to_dict("index"),
            "versions": about["versions"],
        }
        info = bundle_info(learn, training=training, synthetic=synthetic)
        save_bundle(run.path / "model", learn.model, info)
        title = "synthetic phantoms" if synthetic else root.name
        save_figure(plot_history(run.history, f"{config.arch}, {title}"), run.figures / "history.png")
        for split in ("valid", "test"):
            part = scans[scans["split"] == split]
            if not len(part):
                continue
            if split == "valid" and trainee is not learn:
                table = _from_stored(trainee, part, info)
            else:
                with track(f"predicting {split}", len(part)) as update:
                    table = predict_scans(
                        learn.model, info, part, precision=config.precision, device=dls.device, progress=update
                    )
            if split == "valid":
                info = calibrate_bundle(run.bundle, table)
                table = rescale(table, info.classes, info.temperature)
            run.save_predictions(table, split)
            run.write_json(f"metrics-{split}.json", headline(table))
        if isinstance(trainee, FrozenLearner):
            trainee.close()
        if learn.oct.weights.source == "none":
            log.warning("remember: the body of this model is untrained; with pretrained weights it would do better")
        if synthetic:
            log.warning("remember: %s", SYNTHETIC_NOTE)
        about["seconds"] = round(time.time() - start, 1)
        run.write_json("config.json", about)
    return run


def _check_names(config: TrainConfig) -> None:
    """Refuse a name that is unknown before the scans are read, which may take minutes."""
    check_head(config.head, find_arch(config.arch))
    check_engine(config.engine, config.precision, default_device())
    if config.valid != "folder":
        validation_share(config.valid)


def _prepared(config: TrainConfig) -> Prepared:
    if config.data is None:
        log.warning("no DATA given: training on synthetic phantoms, which show no patient")
        with track("drawing phantoms", 1) as update:
            source: str | Path = default_phantoms(cache=Path(config.cache) if config.cache else None, progress=update)
    else:
        source = config.data
    prepared = prepare(
        source,
        valid=config.valid,
        seed=config.seed,
        splits=config.splits,
        fold=config.fold,
        drop_leaks=config.drop_leaks,
        allow_leaks=config.allow_leaks,
        cache=config.cache,
        **config.columns,
    )
    log_scans(prepared.scans)
    return prepared


def _learner(dls: DataLoaders, config: TrainConfig) -> Learner:
    kwargs: dict[str, Any] = {
        "arch": config.arch,
        "head": config.head,
        "seed": config.seed,
        "unfreeze": config.unfreeze,
    }
    try:
        return oct_learner(dls, weights=config.weights, **kwargs)
    except WeightsError as e:
        if config.data is not None or config.weights != "auto":
            raise
        log.warning("%s; on phantoms an untrained body will do", e.message)
        return oct_learner(dls, weights="none", **kwargs)


def _from_stored(trainee: Learner, scans: pd.DataFrame, info: BundleInfo) -> pd.DataFrame:
    """The Predictions table of the validation scans from their stored activations, which need no forward pass."""
    with trainee.no_bar(), trainee.no_logging():
        outputs, _ = trainee.get_preds(act=noop)
    return predictions_table(scans, outputs.float().cpu().numpy(), info.classes)


def _fit(learn: Learner, config: TrainConfig, run: Run) -> tuple[Learner, dict[str, Any]]:
    """Fit as configured, with half the batch size again where a GPU's memory is too small.

    Gives the Learner that was fitted, which is another one where the frozen part's activations are stored, and what
    was chosen.
    """
    bs = learn.dls.train.bs
    start = {k: v.detach().clone() for k, v in learn.model.state_dict().items()}
    while True:
        try:
            return _fit_once(learn, config, run, bs)
        except (RuntimeError, MemoryError) as e:
            if not _out_of_memory(e):
                raise
            if torch.device(learn.dls.device).type != "cuda" or bs < 4:
                raise OctfastError(
                    f"memory is too small for batches of {bs} scans of {config.size} x {config.size}",
                    f"try --bs {max(2, bs // 2)}, or --size {max(64, config.size // 2)}",
                ) from e
        bs //= 2
        log.warning("GPU memory is too small for batches of %d scans: starting again with %d", 2 * bs, bs)
        torch.cuda.empty_cache()
        learn.model.load_state_dict(start)
        for dl in learn.dls.loaders:
            dl.bs = bs
        (run.path / "history.csv").unlink(missing_ok=True)


def _fit_once(learn: Learner, config: TrainConfig, run: Run, bs: int) -> tuple[Learner, dict[str, Any]]:
    stored: dict[str, Any] = dict(
        seed=config.seed,
        engine=config.engine,
        precision=config.precision,
        cache=config.cache,
        workers=config.workers,
        bs=bs,
    )
    whole = config.unfreeze == "all"
    if whole:
        log.info("the whole network is trained: augmented anew every epoch, after one epoch of the head alone")
        unfreeze_to(learn, "head")
    trainee: Learner = learn
    precision = "fp32" if torch.device(learn.dls.device).type == "cpu" else "mixed"
    if config.views and not whole:
        trainee = fast = frozen_learner(learn, views=config.views, **stored)
        precision = fast.engine.precision
    lr = config.lr
    if lr is None:
        # The rate is sought on stored features too where they are not trained on.
        finder = trainee if isinstance(trainee, FrozenLearner) else frozen_learner(learn, views=1, **stored)
        lr = _find_lr(finder, run, config.unfreeze)
        if finder is not trainee:
            finder.close()
    trainee.path, trainee.model_dir = run.path, Path("checkpoints")
    cbs = [
        History(run.path / "history.csv"),
        best := SaveBest(run.path / "checkpoints" / "best.safetensors"),
        StopEarly(patience=config.chosen_patience),
    ]
    with (
        trainee.removed_cbs(trainee._grab_cbs(ProgressCallback)),
        trainee.no_logging(),
        track("training", 1, "batches", after=0, lines=False) as update,
    ):
        cbs.append(TrainBar(update))
        if whole:
            trainee.fine_tune(config.epochs, lr, cbs=cbs)
        else:
            rates = slice(lr / 10, lr) if config.unfreeze == "block5" else lr
            trainee.fit_one_cycle(config.epochs, rates, cbs=cbs)
    kept = None if best.best_epoch is None else best.best_epoch + 1
    log.info("the weights of epoch %s, with the lowest validation loss, are kept", kept)
    return trainee, {"lr": lr, "bs": bs, "best_epoch": kept, "precision": precision}


def _find_lr(learn: Learner, run: Run, unfreeze: str) -> float:
    learn.path, learn.model_dir = run.path, Path("checkpoints")
    with learn.removed_cbs(learn._grab_cbs(ProgressCallback)), learn.no_logging():
        valley = float(learn.lr_find(num_it=100 if unfreeze == "head" else 50, show_plot=False).valley)
    least, most = _LR_RANGE[unfreeze]
    lr = min(max(valley, least), most)
    held = "" if lr == valley else f", held to {least:.0e} to {most:.0e}"
    log.info("learning rate %.1e: lr_find suggests %.1e%s", lr, valley, held)
    rates = [float(v) for v in learn.recorder.lrs]
    losses = [float(v) for v in learn.recorder.losses]
    save_figure(plot_lr_find(rates, losses, lr), run.figures / "lr_find.png")
    write_csv(pd.DataFrame({"lr": rates, "loss": losses}), run.figures / "lr_find.csv")
    return lr


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


@contextmanager
def _logged(run: Run) -> Iterator[list[str]]:
    """Write the log to the run's log.txt while inside; gives the warnings so far, as a list that grows."""
    notes: list[str] = []
    file = logging.FileHandler(run.path / "log.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                notes.append(record.getMessage())

    handlers: list[logging.Handler] = [file, Notes()]
    # Python shows warnings where nobody listens, as in a notebook; it would not, now that a file does.
    if not log.hasHandlers() and logging.lastResort:
        handlers.append(logging.lastResort)
    level = log.level
    if log.getEffectiveLevel() > logging.INFO:
        log.setLevel(logging.INFO)
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield notes
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
        log.setLevel(level)


def _fingerprint(scans: pd.DataFrame, root: Path) -> str:
    """A digest of every scan's place, size, label, patient and split."""
    digest = hashlib.sha256()
    for row in scans.itertuples():
        path = Path(str(row.path))
        place = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        digest.update(f"{place}\t{path.stat().st_size}\t{row.label}\t{row.patient}\t{row.split}\n".encode())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for package in ("octfast", "torch", "torchvision", "fastai", "timm", "pandas", "numpy", "pillow"):
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = "not installed"
    return out


def _git_state() -> dict[str, Any] | None:
    """Commit of the folder that the run was started in, and whether it had changes; None outside of a repository."""
    try:
        commit, status = (
            subprocess.run(["git", *words], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
        return {"commit": commit, "changed": bool(status)}
    except (OSError, subprocess.SubprocessError):
        return None
