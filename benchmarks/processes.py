"""One process against several: the same bytes, how much sooner, and how soon all end when one of them is killed.

    python benchmarks/processes.py [--scans 192] [--processes 2] [--rounds 2] [--size 224] [--whole] [--units]

Each process has one thread. In every round one process trains and predicts, then several do, each time with an empty
cache. The seconds of the frozen part are those between two lines of log.txt, from its announcement to its last training
scan; what the first process does alone there, such as reading all files to make a key, is in it. The whole is the
command's from its start to its end, imports and all. Then a training of several processes loses one of them to SIGKILL
in the midst of the frozen part, once the last and once the first.

With --whole the whole network is trained (--unfreeze all), each process on its share of every batch: the seconds of its
epochs, of which the first, of the head, is left out, and how far losses are apart, which are not of the same bytes.

With --units a model of volumes is trained once, and then asked about `scans` B-scans in volumes of 12, in DICOM, by one
process and by several.

The last line is JSON; the exit code is 1 where bytes differ, or losses by more than 1%. Needs Linux.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import common

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=192)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--arch", default="vgg16_bn")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--bs", type=int, default=32, help="of all processes together, with --whole")
    parser.add_argument("--whole", action="store_true", help="train the whole network in all processes")
    parser.add_argument("--units", action="store_true", help="ask a model of volumes about volumes")
    parser.add_argument("--work", help="an empty folder; by default a temporary one")
    args = parser.parse_args()
    found = common.machine()
    with common.work_folder(args.work) as work:
        result = (measure_whole if args.whole else measure_units if args.units else measure)(args, work)
    print(common.describe_machine(found))
    common.print_json({**result, **vars(args), "work": None, "machine": found})
    sys.exit(0 if result.get("same_bytes", result.get("apart", 1) < 0.01) else 1)


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    data = work / "data"
    common.say(f"drawing {args.scans} phantoms")
    octfast(1, "data", "phantom", "--scans", args.scans, "--out", data)
    rows: list[dict[str, Any]] = []
    digests: list[str] = []
    for number in range(args.rounds):
        for count in (1, args.processes):
            folder = work / f"{number}-{count}"
            common.say(f"round {number + 1}: {count} process{'es' if count > 1 else ''}")
            whole = octfast(count, *training(args, data, folder))
            asked = octfast(count, "predict", folder / "run", data, "--out", folder / "answers.csv")
            frozen = seconds_of_frozen(folder / "run" / "log.txt")
            rows.append({"processes": count, "frozen": frozen, "training": whole, "predict": asked})
            digests.append(digest(folder))
            if number:
                shutil.rmtree(folder)
    table = []
    for count in (1, args.processes):
        own = [row for row in rows if row["processes"] == count]
        table.append({k: count if k == "processes" else statistics.median(r[k] for r in own) for k in own[0]})
    ratio = {f"{k}_ratio": round(table[1][k] / table[0][k], 3) for k in ("frozen", "training", "predict")}
    common.print_table(table, f"seconds, {args.arch} at {args.size}, {args.scans} phantoms, one thread a process")
    killed = {f"killed_{rank}": killed_after(args, data, work, rank) for rank in (args.processes - 1, 0)}
    print(f"\nthe same bytes: {'yes' if len(set(digests)) == 1 else 'NO'}")
    print("seconds until all had ended: " + ", ".join(f"{v:.1f} ({k.replace('_', ' ')})" for k, v in killed.items()))
    return {"same_bytes": len(set(digests)) == 1, **ratio, **killed, "rounds_seconds": rows}


def measure_whole(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Of the whole network, in one process and in several, in turns."""
    data = work / "data"
    common.say(f"drawing {args.scans} phantoms")
    octfast(1, "data", "phantom", "--scans", args.scans, "--out", data)
    rows: list[dict[str, Any]] = []
    losses: list[list[float]] = []
    for number in range(args.rounds):
        for count in (1, args.processes):
            folder = work / f"{number}-{count}"
            common.say(f"round {number + 1}: {count} process{'es' if count > 1 else ''}")
            whole = octfast(count, *training(args, data, folder))
            with (folder / "run" / "history.csv").open(newline="", encoding="utf-8") as f:
                history = list(csv.DictReader(f))
            each = round(statistics.mean(float(row["seconds"]) for row in history[1:]), 3)
            rows.append({"processes": count, "epoch": each, "training": whole})
            losses.append([float(row[k]) for row in history for k in ("train_loss", "valid_loss")])
    common.print_table(rows, f"seconds, {args.arch} at {args.size}, {args.scans} phantoms, one thread a process")
    ratios = {
        f"{k}_ratio": [round(b[k] / a[k], 3) for a, b in zip(rows[::2], rows[1::2], strict=True)]
        for k in ("epoch", "training")
    }
    apart = max(abs(a - b) / a for other in losses for a, b in zip(losses[0], other, strict=True))
    print(f"\nlosses are apart by {apart:.2g} of themselves at most; ratios: {ratios}")
    return {"apart": apart, **ratios, "rounds_seconds": rows}


def measure_units(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Of predictions by a model of volumes, by one process and by several, in turns."""
    common.say(f"drawing volumes, {args.scans} B-scans to ask about, and training")
    learned, asked = work / "learned", work / "asked"
    octfast(1, "data", "phantom", "--volumes", 32, "--frames", 5, "--out", learned)
    wanted = ["--volumes", args.scans // 12, "--frames", 12, "--format", "dicom", "--seed", 1]
    octfast(1, "data", "phantom", *wanted, "--out", asked)
    octfast(1, *training(args, learned / "volumes.csv", work), "--level", "volume", "--valid", 0.3)
    rows: list[dict[str, Any]] = []
    answers: set[bytes] = set()
    for number in range(args.rounds):
        for count in (1, args.processes):
            out = work / f"{number}-{count}.jsonl"
            rows.append({"processes": count, "predict": octfast(count, "predict", work / "run", asked, "--out", out)})
            answers.add(out.read_bytes() + out.with_stem(f"{out.stem}-volumes").read_bytes())
    common.print_table(rows, f"seconds, {args.arch} at {args.size}, {args.scans} B-scans, one thread a process")
    ratios = [round(b["predict"] / a["predict"], 3) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    print(f"\nthe same bytes: {'yes' if len(answers) == 1 else 'NO'}; ratios: {ratios}")
    return {"same_bytes": len(answers) == 1, "predict_ratio": ratios, "rounds_seconds": rows}


def training(args: argparse.Namespace, data: Path, folder: Path, views: int = 0) -> list[object]:
    words: list[object] = ["train", data, "--arch", args.arch, "--weights", "none", "--size", args.size]
    words += ["--epochs", args.epochs, "--out", folder / "run", "--cache", folder / "cache"]
    if args.whole:
        return [*words, "--unfreeze", "all", "--lr", 0.002, "--bs", args.bs, "--workers", 0]
    return [*words, "--views", views or args.views]


def command(count: int, *words: object) -> list[str]:
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={count}"] if count > 1 else []
    return [sys.executable, *launcher, "-m", "octfast", *map(str, words)]


def environment() -> dict[str, str]:
    there = {"OMP_NUM_THREADS": "1", "OCTFAST_OFFLINE": "1", "MPLBACKEND": "agg"}
    return {**os.environ, **there, "PYTHONPATH": str(ROOT)}


def octfast(count: int, *words: object) -> float:
    """Run a command; gives its seconds."""
    start = time.perf_counter()
    ended = subprocess.run(command(count, *words), env=environment(), capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{' '.join(map(str, words))} ended with {ended.returncode}:\n{ended.stderr[-3000:]}")
    return round(time.perf_counter() - start, 2)


def seconds_of_frozen(log: Path) -> float:
    """From the announcement of the frozen part to its last training scan."""
    lines = log.read_text(encoding="utf-8").splitlines()
    at = [
        datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")
        for line in lines
        if "runs once a view" in line or "frozen part over the training scans: " in line
    ]
    if len(at) < 2:
        sys.exit(f"{log} does not say how long the frozen part took: give more --scans")
    return round((at[-1] - at[0]).total_seconds(), 2)


def digest(folder: Path) -> str:
    """Of the stores, the model and all predictions."""
    files = [*folder.glob("cache/features/*/features.bin"), *folder.glob("run/predictions-*.csv")]
    files += [folder / "answers.csv", folder / "run" / "model" / "model.safetensors"]
    made = hashlib.sha256()
    for file in sorted(files):
        made.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return made.hexdigest()


def killed_after(args: argparse.Namespace, data: Path, work: Path, rank: int) -> float:
    """Seconds from the SIGKILL of a process to the end of all."""
    folder = work / f"killed-{rank}"
    words = command(args.processes, *training(args, data, folder, views=20))
    with (work / f"killed-{rank}.txt").open("w") as said:
        launcher = subprocess.Popen(words, env=environment(), stderr=said, stdout=said)
        while not list(folder.glob("cache/features/*/features.bin")):
            if launcher.poll() is not None:
                sys.exit((work / f"killed-{rank}.txt").read_text())
            time.sleep(0.1)
        time.sleep(3)
        own = process_ids(launcher.pid)
        os.kill(own[rank], signal.SIGKILL)
        start = time.perf_counter()
        launcher.wait()
        while any(Path(f"/proc/{pid}").exists() for pid in own.values()):
            time.sleep(0.05)
    seconds = round(time.perf_counter() - start, 2)
    for line in (work / f"killed-{rank}.txt").read_text().splitlines():
        if "has ended before its time" in line or "go on with" in line:
            common.say(f"  {line}")
    return seconds


def process_ids(launcher: int) -> dict[int, int]:
    """The processes that a launcher has started, by their rank."""
    own = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher:
                values = dict(v.split("=", 1) for v in (folder / "environ").read_text().split("\0") if "=" in v)
                own[int(values["RANK"])] = int(folder.name)
        except (OSError, KeyError):
            continue
    return own


if __name__ == "__main__":
    main()
