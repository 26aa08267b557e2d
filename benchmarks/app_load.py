"""Posts at the page's endpoint: how many of 200 at once are answered and refused, how fast, in how much memory.

The app runs in a process of its own, as `octfast app` starts it. First one client asks after the other; then rounds of
posts all at once, half of them with a heat map, with and without trying again as Retry-After says; then fuzzed ones.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from common import describe_machine, machine, print_json, print_table, say, work_folder


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", help="a bundle or run folder; by default an untrained VGG16-BN")
    parser.add_argument("--posts", type=int, default=200, help="posts at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fuzzed", type=int, default=500, help="fuzzed uploads")
    parser.add_argument("--queue", type=int, default=32)
    parser.add_argument("--precision", default="auto")
    given = parser.parse_args()
    about = machine()
    with work_folder() as work:
        bundle = given.bundle or make_bundle(work / "bundle")
        home = work / "home"
        (home / "tmp").mkdir(parents=True)
        log = home / "log.txt"
        process = start(bundle, home, log, given.queue, given.precision)
        try:
            address = wait_for(process, log)
            result = asyncio.run(measure(address, process.pid, given))
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(30)
        result |= {"exit_code": code, "left_on_disk": sorted(f.name for f in (home / "tmp").iterdir())}
        result["terminal"] = [line for line in log.read_text().splitlines() if "rror" in line]
    print_table(result.pop("rows"), f"{given.posts} posts at once\n{describe_machine(about)}")
    print_json({"benchmark": "app_load", "machine": about, **result})


def make_bundle(folder: Path) -> Path:
    """An untrained VGG16-BN with octfast's head."""
    import torch

    from octfast.data.phantom.draw import CLASSES
    from octfast.model.arch import find_arch, make_network
    from octfast.model.bundle.info import BundleInfo
    from octfast.model.bundle.write import save_bundle
    from octfast.model.heads import body_and_head

    torch.manual_seed(0)
    arch = find_arch("vgg16_bn")
    model = torch.nn.Sequential(*body_and_head(make_network(arch), arch, "octfast", len(CLASSES)))
    return save_bundle(folder, model.eval(), BundleInfo(arch.name, "octfast", CLASSES, 224, arch.mean, arch.std))


def start(bundle: str | Path, home: Path, log: Path, queue: int, precision: str) -> subprocess.Popen:
    """`octfast app` in a process of its own, its temporary files in `home/tmp`."""
    words = [sys.executable, "-m", "octfast", "app", str(Path(bundle).resolve())]
    words += ["--queue", str(queue), "--precision", precision]
    environment = {**os.environ, "TMPDIR": str(home / "tmp")}
    with log.open("w") as f:
        return subprocess.Popen(words, stderr=f, stdout=f, cwd=home, env=environment)


def wait_for(process: subprocess.Popen, log: Path) -> str:
    """The page's address, when it answers."""
    import httpx

    while process.poll() is None:
        found = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("page: ")]
        if found:
            try:
                httpx.get(f"{found[0]}health", trust_env=False)
                return found[0]
            except httpx.TransportError:
                pass
        time.sleep(0.1)
    raise SystemExit(log.read_text())


async def measure(address: str, pid: int, given: argparse.Namespace) -> dict:
    """Rows for the table and figures for the JSON."""
    import httpx

    pictures = phantoms(16)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    rows = []
    async with httpx.AsyncClient(trust_env=False, timeout=300, limits=limits) as client:

        async def ask(n: int, patient: bool = False) -> tuple[int | str, float]:
            begin = time.perf_counter()
            for _ in range(100):
                query = "?heatmap=1" if n % 2 else ""
                try:
                    answer = await client.post(f"{address}api/predict{query}", content=pictures[n % len(pictures)])
                except httpx.TransportError as e:
                    return type(e).__name__, time.perf_counter() - begin
                if answer.status_code == 503 and (not patient or "retry-after" not in answer.headers):
                    return (
                        503 if "retry-after" in answer.headers else "503 without Retry-After",
                        time.perf_counter() - begin,
                    )
                if answer.status_code != 503:
                    return answer.status_code, time.perf_counter() - begin
                await asyncio.sleep(int(answer.headers["retry-after"]) * random.uniform(0.5, 1))
            return "gave up", time.perf_counter() - begin

        await ask(0)
        await ask(1)
        begun = rss(pid)
        alone = [await ask(0) for _ in range(10)]
        heat = [await ask(1) for _ in range(10)]
        rows.append(row("one by one", alone, pid))
        rows.append(row("one by one, heat map", heat, pid))
        for n in range(given.rounds):
            start = time.perf_counter()
            found = await asyncio.gather(*(ask(i) for i in range(given.posts)))
            rows.append(row(f"at once, round {n + 1}", found, pid, time.perf_counter() - start))
            say(rows[-1])
        start = time.perf_counter()
        found = await asyncio.gather(*(ask(i, patient=True) for i in range(given.posts)))
        rows.append(row("at once, trying again", found, pid, time.perf_counter() - start))
        fuzz, sentences = await fuzzed(client, address, pictures, given.fuzzed)
        rows.append(row(f"{given.fuzzed} fuzzed", [(s, t) for s, t in fuzz], pid))
        health = (await client.get(f"{address}health")).json()
    return {
        "rows": rows,
        "rss_mb_before": begun,
        "rss_mb_after": rss(pid),
        "peak_mb": rss(pid, "VmHWM"),
        "held_after": health["held"],
        "fuzzed_statuses": dict(Counter(str(s) for s, _ in fuzz)),
        "fuzzed_refusals_without_a_sentence": sentences,
    }


async def fuzzed(client, address: str, pictures: list[bytes], count: int) -> tuple[list[tuple[int | str, float]], int]:
    """Statuses of damaged pictures and forms, and how many refusals had no sentence."""
    import httpx

    rng = random.Random(0)
    kinds = ["", "image/png", "multipart/form-data; boundary=b", "multipart/form-data; boundary=b; charset=nonsense"]
    found: list[tuple[int | str, float]] = []
    without = 0
    sources = [*pictures[:4], *converted(pictures[0])]
    for n in range(count):
        body = bytearray(rng.choice(sources))
        for _ in range(rng.randrange(12)):
            at = rng.randrange(len(body)) if rng.random() < 0.3 else rng.randrange(min(len(body), 200))
            body[at : at + rng.randrange(1, 5)] = rng.randbytes(rng.randrange(0, 6))
        if rng.random() < 0.3:
            body = body[: rng.randrange(len(body))]
        kind = rng.choice(kinds)
        if "boundary" in kind and rng.random() < 0.7:
            name = rng.choice(["a.png", "../../etc/passwd", "\\x00.png", "=cmd|x"])
            head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
            body = bytearray(head) + body + b"\r\n--b--\r\n"
        begin = time.perf_counter()
        try:
            answer = await client.post(
                f"{address}api/predict{'?heatmap=1' if n % 5 == 0 else ''}",
                content=bytes(body),
                headers={"content-type": kind} if kind else {},
            )
        except httpx.TransportError as e:
            found.append((type(e).__name__, time.perf_counter() - begin))
            continue
        if answer.status_code != 200 and not (answer.json().get("error") and "hint" in answer.json()):
            without += 1
        found.append((answer.status_code, time.perf_counter() - begin))
    return found, without


def phantoms(count: int) -> list[bytes]:
    """JPEGs of phantoms."""
    from PIL import Image

    from octfast.data.phantom.draw import CLASSES, make_phantom

    found = []
    for n in range(count):
        out = io.BytesIO()
        Image.fromarray(make_phantom(CLASSES[n % 4], n)).save(out, "JPEG", quality=75)
        found.append(out.getvalue())
    return found


def converted(picture: bytes) -> list[bytes]:
    """The picture in the other kinds that are taken, small."""
    from PIL import Image

    found = []
    for kind in ("PNG", "TIFF", "BMP", "GIF", "WEBP"):
        out = io.BytesIO()
        Image.open(io.BytesIO(picture)).resize((96, 64)).save(out, kind)
        found.append(out.getvalue())
    return found


def row(name: str, found: list[tuple[int | str, float]], pid: int, seconds: float | None = None) -> dict:
    """A row of the table."""
    statuses = Counter(str(s) for s, _ in found)
    good = [t for s, t in found if s == 200] or [0.0]
    return {
        "what": name,
        "posts": len(found),
        "answered": statuses.pop("200", 0),
        "refused 503": statuses.pop("503", 0),
        "other": ", ".join(f"{k}: {v}" for k, v in sorted(statuses.items())) or "none",
        "median s": statistics.median(good),
        "slowest s": max(good),
        "all s": seconds,
        "RSS MB": rss(pid),
        "peak MB": rss(pid, "VmHWM"),
    }


def rss(pid: int, field: str = "VmRSS") -> float | None:
    """Memory that a process holds, or held at most, in MB of a million bytes (Linux alone)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field)), None)


if __name__ == "__main__":
    main()
