"""Measures the peak memory of `train_classifier` on 2,000 and on 8,000 scans: it should not grow with their number.

    python benchmarks/memory.py

Each training is a process of its own: a small network at 64 x 64, from the folder of files to the finished run
folder, with its predictions. The phantoms are drawn once, and copied under other patients' names where more are asked
for, which takes nothing away from the work or the memory.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import common


def main() -> None:
    args = parse()
    if args.child:
        common.write_json(args.json_out, train(args) if args.child == "train" else draw(args))
        return
    about = common.machine()
    print(common.describe_machine(about))
    runs = []
    with common.work_folder() as work:
        shared = ["--work", work, "--size", args.size, "--arch", args.arch]
        shared += ["--epochs", args.epochs, "--views", args.views, "--distinct", args.distinct]
        idle = common.run_alone(__file__, ["--child", "train", "--scans", 0, *shared], work, "imports alone")
        for scans in args.scans:
            words = ["--scans", scans, *shared]
            common.run_alone(__file__, ["--child", "draw", *words], work, f"drawing {scans}")
            runs.append(common.run_alone(__file__, ["--child", "train", *words], work, f"training {scans}"))
    ratio = runs[-1]["peak_memory_mb"] / runs[0]["peak_memory_mb"]
    common.print_table([idle, *runs], f"train_classifier, {args.arch} at {args.size}, {args.epochs} epochs")
    print(f"\npeak memory of {args.scans[-1]:,} scans over that of {args.scans[0]:,}: {ratio:.3f}")
    keys = ("size", "arch", "epochs", "views", "distinct")
    settings = {k: getattr(args, k) for k in keys}
    common.print_json({"idle": idle, "runs": runs, "ratio": round(ratio, 4), "settings": settings, "machine": about})


def draw(args: argparse.Namespace) -> dict[str, Any]:
    """A folder of so many scans, a folder a class."""
    from octfast.data.phantom.draw import write_phantoms

    work = Path(args.work)
    source, folder = work / "distinct", work / f"scans-{args.scans}"
    if not source.exists():
        write_phantoms(source, args.distinct, test=0, size=args.size)
    files = sorted(source.glob("train/*/*.jpeg"))
    for i, file in enumerate(itertools.islice(itertools.cycle(files), args.scans)):
        label, patient, image = file.stem.split("-")
        to = folder / label / f"{label}-{int(patient) + 10_000_000 * (i // len(files))}-{image}.jpeg"
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to)
    return {"scans": args.scans}


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train on them as `octfast train` does; without any, import alone."""
    from octfast import train_classifier

    logging.getLogger("octfast").setLevel(logging.ERROR)
    begun = time.perf_counter()
    if args.scans:
        work = Path(args.work)
        train_classifier(
            data=str(work / f"scans-{args.scans}"),
            out=str(work / f"run-{args.scans}"),
            cache=str(work / "cache"),
            arch=args.arch,
            size=args.size,
            epochs=args.epochs,
            views=args.views,
            weights="none",
            lr=2e-3,
            bs=64,
        )
    return {
        "scans": args.scans,
        "peak_memory_mb": round(common.peak_memory_mb(), 1),
        "peak_worker_mb": round(common.peak_worker_mb(), 1),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scans", type=int, nargs="+", default=[2000, 8000], help="how many, run by run (default 2000 8000)")
    add("--size", type=int, default=64, help="side of a scan in pixels (default 64)")
    add("--arch", default="resnet18", help="(default resnet18)")
    add("--epochs", type=int, default=3, help="(default 3)")
    add("--views", type=int, default=4, help="(default 4)")
    add("--distinct", type=int, default=400, help="phantoms that are drawn; the others are copies (default 400)")
    add("--child", choices=["draw", "train"], help=argparse.SUPPRESS)
    add("--work", help=argparse.SUPPRESS)
    add("--json-out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        args.scans = args.scans[0]
    return args


if __name__ == "__main__":
    main()
