"""Does training the last block pay, and from how many scans on: the frozen default against `--unfreeze block5`.

    python benchmarks/unfreeze.py --data OCTDL_labels.csv --weights vgg16_bn_features.safetensors --size 160

The body up to its last block runs once over all scans; its maps are kept in the folder `--work`, where another run of
this script finds them. Then, over the same folds by patient, with scans that share a patient or a file kept together:

- frozen: the default head, 10 epochs of one cycle on what the block gives as it is, the last epoch's weights;
- before: the block and a head that starts at zero together, 10 epochs, the block at a tenth of the head's rate;
- block5: the frozen arm's head first, then the block and the head together, 5 epochs at much lower rates.

Also with fewer training scans, taken by whole patients (`--sizes`). Each fold's answers are kept in `--work` too, so
that a run that was cut off goes on where it stopped. No weights are chosen by the scans that are held out.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accuracy
import common

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import nn

ARMS = ("frozen", "before", "block5")


def main() -> None:
    args = parse()
    about = common.machine()
    common.say(common.describe_machine(about))
    curves: dict[str, Any] = {}
    with common.work_folder(args.work) as work:
        scans = accuracy.read(args, work)
        common.say(
            f"{len(scans)} scans of {scans['patient'].nunique()} patients: {scans['label'].value_counts().to_dict()}"
        )
        maps, part, head = stored_maps(scans, args, work)
        for size in [*args.sizes, None]:
            name = "all" if size is None else str(size)
            found = {arm: run_arm(arm, scans, maps, part, head, args, size, work) for arm in args.arms}
            rows = {
                arm: {**accuracy.summary(p, scans.iloc[seen], args.resamples), "seconds": seconds}
                for arm, (p, seen, seconds) in found.items()
            }
            curves[name] = {"arms": rows}
            for arm in args.arms:
                if arm != "frozen" and "frozen" in found:
                    p, seen, _ = found[arm]
                    gap = accuracy.difference(p, found["frozen"][0], scans.iloc[seen], args.resamples)
                    curves[name][f"{arm}_minus_frozen"] = gap
            common.print_table(
                [{"arm": a, **{m: r[m][0] for m in accuracy.METRICS}, "s": r["seconds"]} for a, r in rows.items()],
                f"{name} training scans",
            )
    settings = {**vars(args), "data": Path(args.data).name if args.data else "phantoms", "weights": bool(args.weights)}
    common.print_json({"curves": curves, "settings": settings, "machine": about})


def stored_maps(scans: pd.DataFrame, args: argparse.Namespace, work: Path) -> tuple[np.ndarray, nn.Module, int]:
    """The maps before the last block, float16 of shape (scans, 1, dim), what is trained, and the length of its head."""
    import numpy as np
    import pandas as pd

    from octfast import frozen_learner, oct_learner
    from octfast.data.loaders import oct_datablock

    file = work / f"maps-{key(scans['path'].tolist(), args.arch, args.size, args.weights)}.npy"
    table = pd.concat([scans.assign(is_valid=False), scans.head(2).assign(is_valid=True)], ignore_index=True)
    if file.exists():
        table = table.iloc[[*range(8), *range(len(table) - 2, len(table))]]
    dls = oct_datablock(sorted(scans["label"].unique()), args.size).dataloaders(table, bs=8, num_workers=0)
    learn = oct_learner(dls, args.arch, weights=args.weights or "none", unfreeze="block5")
    fast = frozen_learner(learn, cache=work / "cache")
    if not file.exists():
        store = fast.stores[0]
        np.save(file, np.concatenate([store.take(np.array([i]), 0) for i in range(len(scans))])[:, None].astype("f2"))
    fast.close()
    return np.load(file, mmap_mode="r"), fast.part, len(learn.model[1])


def run_arm(
    arm: str,
    scans: pd.DataFrame,
    maps: np.ndarray,
    part: nn.Module,
    head: int,
    args: argparse.Namespace,
    size: int | None,
    work: Path,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Probabilities (1, scans, classes) of the scans of the folds that were run, which scans, and seconds a fold."""
    import numpy as np
    from scipy.special import softmax
    from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold

    from octfast.data.splits.groups import identical_files, linked_groups

    y = scans["label"].astype("category").cat.codes.to_numpy().astype(np.int64)
    groups = linked_groups(scans, identical_files(scans["path"].tolist()))
    out, seen, seconds = np.zeros((len(scans), y.max() + 1)), np.zeros(len(scans), bool), []
    folds = list(StratifiedGroupKFold(args.folds, shuffle=True, random_state=0).split(y, y, groups))
    for number, (train, test) in enumerate(folds[: args.first or None]):
        if size is not None and size < len(train):
            some = GroupShuffleSplit(1, train_size=size / len(train), random_state=0)
            train = train[next(some.split(train, groups=groups[train]))[0]]
        recipe = () if arm == "frozen" else (args.rate, args.ratio, args.tuning_epochs) if arm == "block5" else (1,)
        words = key(scans["path"].tolist(), args.arch, args.size, args.weights, arm, number, size, args.folds, *recipe)
        file = work / f"fold-{words}.json"
        if not file.exists():
            started = time.perf_counter()
            given = fit(arm, maps, y, train, test, copy.deepcopy(part), head, args)
            took = time.perf_counter() - started
            file.write_text(json.dumps({"logits": given.tolist(), "seconds": took}), encoding="utf-8")
            common.say(f"  {arm}, {len(train)} training scans, fold {number}: {took:.0f} s")
        known = json.loads(file.read_text(encoding="utf-8"))
        out[test], seen[test] = softmax(np.array(known["logits"]), 1), True
        seconds.append(known["seconds"])
    return out[None, seen], np.flatnonzero(seen), round(float(np.mean(seconds)), 1)


def fit(
    arm: str,
    maps: np.ndarray,
    y: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    part: Any,
    head: int,
    args: argparse.Namespace,
) -> np.ndarray:
    """Train an arm on some rows of the maps; gives the logits of others."""
    import torch
    from fastai.losses import CrossEntropyLossFlat
    from fastai.torch_core import set_seed

    from octfast.data.loaders import batch_size
    from octfast.train.block.probe import Features, logits, train_head, tune
    from octfast.train.store.rows import Rows

    class Maps:
        shape = maps.shape
        take = staticmethod(lambda rows, view: maps[rows, 0])

    set_seed(0)
    store, targets, bs = Rows([Maps], train), torch.from_numpy(y[train]), batch_size(len(train))
    same: dict[str, Any] = {"bs": bs, "loss_func": CrossEntropyLossFlat(), "wd": 0.1}
    block, top = part[:-head], part[-head:]
    for p in part.parameters():
        p.requires_grad_(True)

    def groups(model: Any) -> list[list[Any]]:
        # The block's batch norms stay as they are, as octfast has them.
        convolutions = [p for m in model[:-head].modules() if isinstance(m, torch.nn.Conv2d) for p in m.parameters()]
        return [convolutions, list(model[-head:].parameters())]

    block.eval()
    if arm != "before":
        train_head(top, Features(block, store), targets, epochs=args.epochs, lr=1.5e-3, **same)
    if arm == "before":
        tune(part, groups, store, targets, epochs=args.epochs, rates=slice(2e-4, 2e-3), cbs=[frozen_norms()], **same)
    if arm == "block5":
        rates = slice(args.rate, args.rate * args.ratio)
        tune(part, groups, store, targets, epochs=args.tuning_epochs, rates=rates, cbs=[frozen_norms()], **same)
    return logits(part, Rows([Maps], test))


def frozen_norms() -> Any:
    """Keeps the batch norms of two dimensions, which are the body's, in eval mode."""
    import torch
    from fastai.callback.core import Callback

    class Eval(Callback):
        def before_train(self):
            for m in self.model.modules():
                if isinstance(m, torch.nn.BatchNorm2d):
                    m.eval()

    return Eval()


def key(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:16]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", help="folder or table of scans; by default phantoms")
    add("--weights", help="pretrained weights of the body; by default random")
    for name in ("path", "label", "patient"):
        add(f"--{name}-column", help=f"column of a table with the {name}")
    add("--arms", nargs="+", default=["frozen", "block5"], choices=ARMS)
    add("--arch", default="vgg16_bn")
    add("--size", type=int, default=224)
    add("--epochs", type=int, default=10, help="of the head alone (default 10)")
    add("--tuning-epochs", type=int, default=5, help="of block and head together (default 5)")
    add("--rate", type=float, default=3e-5, help="highest rate of the block (default 3e-5)")
    add("--ratio", type=float, default=10, help="the head's rate is so many times the block's (default 10)")
    add("--scans", type=int, help="take so many scans, by whole patients")
    add("--folds", type=int, default=5)
    add("--first", type=int, default=0, help="run only the first so many folds")
    add("--sizes", type=int, nargs="*", default=[], help="also with so many training scans, such as 50 100 200")
    add("--resamples", type=int, default=500)
    add("--work", help="folder for maps and the answers of each fold; by default a temporary one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
