"""Answers for a volume, an eye or a patient from labels of these alone: ways to learn from bags of scans side by side.

    python benchmarks/bags.py --weights FILE                     phantom volumes, the disease on 1 to 5 of 25 frames
    python benchmarks/bags.py --data DATA --level eye --weights FILE

A frozen body runs once over the scans; on what it gives, over folds by patient, each way is trained with octfast's own
heads of folds. Every unit is judged by a head that never saw its patient:

- mean: every scan gets its unit's label, and the unit the mean of its scans' probabilities;
- urgent: the same scans' answers, and the unit gets those of its most urgent scan (the one least NORMAL or NO);
- fitted: the same scans' answers, put together by the rule and at the temperature that `octfast train --level scan`
  chooses, here on the units of the other folds;
- pooled: the mean of the logits of the unit's scans, learned as one answer a unit (multiple instances); with the rest
  `octfast train --level ... --pooling mean`, `topk`, `max` and `attention`;
- top: the mean of a class's k highest logits;
- max: the highest logit of a class;
- attention: the scans' logits weighed by gated attention (Ilse, Tomczak and Welling, ICML 2018).

The figures are means over the seeds, of which each draws its folds and its head; intervals are of resampled patients.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accuracy
import common

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

WAYS = ("mean", "urgent", "fitted", "pooled", "top", "max", "attention")
# Those that learn from single scans.
OF_SCANS = ("mean", "urgent", "fitted")
POOLINGS = {"pooled": "mean", "top": "topk", "max": "max", "attention": "attention"}
METRICS = ("disease_auc", "urgent_auc", "macro_auc", "log_loss", "accuracy")
HEALTHY = ("NORMAL", "NO")


def main() -> None:
    args = parse()
    about = common.machine()
    common.say(common.describe_machine(about))
    from octfast.data.units import units_of, with_one_label

    with common.work_folder(args.work) as work:
        scans = accuracy.read(args, work) if args.data else volumes(work / "volumes", args.volumes, args.frames)
        scans, _ = with_one_label(scans, args.level)
        units = units_of(scans, args.level)
        common.say(f"{len(scans)} scans, {len(units)} {units.noun} of {scans['patient'].nunique()} patients")
        features = extracted(scans, args, work)
    found: dict[str, list[np.ndarray]] = {way: [] for way in args.ways}
    seconds = dict.fromkeys(args.ways, 0.0)
    for seed in range(args.seeds):
        of_scans: dict[int, Any] = {}
        for way in args.ways:
            started = time.perf_counter()
            found[way].append(judged(way, scans, units, features, args, seed, of_scans))
            seconds[way] += time.perf_counter() - started
            common.say(f"  seed {seed}, {way}: {time.perf_counter() - started:.0f} s")
    drawn = resampled(found, units.table, args.resamples)
    rows = {way: {m: accuracy.interval(drawn[way][m]) for m in METRICS} for way in args.ways}
    common.print_table(
        [{"way": w, **{m: r[m][0] for m in METRICS}, "s": seconds[w] / args.seeds} for w, r in rows.items()],
        f"{len(units)} {units.noun}, {args.seeds} seeds",
    )
    last = args.ways[-1]
    minus = {w: {m: accuracy.interval(drawn[w][m] - drawn[last][m]) for m in METRICS} for w in args.ways[:-1]}
    settings = {**vars(args), "data": Path(args.data).name if args.data else "phantoms", "weights": bool(args.weights)}
    counts = {"scans": len(scans), "units": len(units), "patients": int(scans["patient"].nunique())}
    result: dict[str, Any] = {"ways": rows, f"minus_{last}": minus, **counts}
    common.print_json({**result, "settings": settings, "machine": about})


def extracted(scans: pd.DataFrame, args: argparse.Namespace, work: Path) -> np.ndarray:
    """What the body gives of the scans; kept in --work, where the same call finds it again."""
    import numpy as np

    kept = work / f"features-{args.arch}-{args.size}-{len(scans)}.npy"
    if args.work and kept.is_file():
        return np.load(kept)
    features = accuracy.extract(scans, "octfast", 1, args)[0]
    if args.work:
        np.save(kept, features)
    return features


def volumes(folder: Path, count: int, frames: int, side: int = 144) -> pd.DataFrame:
    """A Scans table of phantom volumes of four classes, the disease on 1 to 5 adjacent frames; every third patient has
    two volumes. The label is the volume's."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    from octfast.data.phantom.draw import CLASSES, make_phantom

    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng((0, 9)), []
    for v in range(count):
        label, ill = CLASSES[v % len(CLASSES)], int(rng.integers(1, 6))
        first = int(rng.integers(0, frames - ill + 1))
        for frame in range(frames):
            file = folder / f"{v:03d}-{frame:02d}.png"
            shown = label if first <= frame < first + ill else "NORMAL"
            if not file.is_file():
                picture = Image.fromarray(make_phantom(shown, v + 1, frame))
                picture.resize((side, side), Image.Resampling.BILINEAR).save(file)
            rows.append((str(file), label, f"p{v * 3 // 4:03d}", "train", f"v{v:03d}"))
    return pd.DataFrame(rows, columns=["path", "label", "patient", "split", "volume"])


def judged(
    way: str,
    scans: pd.DataFrame,
    units: Any,
    x: np.ndarray,
    args: argparse.Namespace,
    seed: int,
    of_scans: dict[int, np.ndarray],
) -> np.ndarray:
    """Probabilities of each unit by a head that never saw its patient, of shape (units, classes).

    Parameters
    ----------
    of_scans : of the seeds whose head of scans was trained, its answers, of shape (scans, classes).
    """
    import fastai.callback.progress
    import fastai.callback.schedule  # noqa: F401
    import numpy as np
    import torch
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.optimizer import Adam
    from fastai.torch_core import set_seed
    from fastcore.basics import noop
    from sklearn.model_selection import StratifiedGroupKFold
    from torch import nn

    from octfast.data.loaders import batch_size
    from octfast.model.heads import pooled_head
    from octfast.model.pooling import BagHead, pooling_of
    from octfast.train.frozen.bags import BagHeads, BagLoader, units_a_batch
    from octfast.train.frozen.folds import FoldHeads, FoldLoader
    from octfast.train.store.rows import Values

    names = sorted(scans["label"].unique())
    y = torch.tensor([names.index(label) for label in scans["label"]])
    of_units, patients = y[units.first], scans["patient"].to_numpy()[units.first]
    folds = np.zeros(len(units), dtype=int)
    split = StratifiedGroupKFold(args.folds, shuffle=True, random_state=seed).split(of_units, of_units, patients)
    for k, (_, inside) in enumerate(split):
        folds[inside] = k
    set_seed(seed)
    head: Any = pooled_head("linear", x.shape[1], len(names))
    if way in OF_SCANS and seed in of_scans:
        return put_together(way, scans, units, of_scans[seed], folds, names, args)
    if way in OF_SCANS:
        model: Any = FoldHeads(nn.Identity(), head, args.folds)
        of = (Values(x), y, folds[units.number])
        bs = batch_size(len(scans))
        loaders = [FoldLoader(*of, True, bs=bs, shuffle=True, drop_last=True), FoldLoader(*of, False, bs=512)]
    else:
        pooling = pooling_of(POOLINGS[way], args.k if way == "top" else None)
        model = BagHeads(nn.Identity(), BagHead(head, pooling), args.folds)
        bs = units_a_batch(len(scans), len(units))
        bags = (Values(x), units, of_units, folds)
        loaders = [BagLoader(*bags, True, bs=bs, shuffle=True, drop_last=True), BagLoader(*bags, False, bs=16)]
    learn = Learner(DataLoaders(*loaders, device="cpu"), model, CrossEntropyLossFlat(), opt_func=Adam, wd=0.1)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(args.epochs, args.lr)
        outputs, _ = learn.get_preds(act=noop)
    fold = torch.tensor(folds if len(outputs) == len(units) else folds[units.number])
    p = outputs[torch.arange(len(outputs)), fold].float().softmax(1).numpy()
    if way not in OF_SCANS:
        return p
    of_scans[seed] = p
    return put_together(way, scans, units, p, folds, names, args)


def put_together(
    way: str,
    scans: pd.DataFrame,
    units: Any,
    p: np.ndarray,
    folds: np.ndarray,
    names: list[str],
    args: argparse.Namespace,
) -> np.ndarray:
    """Of units, from what is said of their scans, of shape (scans, classes)."""
    import numpy as np

    if way == "fitted":
        return fitted(scans, units, p, folds, names, args.level)
    rows = []
    healthy = next((names.index(name) for name in HEALTHY if name in names), None)
    for u in range(len(units)):
        own = p[units.number == u]
        least = own[:, healthy].argmin() if healthy is not None else own.max(1).argmax()
        rows.append(own.mean(0) if way == "mean" else own[least])
    return np.stack(rows)


def fitted(
    scans: pd.DataFrame, units: Any, p: np.ndarray, folds: np.ndarray, names: list[str], level: str
) -> np.ndarray:
    """By a rule that is chosen on the units of the other folds."""
    import numpy as np

    from octfast.model.aggregation import aggregation_of
    from octfast.model.fit_aggregation import fit_aggregations

    table = scans.assign(**{f"p_{c}": p[:, i] for i, c in enumerate(names)})
    out = np.zeros((len(units), len(names)))
    for fold in range(folds.max() + 1):
        inside = folds[units.number] == fold
        kept, _ = fit_aggregations(table[~inside], names)
        if level not in kept:
            common.say(f"  fold {fold}: too few units to fit on, the default is taken")
        how = aggregation_of({"units": kept}, level, names)
        common.say(f"  fold {fold}: {how.rule}{how.k or ''}, temperature {how.temperature:.2f}")
        own = np.flatnonzero(folds == fold)
        number = np.searchsorted(own, units.number[inside])
        out[own] = how.probabilities(p[inside], number, len(own), names)
    return out


def scores(p: np.ndarray, y: np.ndarray, names: list[str]) -> dict[str, float]:
    """The metrics of probabilities of units; y : the label of each."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    from octfast.model.decide import urgent_classes

    def area(positive: np.ndarray, score: np.ndarray) -> float:
        return float(roc_auc_score(positive, score)) if 0 < positive.sum() < len(positive) else float("nan")

    urgent = np.isin(names, urgent_classes(names))
    healthy = np.isin(names, HEALTHY)
    actual = np.array([names.index(label) for label in y])
    return {
        "disease_auc": area(~healthy[actual], p[:, ~healthy].sum(1)) if healthy.any() else float("nan"),
        "urgent_auc": area(urgent[actual], p[:, urgent].sum(1)) if urgent.any() else float("nan"),
        "macro_auc": float(np.nanmean([area(actual == c, p[:, c]) for c in range(len(names))])),
        "log_loss": float(-np.log(np.maximum(p[np.arange(len(y)), actual], 1e-12)).mean()),
        "accuracy": float((p.argmax(1) == actual).mean()),
    }


def resampled(found: dict[str, list[np.ndarray]], table: pd.DataFrame, resamples: int) -> dict[str, dict[str, Any]]:
    """The metrics, means over the seeds, of the sample and of each resample of the patients, the same for all ways."""
    import numpy as np

    names = sorted(table["label"].unique())
    y, owner = table["label"].to_numpy(), table["patient"].astype("category").cat.codes.to_numpy()
    rng = np.random.default_rng(0)
    out: dict[str, dict[str, Any]] = {way: {m: [] for m in METRICS} for way in found}
    for draw in range(resamples + 1):
        # The first is the sample itself.
        drawn = np.bincount(rng.integers(0, owner.max() + 1, owner.max() + 1), minlength=owner.max() + 1)
        rows = np.arange(len(y)) if not draw else np.repeat(np.arange(len(y)), drawn[owner])
        for way, tables in found.items():
            each = [scores(p[rows], y[rows], names) for p in tables]
            for m in METRICS:
                out[way][m].append(float(np.mean([e[m] for e in each])))
    return {way: {m: np.array(v) for m, v in metrics.items()} for way, metrics in out.items()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="labelled scans with a column of the level; by default phantom volumes")
    parser.add_argument("--level", default="volume", help="what has one label: volume, eye, patient (%(default)s)")
    for name in ("path", "label", "patient"):
        parser.add_argument(f"--{name}-column", help="of a table")
    parser.add_argument("--scans", type=int, help="take so many of --data, by whole patients; all by default")
    parser.add_argument("--volumes", type=int, default=100, help="phantom volumes (%(default)s)")
    parser.add_argument("--frames", type=int, default=25, help="frames of a phantom volume (%(default)s)")
    parser.add_argument("--weights", help="file of the body's weights; else it is random")
    parser.add_argument("--arch", default="vgg16_bn")
    parser.add_argument("--size", type=int, default=96, help="side of a scan, in pixels (%(default)s)")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="others are held to the last")
    parser.add_argument("--k", type=int, default=3, help="scans that count for top (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--work", help="folder for phantoms and features; by default a temporary one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
