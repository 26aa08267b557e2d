"""Held-out accuracy of the default recipe beside stock fastai's frozen learner and the recipe of before, by patient.

    python benchmarks/accuracy.py --data DATA --weights FILE            features once, then a few minutes
    python benchmarks/accuracy.py --data DATA --weights FILE --quick    within 8 minutes on two cores

Without --data it runs on phantoms, without --weights on a body of random weights. The arms, each trained anew on the
same folds by patient; scans that share a patient or a file stay together:

- stock: fastai's `vision_learner` as documented on a frozen body: its head, its augmentation anew each epoch, its rate
  and weight decay, the weights of the last epoch;
- before: octfast's recipe until November 2026: two layers, 4 augmented views, a rate of 3e-3, the best epoch on a tenth
  of the patients;
- random_start: the default's one layer, starting at random instead of at zero;
- single: the default's one layer, the last epoch;
- default: beside it the heads of five folds, which choose the epoch.

By `--arms` also `root`, the default's layer on square roots of the features, and what is done about unequal classes,
each with `single`'s layer and its paired difference to it: weights and sample (as `octfast train --balance`),
weights_full (weights by the inverse frequency instead of its root), focal (as `--loss focal`), and by_share, whose
probabilities are those of `single` divided by the frequencies of the classes.

Also by `--arms` what augmentation does (`octfast train --augment`): light, moderate (the strength named default) and
strong train the layer of `single` on `--views` augmented readings, and `single` is the row without any.

A frozen body gives the same features however often it runs, so each view of each scan runs through it once, into
octfast's store, where another run of this script finds it again. What is trained on the features is fastai's Learner.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ARMS = ("stock", "before", "random_start", "single", "default")
BALANCED = ("weights", "weights_full", "sample", "focal", "by_share", "root")
STRENGTHS = {"light": "light", "moderate": "default", "strong": "strong"}
METRICS = ("log_loss", "accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "ece")


def main() -> None:
    args = parse()
    about = common.machine()
    common.say(common.describe_machine(about))
    with common.work_folder(args.work) as work:
        scans = read(args, work)
        common.say(
            f"{len(scans)} scans of {scans['patient'].nunique()} patients: {scans['label'].value_counts().to_dict()}"
        )
        views = {}
        for name, kind, many in (
            ("stock", "stock", args.epochs),
            ("stock_plain", "stock", 1),
            ("before", "octfast", 4),
        ):
            if name.removesuffix("_plain") in args.arms:
                views[name] = extract(scans, kind, many, args)
        for name in STRENGTHS:
            if name in args.arms:
                views[name] = extract(scans, "octfast", args.views, args, STRENGTHS[name])
        views["plain"] = extract(scans, "octfast", 1, args)
    arms: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for size in [*args.sizes, None]:
        found = {arm: run_arm(arm, scans, views, args, size) for arm in args.arms}
        arms = {arm: {**summary(p, scans, args.resamples), "seconds": seconds} for arm, (p, seconds) in found.items()}
        curves["all" if size is None else str(size)] = arms
        title = "all training scans" if size is None else f"{size} training scans"
        common.print_table(
            [{"arm": a, **{m: row[m][0] for m in METRICS}, "s": row["seconds"]} for a, row in arms.items()], title
        )
    result = {"arms": arms}
    pairs = [("default", "stock"), ("default", "before"), *((arm, "single") for arm in (*BALANCED, *STRENGTHS))]
    pairs += [(arm, "moderate") for arm in ("single", "light", "strong")]
    for arm, other in pairs:
        if {arm, other} <= set(found):
            result[f"{arm}_minus_{other}"] = difference(found[arm][0], found[other][0], scans, args.resamples)
    settings = {**vars(args), "data": Path(args.data).name if args.data else "phantoms", "weights": bool(args.weights)}
    common.print_json({**result, "curves": curves, "settings": settings, "machine": about})


def read(args: argparse.Namespace, work: Path) -> pd.DataFrame:
    """The scans, thinned by whole patients to the number asked for; classes of few patients are left out."""
    from octfast.data.readers.read import read_data

    if args.data:
        columns = {f"{name}_column": getattr(args, f"{name}_column") for name in ("path", "label", "patient")}
        scans = read_data(args.data, **columns, trainable=False)
    else:
        scans = common.phantom_scans(work / "phantoms", (args.scans or 240) - 24, 24, size=args.size * 3 // 2)
    patients = scans["patient"].drop_duplicates().sample(frac=1, random_state=0)
    counted = scans.groupby("patient").size().loc[patients].cumsum()
    scans = scans[scans["patient"].isin(counted.index[counted <= (args.scans or len(scans))])]
    enough = scans.groupby("label")["patient"].nunique() >= 2 * args.folds
    if not enough.any():
        sys.exit(f"no class has scans of {2 * args.folds} patients, twice the folds")
    return scans[scans["label"].map(enough)].reset_index(drop=True)


def extract(
    scans: pd.DataFrame, kind: str, views: int, args: argparse.Namespace, strength: str = "default"
) -> np.ndarray:
    """Features of so many views of every scan, float32 of shape (views, scans, dim); one view is the plain scans."""
    import fastai.vision.all as fv
    import numpy as np
    import pandas as pd
    from torch import nn

    from octfast import frozen_learner, oct_learner
    from octfast.data.loaders import oct_datablock

    started = time.perf_counter()
    # A DataBlock wants validation scans, of which nothing is used.
    table = pd.concat([scans.assign(is_valid=False), scans.head(2).assign(is_valid=True)], ignore_index=True)
    if kind == "stock":
        root = os.path.commonpath([str(Path(p).parent) for p in table["path"]])
        dls = fv.ImageDataLoaders.from_df(
            table.assign(path=[os.path.relpath(p, root) for p in table["path"]]),
            path=root,
            fn_col="path",
            label_col="label",
            valid_col="is_valid",
            bs=16,
            num_workers=0,
            item_tfms=fv.Resize(args.size, method="squish"),
            batch_tfms=[*fv.aug_transforms(), fv.Normalize.from_stats(*fv.imagenet_stats)],
        )
    else:
        block = oct_datablock(sorted(scans["label"].unique()), args.size, augment=strength)
        dls = block.dataloaders(table, bs=16, num_workers=0)
    learn = oct_learner(dls, args.arch, head="fastai" if kind == "stock" else "linear", weights=args.weights or "none")
    if kind == "stock":
        # fastai's head pools the last map itself: that belongs to what is frozen.
        learn.model[0], learn.model[1] = nn.Sequential(learn.model[0], *learn.model[1][:2]), learn.model[1][2:]
    fast = frozen_learner(learn, views=views, precision=args.precision)
    store = fast.stores[0]
    out = np.stack([store.take(np.arange(len(store)), v) for v in range(views)]).astype(np.float32)
    fast.close()
    common.say(f"  {kind}, {strength}, {views} views of {len(scans)} scans: {time.perf_counter() - started:.0f} s")
    return out


def run_arm(
    arm: str, scans: pd.DataFrame, views: dict[str, np.ndarray], args: argparse.Namespace, size: int | None
) -> tuple[np.ndarray, float]:
    """Probabilities of each scan by models without its patient, (repeats, scans, classes), and seconds a model."""
    import numpy as np
    from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold

    from octfast.data.splits.groups import identical_files, linked_groups

    y = scans["label"].astype("category").cat.codes.to_numpy().astype(np.int64)
    groups = linked_groups(scans, identical_files(scans["path"].tolist()))
    seen = views[arm if arm in ("stock", "before", *STRENGTHS) else "plain"]
    plain = views["stock_plain" if arm == "stock" else "plain"][0]
    out = np.zeros((args.repeats, len(scans), y.max() + 1))
    started = time.perf_counter()
    for repeat in range(args.repeats):
        folds = StratifiedGroupKFold(args.folds, shuffle=True, random_state=repeat).split(y, y, groups)
        for train, test in folds:
            if size is not None and size < len(train):
                some = GroupShuffleSplit(1, train_size=size / len(train), random_state=repeat)
                train = train[next(some.split(train, groups=groups[train]))[0]]
            out[repeat, test] = fit(arm, seen, plain, y, groups, train, args.epochs, repeat)(plain[test])
    return out, round((time.perf_counter() - started) / (args.repeats * args.folds), 2)


def fit(
    arm: str,
    views: np.ndarray,
    plain: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    train: np.ndarray,
    epochs: int,
    seed: int,
) -> Any:
    """Train a head on some rows of the features; gives a function from features to probabilities."""
    import numpy as np
    import torch
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.torch_core import set_seed
    from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold
    from torch import nn

    from octfast.data.loaders import batch_size
    from octfast.train.balance import balance_training, class_weights, start_balanced
    from octfast.train.frozen.folds import FoldHeads, FoldLoader
    from octfast.train.frozen.frozen import NextView
    from octfast.train.store.loader import StoreLoader
    from octfast.train.store.rows import Values

    class Best(Callback):
        """The weights of the epoch with the lowest validation loss, as SaveModelCallback keeps them."""

        order, least = 60, float("inf")  # after the Recorder

        def after_epoch(self):
            if (loss := self.recorder.values[-1][1]) < self.least:
                self.least, self.kept = loss, {k: v.clone() for k, v in self.model.state_dict().items()}

        def after_fit(self):
            self.model.load_state_dict(self.kept)

    set_seed(seed)
    head, rate, decay = make_head(arm, views.shape[2], int(y.max()) + 1)
    rest, held = train, train[:2]
    if arm == "before":
        rest, held = (
            train[i]
            for i in next(GroupShuffleSplit(1, test_size=0.1, random_state=seed).split(train, groups=groups[train]))
        )
    bs = batch_size(len(rest))
    targets = torch.from_numpy(y)
    model: nn.Module = head
    if arm == "default":
        parts = np.zeros(len(rest), dtype=int)
        for k, (_, inside) in enumerate(
            StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(rest, y[rest], groups[rest])
        ):
            parts[inside] = k
        model = FoldHeads(nn.Identity(), head, 5)
        store = Values(views[:, rest])
        loaders = [
            FoldLoader(store, targets[rest], parts, True, bs=bs, shuffle=True, drop_last=True),
            FoldLoader(store, targets[rest], parts, False, bs=512),
        ]
    else:
        loaders = [
            StoreLoader(Values(views[:, rest]), targets[rest], bs=bs, shuffle=True, drop_last=True),
            StoreLoader(Values(plain[None, held]), targets[held], bs=512),
        ]
    learn = Learner(DataLoaders(*loaders, device="cpu"), model, CrossEntropyLossFlat(), wd=decay, cbs=NextView())
    counts = np.bincount(y[rest], minlength=int(y.max()) + 1)
    if arm in ("weights", "weights_full", "sample", "focal"):
        balance = {"weights_full": "weights", "focal": "none"}.get(arm, arm)
        weights = class_weights(counts.tolist(), balance, power=1 if arm == "weights_full" else 0.5)
        start_balanced(head, weights)
        balance_training(learn, weights, balance, "focal" if arm == "focal" else "cross_entropy")
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, rate, cbs=Best() if arm in ("before", "default") else None)
    head.eval()

    def probabilities(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            p = head(torch.from_numpy(x)).softmax(1).numpy()
        if arm == "by_share":
            p = p / np.maximum(counts, 1)
        return p / p.sum(1, keepdims=True)

    return probabilities


def make_head(arm: str, width: int, classes: int) -> tuple[Any, float, float | None]:
    """A head, its highest rate and its weight decay; None is fastai's."""
    from fastai.vision.learner import create_head
    from torch import nn

    from octfast.model.heads import pooled_head, two_layer_head

    if arm == "stock":
        return create_head(width, classes, pool=False), 1e-3, None
    if arm == "before":
        head = two_layer_head(width, classes)
        for layer in head:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        return head, 3e-3, None
    head = pooled_head("root" if arm == "root" else "linear", width, classes)
    if arm == "random_start":
        nn.init.kaiming_normal_(head[2].weight)
    return head, 1.5e-3, 0.1


def scores(p: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """The metrics of probabilities, (scans, classes); weights are those of a resample."""
    import numpy as np
    from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

    from octfast.model.temperature import calibration_error

    rows = np.arange(len(y)) if weights is None else np.repeat(np.arange(len(y)), weights)
    p, y = p[rows], y[rows]
    right = p.argmax(1) == y
    present = np.unique(y)
    aucs = [roc_auc_score(y == c, p[:, c]) for c in present] if len(present) > 1 else [float("nan")]
    return {
        "log_loss": float(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean()),
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(balanced_accuracy_score(y, p.argmax(1))),
        "macro_f1": float(f1_score(y, p.argmax(1), average="macro", labels=present)),
        "macro_auc": float(np.mean(aucs)),
        "ece": calibration_error(p.max(1), right),
    }


def resampled(tables: list[np.ndarray], scans: pd.DataFrame, resamples: int) -> list[dict[str, np.ndarray]]:
    """The metrics, means over the repeats, in each bootstrap resample of the patients, the same for all tables."""
    import numpy as np

    y = scans["label"].astype("category").cat.codes.to_numpy()
    owner = scans["patient"].astype("category").cat.codes.to_numpy()
    rng = np.random.default_rng(0)
    found: list[dict[str, list[float]]] = [{m: [] for m in METRICS} for _ in tables]
    for draw in range(resamples + 1):
        # The first is the sample itself.
        drawn = rng.integers(0, owner.max() + 1, owner.max() + 1)
        weights = None if not draw else np.bincount(drawn, minlength=owner.max() + 1)[owner]
        for table, into in zip(tables, found, strict=True):
            each = [scores(p, y, weights) for p in table]
            for m in METRICS:
                into[m].append(float(np.mean([e[m] for e in each])))
    return [{m: np.array(v) for m, v in into.items()} for into in found]


def summary(p: np.ndarray, scans: pd.DataFrame, resamples: int) -> dict[str, list[float]]:
    """Each metric with its 95% interval by patients: [value, low, high]."""
    return {m: interval(v) for m, v in resampled([p], scans, resamples)[0].items()}


def difference(a: np.ndarray, b: np.ndarray, scans: pd.DataFrame, resamples: int) -> dict[str, list[float]]:
    """The paired differences of two arms, a minus b, with their 95% intervals by patients."""
    first, second = resampled([a, b], scans, resamples)
    return {m: interval(first[m] - second[m]) for m in METRICS}


def interval(values: np.ndarray) -> list[float]:
    import numpy as np

    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return [round(float(v), 4) for v in (values[0], low, high)]


def parse() -> argparse.Namespace:
    parser = common.features_parser(__doc__)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=[*ARMS, *BALANCED, *STRENGTHS])
    parser.add_argument("--views", type=int, default=4, help="augmented readings of light, moderate and strong")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[], help="also with so many training scans, such as 50 100 200 500"
    )
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--quick", action="store_true", help="fewer scans, smaller, fewer epochs and repeats")
    args = parser.parse_args()
    if args.quick:
        args.scans, args.size, args.epochs, args.repeats, args.resamples = args.scans or 150, 96, 5, 2, 200
    return args


if __name__ == "__main__":
    main()
