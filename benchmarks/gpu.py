"""Measures octfast on a GPU in one command: a whole training beside stock fastai's, and where the time of it goes.

    python benchmarks/gpu.py                             20,000 phantoms, 10 epochs, on the GPU
    python benchmarks/gpu.py --data OCT2017 --weights vgg16_bn.safetensors
    python benchmarks/gpu.py --scans 32 --device cpu     small, to see that it runs; its figures say nothing

Each part is a process of its own, one after the other, on the same files, weights, batch size, epochs and rate:

- stock: fastai as its documentation has a user write it; stock_bn_frozen: its body's batch norms frozen (vs_fastai.py);
- default: octfast as it comes, its store empty; warm: the same once more, the store filled;
- extraction: the frozen part as a store is filled with it (`pipeline`), decoding alone with as many threads (`decode`),
  and the folded network alone in half precision on tensors that lie on the GPU (`bare`).

`end_to_end` is stock's seconds over octfast's. `share_of_bare` is the pipeline's pictures a second over the bare
network's: 1 means that nothing but the network takes time. `decode_share` is decoding's seconds over the pipeline's:
near 1, the GPU waits for decoding.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import common
import vs_fastai

RUNS = ("stock", "stock_bn_frozen", "default", "warm")
USUAL = {"scans": 20_000, "epochs": 10, "size": 224, "arch": "vgg16_bn"}
ON_A_CPU = {"scans": 64, "epochs": 2, "size": 64, "arch": "vgg11_bn"}


def main() -> None:
    args = parse()
    if args.only:
        common.write_json(args.json_out, _part(args))
        return
    # Children see the one GPU that is asked for, or none; fastai then takes it by itself.
    kind, _, index = args.device.partition(":")
    if kind == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif index:
        os.environ["CUDA_VISIBLE_DEVICES"] = index
    with common.work_folder() as work:
        found = compare(args, work)
    show(found)
    if args.json_out:
        common.write_json(args.json_out, found)
    common.print_json(found)


def compare(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All parts in turn."""
    settings = ("scans", "valid", "epochs", "bs", "size", "arch", "lr", "views", "head", "weights", "data", "precision")
    words: list[object] = ["--device", args.device, "--work", work, "--passes", args.passes]
    for key in settings:
        if getattr(args, key) is not None:
            words += [f"--{key}", getattr(args, key)]

    def child(name: str) -> dict[str, Any]:
        return common.run_alone(__file__, ["--only", name, *words], work, name)

    counts = child("prepare")
    common.say(
        f"{counts['train']} training scans, {counts['valid']} validation scans, {args.epochs} epochs of {args.arch}"
    )
    runs = {name: child(name) for name in RUNS if name not in args.without}
    extraction = child("extraction")
    about = {**common.machine(), **extraction.pop("device")}
    first = {name: runs[name]["seconds"] for name in runs}
    ratios = {
        f"{name} over {other}": round(first[name] / first[other], 2)
        for name in ("stock", "stock_bn_frozen")
        for other in ("default", "warm")
        if name in first and other in first
    }
    return {
        "end_to_end": ratios,
        **extraction,
        "seconds": first,
        "peak_gpu_mb": {name: run["peak_gpu_mb"] for name, run in runs.items()},
        "peak_memory_mb": {name: run["peak_memory_mb"] for name, run in runs.items()},
        "valid_loss": {name: round(run["valid_loss"], 4) for name, run in runs.items()},
        "settings": {**{k: getattr(args, k) for k in settings}, **counts},
        "machine": about,
    }


def _part(args: argparse.Namespace) -> dict[str, Any]:
    if args.only == "prepare":
        return prepare(args)
    if args.only == "extraction":
        return extraction(args)
    found = vs_fastai.stock(args) if args.only.startswith("stock") else vs_fastai.octfast(args)
    return {**found, "peak_gpu_mb": _peak_gpu_mb()}


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """The files, their table and the weights, as `vs_fastai.prepare` makes them, but drawn in all cores."""
    if args.data:
        return vs_fastai.prepare(args)
    import pandas as pd

    from octfast.files import usable_cores

    work, each = Path(args.work), 500
    parts = [("train", n) for n in range(-(-args.scans // each))] + [
        ("valid", n) for n in range(-(-args.valid // each))
    ]
    most = {"train": args.scans, "valid": args.valid}
    jobs = [(work, split, n, min(each, most[split] - n * each)) for split, n in parts]
    with ProcessPoolExecutor(usable_cores()) as pool:
        scans = pd.concat(pool.map(_drawn, jobs), ignore_index=True)
    scans.to_csv(work / "scans.csv", index=False)
    if args.weights == "none":
        common.untrained_weights(args.arch, scans, args.size, work / "weights.safetensors")
    return {split: int(count) for split, count in scans["split"].value_counts().items()}


def _drawn(job: tuple[Path, str, int, int]) -> Any:
    """Phantoms of one part, and their table; patients of different parts are others."""
    from octfast.data.phantom.draw import write_phantoms
    from octfast.data.readers.folder import read_scans

    work, split, number, scans = job
    seed = 2 * number + (split == "valid")
    table = read_scans(write_phantoms(work / "phantoms" / f"{split}-{number}", scans, seed=seed, test=0))
    return table.assign(split=split, patient=[f"{split}-{number}-{p}" for p in table["patient"]])


def extraction(args: argparse.Namespace) -> dict[str, Any]:
    """Pictures a second of the pipeline that fills a store, of decoding alone, and of the bare network."""
    import torch

    from octfast import oct_dataloaders, oct_learner
    from octfast.model.device import describe_device
    from octfast.model.engine import make_engine
    from octfast.train.frozen.dealt import run_blocks
    from octfast.train.frozen.frozen import cut_model
    from octfast.train.frozen.views import Views

    table = vs_fastai.scans_table(args)
    dls = oct_dataloaders(table, size=args.size, bs=args.bs)
    learn = oct_learner(dls, args.arch, head=args.head, weights=vs_fastai.weights_file(args))
    device = torch.device(dls.device)
    network = torch.nn.Sequential(*cut_model(learn.model)[0]).eval()
    training = dls.train if args.views > 1 else dls.test_dl(dls.train.items)
    source = Views(training, args.views, 0, device, None)
    engine = make_engine(network, precision=args.precision, device=device)
    half = "fp32" if device.type == "cpu" else "bf16" if engine.precision == "fp32" else engine.precision
    bare = engine if engine.precision == half else make_engine(network, precision=half, device=device)
    rows = list(range(len(source)))
    x = torch.rand(source.block, 3, args.size, args.size, device=device)
    pictures, blocks = len(rows) * args.views, -(-len(rows) // source.block) * args.views

    def pipeline() -> None:
        for _ in run_blocks(source, engine, source.blocks(rows)):
            pass

    def decode() -> None:
        for _ in source.prefetch_blocks(source.blocks(rows)):
            pass

    def forward() -> None:
        for _ in range(blocks):
            bare(x)
        if device.type == "cuda":
            torch.cuda.synchronize()

    seconds: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for name, step in (("pipeline", pipeline), ("decode", decode), ("bare", forward)):
        bare(x)  # warms up
        took = []
        for _ in range(args.passes):
            begun = time.perf_counter()
            step()
            took.append(time.perf_counter() - begun)
        seconds[name] = statistics.median(took)
    # The network alone runs whole blocks, the last of which the pipeline fills up.
    rates = {name: pictures / took for name, took in seconds.items()}
    rates["bare"] = blocks * source.block / seconds["bare"]
    return {
        "pictures_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "share_of_bare": round(rates["pipeline"] / rates["bare"], 3),
        "decode_share": round(seconds["decode"] / seconds["pipeline"], 3),
        "precision": {"pipeline": engine.precision, "bare": bare.precision},
        "threads": source.workers,
        "extraction_peak_gpu_mb": _peak_gpu_mb(),
        "device": {"device": str(device), **describe_device(device)},
    }


def _peak_gpu_mb() -> int | None:
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e6) if torch.cuda.is_available() else None


def show(found: dict[str, Any]) -> None:
    print(common.describe_machine(found["machine"]))
    losses, memory, gpu = found["valid_loss"], found["peak_memory_mb"], found["peak_gpu_mb"]
    common.print_table(
        [
            {"run": n, "seconds": s, "valid loss": losses[n], "memory MB": memory[n], "GPU memory MB": gpu[n]}
            for n, s in found["seconds"].items()
        ],
        "from the list of files to the trained model",
    )
    for name, ratio in found["end_to_end"].items():
        print(f"{name}: {ratio}")
    rates = ", ".join(f"{name} {rate:,}" for name, rate in found["pictures_per_second"].items())
    print(f"pictures a second: {rates}; precision {found['precision']}")
    print(
        f"extraction's share of the bare network: {found['share_of_bare']}; decoding's share: {found['decode_share']}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda", help="cuda, cuda:1 or cpu (default cuda)")
    add("--scans", type=int, help="training scans (default 20,000; on a CPU 64; with --data all)")
    add("--valid", type=int, help="validation scans (default a tenth; with --data a fifth of the patients)")
    add("--epochs", type=int, help="(default 10; on a CPU 2)")
    add("--size", type=int, help="side of a scan in pixels (default 224; on a CPU 64)")
    add("--arch", choices=vs_fastai.ARCHS, help="(default vgg16_bn; on a CPU vgg11_bn)")
    add("--bs", type=int, help="scans a batch (default 64, at most a quarter of the scans)")
    add("--lr", type=float, default=2e-3, help="highest rate of the one-cycle schedule of every run (default 0.002)")
    add("--head", default="linear", help="octfast's head (default linear)")
    add("--views", type=int, default=1, help="of octfast (default 1)")
    add("--precision", default="auto", help="of the frozen part (default auto)")
    add("--passes", type=int, default=3, help="of each measurement of extraction, of which the middle one counts")
    add("--data", help="folder of scans; phantoms where it is left out")
    add("--weights", default="none", help="file of pretrained weights; none makes random ones, the same for all runs")
    add("--without", nargs="*", default=[], choices=RUNS, help="runs to leave out")
    add("--json-out", metavar="FILE", help="write the result to a file too")
    add("--work", help=argparse.SUPPRESS)
    add("--only", choices=[*RUNS, "prepare", "extraction"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.seed = args.repeat = 0
    for key, value in (ON_A_CPU if args.device == "cpu" else USUAL).items():
        if getattr(args, key) is None and not (args.data and key == "scans"):
            setattr(args, key, value)
    if args.valid is None and not args.data:
        args.valid = max(8, args.scans // 10)
    args.bs = args.bs or min(64, max(4, (args.scans or 256) // 4))
    return args


if __name__ == "__main__":
    main()
