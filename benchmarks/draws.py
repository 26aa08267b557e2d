"""Which scans to learn from where there is no time for all: ways of drawing n of them, judged on held-out patients.

    python benchmarks/draws.py --data DATA --weights FILE

Five folds by patient; of the training scans of each, n are drawn, and a head as the default's learns from their stored
features:

- patients: whole patients, in a random order;
- shares, roots, balanced: as `octfast train --minutes` draws, each patient once before any twice; the classes by their
  shares, by the roots of their frequencies (what it does), or evenly.

Without --data it runs on phantoms, without --weights on a body of random weights.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import accuracy
import common

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

WAYS = ("patients", "shares", "roots", "balanced")


def main() -> None:
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold

    args = parse()
    about = common.machine()
    common.say(common.describe_machine(about))
    with common.work_folder(args.work) as work:
        scans = accuracy.read(args, work)
        x = accuracy.extract(scans, "octfast", 1, args)[0]
    y = scans["label"].astype("category").cat.codes.to_numpy().astype(np.int64)
    rows = []
    for size in args.sizes:
        for way in WAYS:
            started, found = time.perf_counter(), []
            for repeat in range(args.repeats):
                p = np.zeros((len(y), y.max() + 1))
                folds = StratifiedGroupKFold(args.folds, shuffle=True, random_state=repeat)
                for train, test in folds.split(y, y, scans["patient"]):
                    drawn = train[order(scans.iloc[train].reset_index(drop=True), repeat, way)[:size]]
                    p[test] = accuracy.fit("single", x[None], x, y, y, drawn, args.epochs, repeat)(x[test])
                found.append(accuracy.scores(p, y))
            means = {m: float(np.mean([f[m] for f in found])) for m in ("log_loss", "accuracy", "balanced_accuracy")}
            rows.append({"scans": size, "way": way, **means, "s": time.perf_counter() - started})
    common.print_table(rows, "drawn training scans")
    common.print_json({"rows": rows, "machine": about})


def order(scans: pd.DataFrame, seed: int, way: str) -> np.ndarray:
    """The places of the scans in the order in which they are drawn."""
    import numpy as np
    import pandas as pd

    from octfast.train.minutes import nested

    if way == "patients":
        patients = np.random.default_rng(seed).permutation(scans["patient"].unique())
        return np.argsort(pd.Categorical(scans["patient"], patients).codes, kind="stable")
    nested.POWER = {"shares": 1.0, "roots": 0.5, "balanced": 0.0}[way]
    return nested.drawing_order(scans, seed).rows


def parse() -> argparse.Namespace:
    parser = common.features_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[60, 120, 200])
    parser.add_argument("--folds", type=int, default=5)
    parser.set_defaults(repeats=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
