"""The whole of `octfast train`: from a folder of scans to a trained model in a run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.progress import ProgressCallback
from fastai.learner import Learner

from octfast import console
from octfast.console import track
from octfast.data.look import refuse_alike
from octfast.data.phantom.draw import default_phantoms
from octfast.data.prepare import Prepared, log_scans, prepare
from octfast.data.scans import SPLITS, write_csv
from octfast.data.shapes import say_shapes
from octfast.data.splits.hold_out import validation_share
from octfast.data.units import units_of
from octfast.errors import DataError, OctfastError
from octfast.figure import Files
from octfast.files import refuse_address
from octfast.launcher import out_of_sight
from octfast.model.arch import find_arch
from octfast.model.bundle.state import RUNNING, resume_command
from octfast.model.compiler import check_compiler, compile_in_place
from octfast.model.device import find_device
from octfast.model.engine import check_engine
from octfast.model.heads import check_head
from octfast.model.memory import out_of_memory
from octfast.model.pooling import scan_head
from octfast.processes import current, divided
from octfast.run.folder import Run, new_run, set_latest
from octfast.run.log import run_log
from octfast.run.origin import fingerprint
from octfast.run.state import held, training_state
from octfast.train import checkpoint
from octfast.train.assist import kinds
from octfast.train.at_level import at_level, bags_of
from octfast.train.balance import balance_callbacks, class_weights, say_rare, start_balanced
from octfast.train.block.crossval import cross_validate
from octfast.train.block.probe import HEAD_RATE, start_from_head
from octfast.train.block.trainings import Recipe
from octfast.train.build import new_dataloaders, new_learner
from octfast.train.callbacks import History, SaveBest, StopEarly, TrainBar
from octfast.train.config import TrainConfig
from octfast.train.device import computing
from octfast.train.fits import fit_as_asked
from octfast.train.frozen.dealt import share
from octfast.train.frozen.folds import draw_folds
from octfast.train.frozen.frozen import FrozenLearner, frozen_learner
from octfast.train.learner import unfreeze_to
from octfast.train.leave_out import with_readable
from octfast.train.minutes.minutes import choose, say_overrun, taken_before
from octfast.train.minutes.pace import Expected
from octfast.train.outcome.outcome import leave_results, removed_on_failure, save_scan_tables, surroundings
from octfast.train.parallel.beside import Asked, note_shared, say_shared, sharing, together
from octfast.train.past import Past, begun_with, forget_epochs
from octfast.train.plots import plot_lr_find
from octfast.train.tracker import Tracker, check_tracker, tracked

log = logging.getLogger("octfast")

# Outside of these lr_find's valley is noise of a small set, not a rate. On real scans (docs/accuracy.md) a linear head
# that starts at zero did best at 1e-3 to 2e-3; on an untrained body, whose features say less, at 2e-3 to 3e-3. A head
# of two layers hardly learns at less than 3e-3 in the few hundred steps of a small set; more would spoil a network.
_LR_RANGE = {"linear": (1e-3, 2e-3), "untrained": (2e-3, 3e-3), "head": (3e-3, 1e-2), "more": (2e-4, 1e-2)}


@divided(kinds)
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
    check_names(config)
    given = config.out is not None and Path(config.out).expanduser().is_dir()
    run = new_run(config.out, config.arch.replace("/", "_"))
    with held(run):
        return train_in(run, config, keep_folder=given)


def train_in(run: Run, config: TrainConfig, past: Past | None = None, *, keep_folder: bool = False) -> Run:
    """Train in a run folder that this process holds; `past` : what is there of a training that goes on.

    Parameters
    ----------
    keep_folder : whether the folder of a new run stays where nothing can be trained.
    """
    past, start = past or Past(), time.time()
    if (group := current()) is not None:
        group.goes_on = resume_command(run.path)
    with run_log(run.path / "log.txt") as notes, _alone(), computing(config.device, config.deterministic):
        notes.extend(past.notes)
        with removed_on_failure(run, keep_folder) if past.new else nullcontext():
            if past.new:
                # A training that is killed from here on is known for what it is, and its options.
                run.write_json("config.json", {**begun_with(config), "state": RUNNING})
            prepared, config = at_level(past.prepared or prepared_scans(config), config)
            taken = taken_before(past.about, prepared, config, again=past.new)
            prepared = prepared if taken is None else taken.prepared
            begun = time.time()
            (learn, about), prepared = with_readable(lambda p: _begun(p, config), prepared, SPLITS)
            if config.minutes is not None and taken is None:
                taken = choose(prepared, config, learn, console.began or start, time.time() - begun)
                (learn, about), prepared = with_readable(lambda p: _begun(p, config), taken.prepared, SPLITS)
            past.check(about, prepared)
        asked = config
        if taken is not None:
            about["chosen"] |= taken.chosen
            taken.save(run)
            config = taken.config(config)
            about["chosen"]["patience"] = config.chosen_patience
        about |= {"resumed": past.resumed, "notes": notes} if past.resumed else {"notes": notes}
        save_scan_tables(run, prepared)
        with training_state(run, about), tracked(run, config, about) as tracker:
            _finish(run, config, prepared, learn, about, tracker, lambda: round(past.seconds + time.time() - start, 1))
            if taken is not None:
                say_overrun(asked, past.seconds + time.time() - (console.began or start), about["chosen"]["minutes"])
            about["notes"] = list(dict.fromkeys(notes)) if past.resumed else notes
        set_latest(run)
        (run.path / "checkpoints" / checkpoint.FILE).unlink(missing_ok=True)
    return run


def _begun(prepared: Prepared, config: TrainConfig) -> tuple[Learner, dict[str, Any]]:
    """A Learner of these scans, and what config.json says before the training."""
    learn = new_learner(new_dataloaders(prepared, config), config)
    start_balanced(scan_head(learn.model[1]), _class_weights(learn, config))
    share(learn, prepared, config)
    return learn, _described(config, prepared, learn)


def _finish(
    run: Run,
    config: TrainConfig,
    given: Prepared,
    learn: Learner,
    about: dict[str, Any],
    tracker: Tracker,
    seconds: Callable[[], float],
) -> None:
    """Fit, and leave the model, its calibration and its predictions in the run folder.

    Parameters
    ----------
    about : what config.json is to say; it gets what was chosen.
    seconds : gives those that the training has taken so far.
    """

    def keep() -> None:
        about["seconds"] = seconds()
        run.write_json("config.json", about)
        tracker.epochs()

    def fit(scans: Prepared) -> tuple[Learner, Learner]:
        whole = learn
        if scans is not given:
            whole, anew = _begun(scans, config)
            # As they were asked for, and what the time was found to allow.
            asked = {name: about[name] for name in ("views", "epochs")}
            about.update({**anew, **asked, "chosen": {**about["chosen"], **anew["chosen"]}})
            save_scan_tables(run, scans)
            forget_epochs(run)
            keep()
        trainee, chosen = _fit(whole, config, run, keep)
        about["chosen"].update(chosen)
        note_shared(about)
        return whole, trainee

    (learn, trainee), prepared = with_readable(fit, given, ("train", "valid"))
    prepared = leave_results(run, learn, trainee, prepared, about, config.precision)
    if prepared is not given:
        save_scan_tables(run, prepared)
        about["data"]["fingerprint"] = fingerprint(prepared.scans, prepared.root)
    if isinstance(trainee, FrozenLearner):
        trainee.close()
    about["seconds"] = seconds()


@contextmanager
def _alone() -> Iterator[None]:
    """Take what a launcher of several processes left in the environment out of fastai's sight, and say so.

    With a RANK above 0 fastai saves nothing, and `lr_find` would leave its own ruined weights in the model.
    """
    with out_of_sight() as left:
        if left:
            words = ", ".join(f"{name}={value}" for name, value in left.items())
            log.warning("%s in the environment is ignored: octfast trains in one process", words)
        yield


def check_names(config: TrainConfig) -> None:
    """Refuse a name that is unknown before the scans are read, which may take minutes."""
    refuse_address(config.weights, "download it and give the file: --weights FILE")
    check_head(config.head, find_arch(config.arch))
    device = find_device(config.device, apple=True)
    check_engine(config.engine, config.precision, device)
    if config.compile:
        check_compiler(device)
    check_tracker(config.tracker)
    if config.valid != "folder":
        validation_share(config.valid)


def prepared_scans(config: TrainConfig) -> Prepared:
    """The scans that a training would be of, with what is to be known of them said in the log."""
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
        corrections=config.corrections,
        also=config.also,
        cache=config.cache,
        **config.columns,
    )
    refuse_alike(list(prepared.scans.loc[prepared.scans["split"] == "train", "path"]))
    log_scans(prepared.scans)
    say_shapes(prepared.scans, config.fit)
    say_rare(prepared.scans)
    return prepared


def _class_weights(learn: Learner, config: TrainConfig) -> torch.Tensor:
    """By the training scans, or units, of each class, in the order of their index."""
    table = pd.DataFrame(learn.dls.train.items)
    labels = (table if learn.oct.level == "scan" else units_of(table, learn.oct.level).table)["label"].value_counts()
    return class_weights([int(labels.get(name, 0)) for name in learn.dls.vocab], config.balance)


def _described(config: TrainConfig, prepared: Prepared, learn: Learner) -> dict[str, Any]:
    """What config.json says before the training."""
    dls = learn.dls
    about = surroundings(prepared, learn, config.data)
    about["data"]["synthetic"] |= config.data is None
    return {
        **begun_with(config),
        "chosen": {"bs": dls.train.bs, "patience": config.chosen_patience, "device": str(dls.device)},
        **about,
    }


def _fit(learn: Learner, config: TrainConfig, run: Run, kept: Callable[[], None]) -> tuple[Learner, dict[str, Any]]:
    """Fit as configured, with half the batch size again where memory is too small.

    Gives the Learner that was fitted, which is another one where the frozen part's activations are stored, and what
    was chosen. What the run folder has of epochs is gone on from.

    Parameters
    ----------
    kept : called at the end of each epoch.
    """
    past = checkpoint.read_state(run.path / "checkpoints" / checkpoint.FILE)
    if past is None:
        forget_epochs(run)
    bs = learn.dls.train.bs if past is None else past.bs
    start = {k: v.detach().clone() for k, v in learn.model.state_dict().items()}
    while True:
        for dl in learn.dls.loaders if bs != learn.dls.train.bs else ():
            dl.bs = bs
        try:
            return _fit_once(learn, config, run, bs, past, kept)
        except (RuntimeError, MemoryError, ConnectionError, EOFError) as e:
            if isinstance(e, ConnectionError | EOFError) or "DataLoader worker" in str(e):
                # torch says so by a signal as well, which may come while this is said.
                with suppress(RuntimeError):
                    time.sleep(0.2)
                raise OctfastError(
                    "a process that decodes scans was ended from outside, perhaps as memory was short",
                    "go on with one process: the command above, and --workers 0",
                ) from e
            if not out_of_memory(e):
                raise
            if bs < 4:
                raise OctfastError(
                    f"memory is too small for batches of {bs} scans of {config.size} x {config.size}",
                    f"try --bs {max(2, bs // 2)}, or --size {max(64, config.size // 2)}",
                ) from e
        bs, past = bs // 2, None
        log.warning("memory is too small for batches of %d scans: starting again with %d", 2 * bs, bs)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        learn.model.load_state_dict(start)
        forget_epochs(run)


def _fit_once(
    learn: Learner,
    config: TrainConfig,
    run: Run,
    bs: int,
    past: checkpoint.State | None,
    kept: Callable[[], None],
) -> tuple[Learner, dict[str, Any]]:
    stored = {**config.of_frozen, "bs": bs}
    whole = config.unfreeze == "all"
    if not config.views or whole:
        say_shared(config, bs)
    if whole:
        log.info("the whole network is trained: augmented anew every epoch, after one epoch of the head alone")
        unfreeze_to(learn, "head")
    trainee: Learner = learn
    precision = "fp32" if torch.device(learn.dls.device).type == "cpu" else "mixed"
    folds = _folds(learn, config)
    block = config.unfreeze == "block5"
    if config.views and not whole:
        of_folds = {"folds": None if block else folds, **bags_of(learn)}
        follow = None if config.minutes else _expected(config, run, folds, bs).follow
        trainee = fast = frozen_learner(learn, views=config.views, follow=follow, **of_folds, **stored)
        precision = fast.engine.precision
    elif past is None and config.minutes is None:
        _expected(config, run, folds, bs).say_whole(learn)
    shared = sharing(config)
    if config.compile and not isinstance(trainee, FrozenLearner):
        if shared:
            log.warning("--compile is left out: it is for what one process trains")
        else:
            compile_in_place(learn.model, torch.device(learn.dls.device))
    weights = _class_weights(learn, config)
    balanced = partial(balance_callbacks, weights, config.balance, config.loss)
    lr, epochs = config.lr, config.epochs
    chosen: dict[str, Any] = {"bs": bs, "precision": precision, "folds": 0 if folds is None else int(folds.max()) + 1}
    if shared:
        chosen["processes"] = shared.size
    if config.balance != "none":
        chosen["class_weights"] = {c: round(w, 4) for c, w in zip(learn.dls.vocab, weights.tolist(), strict=True)}
    state = run.path / "checkpoints" / checkpoint.FILE
    if block and isinstance(trainee, FrozenLearner):
        head_epochs, epochs, lr = epochs, -(-epochs // 2), lr or HEAD_RATE
        if folds is not None:
            classes = tuple(weights.tolist())
            recipe = Recipe(head_epochs, epochs, lr, config.seed, config.balance, config.loss, classes)
            cross_validate(trainee, folds, recipe, run.path, state, past, kept)
            log.info("the weights of the last epoch are kept: every scan is learned from, none is left to choose by")
            return trainee, {"lr": lr, **chosen, "best_epoch": epochs}
        if past is None:
            start_from_head(trainee, head_epochs, balanced())
    trainee.add_cbs(balanced())
    if past is not None:
        lr = past.lr
    elif lr is None:
        # The rate is sought on stored features too where they are not trained on.
        finder = trainee
        if not isinstance(trainee, FrozenLearner):
            finder = frozen_learner(learn, views=1, **stored)
            finder.add_cbs(balanced())
        lr = _find_lr(finder, run, _rate_range(learn, config), Files(config.format, config.dpi))
        if finder is not trainee:
            finder.close()
    trainee.path, trainee.model_dir = run.path, Path("checkpoints")
    cbs = [
        history := History(run.path / "history.csv"),
        best := SaveBest(run.path / "checkpoints" / "best.safetensors"),
        stop := StopEarly(patience=config.chosen_patience),
    ]
    checks = checkpoint.Checkpoint(
        state,
        past,
        history=history,
        best=best,
        stop=stop,
        lr=lr,
        bs=bs,
        kept=kept,
    )
    if past is not None:
        log.info("going on after epoch %d", len(past.rows))
    with (
        trainee.removed_cbs(trainee._grab_cbs(ProgressCallback)),
        trainee.no_logging(),
        track("training", 1, "batches", after=0, lines=False) as update,
    ):
        cbs += [checks, TrainBar(update)]
        with together(trainee, Asked(config, epochs, lr, bs, weights, past)) as beside:
            fit_as_asked(trainee, config.unfreeze, epochs, lr, checks.start_of, [*cbs, *beside])
    best_epoch = None if best.best_epoch is None else best.best_epoch + 1
    log.info("the weights of epoch %s, with the lowest validation loss, are kept", best_epoch)
    return trainee, {"lr": lr, **chosen, "best_epoch": best_epoch}


def _expected(config: TrainConfig, run: Run, folds: np.ndarray | None, bs: int) -> Expected:
    splits = run.scans["split"].value_counts().to_dict()
    return Expected(config, splits, 0 if folds is None else int(folds.max()) + 1, bs)


def _folds(learn: Learner, config: TrainConfig) -> np.ndarray | None:
    """The folds of a cross-validation; None, and why, where there is none."""
    if not config.chosen_folds:
        if config.folds is None:
            log.info(
                "no cross-validation, which is for what is trained on stored activations; %s",
                "--folds 5 trains the last block five times more"
                if config.unfreeze == "block5" and config.views
                else "the whole can be trained a fold at a time: octfast data split --folds 5, then --splits, --fold 0",
            )
        return None
    scans = pd.concat([pd.DataFrame(dl.items) for dl in (learn.dls.train, learn.dls.valid)], ignore_index=True)
    folds = draw_folds(scans, config.chosen_folds, config.seed)
    if folds is not None:
        what = f"{learn.oct.level}s"
        log.info("%d folds by patient: validation loss and accuracy are of all %s, out of fold", folds.max() + 1, what)
    elif learn.oct.level != "scan":
        raise DataError(
            f"--level {learn.oct.level}: without folds by patient there is nothing to judge it by",
            "give two patients of every class or more, or learn from each scan alone: --level scan",
        )
    return folds


def _rate_range(learn: Learner, config: TrainConfig) -> tuple[float, float]:
    if config.unfreeze != "head":
        return _LR_RANGE["more"]
    if config.head not in ("linear", "root"):
        return _LR_RANGE["head"]
    return _LR_RANGE["untrained" if learn.oct.weights.source == "none" else "linear"]


def _find_lr(learn: Learner, run: Run, allowed: tuple[float, float], files: Files) -> float:
    learn.path, learn.model_dir = run.path, Path("checkpoints")
    with learn.removed_cbs(learn._grab_cbs(ProgressCallback)), learn.no_logging():
        valley = float(learn.lr_find(num_it=50 if allowed == _LR_RANGE["more"] else 100, show_plot=False).valley)
    least, most = allowed
    lr = min(max(valley, least), most)
    held = "" if lr == valley else f", held to {least:.0e} to {most:.0e}"
    log.info("learning rate %.1e: lr_find suggests %.1e%s", lr, valley, held)
    rates = [float(v) for v in learn.recorder.lrs]
    losses = [float(v) for v in learn.recorder.losses]
    files.save(plot_lr_find(rates, losses, lr), run.figures / "lr_find")
    write_csv(pd.DataFrame({"lr": rates, "loss": losses}), run.figures / "lr_find.csv")
    return lr
