"""Trains the same head on the same files with stock fastai and with octfast, side by side: seconds, memory, loss.

    python benchmarks/vs_fastai.py            a full comparison
    python benchmarks/vs_fastai.py --quick    within 8 minutes on two cores

The runs, each in a process of its own, one after the other:

- stock: fastai as its documentation has a user write it; the body's batch norms go on training in the frozen body;
- stock_bn_frozen: the same with `train_bn=False` and `BnFreeze`, so that the frozen body is frozen;
- views0: octfast without a store, which augments anew every epoch;
- default: octfast as it comes, its store empty at the start;
- warm: the same once more, the store filled;
- int8 (asked for with --int8): as default, the frozen part in int8 on OpenVINO.

`seconds` run from the list of files to the trained model in place; importing is listed beside. A ratio is stock's
seconds over that run's. `valid_loss` is the last epoch's, as the Learner itself reports it. `to stock's loss s` are the
seconds until a run's validation loss is as low as stock's last.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    import pandas as pd
    from fastai.learner import Learner

RUNS = ("stock", "stock_bn_frozen", "views0", "default", "warm")
SEEDED = ("stock_bn_frozen", "views0", "default")
ARCHS = ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")
# What the training of one epoch costs on two slow cores, in seconds a scan, is 0.69 in stock, 0.25 in the two others.
QUICK = {"scans": 24, "valid": 8, "epochs": 10, "bs": 8}
FULL = {"scans": 96, "valid": 32, "epochs": 10, "bs": 16}


def main() -> None:
    args = parse()
    if args.work and args.only:
        run = prepare if args.only == "prepare" else (stock if args.only.startswith("stock") else octfast)
        common.write_json(args.json_out, run(args))
        return
    with common.work_folder(args.keep) as work:
        result = compare(args, work)
    show(result)
    if args.json_out:
        common.write_json(args.json_out, result)
    common.print_json(result)


def compare(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All runs in turn, each as often as asked for; the one with the middle time stands for its name."""
    names = [n for n in (*RUNS, *(["int8"] if args.int8 else [])) if not args.only or n == args.only]
    if names == ["warm"]:
        names = ["default", "warm"]
    about = common.machine()
    common.say(common.describe_machine(about))
    data = child(args, work, "prepare")
    common.say(f"{data['train']} training scans, {data['valid']} validation scans, {args.epochs} epochs of {args.arch}")
    times: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for repeat in range(args.repeats):
        for name in names:
            try:
                times[name].append(child(args, work, name, repeat=repeat))
            except subprocess.CalledProcessError:
                if name != "int8":
                    raise
                common.say("int8 cannot be had here (pip install 'octfast[openvino]'): left out")
    times = {name: found for name, found in times.items() if found}
    runs = {name: sorted(found, key=lambda r: r["seconds"])[(len(found) - 1) // 2] for name, found in times.items()}
    result: dict[str, Any] = {"runs": runs, "ratios": {}}
    if "stock" in runs:
        base = runs["stock"]["seconds"]
        result["ratios"] = {name: round(base / run["seconds"], 2) for name, run in runs.items() if name != "stock"}
        for run in runs.values():
            run["seconds_to_stock_loss"] = reached(run, runs["stock"]["valid_loss"])
    if args.seeds > 1:
        result["seeds"] = over_seeds(args, work, runs)
    keys = ("arch", "size", "epochs", "bs", "lr", "views", "head", "repeats", "seeds")
    settings = {**{k: getattr(args, k) for k in keys}, **data, "data": args.data or "phantoms", "weights": args.weights}
    return {**result, "settings": settings, "machine": about}


def over_seeds(args: argparse.Namespace, work: Path, first: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Validation loss and accuracy of the runs that differ in their augmentation alone, seed by seed."""
    found: dict[str, list[dict[str, Any]]] = {n: [first[n]] if n in first else [] for n in SEEDED}
    for seed in range(args.seeds):
        for name in SEEDED:
            if len(found[name]) <= seed:
                found[name].append(child(args, work, name, seed=seed))
    out: dict[str, Any] = {}
    for name, runs in found.items():
        losses, right = [r["valid_loss"] for r in runs], [r["valid_accuracy"] for r in runs]
        mean, std = common.mean_and_std(losses)
        out[name] = {"valid_loss": losses, "mean": mean, "std": std, "valid_accuracy": right}
    out["default_no_worse"] = out["default"]["mean"] <= out["views0"]["mean"] + out["views0"]["std"]
    return out


def child(args: argparse.Namespace, work: Path, name: str, *, seed: int = 0, repeat: int = 0) -> dict[str, Any]:
    """One run in a process of its own."""
    settings = ["scans", "valid", "epochs", "bs", "size", "arch", "lr", "views", "head", "weights", "data", "precision"]
    words: list[object] = ["--only", name, "--work", work, "--seed", seed, "--repeat", repeat]
    for key in settings:
        if getattr(args, key) is not None:
            words += [f"--{key}", getattr(args, key)]
    label = name + (f"-seed{seed}" if seed else "") + (f"-repeat{repeat}" if repeat else "")
    if args.keep and (known := work / f"{label}.json").exists():
        common.say(f"  {label}: taken from {known}")
        return json.loads(known.read_text(encoding="utf-8"))
    return common.run_alone(__file__, words, work, label)


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """The files, their table and the weights that all runs share."""
    work = Path(args.work)
    if args.data:
        scans = common.real_scans(args.data, args.scans, args.valid, share=0.2)
    else:
        scans = common.phantom_scans(work / "phantoms", args.scans, args.valid)
    scans.to_csv(work / "scans.csv", index=False)
    if args.weights == "none":
        common.untrained_weights(args.arch, scans, args.size, work / "weights.safetensors")
    counts = scans["split"].value_counts()
    return {"train": int(counts["train"]), "valid": int(counts["valid"])}


def stock(args: argparse.Namespace) -> dict[str, Any]:
    """fastai by its documentation: a table of files, squished to size, default augmentation, a frozen body."""
    begun = time.perf_counter()
    import fastai.vision.all as fv
    import torchvision

    imported = time.perf_counter() - begun
    table = scans_table(args)
    root = os.path.commonpath(table["path"].tolist())
    table = table.assign(path=[os.path.relpath(p, root) for p in table["path"]], is_valid=table["split"] == "valid")
    fv.set_seed(args.seed)

    def train() -> Learner:
        dls = fv.ImageDataLoaders.from_df(
            table,
            path=root,
            fn_col="path",
            label_col="label",
            valid_col="is_valid",
            item_tfms=fv.Resize(args.size, method="squish"),
            batch_tfms=[*fv.aug_transforms(), fv.Normalize.from_stats(*fv.imagenet_stats)],
            bs=args.bs,
        )
        frozen = {"train_bn": False, "cbs": fv.BnFreeze()} if args.only == "stock_bn_frozen" else {}
        # pretrained=True would download; the weights of the file are loaded instead, and freeze() is its last step.
        learn = fv.vision_learner(
            dls, getattr(torchvision.models, args.arch), pretrained=False, metrics=fv.accuracy, **frozen
        )
        load_features(learn.model[0], weights_file(args))
        learn.freeze()
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(args.epochs, args.lr, cbs=clock())
        return learn

    return measured(args, train, imported)[0]


def octfast(args: argparse.Namespace) -> dict[str, Any]:
    """octfast by its public functions: DataLoaders, Learner, and for all but views0 the frozen part run once a view."""
    begun = time.perf_counter()
    from octfast import frozen_learner, oct_dataloaders, oct_learner

    imported = time.perf_counter() - begun
    table = scans_table(args)
    kind = "int8" if args.only == "int8" else "half"
    cache = Path(args.work) / f"cache-{kind}-{args.seed}-{args.repeat}"
    chosen: dict[str, Any] = {"precision": args.precision}
    if args.only == "int8":
        chosen = {"precision": "int8"}
        if "engine" in inspect.signature(frozen_learner).parameters:
            chosen["engine"] = "openvino"
    whole: list[Learner] = []

    def train() -> Learner:
        dls = oct_dataloaders(table, size=args.size, bs=args.bs, seed=args.seed)
        learn = oct_learner(dls, args.arch, head=args.head, weights=weights_file(args), seed=args.seed)
        whole.append(learn)
        if args.only != "views0":
            learn = frozen_learner(learn, views=args.views, seed=args.seed, cache=cache, **chosen)
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(args.epochs, args.lr, cbs=clock())
        return learn

    result, learn = measured(args, train, imported)
    if args.only != "views0":
        result["store_was_warm"] = [store.warm for store in learn.stores]
        result["precision"] = learn.engine.precision
        # Untimed: the finished model, in float32 on the files, against what its Learner said of the stored activations.
        with whole[0].no_bar():
            result["valid_loss_of_model"] = float(whole[0].validate()[0])
    return result


def measured(args: argparse.Namespace, train: Callable[[], Learner], imported: float) -> tuple[dict, Learner]:
    """What a run gives, and the Learner that it ended with."""
    begun = time.perf_counter()
    learn = train()
    seconds = time.perf_counter() - begun
    scans = len(learn.dls.train_ds) if hasattr(learn.dls.train_ds, "tls") else len(learn.dls.train.dataset)
    values = learn.recorder.values[-1]
    result = {
        "seconds": round(seconds, 2),
        "scans_per_second": round(scans * args.epochs / seconds, 2),
        "peak_memory_mb": round(common.peak_memory_mb()),
        "peak_worker_mb": round(common.peak_worker_mb()),
        "valid_loss": float(values[1]),
        "valid_accuracy": float(values[2]),
        "valid_losses": [float(row[1]) for row in learn.recorder.values],
        "epoch_seconds": [round(end - begun, 2) for end in learn.epoch_ends],
        "import_seconds": round(imported, 2),
    }
    return result, learn


def clock() -> Any:
    """A callback that keeps when each epoch ended, in `learn.epoch_ends`."""
    from fastai.callback.core import Callback

    class Clock(Callback):
        order = 60

        def before_fit(self):
            self.learn.epoch_ends = []

        def after_epoch(self):
            self.learn.epoch_ends.append(time.perf_counter())

    return Clock()


def reached(run: dict[str, Any], loss: float) -> float | None:
    """Seconds until a run's validation loss was first as low as this; None where it never was."""
    ends = zip(run["epoch_seconds"], run["valid_losses"], strict=True)
    return next((seconds for seconds, found in ends if found <= loss), None)


def scans_table(args: argparse.Namespace) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(Path(args.work) / "scans.csv", dtype=str)


def weights_file(args: argparse.Namespace) -> Path:
    return Path(args.work) / "weights.safetensors" if args.weights == "none" else Path(args.weights)


def load_features(body: Any, file: Path) -> None:
    """Load the convolutions of a VGG into fastai's body of it."""
    import torch
    from safetensors.torch import load_file

    given = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    given = {k.removeprefix("features."): v for k, v in given.items() if k.startswith("features.")}
    # fastai's body is the features, or a Sequential of them.
    inner = body if "0.weight" in body.state_dict() else body[0]
    wanted = {k for k in inner.state_dict() if not k.endswith("num_batches_tracked")}
    if not wanted <= given.keys():
        raise SystemExit(f"{file} is not of this architecture: it has no {sorted(wanted - given.keys())[0]}")
    inner.load_state_dict(given, strict=False)


def show(result: dict[str, Any]) -> None:
    rows = []
    for name, run in result["runs"].items():
        rows.append(
            {
                "run": name,
                "seconds": run["seconds"],
                "scans/s": run["scans_per_second"],
                "times stock": result["ratios"].get(name, 1.0 if name == "stock" else None),
                "memory MB": run["peak_memory_mb"],
                "a worker MB": run["peak_worker_mb"],
                "valid loss": run["valid_loss"],
                "to stock's loss s": run.get("seconds_to_stock_loss"),
                "accuracy": run["valid_accuracy"],
                "import s": run["import_seconds"],
            }
        )
    settings = result["settings"]
    title = (
        f"{settings['arch']} at {settings['size']}: {settings['train']} training and {settings['valid']} validation "
        f"scans, {settings['epochs']} epochs, batches of {settings['bs']}, {settings['data']}"
    )
    print(common.describe_machine(result["machine"]))
    common.print_table(rows, title)
    if "seeds" in result:
        found = {k: v for k, v in result["seeds"].items() if isinstance(v, dict)}
        common.print_table(
            [
                {
                    "run": name,
                    "valid loss": v["mean"],
                    "std": v["std"],
                    "accuracy": statistics.fmean(v["valid_accuracy"]),
                }
                for name, v in found.items()
            ],
            f"over {settings['seeds']} seeds",
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scans", type=int, help=f"training scans (default {FULL['scans']}; with --data all)")
    add("--valid", type=int, help=f"validation scans (default {FULL['valid']}; with --data a fifth of the patients)")
    add("--epochs", type=int, help=f"(default {FULL['epochs']})")
    add("--bs", type=int, help=f"scans a batch (default {FULL['bs']})")
    add("--size", type=int, default=224, help="side of a scan in pixels (default 224)")
    add("--lr", type=float, default=2e-3, help="highest rate of the one-cycle schedule of every run (default 0.002)")
    add("--arch", choices=ARCHS, default="vgg16_bn")
    add("--head", default="linear", help="octfast's head: linear, octfast or fastai (default linear)")
    add("--views", type=int, default=1, help="of default, warm and int8 (default 1)")
    add("--precision", default="auto", help="of the frozen part in default and warm (default auto)")
    add("--data", help="folder of scans; phantoms in a temporary folder where it is left out")
    add("--weights", default="none", help="file of pretrained weights; none makes random ones, the same for all runs")
    add("--seeds", type=int, default=1, help=f"repeat {', '.join(SEEDED)} over so many seeds, for the validation loss")
    add("--repeats", type=int, default=1, help="do all runs so many times, in turn, and show the middle one of each")
    add("--int8", action="store_true", help="also run int8 on OpenVINO")
    add("--quick", action="store_true", help=f"{QUICK}: within 8 minutes on two cores")
    add("--only", choices=[*RUNS, "int8", "prepare"], help="one run alone")
    add("--json-out", metavar="FILE", help="write the result to a file too")
    add("--keep", metavar="FOLDER", help="keep each run's result there, and go on from those that are there already")
    add("--work", help=argparse.SUPPRESS)
    add("--seed", type=int, default=0, help=argparse.SUPPRESS)
    add("--repeat", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "prepare" and not args.work:
        parser.error("prepare is no run")
    args.int8 = args.int8 or args.only == "int8"
    for key, value in (QUICK if args.quick else FULL).items():
        if getattr(args, key) is None and not (args.data and not args.quick and key in ("scans", "valid")):
            setattr(args, key, value)
    return args


if __name__ == "__main__":
    main()
