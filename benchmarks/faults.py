"""Damages scans at random, as disks and copies do, and counts what octfast says of each.

    python benchmarks/faults.py [--scans 320] [--seed 0] [--data FOLDER]

A sector of each scan is wiped, filled with noise or lost, or the file is cut short, with or without the mark of its
end; one in twenty becomes a pipe, a link to a device or a folder instead. Each is then checked, decoded, explored,
audited, prepared for training and predicted, in this process. Counted are

- tracebacks: anything raised that is no error of octfast's with its sentence;
- hangs: a step that takes longer than 20 seconds a scan;
- vanished: a scan that the check passes and the decoder refuses, or that a step neither reads nor names as unreadable.

The last line is JSON; the exit code is 1 where any of the three is not 0.
"""

from __future__ import annotations

import argparse
import collections
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import common

SLOW = 20.0
SECTOR = 512


def damage(path: Path, draw: Random) -> str:
    """Damage a file in place, and say how."""
    data = path.read_bytes()
    how = draw.choice(("wiped", "noise", "lost", "cut", "cut, with an end"))
    at = draw.randrange(0, max(1, len(data) - SECTOR)) // SECTOR * SECTOR
    if draw.random() < 0.05:
        how = draw.choice(("pipe", "device", "folder"))
        path.unlink()
        if how == "pipe":
            os.mkfifo(path)
        elif how == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        return how
    if how.startswith("cut"):
        data = data[: draw.randrange(SECTOR, len(data))] + (b"\xff\xd9" if "end" in how else b"")
    else:
        put = {"wiped": bytes(SECTOR), "noise": draw.randbytes(SECTOR), "lost": b""}[how]
        data = data[:at] + put + data[at + SECTOR :]
    path.write_bytes(data)
    return how


class Watch:
    """Runs steps in a thread each, and counts those that raise what they should not, or do not end."""

    def __init__(self) -> None:
        self.tracebacks = self.hangs = 0

    def run(self, step: Callable[[], Any], seconds: float) -> Any:
        """What a step gave; its own error where octfast raised one; None where it failed or did not end."""
        from octfast.errors import OctfastError

        found: list[Any] = []

        def call() -> None:
            try:
                found.append(step())
            except OctfastError as e:
                found.append(e)
            except BaseException as e:
                self.tracebacks += 1
                common.say(f"{type(e).__name__}: {e}")
                found.append(None)

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            self.hangs += 1
        return found[0] if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=320, help="scans to damage (default 320)")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    parser.add_argument(
        "--data", type=Path, help="a folder of scans to damage copies of; by default phantoms are drawn"
    )
    args = parser.parse_args()

    import pandas as pd

    from octfast.data.audit.audit import audit
    from octfast.data.decode import decode
    from octfast.data.explore import explore
    from octfast.data.phantom.draw import write_phantoms
    from octfast.data.prepare import check_file, prepare
    from octfast.data.readers.folder import read_scans
    from octfast.deploy.predict.predict import predict
    from octfast.errors import OctfastError

    draw, watch = Random(args.seed), Watch()
    ended: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    vanished: list[str] = []
    started = time.monotonic()
    warned: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("octfast").addHandler(listener)
    with common.work_folder() as work:
        if args.data:
            scans = copied(read_scans(args.data), args.scans, work / "scans", draw)
        else:
            # A few more, which stay sound.
            scans = read_scans(write_phantoms(work / "scans", args.scans + 40, seed=args.seed))
        hit = draw.sample(range(len(scans)), min(args.scans, len(scans)))
        how = {scans["path"].iloc[i]: damage(Path(scans["path"].iloc[i]), draw) for i in hit}
        unread: set[str] = set()
        for path, kind in how.items():
            checked = watch.run(lambda path=path: check_file(path), SLOW)
            found = watch.run(lambda path=path: decode(path), SLOW)
            refused = isinstance(found, OctfastError)
            if checked is None or found is None or (checked[0] != "") != refused:
                vanished.append(f"check and decode differ: {path}")
            ended[kind]["scans"] += 1
            ended[kind]["unreadable"] += refused
            if refused:
                unread.add(path)
        seconds = SLOW + 0.5 * len(scans)
        audited = watch.run(lambda: audit(scans), seconds)
        explored = watch.run(lambda: explore(scans), seconds)
        table = work / "scans.csv"
        scans.assign(path=[os.path.relpath(p, work) for p in scans["path"]]).to_csv(table, index=False)
        ready = watch.run(lambda: prepare(table, allow_leaks=True), seconds)
        answers = watch.run(lambda: predict(bundle(work), scans["path"].tolist()), 4 * seconds)
        # A table's reader and that of folders leave out what is no file, each with a warning.
        no_files = {path for path, kind in how.items() if kind in ("pipe", "device", "folder")}
        folders = {path for path, kind in how.items() if kind == "folder" and any(path in line for line in warned)}
        said_of_files = any(f"{len(no_files)} of {len(scans)} files do not exist" in line for line in warned)
        for name, said in {
            "audit": audited and set(audited.findings.loc[audited.findings["severity"] == "error", "path"]),
            "explore": explored and set(explored.scans.loc[explored.scans["trouble"] != "", "path"]),
            "train": not isinstance(ready, OctfastError | None)
            and {*map(str, ready.left_out["path"]), *(no_files if said_of_files else ())},
            "predict": isinstance(answers, pd.DataFrame) and {*answers.loc[answers["error"] != "", "path"], *folders},
        }.items():
            missing = unread - said if isinstance(said, set) else unread
            vanished += [f"{name}: {path}" for path in missing]
        if not isinstance(answers, pd.DataFrame) or len(answers) != len(scans) - len(folders):
            vanished.append("predict gave other rows than scans")
    common.print_table([{"damage": kind, **counts} for kind, counts in sorted(ended.items())], "How each was read")
    for line in vanished[:20]:
        common.say(line)
    common.say(f"{time.monotonic() - started:.0f} seconds")
    result = {"trials": len(how), "tracebacks": watch.tracebacks, "hangs": watch.hangs, "vanished": len(vanished)}
    common.print_json(result)
    sys.stdout.flush()
    # A thread that hangs must not keep the process.
    os._exit(int(any(result[k] for k in ("tracebacks", "hangs", "vanished"))))


def copied(scans: Any, most: int, folder: Path, draw: Random) -> Any:
    """Copies of so many scans drawn from a table, and 40 more."""
    import shutil

    folder.mkdir()
    drawn = scans.iloc[draw.sample(range(len(scans)), min(len(scans), most + 40))].reset_index(drop=True)
    paths = []
    for i, path in enumerate(map(Path, drawn["path"])):
        paths.append(str(shutil.copy(path, folder / f"{i:05d}-{path.name}")))
    return drawn.assign(path=paths)


def bundle(work: Path) -> Path:
    """A small network of random weights, which answers anything."""
    import torch

    from octfast.model.arch import find_arch, make_network
    from octfast.model.bundle.info import BundleInfo
    from octfast.model.bundle.write import save_bundle
    from octfast.model.heads import body_and_head

    torch.manual_seed(0)
    arch = find_arch("squeezenet1_1")
    model = torch.nn.Sequential(*body_and_head(make_network(arch, 64), arch, "octfast", 3)).eval()
    save_bundle(work / "b", model, BundleInfo(arch.name, "octfast", ("a", "b", "c"), 64, arch.mean, arch.std))
    return work / "b"


if __name__ == "__main__":
    main()
