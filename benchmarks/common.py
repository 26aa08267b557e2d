"""What the benchmarks share: phantoms and weights for all runs alike, runs in processes of their own, tables.

Nothing heavy is imported at the top, so that a process that only starts others stays small and quick.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def say(*words: object) -> None:
    """Print to standard error, where progress goes; standard output is for results."""
    print(*words, file=sys.stderr, flush=True)


def print_table(rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Print rows as an aligned table, columns in the order of the first row; floats to three significant digits."""
    columns = list(rows[0])
    cells = [columns, *([_shown(row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    if title:
        print(f"\n{title}")
    for number, line in enumerate(cells):
        pad = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        print("  ".join(pad).rstrip())
        if number == 0:
            print("  ".join("-" * w for w in widths))


def print_json(result: Mapping[str, Any]) -> None:
    """Print the result as one line of JSON, the last of the output."""
    print()
    print(json.dumps(result), flush=True)


def machine() -> dict[str, Any]:
    """What the figures were taken on: processor, cores, load of other processes at the start, versions, date."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{p: version(p) for p in ("octfast", "torch", "fastai")},
    }


def describe_machine(found: Mapping[str, Any]) -> str:
    """One line of `machine`, with a warning where other work was running."""
    parts = [found["processor"], f"{found['cores']} cores", f"torch {found['torch']}", f"fastai {found['fastai']}"]
    line = ", ".join([*parts, found["date"]])
    busy = found["load"] is not None and found["load"] > 0.5
    return f"{line}\nOTHER WORK IS RUNNING (load {found['load']}): these timings are noisy" if busy else line


def peak_memory_mb() -> float:
    """The most memory that this process has held, in MB of a million bytes.

    On Linux ru_maxrss starts from that of the process that started this one, so the kernel's high-water mark of this
    program alone is read instead.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return _rss_mb(resource.RUSAGE_SELF)


def peak_worker_mb() -> float:
    """The most memory that any one process started by this one has held, in MB; what it shares is counted again."""
    return _rss_mb(resource.RUSAGE_CHILDREN)


def run_alone(script: str | Path, arguments: Iterable[object], work: Path, name: str) -> dict[str, Any]:
    """Run a script in a process of its own with `--json-out FILE` and give what it wrote there.

    What it prints goes to standard error. Raises CalledProcessError where it fails.
    """
    out = work / f"{name}.json"
    command = [sys.executable, "-W", "ignore", str(script), *map(str, arguments), "--json-out", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
    say(f"  {name}: {time.perf_counter() - started:.0f} s with imports")
    return json.loads(out.read_text(encoding="utf-8"))


def write_json(file: str | Path, result: Mapping[str, Any]) -> None:
    """Write what `run_alone` reads."""
    Path(file).write_text(json.dumps(result), encoding="utf-8")


def data_parser(about: str | None) -> argparse.ArgumentParser:
    """What every script takes that trains on a data set."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder or table of scans; by default phantoms")
    parser.add_argument("--weights", help="pretrained weights of the body; by default random")
    for name in ("path", "label", "patient"):
        parser.add_argument(f"--{name}-column", help=f"column of a table with the {name}")
    parser.add_argument("--arch", default="vgg16_bn")
    parser.add_argument("--size", type=int, default=224)
    return parser


def features_parser(about: str | None) -> argparse.ArgumentParser:
    """What every script takes that trains heads on the stored features of a data set."""
    parser = data_parser(about)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--scans", type=int, help="take so many scans, by whole patients")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--work", help="folder for phantoms; by default a temporary one")
    return parser


@contextmanager
def work_folder(given: str | None = None) -> Iterator[Path]:
    """A temporary folder, or the one given, which stays."""
    if given:
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given).resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="octfast-benchmark-") as folder:
            yield Path(folder)


def phantom_scans(folder: Path, train: int, valid: int, size: int | None = None) -> pd.DataFrame:
    """A Scans table of phantoms, written into `folder`: so many to train on, and so many of other patients.

    size : the side of squares to write; None writes full scans, 496 high.
    """
    import pandas as pd

    from octfast.data.phantom.draw import write_phantoms
    from octfast.data.readers.folder import read_scans

    parts = []
    for seed, (split, scans) in enumerate((("train", train), ("valid", valid))):
        parts.append(read_scans(write_phantoms(folder / split, scans, seed=seed, test=0, size=size)))
        parts[-1]["split"] = split
    return pd.concat(parts, ignore_index=True)


def real_scans(data: str, train: int | None, valid: int | None, share: float, seed: int = 0) -> pd.DataFrame:
    """A Scans table of a folder: patients held out for validation, then evenly thinned to so many of each split."""
    import numpy as np
    import pandas as pd

    from octfast.data.readers.folder import read_scans
    from octfast.data.splits.hold_out import assign_validation

    found = read_scans(data)
    found = assign_validation(found[found["split"] != "test"].reset_index(drop=True), share, seed)
    parts = []
    for split, most in (("train", train), ("valid", valid)):
        part = found[found["split"] == split]
        rows = np.linspace(0, len(part) - 1, min(most or len(part), len(part))).round().astype(int)
        parts.append(part.iloc[rows])
    return pd.concat(parts, ignore_index=True)


def untrained_weights(arch: str, scans: pd.DataFrame, size: int, file: Path) -> Path:
    """Save a body of random weights, its batch norms calibrated on training scans, for all runs to start from."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    from octfast.data.preprocess import preprocess
    from octfast.model.weights.untrained import calibrate_batch_norm

    torch.manual_seed(0)
    features = getattr(torchvision.models, arch)(weights=None).features
    paths = scans[scans["split"] == "train"]["path"]
    paths = paths.iloc[:: max(1, len(paths) // 32)].tolist()
    calibrate_batch_norm(features, [torch.stack([preprocess(p, size) for p in paths])])
    save_file({f"features.{k}": v.contiguous() for k, v in features.state_dict().items()}, file)
    return file


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of a sample (0 of a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _rss_mb(who: int) -> float:
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
