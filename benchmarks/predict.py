"""Predicts the same scans with octfast, stock fastai, timm's loop and ONNX Runtime, side by side: scans a second.

    python benchmarks/predict.py            200 phantoms, VGG16-BN at 224

The runs, each in a process of its own, in turn, several times over:

- octfast: `octfast predict`'s own function, from a folder to a CSV, with its journal, in this machine's precision;
- octfast_fp32: the same in float32;
- stock: fastai as its documentation has a user write it: `load_learner`, `dls.test_dl(files)`, `get_preds`;
- timm: the loop of timm's inference.py: `create_model`, `create_loader`, float32;
- onnx: octfast's own ONNX file, preprocessing inside, in ONNX Runtime, files decoded by Pillow;
- bare: the folded network that octfast runs, in the same precision, on random tensors that are already there.

Each process reads a few scans first to warm up, then is timed from the list of files to the probabilities of all scans
(stock and timm decode in as many processes as they choose by themselves). Loading the model is listed beside and not
counted. Bodies and weights are the same; the heads differ and weigh nothing. Figures are medians over the repeats.
Where other work is running, the processor's seconds (cpu s, of all threads and processes) say more than the clock's.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

RUNS = ("octfast", "stock", "timm", "onnx", "bare", "octfast_fp32")
CLASSES = 4


def main() -> None:
    args = parse()
    if args.work and args.only:
        run = {"prepare": prepare, "octfast_fp32": octfast}.get(args.only) or globals()[args.only]
        common.write_json(args.json_out, run(args))
        return
    about = common.machine()
    common.say(common.describe_machine(about))
    names = [n for n in RUNS if args.only in (None, n)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with common.work_folder() as work:
        child(args, work, "prepare", 0)
        for repeat in range(args.repeats):
            for name in names:
                found[name].append(child(args, work, name, repeat))
    medians = {name: statistics.median(r["seconds"] for r in runs) for name, runs in found.items()}
    rows = []
    for name, runs in found.items():
        seconds = [r["seconds"] for r in runs]
        rows.append(
            {
                "run": name,
                "scans/s": args.scans / medians[name],
                "seconds": medians[name],
                "times stock": medians["stock"] / medians[name] if "stock" in medians else None,
                "share of bare": f"{100 * medians['bare'] / medians[name]:.0f}%" if "bare" in medians else None,
                "cpu s": statistics.median(r["cpu_seconds"] for r in runs),
                "spread": f"{100 * (max(seconds) - min(seconds)) / medians[name]:.0f}%",
                "load s": statistics.median(r["load_seconds"] for r in runs),
                "memory MB": max(r["peak_memory_mb"] for r in runs),
                "precision": runs[0]["precision"],
            }
        )
    print(common.describe_machine(about))
    title = f"{args.arch} at {args.size}, {args.scans} phantoms 496 high, medians of {args.repeats}"
    common.print_table(rows, title)
    agreement = None
    if {"octfast_fp32", "onnx"} <= found.keys():
        pairs = zip(found["octfast_fp32"][0]["sample"], found["onnx"][0]["sample"], strict=True)
        agreement = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
        print(f"\nlargest difference of a probability, onnx against octfast_fp32: {agreement:.1e}")
    settings = {k: getattr(args, k) for k in ("arch", "size", "scans", "repeats", "bs", "weights")}
    runs = {name: [{k: v for k, v in r.items() if k != "sample"} for r in runs] for name, runs in found.items()}
    common.print_json({"rows": rows, "agreement": agreement, "runs": runs, "settings": settings, "machine": about})


def child(args: argparse.Namespace, work: Path, name: str, repeat: int) -> dict[str, Any]:
    """One run in a process of its own."""
    words: list[object] = ["--only", name, "--work", work, "--repeat", repeat]
    for key in ("scans", "size", "arch", "bs", "weights"):
        words += [f"--{key}", getattr(args, key)]
    return common.run_alone(__file__, words, work, f"{name}-{repeat}")


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """The files, and the same body as a bundle, as fastai's export and as ONNX."""
    import fastai.vision.all as fv
    import torch
    import torchvision

    from octfast import oct_dataloaders
    from octfast.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, preprocess
    from octfast.deploy.export.export import export_bundle
    from octfast.model.bundle.info import BundleInfo
    from octfast.model.bundle.write import save_bundle
    from octfast.train.learner import oct_learner

    work = Path(args.work)
    logging.getLogger("octfast").setLevel(logging.ERROR)
    scans = common.phantom_scans(work / "phantoms", args.scans, 24)
    files = work / "scans"
    files.mkdir()
    for n, path in enumerate(scans.loc[scans["split"] == "train", "path"].iloc[: args.scans]):
        Path(path).rename(files / f"{n:05d}.jpeg")
    held = scans[scans["split"] == "valid"].reset_index(drop=True)
    held["split"] = ["train" if n % 3 else "valid" for n in range(len(held))]
    weights = Path(args.weights)
    if args.weights == "none":
        named = held.assign(split="train")
        weights = common.untrained_weights(args.arch, named, args.size, work / "weights.safetensors")
    dls = oct_dataloaders(held, size=args.size, bs=8, num_workers=0)
    learn = oct_learner(dls, args.arch, weights=weights)
    # An untrained head may give 0 and 1 alone, whose agreement would say nothing.
    with torch.inference_mode():
        logits = learn.model.cpu().eval()(torch.stack([preprocess(p, args.size) for p in held["path"]]))
    info = BundleInfo(
        args.arch,
        "octfast",
        tuple(dls.vocab),
        args.size,
        IMAGENET_MEAN,
        IMAGENET_STD,
        temperature=max(1e-3, float(logits.std())),
    )
    save_bundle(work / "model", learn.model, info)
    export_bundle(work / "model", out=work / "model.onnx", check=files, scans=8)

    table = held.assign(is_valid=held["split"] == "valid")
    stock_dls = fv.ImageDataLoaders.from_df(
        table,
        path="/",
        fn_col="path",
        label_col="label",
        valid_col="is_valid",
        item_tfms=fv.Resize(args.size, method="squish"),
        batch_tfms=[*fv.aug_transforms(), fv.Normalize.from_stats(*fv.imagenet_stats)],
    )
    stock_learn = fv.vision_learner(stock_dls, getattr(torchvision.models, args.arch), pretrained=False)
    load_features(stock_learn.model[0], weights)
    stock_learn.export(work / "stock.pkl")
    return {"scans": len(list(files.iterdir()))}


def octfast(args: argparse.Namespace) -> dict[str, Any]:
    """From a folder to a CSV, as the command does it."""
    from octfast.deploy.predict.predict import run_prediction
    from octfast.deploy.predictor import load

    work = Path(args.work)
    logging.getLogger("octfast").setLevel(logging.ERROR)
    begun = time.perf_counter()
    predictor = load(work / "model", precision="fp32" if args.only == "octfast_fp32" else "auto")
    loaded = time.perf_counter() - begun
    rows: list[list[float]] = []
    names = [f"p_{c}" for c in predictor.classes]

    def predict(some: list[Path]) -> None:
        rows.clear()
        out = work / f"answers-{args.only}-{args.repeat}.csv"
        given = [work / "scans"] if len(some) == args.scans else some
        run_prediction(
            predictor,
            given,
            lambda row, _: rows.append([row.values[n] for n in names]),
            out=out,
            bs=args.bs,
            force=True,
        )

    return measured(args, predict, loaded, predictor.precision, lambda: rows)


def bare(args: argparse.Namespace) -> dict[str, Any]:
    """The folded network alone on random tensors, in octfast's precision and batches."""
    import torch

    from octfast.deploy.predictor import load

    begun = time.perf_counter()
    engine = load(Path(args.work) / "model").engine
    loaded = time.perf_counter() - begun
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(engine.precision, torch.bfloat16)
    noise = torch.randn(args.bs, 3, args.size, args.size).to(engine.device, dtype)
    noise = noise.contiguous(memory_format=torch.channels_last)

    def predict(some: list[Path]) -> None:
        with torch.inference_mode():
            for at in range(0, len(some), args.bs):
                engine._tail(engine._net(noise[: len(some) - at]).float())

    return measured(args, predict, loaded, engine.precision, list)


def stock(args: argparse.Namespace) -> dict[str, Any]:
    """fastai by its documentation."""
    import fastai.vision.all as fv

    begun = time.perf_counter()
    learn = fv.load_learner(Path(args.work) / "stock.pkl")
    loaded = time.perf_counter() - begun
    answers: list[Any] = []

    def predict(some: list[Path]) -> None:
        with learn.no_bar():
            answers[:] = learn.get_preds(dl=learn.dls.test_dl(some))[0].tolist()

    return measured(args, predict, loaded, "fp32", lambda: answers)


def timm(args: argparse.Namespace) -> dict[str, Any]:
    """The loop of timm's inference.py, its default number of workers, on the same weights."""
    import timm as library
    import torch
    from timm.data import create_dataset, create_loader, resolve_data_config

    begun = time.perf_counter()
    model = library.create_model(f"{args.arch}.tv_in1k", pretrained=False, num_classes=CLASSES).eval()
    work = Path(args.work)
    load_features(model, work / "weights.safetensors" if args.weights == "none" else Path(args.weights))
    config = resolve_data_config({"input_size": (3, args.size, args.size), "crop_pct": 1.0}, model=model)
    loaded = time.perf_counter() - begun
    answers: list[Any] = []

    def predict(some: list[Path]) -> None:
        folder = work / "scans"
        if len(some) != args.scans:
            folder = work / "some"
            folder.mkdir(exist_ok=True)
            for path in some:
                if not (folder / path.name).exists():
                    (folder / path.name).symlink_to(path)
        loader = create_loader(
            create_dataset(root=str(folder), name=""),
            batch_size=args.bs,
            use_prefetcher=False,
            num_workers=2,
            device=torch.device("cpu"),
            **{k: config[k] for k in ("input_size", "interpolation", "mean", "std", "crop_pct")},
        )
        answers.clear()
        with torch.inference_mode():
            for x, _ in loader:
                answers.extend(model(x).softmax(-1).tolist())

    return measured(args, predict, loaded, "fp32", lambda: answers)


def onnx(args: argparse.Namespace) -> dict[str, Any]:
    """ONNX Runtime on octfast's own file: each picture decoded by Pillow, those of one size in a batch."""
    import numpy as np
    import onnxruntime
    from PIL import Image

    begun = time.perf_counter()
    options = onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(Path(args.work) / "model.onnx", options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    loaded = time.perf_counter() - begun
    answers: dict[int, Any] = {}

    def predict(some: list[Path]) -> None:
        answers.clear()
        waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}

        def run(batch: list[tuple[int, np.ndarray]]) -> None:
            given = np.stack([p for _, p in batch])[..., None]
            for (n, _), p in zip(batch, session.run(None, {name: given})[0], strict=True):
                answers[n] = p.tolist()
            batch.clear()

        for n, path in enumerate(some):
            with Image.open(path) as image:
                grey = np.asarray(image.convert("L"))
            batch = waiting.setdefault(grey.shape, [])
            batch.append((n, grey))
            if len(batch) == args.bs:
                run(batch)
        for batch in waiting.values():
            if batch:
                run(batch)

    return measured(args, predict, loaded, "fp32", lambda: [answers[n] for n in sorted(answers)])


def measured(
    args: argparse.Namespace,
    predict: Callable[[list[Path]], None],
    loaded: float,
    precision: str,
    answers: Callable[[], list[Any]],
) -> dict[str, Any]:
    """Time a run over all scans, after one over a few."""
    files = sorted((Path(args.work) / "scans").iterdir())
    predict(files[: args.bs])
    begun, worked = time.perf_counter(), cpu_seconds()
    predict(files)
    seconds = time.perf_counter() - begun
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds() - worked, 3),
        "load_seconds": round(loaded, 2),
        "peak_memory_mb": round(common.peak_memory_mb()),
        "precision": precision,
        "sample": answers()[:20],
    }


def cpu_seconds() -> float:
    """What this process and those that it started and that ended have computed."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def load_features(body: Any, file: Path) -> None:
    """Load the convolutions of a VGG into a network that has them."""
    import torch
    from safetensors.torch import load_file

    given = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    given = {k: v for k, v in given.items() if k.startswith("features.")}
    own = body.state_dict()
    if not given.keys() <= own.keys():
        given = {k.removeprefix("features."): v for k, v in given.items()}
        body = body if "0.weight" in own else body[0]
    missing = body.load_state_dict(given, strict=False)
    if missing.unexpected_keys:
        raise SystemExit(f"{file} is not of this architecture: {missing.unexpected_keys[0]}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scans", type=int, default=200, help="phantoms to predict (default 200)")
    add("--size", type=int, default=224, help="side of a scan in pixels (default 224)")
    add("--arch", default="vgg16_bn", help="a torchvision VGG with batch norm (default vgg16_bn)")
    add("--bs", type=int, default=16, help="scans a batch of all but stock, which has fastai's 64 (default 16)")
    add("--weights", default="none", help="file of pretrained weights; none makes random ones, the same for all runs")
    add("--repeats", type=int, default=3, help="do all runs so many times, in turn (default 3)")
    add("--only", choices=[*RUNS, "prepare"], help="one run alone")
    add("--json-out", metavar="FILE", help=argparse.SUPPRESS)
    add("--work", help=argparse.SUPPRESS)
    add("--repeat", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "prepare" and not args.work:
        parser.error("prepare is no run")
    return args


if __name__ == "__main__":
    main()
