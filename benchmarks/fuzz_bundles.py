"""Loads bundles that were spoilt in every way of `tests/model/bundle/hostile.py`, and counts how each ended.

    python benchmarks/fuzz_bundles.py [--count 2520] [--seed 0]

A bundle is loaded or refused with a sentence; anything else is a failure, and so is each of: a file written, a program
started, a connection made, an object unpickled, a file outside the folder read, more than 10 seconds of computing. The
process is given 1 GB of address space beside what it has after a good bundle, which a network of a thousand million
numbers would not fit into, and it has failed where its memory grew by more than 256 MB. The network is a small one, so
that what is measured is the reading. The last line is JSON; the exit code is 1 where anything failed.
"""

from __future__ import annotations

import argparse
import collections
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import common

sys.path.insert(0, str(Path(__file__).parents[1]))

MORE_ADDRESSES = 1 << 30
MORE_MEMORY = 256 << 20
SLOW = 10.0
FORBIDDEN = (
    *("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"),
    *(
        "socket.connect",
        "socket.getaddrinfo",
        "urllib.Request",
        "ftplib",
        "shutil.",
        "os.mkdir",
        "os.rename",
        "os.remove",
    ),
)
# What the interpreter and its libraries read for themselves.
OWN = (*sys.path[1:], sys.prefix, sys.base_prefix, "/proc/", "/sys/", "/usr/", "/lib", "/dev/null", "/dev/urandom")


class Watch:
    """Notes what the interpreter is asked to do while `on`: see https://docs.python.org/3/library/audit_events.html."""

    def __init__(self, folder: Path):
        self.folder = str(folder)
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            name, mode, flags = args
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
                self.seen.append(f"wrote {name}")
            elif isinstance(name, str | bytes | os.PathLike):
                path = os.path.abspath(os.fsdecode(name))  # noqa: PTH100  (as it is, through no link)
                if not path.startswith((self.folder + os.sep, *OWN)):
                    self.seen.append(f"read {path}")
        elif event.startswith(FORBIDDEN):
            self.seen.append(event)


def main() -> None:
    args = parse()
    os.environ.update(OCTFAST_OFFLINE="1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    warnings.simplefilter("ignore")
    about = common.machine()
    print(common.describe_machine(about))
    with tempfile.TemporaryDirectory(prefix="octfast-fuzz-") as held:
        result = fuzz(Path(held).resolve(), args.count, args.seed)
    common.print_table(result.pop("rows"), f"{args.count} bundles by kind of spoiling and how their loading ended")
    for failure in result["failures"]:
        print(failure)
    common.print_json({"machine": about, "seed": args.seed, **result})
    sys.exit(bool(result["failures"]))


def fuzz(work: Path, count: int, seed: int) -> dict[str, Any]:
    from octfast.deploy.predictor import load
    from tests.model.bundle.hostile import KINDS

    good = make_good(work / "good")
    os.environ.update(TORCH_HOME=str(work / "torch"), HF_HOME=str(work / "hf"))
    answer(load, good)
    warm(load, good, work)
    before_all = peak()
    address_space(MORE_ADDRESSES)
    tallies: dict[str, collections.Counter] = {kind: collections.Counter() for kind in KINDS}
    said: collections.Counter = collections.Counter()
    failures: list[str] = []
    slowest, started = (0.0, ""), time.perf_counter()
    watch = Watch(work / "case")
    for n in range(count):
        kind = list(KINDS)[n % len(KINDS)]
        case = work / "case"
        folder, canary = case / "bundle", case / "canary"
        shutil.copytree(good, folder)
        KINDS[kind](Random(seed * 1_000_003 + n), folder, canary)
        before = tree(work)
        begun = time.process_time()
        watch.seen, watch.on = [], True
        outcome, detail = ended(load, folder)
        watch.on = False
        seconds = time.process_time() - begun
        slowest = max(slowest, (seconds, kind))
        wrong = [*watch.seen, *(["the files changed"] if tree(work) != before else [])]
        if seconds > SLOW:
            wrong.append(f"took {seconds:.1f} s")
        if outcome == "failed":
            wrong.append(detail)
        elif outcome == "refused":
            said[first_words(detail, folder)] += 1
        tallies[kind]["failed" if wrong else outcome] += 1
        failures += [f"{kind}, case {n}: {w}" for w in wrong]
        shutil.rmtree(case)
    grown = peak() - before_all
    if grown > MORE_MEMORY:
        failures.append(f"memory grew by {grown / 1e6:.0f} MB")
    outcomes = ("refused", "loaded", "loaded, gives no numbers", "failed")
    rows = [{"spoilt": k, "bundles": sum(t.values()), **{o: t[o] for o in outcomes}} for k, t in tallies.items()]
    total = {o: sum(t[o] for t in tallies.values()) for o in outcomes}
    rows.append({"spoilt": "all", "bundles": count, **total})
    return {
        "rows": rows,
        **total,
        "bundles": count,
        "different_refusals": len(said),
        "seconds": round(time.perf_counter() - started, 1),
        "slowest_s": round(slowest[0], 2),
        "slowest_kind": slowest[1],
        "memory_grew_by_mb": round(grown / 1e6),
        "failures": failures,
    }


def make_good(folder: Path) -> Path:
    """The smallest network that timm has, untrained."""
    import torch
    from torch import nn

    from octfast.model.arch import find_arch, make_network
    from octfast.model.bundle.info import BundleInfo
    from octfast.model.bundle.write import save_bundle
    from octfast.model.heads import body_and_head

    torch.manual_seed(0)
    arch = find_arch("test_resnet")
    classes = ("CNV", "DME", "DRUSEN", "NORMAL")
    model = nn.Sequential(*body_and_head(make_network(arch, 64), arch, "octfast", len(classes)))
    operating = {"urgent": ["CNV", "DME"], "sensitivity": 0.95, "threshold": 0.4}
    info = BundleInfo(
        "test_resnet",
        "octfast",
        classes,
        size=64,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        weights={"source": "none"},
        training={"seed": 0},
        temperature=1.4,
        calibration={"split": "valid", "operating": operating, "conformal": {"coverage": 0.9, "threshold": 0.1}},
    )
    return save_bundle(folder, model, info)


def warm(load: Any, good: Path, work: Path) -> None:
    """Let the libraries import what they import when they are first used, so that it is not counted."""
    from octfast.errors import BundleError
    from octfast.model.arch import find_arch
    from octfast.model.weights.find import cached_file
    from tests.model.bundle.hostile import KINDS

    import_module("octfast.model.bundle.stock")
    find_arch("resnet18")
    cached_file("test_resnet", "timm")
    for n, kind in enumerate(KINDS):
        folder = Path(shutil.copytree(good, work / "warm" / str(n)))
        KINDS[kind](Random(n), folder, work / "warm" / "canary")
        with suppress(BundleError):
            answer(load, folder)
    shutil.rmtree(work / "warm")


def answer(load: Any, folder: Path) -> Any:
    """Load a bundle and ask it for one picture."""
    import numpy as np

    predictor = load(folder, precision="fp32", device="cpu")
    return predictor, next(predictor.stream([np.full((80, 90), 120, np.uint8)]))


def ended(load: Any, folder: Path) -> tuple[str, str]:
    """How the loading of a bundle ended, in a word, and what was said."""
    from octfast.errors import BundleError

    try:
        predictor, found = answer(load, folder)
    except BundleError as e:
        plain = e.message.isprintable() and e.hint.isprintable() and 0 < len(e.message) < 1000
        return (
            ("refused", e.message)
            if plain and e.hint
            else ("failed", f"a poor sentence: {e.message[:300]!r}, {e.hint!r}")
        )
    except BaseException as e:
        return "failed", f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
    if found.error is not None:
        return "loaded, gives no numbers", found.error.message
    fits = found.probabilities.shape == (len(predictor.classes),) and abs(found.probabilities.sum() - 1) < 1e-6
    return ("loaded", "") if fits else ("failed", f"probabilities {found.probabilities}")


def first_words(sentence: str, folder: Path) -> str:
    return " ".join(sentence.replace(str(folder), "").split()[:8])


def tree(work: Path) -> dict[str, tuple[int, int]]:
    """Every file, its size and when it was changed; links are not followed."""
    return {str(p): ((s := p.lstat()).st_size, s.st_mtime_ns) for p in work.rglob("*")}


def address_space(more: int) -> None:
    """Give this process no more address space than it has and `more`."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + more, resource.RLIM_INFINITY))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2520, help="bundles in all, the kinds in turn")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
