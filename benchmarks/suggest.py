"""What labels are worth that `octfast suggest` asks for, beside those of scans drawn at random by patient.

    python benchmarks/suggest.py --data DATA --weights FILE
    python benchmarks/suggest.py                                 phantoms, a body of random weights

A quarter of the patients is held out. Of the others a few scans, drawn at random a patient at a time, have labels;
round by round each way of choosing asks for more, a head is trained anew on all that are labelled by then, and is
judged on the held-out quarter. All ways begin with the same scans. The body runs once; its features lie in octfast's
store, where another run of this script finds them.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import common
from accuracy import extract, read

METRICS = ("accuracy", "log_loss", "balanced_accuracy")


def main() -> None:
    args = parse()
    about = common.machine()
    common.say(common.describe_machine(about))
    with common.work_folder(args.work) as work:
        scans = read(args, work)
        features = extract(scans, "octfast", 1, args)[0]
    rows = []
    for seed in range(args.repeats):
        rows += trial(scans, features, args, seed)
    table = summary(rows, args)
    common.print_table(table, f"{args.repeats} drawings of held-out patients; mean over them")
    differences = against_random(rows, args)
    common.print_table(differences, "Minus random: mean over the drawings, 95% interval by Student's t")
    settings = {k: v for k, v in vars(args).items() if k not in ("data", "weights", "work")}
    common.print_json(
        {"curves": table, "minus_random": differences, "scans": len(scans), "settings": settings, "machine": about}
    )


def trial(scans: Any, features: Any, args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """One drawing of held-out patients and of first labels: a row a way of choosing and round."""
    import numpy as np
    from sklearn.model_selection import GroupShuffleSplit

    from octfast.assess.choose import choose
    from octfast.data.splits.groups import identical_files, linked_groups

    y = scans["label"].astype("category").cat.codes.to_numpy().astype(np.int64)
    groups = linked_groups(scans, identical_files(scans["path"].tolist()))
    pool, test = next(GroupShuffleSplit(1, test_size=0.25, random_state=seed).split(y, groups=groups))
    even = np.full((len(pool), y.max() + 1), 1 / (y.max() + 1))
    first = pool[choose(features[pool], even, groups[pool], args.start, features[pool], by="random", seed=seed).rows]
    found = []
    for way in args.ways:
        labelled = first
        started = time.perf_counter()
        chosen_in = 0.0
        while True:
            answer = fit(features, y, labelled, args, seed)
            found.append(
                {"seed": seed, "way": way, "labels": len(labelled), "classes": len(np.unique(y[labelled]))}
                | judged(answer(features[test]), y[test])
            )
            if len(labelled) >= min(args.most, len(pool)):
                break
            begun = time.perf_counter()
            rest = np.setdiff1d(pool, labelled)
            rows = choose(
                *(features[rest], answer(features[rest]), groups[rest], args.step, features[labelled]),
                by=way,
                seed=1000 * seed + len(labelled),
            ).rows
            chosen_in += time.perf_counter() - begun
            labelled = np.r_[labelled, rest[rows]]
        seconds = time.perf_counter() - started
        common.say(f"  seed {seed}, {way}: {seconds:.0f} s, of which choosing {chosen_in:.1f}; {found[-1]}")
    return found


def fit(features: Any, y: Any, labelled: Any, args: argparse.Namespace, seed: int) -> Any:
    """Train the default head on some scans; gives a function from features to probabilities of all classes."""
    import numpy as np
    import torch
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.optimizer import Adam
    from fastai.torch_core import set_seed

    from octfast.data.loaders import batch_size
    from octfast.model.heads import pooled_head
    from octfast.train.store.loader import StoreLoader
    from octfast.train.store.rows import Values

    set_seed(seed)
    head = pooled_head("linear", features.shape[1], int(y.max()) + 1)
    targets = torch.from_numpy(y[labelled])
    source = Values(features[labelled])
    loaders = DataLoaders(
        StoreLoader(source, targets, bs=batch_size(len(labelled)), shuffle=True, drop_last=True),
        StoreLoader(source, targets, bs=512),
        device="cpu",
    )
    learn = Learner(loaders, head, CrossEntropyLossFlat(), opt_func=Adam, wd=0.1)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(args.epochs, args.rate)
    head.eval()

    def answer(x: Any) -> Any:
        with torch.no_grad():
            return torch.softmax(head(torch.from_numpy(np.ascontiguousarray(x))).double(), 1).numpy()

    return answer


def judged(p: Any, y: Any) -> dict[str, float]:
    import numpy as np
    from sklearn.metrics import balanced_accuracy_score

    return {
        "accuracy": float((p.argmax(1) == y).mean()),
        "log_loss": float(-np.log(np.clip(p[np.arange(len(y)), y], 1e-12, None)).mean()),
        "balanced_accuracy": float(balanced_accuracy_score(y, p.argmax(1))),
    }


def summary(rows: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a way and number of labels, with means over the drawings."""
    import pandas as pd

    means = pd.DataFrame(rows).groupby(["labels", "way"], sort=False)[["classes", *METRICS]].mean().round(4)
    return means.reset_index().sort_values(["labels", "way"]).to_dict("records")


def against_random(rows: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Each way minus `random`, paired by drawing, at each number of labels and over the whole curve."""
    import numpy as np
    import pandas as pd
    from scipy.stats import t

    table = pd.DataFrame(rows)
    later = table[table["labels"] > args.start]
    table = pd.concat(
        [later, later.groupby(["seed", "way"]).mean(numeric_only=True).reset_index().assign(labels="all")]
    )
    out = []
    for labels, part in table.groupby("labels", sort=False):
        for way in [w for w in args.ways if w != "random"]:
            row: dict[str, Any] = {"labels": labels, "way": way}
            for metric in METRICS:
                wide = part.pivot(index="seed", columns="way", values=metric)
                d = (wide[way] - wide["random"]).to_numpy()
                half = float(t.ppf(0.975, len(d) - 1)) * d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else np.nan
                row |= {metric: round(float(d.mean()), 4), f"{metric}_interval": _interval(d.mean(), half)}
            out.append(row)
    return out


def _interval(mean: float, half: float) -> str:
    return f"{mean - half:+.4f} to {mean + half:+.4f}"


def parse() -> argparse.Namespace:
    from octfast.assess.choose import STRATEGIES

    parser = common.features_parser(__doc__)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest rate of the one-cycle schedule")
    parser.add_argument(
        "--folds", type=int, default=5, help="classes of fewer than twice as many patients are left out"
    )
    parser.add_argument("--start", type=int, default=50, help="labels at first")
    parser.add_argument("--step", type=int, default=50, help="labels more a round")
    parser.add_argument("--most", type=int, default=400, help="labels at the end")
    parser.add_argument("--ways", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    return parser.parse_args()


if __name__ == "__main__":
    main()
