"""How long a training takes on this machine, measured on a few scans, and what would make it shorter."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch
from fastai.learner import Learner
from torch import Tensor, nn

from octfast.model.engine import Engine, half_where_fast, one_thread
from octfast.processes import current
from octfast.train.config import TrainConfig
from octfast.train.frozen.dealt import run_blocks
from octfast.train.frozen.draws import seeded
from octfast.train.frozen.folds import FoldHeads
from octfast.train.frozen.frozen import Frozen, Unpack, convolves
from octfast.train.frozen.views import Views
from octfast.train.outcome.quality import MOST_SCANS
from octfast.train.parallel.beside import sharing

log = logging.getLogger("octfast")

# Seconds after which the time is said, of what it must be above to be said, and above which shorter ways are named.
SAY_AFTER, WORTH_SAYING, LONG = 4.0, 20.0, 300.0
# Around a step, fastai's loop and the reading of stored rows take about half as long again as small heads compute.
_LOOP = 1.5
# So many scans of 224 x 224 in all epochs are done before a measurement would say so.
_FEW = 500
# Steps of a search for a learning rate.
_RATE_STEPS = 100
# Seconds that figures, calibration, distance and tables take, however many scans there are.
TAIL = 5.0
# Where both were measured, int8 by OpenVINO ran so many times as fast as bf16 (docs/performance.md).
_INT8 = 3.0


@dataclass(frozen=True)
class Pace:
    """Seconds a scan on this machine.

    Attributes
    ----------
    read : to read and prepare it.
    view : to run a view of it through the frozen part, or for a prediction through the whole.
    learn : to learn from it once, with all heads of folds; what reading it anew takes is not in it.
    judge : to judge it once.
    folds : of what one process takes to train the folds of the last block, the share that all of them take.
    """

    read: float
    view: float
    learn: float
    judge: float
    folds: float = 1.0


@dataclass(frozen=True)
class Scans:
    """How many scans a training is of, and how many of them are not stored yet."""

    train: int
    valid: int
    test: int
    new_train: int
    new_valid: int


@dataclass(frozen=True)
class Times:
    """Seconds of the parts of a training."""

    frozen: float
    epochs: float
    test: float
    rest: float

    @property
    def all(self) -> float:
        return self.frozen + self.epochs + self.test + self.rest


def times(pace: Pace, scans: Scans, config: TrainConfig, bs: int) -> Times:
    """What the parts of a training take.

    Parameters
    ----------
    config : of which views, epochs, folds, rate and what is trained count.
    bs : scans a batch.
    """
    n, v, epochs, folds = scans.train, scans.valid, config.epochs, config.chosen_folds
    once = pace.read + pace.view
    frozen = scans.new_train * (pace.read + config.views * pace.view) + scans.new_valid * once
    search = _RATE_STEPS * bs * pace.learn if config.lr is None else 0.0
    if config.unfreeze == "all" or not config.views:
        # The rate is sought on stored features, and the distance to the training scans is of features too.
        frozen = 2 * (n + v) * once if config.lr is None else (n + v) * once
        learned = epochs * n * (pace.read + pace.learn) + epochs * v * (pace.read + pace.judge)
        if config.unfreeze == "all":
            learned += n * (pace.read + 2 * pace.judge) + v * (pace.read + pace.judge)
            search = 0.0
    elif config.unfreeze == "block5":
        half, both = -(-epochs // 2), n + v
        if folds:
            # Each fold learns from the others' scans and is judged by its own; the model itself learns from all.
            apart = pace.folds * ((folds - 1) * pace.learn + pace.judge)
            learned = half * both * (apart + pace.learn) + both * pace.judge
        else:
            learned = half * (n * pace.learn + v * pace.judge) + n * pace.judge
        search = 0.0
    else:
        learned = epochs * ((n + v) * (pace.learn + pace.judge) if folds else n * pace.learn + v * pace.judge)
    rest = TAIL + min(MOST_SCANS, n + v) * pace.read
    return Times(frozen, learned + search, scans.test * once, rest)


def measured(frozen: Frozen, config: TrainConfig, folds: int, bs: int) -> Pace:
    """The pace of a training on stored activations, by a few scans from all over the training set.

    Nothing of it is kept, and what follows draws the same random numbers as without it.
    """
    source = frozen.sources[0]
    with seeded(0), torch.no_grad():
        rows = np.linspace(0, len(source) - 1, min(len(source), 4 * source.block)).astype(int)
        wanted = [rows[i : i + source.block] for i in range(0, len(rows), source.block)]
        one = _seconds_each(frozen, source, wanted)
        read = _seconds(lambda: source.decode(wanted[0].tolist())) / len(wanted[0])
    learn, judge = _of_the_part(frozen, folds, bs, config.precision)
    group = current()
    share = group.size if group is not None and isinstance(frozen.runner, Engine) else 1
    view = max(one - read, one / 10) / source.views / share
    return Pace(read / share, view, learn, judge, share_of_folds(folds))


def share_of_folds(folds: int) -> float:
    """The time of so many folds, dealt to the processes that work together, in that which one process takes."""
    group = current()
    return 1.0 if group is None or not folds else -(-folds // group.size) / folds


def measured_whole(learn: Learner, config: TrainConfig) -> Pace:
    """The pace of a training that reads scans anew in each epoch, by a step of a copy of the model."""
    device = torch.device(learn.dls.device or "cpu")
    with seeded(0):
        source = Views(learn.dls.train, 1, config.seed, device, 1)
        rows = list(range(min(len(source), 4 if device.type == "cpu" else source.block)))
        read = _seconds(lambda: source.augment(source.decode(rows), rows)) / source.block
        x = source.augment(source.decode(rows), rows)[0][: len(rows)]
        model = copy.deepcopy(learn.model).to(device)
        if config.unfreeze == "all":
            model.requires_grad_(True)
        targets = torch.zeros(len(x), dtype=torch.long, device=device)
        step = _seconds(lambda: _step(model.train(), (x,), learn.loss_func, targets))
        model.eval()
        with torch.no_grad():
            forward = _seconds(lambda: _wait(model(x)))
    # What is frozen runs folded and in lower precision elsewhere; this is the most that it takes.
    group = sharing(config)
    each = len(x) * (1 if group is None else group.size)
    return Pace(read * len(x) / each, forward / each, step / each, forward / each)


def _seconds_each(frozen: Frozen, source: Views, wanted: Sequence[np.ndarray]) -> float:
    """Seconds a scan, without the first block, which warms up; on a slow machine that block tells enough."""
    done, began = 0, time.perf_counter()
    with closing(run_blocks(source, frozen.runner, [rows.tolist() for rows in wanted])) as blocks:  # type: ignore[type-var]
        for place, rows in enumerate(wanted):
            next(blocks)
            now = time.perf_counter()
            if place == 0:
                first, began = now - began, now
                if len(wanted) == 1 or first > SAY_AFTER:
                    return first / len(rows)
                continue
            done += len(rows)
            if now - began > 2:
                break
    return (time.perf_counter() - began) / done


def _of_the_part(frozen: Frozen, folds: int, bs: int, precision: str) -> tuple[float, float]:
    """Seconds a scan of a step of what is trained, and of judging, by a copy."""
    device = frozen.sources[0].device
    part = nn.Sequential(*copy.deepcopy(frozen.suffix)).to(device)
    block = convolves(part)
    unpack, bs = Unpack(frozen.shapes), min(bs, 16) if block else bs
    with seeded(0):
        x = torch.rand(bs, sum(int(np.prod(s)) for s in frozen.shapes), device=device)
        fold = torch.arange(bs) % max(folds, 1)
        model = nn.Sequential(unpack, part) if block or not folds else FoldHeads(unpack, part, folds).to(device)
        given = (x, fold) if isinstance(model, FoldHeads) else (x,)
        context = (half_where_fast if block and precision != "fp32" else one_thread) if device.type == "cpu" else None
        step = _seconds(lambda: _step(model.train(), given, None, None), context)
        model.eval()
        with torch.no_grad():
            forward = _seconds(lambda: _wait(model(*given)), context)
    loop = 1.0 if block else _LOOP
    return loop * step / bs, loop * forward / bs


def _step(model: nn.Module, given: Sequence[Tensor], loss: Callable | None, targets: Tensor | None) -> None:
    out = model(*given)
    (out.float().square().mean() if loss is None else loss(out, targets)).backward()
    model.zero_grad()
    _wait(out)


def _wait(out: Tensor | tuple[Tensor, ...]) -> None:
    """Wait until a GPU has computed it."""
    (out[0] if isinstance(out, tuple) else out).sum().item()


def _seconds(work: Callable[[], object], context: Callable | None = None) -> float:
    """The shorter time of two runs after one that warms up, or of the first where that is long."""
    found = []
    for _ in range(3):
        began = time.perf_counter()
        if context is None:
            work()
        else:
            with context():
                work()
        found.append(time.perf_counter() - began)
        if found[0] > 2:
            break
    return min(found)


class Expected:
    """Says, as the frozen part has run for a few seconds, how long the training will take, and what would be shorter.

    Parameters
    ----------
    splits : how many scans each split has.
    folds : heads of a cross-validation.
    bs : scans a batch.
    """

    def __init__(self, config: TrainConfig, splits: dict[str, int], folds: int, bs: int):
        self.config, self.splits, self.folds, self.bs = config, splits, folds, bs
        self.said = False

    def follow(
        self, frozen: Frozen, source: Views, wanted: Sequence[np.ndarray], made: Iterator[np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Give on what is computed, and say once how long all will take."""
        began, done, warm = time.perf_counter(), 0, 0.0
        new = sum(map(len, wanted))
        with closing(made):  # type: ignore[type-var]
            for rows, values in zip(wanted, made, strict=True):
                now = time.perf_counter()
                if not warm:
                    warm = now
                else:
                    done += len(rows)
                if not self.said and done and now - began > SAY_AFTER:
                    self.said = True
                    self._say(frozen, source, new, (now - warm) / done, wanted[0])
                yield values

    def say_whole(self, learn: Learner) -> None:
        """Say how long a training will take that reads scans anew in each epoch, before it begins."""
        n, v = len(learn.dls.train_ds), len(learn.dls.valid_ds)
        if self.said or n * self.config.epochs * (self.config.size / 224) ** 2 < _FEW:
            return
        self.said = True
        pace = measured_whole(learn, self.config)
        say(pace, Scans(n, v, self.splits.get("test", 0), n, v), self.config, self.bs, "")

    def _say(self, frozen: Frozen, source: Views, new: int, one: float, rows: np.ndarray) -> None:
        training = source is frozen.sources[0]
        n, v = (len(s) for s in frozen.sources)
        if one * new < WORTH_SAYING / 4:
            return
        with seeded(0):
            read = min(_seconds(lambda: source.decode(rows.tolist())) / len(rows), one / 2)
        learn, judge = _of_the_part(frozen, self.folds, self.bs, self.config.precision)
        pace = Pace(read, (one - read) / source.views, learn, judge, share_of_folds(self.folds))
        # How much of validation is stored is not known yet: as much as of training is likely.
        scans = Scans(n, v, self.splits.get("test", 0), *((new, round(v * new / n)) if training else (0, new)))
        say(pace, scans, self.config, self.bs, frozen.runner.precision)


def say(pace: Pace, scans: Scans, config: TrainConfig, bs: int, precision: str) -> None:
    """Say how long a training will take, and where that is long what would make it shorter, with numbers."""
    took = times(pace, scans, config, bs)
    if took.all < WORTH_SAYING:
        return
    log.info("%s", in_words(took, scans, config))
    if took.all > LONG and config.minutes is None:
        log.info("shorter would be: %s", "; ".join(shorter(pace, scans, config, bs, precision)))


def in_words(took: Times, scans: Scans, config: TrainConfig) -> str:
    """The time in a sentence, with what it is of."""
    if config.unfreeze == "all" or not config.views:
        epochs = config.epochs + (config.unfreeze == "all")
        return f"about {span(took.all)} for {epochs} epochs of {scans.train:,} scans, read anew in each"
    views = f" x {config.views} views" if config.views > 1 else ""
    less = scans.train - scans.new_train
    stored = f", less {less:,} that are stored already" if less else ""
    parts = [f"{span(took.frozen)} the frozen part", f"{span(took.epochs)} {config.epochs} epochs"]
    parts += [f"{span(took.test)} {scans.test:,} test scans"] if scans.test else []
    return f"about {span(took.all)} for {scans.train:,} training scans{views}{stored}: {', '.join(parts)}"


def shorter(pace: Pace, scans: Scans, config: TrainConfig, bs: int, precision: str) -> list[str]:
    """What would make a training shorter, each with the time that it would then take."""
    found = []

    def add(option: str, other: TrainConfig, pace: Pace = pace, scans: Scans = scans, why: str = "") -> None:
        found.append(f"{option} (about {span(times(pace, scans, other, bs).all)}{why})")

    anew = replace(scans, new_train=scans.train, new_valid=scans.valid)
    if config.unfreeze == "all" or not config.views:
        # What is trained on stored activations takes about one epoch without the way back.
        few = replace(config, unfreeze="head", views=1, augment="default", folds=None)
        add("--unfreeze head --views 1", few, replace(pace, learn=1e-4, judge=1e-4), anew)
        if config.epochs > 3:
            add("--epochs 3", replace(config, epochs=3))
    elif config.views > 1:
        add("--views 1", replace(config, views=1, augment="default"), scans=anew)
    if torch.cuda.is_available() is False and config.views and config.unfreeze != "all" and precision != "int8":
        faster = _INT8 if precision == "bf16" else 2 * _INT8
        why = f", were it {faster:.0f} times as fast as {precision} here"
        why += "" if find_spec("nncf") else "; needs pip install 'octfast[openvino]'"
        add("--precision int8", config, replace(pace, view=pace.view / faster), anew, why)
    if config.size > 160:
        share = (160 / config.size) ** 2
        small = replace(pace, **{name: share * getattr(pace, name) for name in ("view", "learn", "judge")})
        if config.unfreeze == "head" and config.views:
            small = replace(small, learn=pace.learn, judge=pace.judge)
        add("--size 160", config, small, anew, ", which sees less")
    found.append("--minutes 5 (as many of the scans as fit)")
    if not torch.cuda.is_available():
        found.append("a GPU")
    return found


def span(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
