"""Measures `audit` and `quick_audit` at 1,000, 10,000 and 100,000 scans, and cleanvision on the same 1,000 files.

    python benchmarks/audit.py [--quick] [--cleanvision-python PYTHON]

Each is a process of its own. The scans are squares of 64 x 64, bands and speckle, drawn fast and all different, with
one in a hundred a re-encoded copy, so that the search for copies has something to find; the run stops where it does not
find them all. cleanvision pins old versions of what octfast needs: install it into an environment of its own and name
its Python; where there is none a line says so.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common

_CLEANVISION = """
import json, resource, sys, time
from cleanvision import Imagelab
started = time.perf_counter()
lab = Imagelab(data_path=sys.argv[1], verbose=False)
lab.find_issues(verbose=False)
seconds = time.perf_counter() - started
peak = next(int(l.split()[1]) * 1024 / 1e6 for l in open("/proc/self/status") if l.startswith("VmHWM:"))
worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
near = lab.info["near_duplicates"]["sets"]
print(json.dumps({"seconds": seconds, "peak": peak, "worker": worker, "copies": sum(len(s) - 1 for s in near)}))
"""


def main() -> None:
    args = parse()
    if args.child:
        child = {"draw": draw, "audit": measure, "quick": measure_quick}[args.child]
        common.write_json(args.json_out, child(args.work, args.scans))
        return
    about = common.machine()
    print(common.describe_machine(about))
    rows, quick = [], []
    with common.work_folder(args.work) as work:
        for scans in args.scans:
            words = ["--work", work, "--scans", scans]
            drawn = common.run_alone(__file__, ["--child", "draw", *words], work, f"drawing {scans}")
            row = common.run_alone(__file__, ["--child", "audit", *words], work, f"auditing {scans}")
            if row["copies"] != drawn["copies"]:
                sys.exit(f"{row['copies']} copies were found of {drawn['copies']}")
            rows.append(row)
            quick.append(common.run_alone(__file__, ["--child", "quick", *words], work, f"quick audit of {scans}"))
        # The largest of up to 1,000, so that the fixed costs of either weigh little.
        shared = max((row for row in rows if row["scans"] <= 1000), key=lambda row: row["scans"], default=rows[0])
        rival = cleanvision(args.cleanvision_python, work / f"scans-{shared['scans']}", shared["scans"])
    common.print_table(rows, "octfast.data.audit.audit.audit, all checks, each file decoded once")
    common.print_table(quick, "octfast.data.audit.audit.quick_audit, no file decoded")
    growth = None
    if len(rows) > 1:
        few, many = rows[0], rows[-1]
        ideal = many["scans"] * math.log(many["scans"]) / (few["scans"] * math.log(few["scans"]))
        growth = round(many["seconds"] / few["seconds"] / ideal, 3)
        print(f"\ntime at {many['scans']:,} over that at {few['scans']:,}, as a share of n log n: {growth}")
    if rival:
        ours = {"tool": "octfast", **shared, "a_worker_mb": None}
        common.print_table([{k: ours[k] for k in rival}, rival], f"side by side on the same {shared['scans']:,} files")
    common.print_json({"audit": rows, "quick": quick, "n_log_n": growth, "cleanvision": rival, "machine": about})


def draw(work: str, scans: int) -> dict[str, Any]:
    """A folder of so many scans in two splits and four classes, every hundredth a copy of that before it."""
    import numpy as np
    from PIL import Image

    folder = Path(work) / f"scans-{scans}"
    rows = np.arange(64)[:, None]
    columns = np.arange(64)[None]
    copies = 0
    for i in range(scans):
        rng = np.random.default_rng([i - 1 if i % 100 == 99 else i])
        middle = 28 + 8 * rng.random() + 6 * np.sin(columns / (6 + 8 * rng.random()) + 6 * rng.random())
        bands = 120 * np.exp(-(((rows - middle) / 5) ** 2)) + 70 * np.exp(-(((rows - middle - 14) / 8) ** 2))
        grey = ((20 + bands) * rng.gamma(4, 0.25, (64, 64))).clip(0, 255).astype(np.uint8)
        split, label = ("test" if i % 10 > 7 else "train"), ("CNV", "DME", "DRUSEN", "NORMAL")[i // 10 % 4]
        path = folder / split / label / f"{label}-{i}-1.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        out = io.BytesIO()
        Image.fromarray(grey).save(out, "JPEG", quality=70 if i % 100 == 99 else 80)
        path.write_bytes(out.getvalue())
        copies += i % 100 == 99
    return {"scans": scans, "copies": copies}


def measure(work: str, scans: int) -> dict[str, Any]:
    """The whole audit."""
    from octfast.data.audit.audit import audit

    logging.getLogger("octfast").addHandler(logging.StreamHandler())
    folder = Path(work) / f"scans-{scans}"
    started = time.perf_counter()
    found = audit(folder)
    seconds = time.perf_counter() - started
    copies = found.findings["check"].str.startswith("near-duplicate")
    return {
        "scans": scans,
        "seconds": round(seconds, 2),
        "files_a_second": round(scans / seconds),
        "peak_memory_mb": round(common.peak_memory_mb()),
        "copies": int(found.findings.loc[copies, "path"].nunique()),
    }


def measure_quick(work: str, scans: int) -> dict[str, Any]:
    """The quick audit, without the reading of the folder."""
    from octfast.data.audit.audit import quick_audit
    from octfast.data.readers.folder import read_scans

    table = read_scans(Path(work) / f"scans-{scans}")
    started = time.perf_counter()
    found = quick_audit(table)
    seconds = time.perf_counter() - started
    return {
        "scans": scans,
        "seconds": round(seconds, 2),
        "findings": len(found),
        "peak_memory_mb": round(common.peak_memory_mb()),
    }


def cleanvision(python: str, folder: Path, scans: int) -> dict[str, Any] | None:
    """cleanvision's default checks on a folder, by the Python that has it; None, and a line, where there is none."""
    if subprocess.run([python, "-c", "import cleanvision"], capture_output=True).returncode:
        print(f"cleanvision is not installed for {python}: not compared (see --cleanvision-python)")
        return None
    ran = subprocess.run([python, "-W", "ignore", "-c", _CLEANVISION, str(folder)], capture_output=True, text=True)
    if ran.returncode:
        print(f"cleanvision failed: {ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else ran.returncode}")
        return None
    result = json.loads(ran.stdout.strip().splitlines()[-1])
    return {
        "tool": "cleanvision",
        "scans": scans,
        "seconds": round(result["seconds"], 2),
        "files_a_second": round(scans / result["seconds"]),
        "peak_memory_mb": round(result["peak"]),
        "a_worker_mb": round(result["worker"]),
        "copies": result["copies"],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, nargs="+", help="by default 1000 10000 100000")
    parser.add_argument("--quick", action="store_true", help="200 and 1,000 scans only")
    parser.add_argument("--cleanvision-python", default=sys.executable, help="a Python that has cleanvision")
    parser.add_argument("--work", help="folder for the scans, kept; by default a temporary one")
    parser.add_argument("--child", choices=("draw", "audit", "quick"), help=argparse.SUPPRESS)
    parser.add_argument("--json-out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        args.scans = args.scans[0]
    elif not args.scans:
        args.scans = [200, 1000] if args.quick else [1000, 10_000, 100_000]
    return args


if __name__ == "__main__":
    main()
