"""save_run: makes of a Learner that was trained in a notebook the run folder that `octfast train` leaves."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import torch
from fastai.learner import Learner
from torch import Tensor, nn

from octfast.data.prepare import Prepared
from octfast.data.scans import write_csv
from octfast.data.units import one
from octfast.errors import OctfastError, UsageError
from octfast.model.arch import find_arch
from octfast.model.bundle.build import empty_network, filled
from octfast.model.bundle.info import BundleInfo
from octfast.model.heads import HEADS
from octfast.model.weights.load import WeightsReport
from octfast.run.folder import Run, new_run, set_latest
from octfast.run.log import run_log
from octfast.run.state import training_state
from octfast.train.callbacks import EpochLog
from octfast.train.config import TrainConfig
from octfast.train.frozen.frozen import FrozenLearner
from octfast.train.frozen.part import knows_valid
from octfast.train.learner import OctParts, bundle_info
from octfast.train.outcome.outcome import leave_results, removed_on_failure, save_scan_tables, surroundings

log = logging.getLogger("octfast")

# What config.json says of a run in `made_by` that no command can make again.
MADE_BY = "save_run"


def save_run(learn: Learner, path: str | Path) -> Run:
    """Make a run folder of a trained Learner, so that every command that takes a run takes it.

    The model, its predictions of validation and test, and its calibration are written as by `octfast train`. Of how the
    Learner was trained the epochs alone are known, and the run says so.

        save_run(learn, "runs/mine")

    Parameters
    ----------
    learn : of `oct_learner`, `frozen_learner`, `unit_learner`, `Predictor.to_learner` or fastai's `vision_learner`, its
        DataLoaders of `oct_dataloaders`; trained in whatever way. That of `unit_learner` itself is to be given, as the
        heads of its folds judge the volumes, eyes or patients. A head of your own will do where it computes what one of
        octfast's heads does.
    path : a new folder, or an empty one.

    Returns
    -------
    The run.

    Raises
    ------
    UsageError : the folder is taken; the DataLoaders are not those of `oct_dataloaders`; or a bundle cannot hold the
        model, as it is none of a known network with one of octfast's heads; or it answers for units, or has learned
        from the validation scans, and no heads of folds are there to judge it.
    DataError : validation cannot be read.
    """
    whole = learn.whole if isinstance(learn, FrozenLearner) else learn
    prepared = getattr(whole.dls, "prepared", None)
    if not isinstance(prepared, Prepared):
        raise UsageError(
            "the scans, patients and splits of this Learner are not known: its DataLoaders are not of oct_dataloaders",
            "learn.dls = oct_dataloaders(...) of the same scans, then save_run(learn, ...) again",
        )
    held = _held(whole)
    _refuse_unjudged(learn, whole)
    given = Path(path).expanduser().is_dir()
    try:
        run = new_run(path, "")
    except UsageError as e:
        raise UsageError(e.message, "give another folder; nothing is ever overwritten") from None
    with run_log(run.path / "log.txt") as notes:
        notes.extend(whole.dls.notes)
        with removed_on_failure(run, keep_folder=given):
            rows = _history(learn, whole)
            about = {**_about(learn, whole, held, rows), **surroundings(prepared, held, None), "notes": notes}
            save_scan_tables(run, prepared)
            write_csv(rows, run.path / "history.csv")
            with training_state(run, about):
                trainee = _trainee(learn, held) if held.model is whole.model else held
                kept = leave_results(run, held, trainee, prepared, about, "auto")
                if kept is not prepared:
                    save_scan_tables(run, kept)
                    about.update(surroundings(kept, held, None))
        set_latest(run)
    return run


def _held(whole: Learner) -> Learner:
    """What a bundle holds of a Learner: its model, as the network that the bundle names, its DataLoaders and parts."""
    arch, weights = _origin(whole)
    own = getattr(whole, "oct", None)
    tensors = list(whole.model.state_dict().values())
    heads = [*([own.head] if own else []), *(h for h in HEADS if own is None or h != own.head)]
    for head in heads:
        of_units = {} if own is None else {"level": own.level, "pooling": own.pooling}
        held = SimpleNamespace(dls=whole.dls, oct=OctParts(find_arch(arch), head, weights, **of_units))
        try:
            model = _rebuilt(tensors, bundle_info(cast(Learner, held)))
        except OctfastError:
            continue
        if model is not None and _agree(whole, model):
            held.model = whole.model if list(whole.model.state_dict()) == list(model.state_dict()) else model
            return cast(Learner, held)
    raise UsageError(
        f"a bundle cannot hold this model: it is not {arch} with one of the heads {', '.join(HEADS)}",
        "train one of these: oct_learner(dls, arch, head=...); or keep it in fastai's own way: learn.export()",
    )


def _refuse_unjudged(learn: Learner, whole: Learner) -> None:
    """Refuse a model that only heads of folds can judge, without these; where they can be used `check` says."""
    own = getattr(whole, "oct", None)
    if own is None or own.level == "scan":
        if not knows_valid(whole):
            return
        if not isinstance(learn, FrozenLearner) or learn.folds is None:
            raise UsageError(
                "this model has learned from its validation scans too, beside the heads of folds that judge it",
                "give what frozen_learner(learn, folds=...) returned, and not the Learner that was given to it",
            )
        learn.check()
        return
    if not isinstance(learn, FrozenLearner) or learn.units is None:
        raise UsageError(
            f"this Learner answers for {one(own.level)}, and the heads that judge it are not here",
            "give what unit_learner(...) returned, and not the Learner that was given to it",
        )
    learn.check()


def _origin(whole: Learner) -> tuple[str, WeightsReport]:
    """The network that a model was cut from, and its weights."""
    own = getattr(whole, "oct", None)
    if own is not None:
        return own.arch.name, own.weights
    # vision_learner keeps what it was given.
    arch = getattr(whole, "arch", None)
    name = arch if isinstance(arch, str) else getattr(arch, "__name__", "")
    if not name:
        raise UsageError(
            "it is not known which network this model was cut from",
            "make the Learner with oct_learner, or with fastai's vision_learner",
        )
    pretrained = bool(getattr(whole, "pretrained", False))
    return name, WeightsReport("cache", f"fastai's weights of {name}") if pretrained else WeightsReport("none")


def _rebuilt(tensors: list[Tensor], info: BundleInfo) -> nn.Sequential | None:
    """The network that a bundle names with these tensors, in their order; None where their shapes are others."""
    empty = empty_network(info)
    wanted = empty.state_dict()
    if [t.shape for t in wanted.values()] != [t.shape for t in tensors]:
        return None
    return filled(empty, info, {n: t.detach().cpu().clone() for n, t in zip(wanted, tensors, strict=True)})


@torch.no_grad()
def _agree(whole: Learner, model: nn.Sequential) -> bool:
    """Whether a network computes for some validation scans what the Learner's model does."""
    x = whole.dls.valid.one_batch()[0][:4].as_subclass(Tensor)
    training = {m: m.training for m in whole.model.modules()}
    expected = whole.model.eval().float()(x.to(next(whole.model.parameters()).device)).float().cpu()
    for module, state in training.items():
        module.training = state
    found = model(x.cpu())
    return found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-3 * (1 + expected.abs().max()))


def _trainee(learn: Learner, held: Learner) -> Learner:
    """The Learner whose stored activations spare a pass over the scans, if it still has them."""
    if isinstance(learn, FrozenLearner):
        try:
            learn.check()
            return learn
        except UsageError as e:
            log.info("the scans are predicted anew: %s", e.message)
    return held


def _history(learn: Learner, whole: Learner) -> pd.DataFrame:
    """A row an epoch, as far as the Learner knows them."""
    for each in (learn, whole):
        for kept in each._grab_cbs(EpochLog):
            if kept.rows:
                return pd.DataFrame(kept.rows)
    rows = list(_recorded(learn))
    if rows:
        log.warning("the history is that of the last fit: the Learner keeps no other")
        return pd.DataFrame(rows)
    log.warning("no history: the Learner does not know the epochs that it was trained in")
    return pd.DataFrame(columns=["epoch", "train_loss", "valid_loss"])


def _recorded(learn: Learner) -> Iterator[dict[str, Any]]:
    recorder = getattr(learn, "recorder", None)
    names = list(getattr(recorder, "metric_names", []))[1:]
    if recorder is None or not {"train_loss", "valid_loss"} <= set(names):
        return
    for epoch, values in enumerate(recorder.values, 1):
        # Validating leaves a row, too, without the loss of training.
        if len(values) == len([n for n in names if n != "time"]):
            yield {"epoch": epoch, **{n: v for n, v in zip(names, values, strict=False) if n != "time"}}


def _about(learn: Learner, whole: Learner, held: Learner, rows: pd.DataFrame) -> dict[str, Any]:
    """What config.json says of a training of which little is known."""
    info = bundle_info(held)
    frozen = learn if isinstance(learn, FrozenLearner) else None
    body = list(whole.model[0].parameters())
    trained = sum(p.requires_grad for p in body)
    return {
        **{each.name: None for each in fields(TrainConfig)},
        "made_by": MADE_BY,
        "level": info.level,
        "pooling": None if info.pooling is None else info.pooling["kind"],
        "top_k": None if info.pooling is None else info.pooling.get("k"),
        "arch": info.arch,
        "head": info.head,
        "size": info.size,
        "fit": info.fit,
        "bs": whole.dls.train.bs,
        "epochs": len(rows),
        "unfreeze": "head" if not trained else "all" if trained == len(body) else "block5",
        "views": frozen.stores[0].shape[1] if frozen else 0,
        "engine": "auto",
        "precision": "auto",
        "format": "png",
        "dpi": 120,
        "chosen": {
            "bs": whole.dls.train.bs,
            "device": str(whole.dls.device),
            "precision": frozen.engine.precision if frozen else None,
            "folds": int(frozen.folds.max()) + 1 if frozen and frozen.folds is not None else 0,
        },
    }
