"""How often scans of poor quality are remarked upon, and ordinary ones by mistake, on held-out patients.

    python benchmarks/quality.py --data DATA
    python benchmarks/quality.py                 phantoms

Limits are fixed on half of the patients, as a training fixes them, and judged on the other half: its scans as they are,
and each made dark (a quarter of its greys), clipped (two and a half times), cut off through its brightest row, and
blurred (a Gaussian of 3 pixels at 496 rows).
"""

from __future__ import annotations

import argparse
from typing import Any

import common
from accuracy import read

FAULTS = ("dark", "clipped", "cut off", "blurred")


def main() -> None:
    import numpy as np

    from octfast.data.preprocess import decode_grey, resize
    from octfast.model.quality import MEASURES, measure
    from octfast.model.unlike import patient_threshold
    from octfast.train.outcome.quality import SHARE

    args = parse()
    about = common.machine()
    with common.work_folder(args.work) as work:
        scans = read(args, work)
        patients = scans["patient"].drop_duplicates().sample(frac=1, random_state=args.seed).tolist()
        known = scans["patient"].isin(patients[: len(patients) // 2])

        def of(picture: Any) -> list[float]:
            found = measure(np.asarray(resize(picture, args.size)))
            return [found[name] for name in MEASURES]

        first = np.array([of(decode_grey(p)) for p in scans.loc[known, "path"]])
        whose = scans.loc[known, "patient"].tolist()
        limits = np.array([patient_threshold(first[:, i], whose, SHARE) for i in range(len(MEASURES))])
        rest = scans[~known]
        usual, faulty = [], []
        for path in rest["path"]:
            grey = decode_grey(path)
            usual.append(of(grey))
            faulty.append([of(spoilt(grey, fault)) for fault in FAULTS])
    alarms = np.array(usual) > limits
    found = np.array(faulty) > limits
    rows = [{"scan": "as it is", **shares(alarms, MEASURES)}]
    rows += [{"scan": fault, **shares(found[:, i], MEASURES)} for i, fault in enumerate(FAULTS)]
    common.print_table(rows, f"Share remarked upon: {len(rest)} scans of {rest['patient'].nunique()} held-out patients")
    common.print_json({"rows": rows, "scans": len(scans), "patients": len(patients), "machine": about})


def shares(over: Any, measures: Any) -> dict[str, float]:
    named = {name: round(float(over[:, i].mean()), 3) for i, name in enumerate(measures)}
    return {**named, "any": round(float(over.any(1).mean()), 3)}


def spoilt(grey: Any, fault: str) -> Any:
    import numpy as np
    from PIL import ImageFilter

    if fault == "dark":
        return grey.point(lambda v: v // 4)
    if fault == "clipped":
        return grey.point(lambda v: min(255, int(2.5 * v)))
    if fault == "blurred":
        return grey.filter(ImageFilter.GaussianBlur(3 * grey.height / 496))
    row = min(int(np.asarray(grey, dtype=float).mean(1).argmax()), grey.height - 8)
    return grey.crop((0, row, grey.width, grey.height))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder or table of scans; by default phantoms")
    for name in ("path", "label", "patient"):
        parser.add_argument(f"--{name}-column", help=f"column of a table with the {name}")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--scans", type=int, help="take so many scans, by whole patients")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--work", help="folder for phantoms; by default a temporary one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
