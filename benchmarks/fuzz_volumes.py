"""Reads volumes that were spoilt in every way of `tests/data/volumes/volume_files.py`, and counts how each ended.

    python benchmarks/fuzz_volumes.py [--count 400] [--seed 0]

For each of six formats so many spoilt files: each is read whole, read in part, or refused with a sentence. Anything
else is a failure, and so is a file written, more than 20 seconds, and a good file that cannot be read after it. A
process of the reader that crashed or was ended is counted, and is no failure as long as the file was refused. The last
line is JSON; the exit code is 1 where anything failed.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
from pathlib import Path
from random import Random

import common

sys.path.insert(0, str(Path(__file__).parents[1]))

SLOW = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="spoilt files a format (default 400)")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    parser.add_argument("--only", help="one format alone")
    args = parser.parse_args()

    from octfast.data.volumes.reader import VolumeReader
    from octfast.errors import DataError
    from tests.data.volumes import volume_files as files

    rows, failures = [], []
    sentences: collections.Counter[str] = collections.Counter()
    with common.work_folder() as work, VolumeReader(seconds=SLOW) as reader:
        for kind, suffix in files.SUFFIXES.items():
            if args.only and kind != args.only:
                continue
            good = files.write_kind(kind, work / f"good{suffix}", files.frames_of())
            content = good.read_bytes()
            draw = Random(f"{args.seed} {kind}")
            ended: collections.Counter[str] = collections.Counter()
            longest = 0.0
            for n in range(args.count):
                path = work / f"spoilt{suffix}"
                path.write_bytes(files.spoil(content, draw))
                begun, seen = time.monotonic(), 0
                try:
                    # What a file says of its volume is read of every second one.
                    for _ in reader.read_all(path, kind) if n % 2 else reader.read(path, kind):
                        seen += 1
                    ended["read"] += 1
                except DataError as e:
                    ended["read in part" if seen else "refused"] += 1
                    ended["crashed"] += "crashed" in e.message
                    ended["too slow"] += "not read within" in e.message
                    sentences[e.message.replace(str(path), "FILE")] += 1
                    if not e.message or "\n" in str(e.message) or len(e.message) > 400 + len(str(path)):
                        failures.append(f"{kind} {n}: {e.message!r}")
                except Exception as e:
                    failures.append(f"{kind} {n}: {type(e).__name__}: {e}")
                longest = max(longest, time.monotonic() - begun)
                if n % 50 == 49 and not list(reader.read(good, kind)):
                    failures.append(f"{kind} {n}: the good file is not read any more")
            if longest > SLOW + 5:
                failures.append(f"{kind}: {longest:.0f} s for a file")
            if {p.name for p in work.iterdir()} != {good.name, f"spoilt{suffix}"}:
                failures.append(f"{kind}: a file was written")
            good.unlink()
            (work / f"spoilt{suffix}").unlink()
            keys = ("read", "read in part", "refused", "crashed", "too slow")
            rows.append({"format": kind, "files": args.count, **{k: ended[k] for k in keys}, "longest s": longest})
    common.print_table(rows, "spoilt volumes")
    for sentence, times in sentences.most_common(12):
        common.say(f"{times:5} {sentence[:140]}")
    for failure in failures[:20]:
        common.say("FAILED", failure)
    common.print_json({"formats": rows, "sentences": len(sentences), "failures": len(failures), "seed": args.seed})
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
