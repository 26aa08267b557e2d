"""How many wrong labels `octfast review` finds, and what putting them right is worth, on labels flipped by patient.

    python benchmarks/review.py --data DATA --weights FILE
    python benchmarks/review.py                                  phantoms, a body of random weights

Of the patients that are not held out for testing, some get another label (5% of the scans by default). The scans are
listed by confident learning on out-of-fold answers, as `octfast review` lists them; what is found among the first 5% of
the scans is put right, and heads trained before and after are judged on the held-out patients, whose labels are true.
The body runs once; its features lie in octfast's store, where another run of this script finds them. `--press` takes
the time of "Train again" alone: heads trained one by one, as until November 2026, and as one, in turns.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import common
from accuracy import extract, read


def main() -> None:
    args = parse()
    about = common.machine()
    common.say(common.describe_machine(about))
    with common.work_folder(args.work) as work:
        scans = read(args, work)
        features = extract(scans, "octfast", 1, args)[0]
    if args.press:
        press(scans, features, args, about)
        return
    rows = [trial(scans, features, args, seed) for seed in range(args.repeats)]
    common.print_table(rows, f"{args.share:.0%} of the labels flipped by patient, a row a seed")
    import numpy as np

    mean = {k: round(float(np.mean([r[k] for r in rows])), 4) for k in rows[0] if k != "seed"}
    common.print_json({"trials": rows, "mean": mean, "scans": len(scans), "share": args.share, "machine": about})


def press(scans: Any, features: Any, args: argparse.Namespace, about: dict[str, Any]) -> None:
    """Seconds, of the clock and of the processor, that training again takes, heads one by one and as one."""
    import numpy as np

    from octfast.assess.review.effect import effect_of
    from octfast.data.scans import in_order
    from octfast.train.again.again import Stored
    from octfast.train.frozen.folds import draw_folds

    classes = tuple(in_order(scans["label"].unique()))
    scans = scans.assign(split="train").reset_index(drop=True)
    folds = draw_folds(scans, 5, 0)
    fit = {"epochs": args.epochs, "lr": 1.5e-3, "wd": 0.1, "seed": 0}
    stored = Stored(scans, features, classes, folds, "linear", fit)
    labels = scans["label"].tolist()
    before = stored.out_of_fold(labels)
    changed = scans.sample(20, random_state=0)
    changes = changed.assign(new=[classes[classes.index(c) - 1] for c in changed["label"]])
    ways = {
        "one by one": lambda: one_by_one(stored, labels),
        "as one": lambda: stored.out_of_fold(labels),
        "a press": lambda: effect_of(stored, changes, before),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    outputs = {}
    for _ in range(args.repeats):
        for name, way in ways.items():
            clock, cpu = time.perf_counter(), time.process_time()
            outputs[name] = way()
            took[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    rows = []
    for name, seconds in took.items():
        wall, cpu = (float(np.median(s)) for s in zip(*seconds, strict=True))
        rows.append({"way": name, "seconds": round(wall, 2), "processor": round(cpu, 2)})
    y = np.array([classes.index(c) for c in labels])
    right = {n: round(float((outputs[n].argmax(1) == y).mean()), 4) for n in ("one by one", "as one")}
    common.print_table(rows, f"{len(scans)} scans, {int(folds.max()) + 1} folds, medians of {args.repeats}")
    ratio = rows[0]["processor"] / rows[1]["processor"]
    common.print_json(
        {"rows": rows, "ratio": round(ratio, 2), "accuracy": right, "scans": len(scans), "machine": about}
    )


def one_by_one(stored: Any, labels: list[str]) -> Any:
    """Out-of-fold logits of heads that are modules of their own, beside the head that learns from all scans."""
    import numpy as np
    import torch
    from fastai.callback.progress import ProgressCallback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.torch_core import set_seed
    from fastcore.basics import noop
    from torch import nn

    from octfast.data.loaders import batch_size
    from octfast.model.heads import pooled_head
    from octfast.train.frozen.folds import FoldHeads, FoldLoader
    from octfast.train.store.rows import Values

    set_seed(stored.fit["seed"])
    targets = torch.tensor([stored.classes.index(label) for label in labels])
    head = pooled_head(stored.head, stored.features.shape[1], len(stored.classes))
    model = FoldHeads(nn.Identity(), head, int(stored.folds.max()) + 1)
    values, bs = Values(stored.features), batch_size(len(targets))
    loaders = [
        FoldLoader(values, targets, stored.folds, True, bs=bs, shuffle=True, drop_last=True),
        FoldLoader(values, targets, stored.folds, False, bs=512),
    ]
    learn = Learner(DataLoaders(*loaders, device="cpu"), model, CrossEntropyLossFlat(), wd=stored.fit["wd"])
    with learn.removed_cbs(learn._grab_cbs(ProgressCallback)), learn.no_logging(), learn.no_bar():
        learn.fit_one_cycle(stored.fit["epochs"], stored.fit["lr"])
        outputs, _ = learn.get_preds(act=noop)
    return outputs[np.arange(len(outputs)), stored.folds].float().numpy()


def trial(scans: Any, features: Any, args: argparse.Namespace, seed: int) -> dict[str, float]:
    """One drawing of held-out patients and of flipped labels."""
    import numpy as np
    from scipy.special import log_softmax
    from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold

    from octfast.assess.interpret.label_errors import find_label_errors
    from octfast.data.scans import in_order
    from octfast.data.splits.groups import identical_files, linked_groups
    from octfast.model.forward import predictions_table
    from octfast.train.again.again import Stored

    rng = np.random.default_rng(seed)
    classes = in_order(scans["label"].unique())
    truth = np.array([classes.index(label) for label in scans["label"]])
    groups = linked_groups(scans, identical_files(scans["path"].tolist()))
    train, test = next(GroupShuffleSplit(1, test_size=0.25, random_state=seed).split(truth, groups=groups))
    # Whole patients get a wrong label, as a mistake in a table of patients would give them.
    wrong = np.zeros(len(scans), dtype=bool)
    for patient in rng.permutation(scans["patient"].iloc[train].unique()):
        if wrong.sum() >= args.share * len(train):
            break
        wrong[train] |= (scans["patient"].iloc[train] == patient).to_numpy()
    labels = np.where(wrong, (truth + rng.integers(1, len(classes), len(truth))) % len(classes), truth)
    named = np.asarray(classes, dtype=object)
    table = scans.iloc[train].assign(label=named[labels[train]]).reset_index(drop=True)
    folds = np.zeros(len(train), dtype=int)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    for k, (_, inside) in enumerate(splitter.split(train, labels[train], groups[train])):
        folds[inside] = k
    fit = {"epochs": args.epochs, "lr": 1.5e-3, "wd": 0.1, "seed": seed}
    stored = Stored(table, features[train], tuple(classes), folds, "linear", fit)
    started = time.perf_counter()
    judged = predictions_table(table, stored.out_of_fold(table["label"].tolist()), tuple(classes))
    seconds = time.perf_counter() - started
    suspects = find_label_errors(judged, classes)["path"].tolist()
    first = suspects[: round(0.05 * len(train))]
    seen = table["path"].isin(first).to_numpy()
    by_truth = np.where(seen, truth[train], labels[train])
    every = Stored(
        scans.iloc[[*train, *test]].reset_index(drop=True),
        features[[*train, *test]],
        tuple(classes),
        np.r_[np.ones(len(train), int), np.zeros(len(test), int)],
        "linear",
        fit,
    )
    learn = np.r_[np.ones(len(train), bool), np.zeros(len(test), bool)]

    def judge(of_train: Any) -> tuple[float, float]:
        """Log-loss and accuracy on the held-out patients of a head that learned from these labels."""
        given = named[np.r_[of_train, truth[test]]].tolist()
        p = log_softmax(every.out_of_fold(given, learn)[len(train) :].astype(float), axis=1)
        return float(-p[np.arange(len(test)), truth[test]].mean()), float((p.argmax(1) == truth[test]).mean())

    outcomes = {"flipped": judge(labels[train]), "corrected": judge(by_truth), "true": judge(truth[train])}
    return {
        "seed": seed,
        "flipped_scans": int(wrong[train].sum()),
        "listed": len(suspects),
        "found_in_5%": round(float(wrong[train][seen].sum() / max(1, wrong[train].sum())), 3),
        "found_in_list": round(float(wrong[train][table["path"].isin(suspects)].sum() / max(1, wrong[train].sum())), 3),
        **{f"log_loss_{k}": round(v[0], 3) for k, v in outcomes.items()},
        **{f"accuracy_{k}": round(v[1], 3) for k, v in outcomes.items()},
        "seconds": round(seconds, 1),
    }


def parse() -> argparse.Namespace:
    parser = common.features_parser(__doc__)
    parser.add_argument(
        "--folds", type=int, default=5, help="classes of fewer than twice as many patients are left out"
    )
    parser.add_argument("--share", type=float, default=0.05, help="of the training scans that get a wrong label")
    parser.add_argument("--press", action="store_true", help='time "Train again" alone')
    return parser.parse_args()


if __name__ == "__main__":
    main()
