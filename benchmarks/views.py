"""Measures what the number of views does to validation loss and accuracy, over several seeds.

    python benchmarks/views.py

With a frozen body, a fresh augmentation every epoch is the same as as many views as epochs; that is the row 'fresh',
which the others are compared with. The files, the split and the body's weights are the same throughout; a seed
determines the augmentation, the head and the order of training. Small phantoms make it cheap; give --data and --weights
for figures that mean something.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import common


def main() -> None:
    args = parse()
    logging.getLogger("octfast").setLevel(logging.ERROR)
    about = common.machine()
    print(common.describe_machine(about))
    with common.work_folder() as work:
        if args.data:
            scans = common.real_scans(args.data, args.scans, args.valid, share=0.2)
        else:
            scans = common.phantom_scans(work / "phantoms", args.scans, args.valid, max(args.size, 128))
        weights = args.weights
        if weights == "none":
            weights = common.untrained_weights(args.arch, scans, args.size, work / "weights.safetensors")
        kinds = {"fresh" if views == 0 else str(views): views or args.epochs for views in args.views}
        found: dict[str, dict[str, list[float]]] = {name: {"loss": [], "accuracy": []} for name in kinds}
        for seed in range(args.seeds):
            for name, views in kinds.items():
                loss, accuracy = validated(args, scans, weights, views, seed, work)
                found[name]["loss"].append(loss)
                found[name]["accuracy"].append(accuracy)
                common.say(f"seed {seed}, views {name}: loss {loss:.4f}, accuracy {accuracy:.3f}")
    result = summary(found)
    common.print_table(
        [{"views": name, **{k: v for k, v in row.items() if not isinstance(v, list)}} for name, row in result.items()],
        f"{args.arch} at {args.size}, {args.epochs} epochs, {args.seeds} seeds: mean and standard deviation",
    )
    keys = ("arch", "size", "scans", "valid", "epochs", "bs", "lr", "seeds")
    settings = {**{k: getattr(args, k) for k in keys}, "data": args.data or "phantoms", "weights": str(args.weights)}
    common.print_json({"views": result, "settings": settings, "machine": about})


def summary(found: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """Means, standard deviations, and whether the loss is no worse than fresh's within one standard deviation of it."""
    out: dict[str, dict[str, Any]] = {}
    limit = sum(common.mean_and_std(found["fresh"]["loss"])) if "fresh" in found else None
    for name, values in found.items():
        loss, loss_std = common.mean_and_std(values["loss"])
        right, right_std = common.mean_and_std(values["accuracy"])
        out[name] = {"loss": loss, "loss_std": loss_std, "accuracy": right, "accuracy_std": right_std}
        out[name]["no_worse_than_fresh"] = None if limit is None else loss <= limit
        out[name]["losses"] = values["loss"]
        out[name]["accuracies"] = values["accuracy"]
    return out


def validated(
    args: argparse.Namespace, scans: Any, weights: Path | str, views: int, seed: int, work: Path
) -> tuple[float, float]:
    """Validation loss and accuracy after the last epoch of a training on so many views."""
    from octfast import frozen_learner, oct_dataloaders, oct_learner

    dls = oct_dataloaders(scans, size=args.size, bs=args.bs, seed=seed, num_workers=0)
    learn = oct_learner(dls, args.arch, weights=weights, seed=seed)
    fast = frozen_learner(learn, views=views, seed=seed, cache=work / "cache", precision=args.precision)
    with fast.no_bar(), fast.no_logging():
        fast.fit_one_cycle(args.epochs, args.lr)
    for store in fast.stores:
        store.close()
    return float(fast.recorder.values[-1][1]), float(fast.recorder.values[-1][2])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--views", type=int, nargs="+", default=[0, 1, 2, 4, 8], help="0 is fresh every epoch (default 0 1 2 4 8)")
    add("--seeds", type=int, default=5, help="(default 5)")
    add("--scans", type=int, help="training scans (default 160; with --data all)")
    add("--valid", type=int, help="validation scans (default 96; with --data a fifth of the patients)")
    add("--epochs", type=int, default=10, help="(default 10)")
    add("--bs", type=int, default=16, help="scans a batch (default 16)")
    add("--lr", type=float, default=2e-3, help="(default 0.002)")
    add("--size", type=int, default=64, help="side of a scan in pixels (default 64)")
    add("--arch", default="vgg16_bn", help="a torchvision VGG (default vgg16_bn)")
    add("--precision", default="auto", help="(default auto)")
    add("--data", help="folder of scans; phantoms in a temporary folder where it is left out")
    add("--weights", default="none", help="file of pretrained weights; none makes random ones, the same for all")
    args = parser.parse_args()
    if not args.data:
        args.scans, args.valid = args.scans or 160, args.valid or 96
    return args


if __name__ == "__main__":
    main()
