"""Measures seconds and memory of every figure with 2,000 resamples, for a Predictions table of 100,000 rows.

    python benchmarks/metrics.py

Each table is judged in a process of its own, by `evaluate_table` as `octfast evaluate` calls it. `imports alone` is
what a process holds before it begins. Where other work is running, `cpu seconds` say more than `seconds`: the work is
done by one thread.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import common


def main() -> None:
    args = parse()
    if args.child:
        common.write_json(args.json_out, judge(args))
        return
    about = common.machine()
    print(common.describe_machine(about))
    with common.work_folder() as work:
        shared = ["--child", "--resamples", args.resamples, "--classes", args.classes]
        runs = [common.run_alone(__file__, [*shared, "--rows", 0], work, "imports alone")]
        for rows in args.rows:
            for a_patient, groups in ((args.a_patient, 0), (1, 0), (args.a_patient, args.groups)):
                words = [*shared, "--rows", rows, "--a-patient", a_patient, "--groups", groups]
                runs.append(common.run_alone(__file__, words, work, f"{rows} rows, {a_patient} a patient"))
    common.print_table(runs, f"evaluate_table, {args.resamples:,} resamples, {args.classes} classes")
    settings = {k: getattr(args, k) for k in ("rows", "a_patient", "groups", "resamples", "classes")}
    common.print_json({"runs": runs, "settings": settings, "machine": about})


def judge(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    import pandas as pd

    from octfast.assess.metrics.metrics import evaluate_table

    classes = ["CNV", "DME", "DRUSEN", "NORMAL", *(f"class{i}" for i in range(4, args.classes))][: args.classes]
    (n,) = args.rows
    figures, seconds, cpu = 0, 0.0, 0.0
    if n:
        rng = np.random.default_rng(0)
        owner = np.arange(n) // args.a_patient
        actual = rng.integers(0, len(classes), n)[owner]
        z = rng.normal(0, 1, (n, len(classes)))[owner] + rng.normal(0, 1, (n, len(classes)))
        z[np.arange(n), actual] += 2.5
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        names = np.asarray(classes, dtype=object)
        table = pd.DataFrame({"path": [f"/scans/{i}.jpeg" for i in range(n)], "label": names[actual]})
        table = table.assign(patient=[str(o) for o in owner], split="test", predicted=names[p.argmax(1)])
        table = table.assign(probability=p.max(1), loss=-np.log(p[np.arange(n), actual]))
        table = table.assign(**{f"p_{c}": p[:, i] for i, c in enumerate(classes)})
        if args.groups:
            table["device"] = owner % args.groups
        del z, p
        started, worked = time.perf_counter(), time.process_time()
        found = evaluate_table(
            table,
            classes,
            operating_threshold=0.3,
            prevalence={"CNV": 0.02},
            resamples=args.resamples,
            by_group=["device"] if args.groups else [],
        )
        seconds, cpu = time.perf_counter() - started, time.process_time() - worked
        figures = sum(map(len, (found.overall, found.per_class, found.referral, found.units, found.groups)))
    return {
        "rows": n,
        "patients": -(-n // args.a_patient),
        "groups": args.groups,
        "figures": figures,
        "seconds": round(seconds, 2),
        "cpu seconds": round(cpu, 2),
        "peak_memory_mb": round(common.peak_memory_mb()),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000], help="(default 1000 10000 100000)")
    add("--a-patient", type=int, default=4, help="scans of a patient (default 4); one alone is measured beside it")
    add("--groups", type=int, default=3, help="groups that are judged too, in the last run of each (default 3)")
    add("--resamples", type=int, default=2000, help="(default 2000)")
    add("--classes", type=int, default=4, help="(default 4)")
    add("--child", action="store_true", help=argparse.SUPPRESS)
    add("--json-out", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
