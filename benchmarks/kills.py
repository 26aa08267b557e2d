"""Kills trainings at random moments, lets each go on, and compares it with one that was not cut off.

    python benchmarks/kills.py [--kills 30] [--seed 0] [--size 48] [--work FOLDER]

Half of the trainings are of the default recipe (features, a search for the rate, a cross-validation), half augment anew
every epoch (--views 0). Each is a process of its own that trains and writes the report, with an empty cache, and gets
SIGKILL after a random share of the processor time that it takes: one in six in the report, the others before. Then
`octfast train --resume` goes on in another process, or the report is written again where the training was over, and
what is left is compared byte for byte: history but for its seconds, weights, predictions, metrics, scans, and the names
of all files.

The last line is JSON; the exit code is 1 where one did not go on or ended otherwise. Needs Linux.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MPLBACKEND="agg", OCTFAST_OFFLINE="1")

import common

RECIPES: dict[str, dict[str, Any]] = {
    "default": {"views": 1, "folds": 5, "epochs": 6},
    "views 0": {"views": 0, "epochs": 5},
}
APART = ("config.json", "log.txt", "report.html", "MODEL_CARD.md")
TICKS = os.sysconf("SC_CLK_TCK")


def train(data: Path, out: Path, cache: Path, fields: dict[str, Any]) -> None:
    """Train and write the report, as a person would by two commands."""
    from octfast.train.job import train_classifier

    small = {"arch": "test_resnet", "weights": "none", "precision": "fp32", "workers": 0, "valid": "0.25"}
    train_classifier(data=str(data), out=str(out), cache=str(cache), **small, **fields)
    report(out)


def report(out: Path) -> None:
    from octfast.assess.report.report import write_report

    write_report(out)


def go_on(out: Path) -> None:
    """Go on with a training, where it is not over, and write the report."""
    from octfast.model.bundle.state import FINISHED, state_of
    from octfast.train import checkpoint
    from octfast.train.resume import resume_training

    if state_of(out) != FINISHED or (out / "checkpoints" / checkpoint.FILE).exists():
        resume_training(out)
    report(out)


def started(job: Callable[..., None], *words: Any) -> Any:
    """A job in a process of its own, which finds everything imported."""
    process = multiprocessing.get_context("fork").Process(target=job, args=words)
    process.start()
    return process


def spent(process: Any) -> float:
    """Seconds of processor time that a process has had."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def stage(out: Path) -> str:
    """How far a training had come as it was killed."""
    from octfast.model.bundle.state import FINISHED, state_of

    if not (out / "config.json").exists():
        return "nothing begun"
    if state_of(out) == FINISHED:
        return "report" if not (out / "MODEL_CARD.md").exists() else "after the report"
    if (out / "model").exists():
        return "calibration, predictions"
    if (out / "history.csv").exists():
        return "training"
    if any((out / "checkpoints").glob("tmp*")):
        return "lr_find"
    if "learning rate" in (out / "log.txt").read_text(encoding="utf-8"):
        return "first epoch"
    return "features" if (out / "scans.csv").exists() else "preparing"


def left_by(out: Path) -> dict[str, bytes]:
    """What a training leaves, but for what says when and how often."""
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    rows = found.get("history.csv", b"").splitlines()
    found["history.csv"] = b"\n".join(row.rpartition(b",")[0] for row in rows)
    return {k: b"" if k in APART or k.endswith((".png", ".svg")) else v for k, v in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="(default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--size", type=int, default=48, help="of the scans (default 48)")
    parser.add_argument("--work", help="a folder to work in, which stays; by default a temporary one")
    args = parser.parse_args()

    import octfast.assess.report.report
    import octfast.train.resume  # noqa: F401  (for the processes to come)
    from octfast.data.phantom.draw import write_phantoms
    from octfast.model.bundle.state import FINISHED, state_of

    draw, rows = random.Random(args.seed), []
    resumed = equal = 0
    with common.work_folder(args.work) as work:
        data = write_phantoms(work / "scans", 96, size=max(64, args.size), seed=args.seed)
        whole, seconds = {}, {}
        for name, fields in RECIPES.items():
            out = work / f"whole {name}" / "run"
            process = started(train, data, out, work / f"cache {name}", {**fields, "size": args.size})
            trained = total = 0.0
            while process.is_alive():
                total = max(total, spent(process))
                if state_of(out) != FINISHED or not (out / "config.json").exists():
                    trained = total
                time.sleep(0.02)
            whole[name], seconds[name] = left_by(out), (trained, total)
            common.say(f"{name}: {trained:.1f} s of processor time, with the report {total:.1f}")
        for n in range(args.kills):
            name = list(RECIPES)[n % len(RECIPES)]
            out, cache = work / f"{n}" / "run", work / f"cache {n}"
            trained, total = seconds[name]
            in_report = n // len(RECIPES) % 6 == 5
            start, end = (trained, total) if in_report else (0.0, trained)
            moment = start + draw.random() * 0.95 * (end - start)
            killed = False
            while not killed:
                process = started(train, data, out, cache, {**RECIPES[name], "size": args.size})
                while spent(process) < moment and process.is_alive():
                    time.sleep(0.002)
                killed = process.is_alive()
                if killed:
                    os.kill(process.pid, signal.SIGKILL)
                else:  # it was faster than the first
                    shutil.rmtree(out.parent)
                    shutil.rmtree(cache)
                    moment *= 0.8
                process.join()
            where = stage(out)
            again = started(go_on, out)
            again.join()
            resumed += again.exitcode == 0
            same = left_by(out) == whole[name]
            equal += same
            rows.append({"kill": n + 1, "recipe": name, "at s": round(moment, 2), "stage": where, "equal": same})
            common.say(rows[-1])
            if again.exitcode == 0 and same:
                shutil.rmtree(out.parent)
            shutil.rmtree(cache, ignore_errors=True)
    stages = {s: sum(r["stage"] == s for r in rows) for s in dict.fromkeys(r["stage"] for r in rows)}
    common.print_table([{"stage": s, "kills": k} for s, k in stages.items()], "Where the trainings were killed")
    common.print_json({"kills": args.kills, "resumed": resumed, "equal": equal})
    sys.exit(int(min(resumed, equal) < args.kills))


if __name__ == "__main__":
    main()
