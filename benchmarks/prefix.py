"""Measures the frozen part as `frozen_learner` runs it (decoding, augmentation, network) against the bare network.

    python benchmarks/prefix.py

In turn, several times over, in one process:

- pipeline: files -> decoded -> views -> folded network -> numbers, as a store is filled with them;
- bare: the folded VGG features in the same precision on random tensors that are already there;
- decode, views, network: the parts of the pipeline, each by itself;
- plain: the features as torchvision makes them, in float32, neither folded nor channels last.

Figures are pictures a second (a scan of four views is four pictures), medians over the repeats. The ratio is pipeline
over bare: what reading, augmenting and storing leave of the network's speed.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

import common


def main() -> None:
    args = parse()
    logging.getLogger("octfast").setLevel(logging.ERROR)
    about = common.machine()
    print(common.describe_machine(about))
    with common.work_folder() as work:
        scans = common.phantom_scans(work / "phantoms", args.scans, 8)
        steps, pictures = steps_of(args, scans)
        for name, step in steps.items():
            common.say(f"warming up: {name}")
            step()
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for repeat in range(args.repeats):
            for name, step in steps.items():
                begun = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - begun)
            common.say(f"repeat {repeat + 1} of {args.repeats}")
    rates = {name: pictures[name] / statistics.median(found) for name, found in seconds.items()}
    spread = {name: (max(found) - min(found)) / statistics.median(found) for name, found in seconds.items()}
    whole = 1 / rates["pipeline"]
    common.print_table(
        [
            {
                "what": name,
                "pictures/s": rate,
                "ms a picture": 1000 / rate,
                "share of pipeline": f"{100 / rate / whole:.0f}%" if name not in ("bare", "plain") else None,
                "spread": f"{100 * spread[name]:.0f}%",
            }
            for name, rate in rates.items()
        ],
        f"{args.arch} at {args.size}, {args.scans} scans x {args.views} views, {args.precision_run}, "
        f"medians of {args.repeats}",
    )
    ratio = rates["pipeline"] / rates["bare"]
    own = (1 / rates["decode"] + 1 / rates["views"]) / whole
    print(
        f"\npipeline over bare: {ratio:.2f}; decoding and augmentation by themselves: {100 * own:.0f}% of the pipeline"
    )
    common.print_json(
        {
            "pictures_per_second": {name: round(rate, 2) for name, rate in rates.items()},
            "seconds": {name: [round(s, 3) for s in found] for name, found in seconds.items()},
            "ratio": round(ratio, 3),
            "decode_and_views_share": round(own, 3),
            "precision": args.precision_run,
            "settings": {k: getattr(args, k) for k in ("arch", "size", "scans", "views", "repeats", "workers")},
            "machine": about,
        }
    )


def steps_of(args: argparse.Namespace, scans: Any) -> tuple[dict[str, Callable[[], None]], dict[str, int]]:
    """What is timed, by name, and how many pictures each step makes of it. Sets `args.precision_run`."""
    import numpy as np
    import torch
    import torchvision
    from torch import nn

    from octfast import oct_dataloaders, oct_learner
    from octfast.model.engine import fold
    from octfast.train.frozen import frozen

    dls = oct_dataloaders(scans, size=args.size, bs=16, num_workers=0)
    device = torch.device(dls.device or "cpu")
    learn = oct_learner(dls, args.arch, weights="none")
    prefix, _ = frozen.cut_model(learn.model)
    source = frozen.Views(dls.train, args.views, 0, device, args.workers)
    engine = engine_of(nn.Sequential(*prefix), args.precision, device, source)
    args.precision_run = engine.precision
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(engine.precision, torch.bfloat16)
    blocks = list(range(-(-len(source) // source.block)))

    plain = getattr(torchvision.models, args.arch)(weights=None).features.eval().requires_grad_(False)
    bare = fold(getattr(torchvision.models, args.arch)(weights=None).features.eval().requires_grad_(False))
    bare = bare.to(device, dtype).to(memory_format=torch.channels_last)
    plain = plain.to(device)
    noise = torch.randn(source.block, 3, args.size, args.size, device=device)
    fast_noise = noise.to(dtype).contiguous(memory_format=torch.channels_last)
    read = [source.decode(source.rows(b)) for b in blocks]
    some = source.augment(read[0], source.rows(0))
    rounds = -(-len(source) * args.views // source.block)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def pipeline() -> None:
        for _ in frozen._activations(source, engine, [np.array(source.rows(b)) for b in blocks]):
            pass
        wait()

    def bare_network() -> None:
        with torch.inference_mode():
            for _ in range(rounds):
                bare(fast_noise)
        wait()

    def decode() -> None:
        for b in blocks:
            source.decode(source.rows(b))

    def views() -> None:
        for b, batch in zip(blocks, read, strict=True):
            source.augment(batch, source.rows(b))
        wait()

    def network() -> None:
        for _ in range(-(-rounds // len(some))):
            for x in some:
                engine(x)
        wait()

    def plain_network() -> None:
        with torch.inference_mode():
            plain(noise)
        wait()

    n = len(source) * args.views
    return (
        {
            "pipeline": pipeline,
            "bare": bare_network,
            "decode": decode,
            "views": views,
            "network": network,
            "plain": plain_network,
        },
        {
            "pipeline": n,
            "bare": rounds * source.block,
            # A file is decoded once for all of its views.
            "decode": n,
            "views": n,
            "network": -(-rounds // len(some)) * sum(map(len, some)),
            "plain": source.block,
        },
    )


def engine_of(network: Any, precision: str, device: Any, source: Any) -> Any:
    """The engine that runs the frozen part, in the precision asked for."""
    from octfast.model import engine

    if precision != "int8":
        return engine.Engine(network, precision, device)
    rows = source.rows(0)
    pictures = source.augment(source.decode(rows), rows)
    return engine.make_engine(network, precision="int8", device=device, calibration=lambda: iter(pictures))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scans", type=int, default=32, help="full-size phantoms to read (default 32)")
    add("--views", type=int, default=4, help="(default 4)")
    add("--size", type=int, default=224, help="side of a scan in pixels (default 224)")
    add("--arch", default="vgg16_bn", help="a torchvision VGG (default vgg16_bn)")
    add("--precision", default="auto", help="auto, fp32, bf16, fp16 or int8 (default auto); bare runs int8's in bf16")
    add("--workers", type=int, help="threads that decode (default as frozen_learner chooses)")
    add("--repeats", type=int, default=5, help="(default 5)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
