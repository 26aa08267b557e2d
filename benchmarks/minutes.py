"""What `octfast train --minutes N` takes and gives: scans, views, seconds of the clock, accuracy on held-out patients.

    python benchmarks/minutes.py --data TABLE --label-column disease --patient-column patient_id --weights FILE

Each number of minutes is a command of its own with an empty cache, timed from outside: importing, reading, the choice,
training and the predictions of the test patients are all in its seconds. The test patients are the same for all; those
of a run that left its test for later are predicted afterwards, outside of its time. Accuracy and log-loss have 95%
intervals of a bootstrap over the test patients. Without --data it runs on phantoms. The machine must have nothing else
to do: what fits depends on it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    from octfast.run.folder import Run


def main() -> None:
    args = parse()
    about = common.machine()
    common.say(common.describe_machine(about))
    with common.work_folder(args.work) as work:
        table = held_out(args, work)
        rows = [one(args, table, work, minutes) for minutes in args.minutes]
    common.print_table([{k: v for k, v in row.items() if k != "notes"} for row in rows], "octfast train --minutes")
    settings = {**vars(args), "data": Path(args.data).name if args.data else "phantoms", "weights": bool(args.weights)}
    common.print_json({"runs": rows, "settings": settings, "machine": about})


def held_out(args: argparse.Namespace, work: Path) -> Path:
    """A table of the scans whose test split is a share of the patients."""
    from octfast.data.readers.read import read_data
    from octfast.data.splits.folds import make_splits

    if args.data:
        columns = {f"{name}_column": getattr(args, f"{name}_column") for name in ("path", "label", "patient")}
        scans = read_data(args.data, **columns, trainable=False)
    else:
        scans = common.phantom_scans(work / "phantoms", 400, 80, size=args.size * 3 // 2)
    drawn = make_splits(scans, valid=0, test=args.test, folds=0, seed=args.seed)
    table = work / "table.csv"
    drawn[["path", "label", "patient", "split"]].to_csv(table, index=False)
    common.say(drawn.groupby("split")["label"].value_counts().unstack(fill_value=0).to_string())
    return table


def one(args: argparse.Namespace, table: Path, work: Path, minutes: float) -> dict[str, Any]:
    """One training: what it took, and what its model makes of the test patients."""
    from octfast.run.folder import open_run

    out, cache = work / f"run-{minutes:g}", work / f"cache-{minutes:g}"
    words = ["train", table, "--minutes", minutes, "--weights", args.weights or "none", "--cache", cache, "--out", out]
    words += ["--views", args.views, "--size", args.size, "--arch", args.arch, "--seed", args.seed, "--json"]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "octfast", *map(str, words)], stdout=subprocess.PIPE, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        common.say(f"--minutes {minutes:g} ended with exit code {done.returncode}")
        return {"minutes": minutes, "seconds": round(seconds, 1)}
    run = open_run(out)
    took = run.config["chosen"]["minutes"]
    return {
        "minutes": minutes,
        "seconds": round(seconds, 1),
        "scans": took["training_scans"]["taken"],
        "of": took["training_scans"]["of"],
        "valid": took["validation_scans"]["taken"],
        "views": took["views"],
        "test": took["test"],
        **judged(run, args.resamples),
        "notes": json.loads(done.stdout)["notes"],
    }


def judged(run: Run, resamples: int) -> dict[str, str]:
    """Accuracy, balanced accuracy and log-loss of the test patients, with their intervals."""
    from octfast.assess.evaluate import evaluate_run

    found = evaluate_run(run, "test", resamples=resamples).overall.set_index("metric")
    rows = found.loc[["accuracy", "balanced_accuracy", "nll"], ["value", "low", "high"]]
    return {name: f"{value:.3f} [{low:.3f}, {high:.3f}]" for name, value, low, high in rows.itertuples()}


def parse() -> argparse.Namespace:
    parser = common.data_parser(__doc__)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2, 5])
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--test", type=float, default=0.15, help="share of the patients that is held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--work", type=Path, help="folder to work in and keep; by default a temporary one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
