"""How many wrong labels `octfast review` finds, and what putting them right is worth, on labels flipped by patient.

    python benchmarks/review.py --data DATA --weights FILE
    python benchmarks/review.py                                  phantoms, a body of random weights

Of the patients that are not held out for testing, some get another label (5% of the scans by default). The scans are
listed by confident learning on out-of-fold answers, as `octfast review` lists them; what is found among the first 5% of
the scans is put right, and heads trained before and after are judged on the held-out patients, whose labels are true.
The body runs once; its features lie in octfast's store, where another run of this script finds them.
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
    rows = [trial(scans, features, args, seed) for seed in range(args.repeats)]
    common.print_table(rows, f"{args.share:.0%} of the labels flipped by patient, a row a seed")
    import numpy as np

    mean = {k: round(float(np.mean([r[k] for r in rows])), 4) for k in rows[0] if k != "seed"}
    common.print_json({"trials": rows, "mean": mean, "scans": len(scans), "share": args.share, "machine": about})


def trial(scans: Any, features: Any, args: argparse.Namespace, seed: int) -> dict[str, float]:
    """One drawing of held-out patients and of flipped labels."""
    import numpy as np
    from scipy.special import log_softmax
    from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold

    from octfast.assess.interpret.label_errors import find_label_errors
    from octfast.data.scans import in_order
    from octfast.data.splits.groups import identical_files, linked_groups
    from octfast.model.forward import predictions_table
    from octfast.train.again import Stored

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder or table of scans; by default phantoms")
    parser.add_argument("--weights", help="pretrained weights of the body; by default random")
    for name in ("path", "label", "patient"):
        parser.add_argument(f"--{name}-column", help=f"column of a table with the {name}")
    parser.add_argument("--arch", default="vgg16_bn")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--scans", type=int, help="take so many scans, by whole patients")
    parser.add_argument(
        "--folds", type=int, default=5, help="classes of fewer than twice as many patients are left out"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.05, help="of the training scans that get a wrong label")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--work", help="folder for phantoms; by default a temporary one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
