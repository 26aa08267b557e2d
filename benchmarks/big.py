"""Measures how the commands grow with the number of scans: processor seconds and peak memory at 1,000, 10,000, 100,000.

    python benchmarks/big.py [--scans 1000 10000 100000]

Each command is the one that a user types, in a process of its own. The scans are 96 x 64 grey JPEG, bands and speckle,
drawn fast and all different: four classes, patients of 1 to 30 scans, one patient in ten in `test`. The network is
small and untrained, so that what is done a scan beside it shows. A processor second is one of user and system time of a
command and all that it starts, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common

LABELS = ("CNV", "DME", "DRUSEN", "NORMAL")
WIDTH, HEIGHT = 96, 64


def main() -> None:
    args = parse()
    if args.child:
        common.write_json(args.json_out, draw(Path(args.work), args.scans[0], args.pool))
        return
    about = common.machine()
    print(common.describe_machine(about))
    rows: list[dict[str, Any]] = []
    with common.work_folder(args.work) as work:
        for scans in args.scans:
            for pool in ("", "-pool"):
                if not (work / f"scans-{scans}{pool}").exists():
                    words = ["--child", "--work", work, "--scans", scans, *(["--pool"] if pool else [])]
                    common.run_alone(__file__, words, work, f"drawing {scans}{pool}")
            of_scans = measure(work, scans, args)
            # A finished size is kept whatever becomes of the next.
            common.write_json(work / f"big-{scans}.json", {"rows": of_scans})
            rows += of_scans
    table = growth(rows)
    common.print_table(table, f"{args.arch} at {args.size}, untrained; processor seconds and peak memory a command")
    common.print_json({"rows": rows, "growth": table, "size": args.size, "arch": args.arch, "machine": about})


def commands(data: Path, out: Path, args: argparse.Namespace) -> dict[str, list[str]]:
    """What is measured, in the order in which it is run."""
    run = str(out / "run")
    few = ["--epochs", str(args.epochs), "--size", str(args.size), "--arch", args.arch, "--weights", "none"]
    train = ["train", str(data), *few, "--lr", "0.002", "--cache", str(out / "cache")]
    every = {
        "explore": ["data", "explore", str(data), "--out", str(out / "explored")],
        "audit": ["data", "audit", str(data)],
        "split": ["data", "split", str(data), "--folds", "5", "--out", str(out / "splits.csv")],
        "train": [*train, "--out", run],
        "train again": [*train, "--out", str(out / "again")],
        "predict": ["predict", run, str(data), "--bs", "64", "--out", str(out / "answers.csv")],
        "evaluate": ["evaluate", run],
        "interpret": ["interpret", run, "--top-losses", "9", "--label-errors"],
        "report": ["report", run],
        "drift": ["drift", str(out / "answers.csv"), "--run", run, "--out", str(out / "drift")],
        "similar": ["similar", run, str(next(iter(sorted((data / "test" / LABELS[0]).iterdir()))))],
        "suggest": ["suggest", f"{data}-pool", "--run", run, "--n", "50", "--out", str(out / "suggestions.csv")],
    }
    return {name: words for name, words in every.items() if not args.only or name in args.only}


def measure(work: Path, scans: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every command on a folder of so many scans; the run stops where one fails."""
    out = work / f"out-{scans}"
    out.mkdir(exist_ok=True)
    rows = []
    for name, words in commands(work / f"scans-{scans}", out, args).items():
        told = out / f"{name.replace(' ', '-')}.txt"
        started = time.perf_counter()
        with told.open("wb") as log:
            command = [sys.executable, "-m", "octfast", *words]
            # Where the run folder lies among others, `latest` is written beside it.
            child = subprocess.Popen(command, stdout=log, stderr=log, cwd=out, env=environment(out))
            _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        row = {
            "scans": scans,
            "command": name,
            "cpu_s": round(used.ru_utime + used.ru_stime, 1),
            "clock_s": round(time.perf_counter() - started, 1),
            # Of the largest process; Linux counts in KiB, macOS in bytes.
            "peak_mb": round(used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6),
        }
        common.say(f"  {row}")
        # An audit ends with 1 where it found something.
        if child.returncode and not (name in ("audit", "drift") and child.returncode == 1):
            sys.exit(f"octfast {' '.join(words)} ended with {child.returncode}:\n{told.read_text()[-3000:]}")
        rows.append(row)
    return rows


def environment(out: Path) -> dict[str, str]:
    """That of this process, without a network and with a cache of its own."""
    path = os.pathsep.join(p for p in (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path, "OCTFAST_OFFLINE": "1", "OCTFAST_CACHE": str(out / "cache")}


def growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a command: seconds and memory at each number of scans, and how the last step compares with n log n.

    What a command costs without any scan, mostly importing, is taken off: it is estimated by the two smallest numbers.
    """
    numbers = sorted({row["scans"] for row in rows})
    table = []
    for name in dict.fromkeys(row["command"] for row in rows):
        of = {row["scans"]: row for row in rows if row["command"] == name}
        line: dict[str, Any] = {"command": name}
        for n in numbers:
            line |= {f"s at {n:,}": of[n]["cpu_s"], f"MB at {n:,}": of[n]["peak_mb"]}
        if len(numbers) > 2:
            a, b, c = (of[n]["cpu_s"] for n in (numbers[0], numbers[-2], numbers[-1]))
            ideal = (numbers[-1] * math.log(numbers[-1]) - numbers[0] * math.log(numbers[0])) / (
                numbers[-2] * math.log(numbers[-2]) - numbers[0] * math.log(numbers[0])
            )
            line["of n log n"] = round((c - a) / max(b - a, 0.1) / ideal, 2)
        table.append(line)
    return table


def draw(work: Path, scans: int, pool: bool) -> dict[str, Any]:
    """A folder of so many scans, CLASS-PATIENT-IMAGE in a folder a class, in train and test; or of a pool of others."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng([scans, pool])
    folder_of_all = work / f"scans-{scans}{'-pool' if pool else ''}"
    part = folder_of_all.with_suffix(".part")
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    done, patient = 0, 10_000_000 if pool else 0
    while done < scans:
        label = int(rng.integers(len(LABELS)))
        patient += 1
        folder = part / ("test" if patient % 10 == 0 else "train") / LABELS[label]
        folder.mkdir(parents=True, exist_ok=True)
        top, tilt, bow = rng.uniform(14, 26), rng.uniform(-0.1, 0.1), rng.uniform(0, 0.004)
        for image in range(min(int(rng.integers(1, 31)), scans - done)):
            surface = top + rng.uniform(-3, 3) + tilt * columns + bow * (columns - WIDTH / 2) ** 2
            depth = rows - surface
            grey = 20 + 150 * np.exp(-((depth - 3) ** 2) / 8) + 170 * np.exp(-((depth - 20) ** 2) / 10)
            grey += 70 * ((depth > 0) & (depth < 22))
            at = (columns - rng.uniform(20, WIDTH - 20)) ** 2 / 80 + (depth - 14) ** 2 / 20
            grey *= 1 + (label - 1.5) * 0.35 * np.exp(-at)
            # Speckle of a grain of two pixels, which survives JPEG.
            speckle = np.kron(rng.gamma(3, 1 / 3, (HEIGHT // 2, WIDTH // 2)), np.ones((2, 2)))
            made = Image.fromarray((grey * speckle).clip(0, 255).astype(np.uint8))
            buffer = io.BytesIO()
            made.save(buffer, "JPEG", quality=90)
            (folder / f"{LABELS[label]}-{patient}-{image}.jpeg").write_bytes(buffer.getvalue())
            done += 1
    part.rename(folder_of_all)
    return {"scans": done, "patients": patient}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scans", type=int, nargs="+", default=[1000, 10_000, 100_000], help="how many, one after the other")
    add("--size", type=int, default=32, help="side that scans are brought to (default 32)")
    add("--arch", default="resnet18", help="(default resnet18)")
    add("--epochs", type=int, default=2, help="(default 2)")
    add("--only", nargs="+", help="these of the commands alone, such as train or predict")
    add("--work", help="folder that scans and results stay in; by default a temporary one")
    add("--pool", action="store_true", help=argparse.SUPPRESS)
    add("--child", action="store_true", help=argparse.SUPPRESS)
    add("--json-out", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
