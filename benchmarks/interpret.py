"""Makes the same confusion matrix, report and top losses with stock fastai and octfast, of the same scans and model.

    python benchmarks/interpret.py                       64 scans to judge, phantoms, random weights
    python benchmarks/interpret.py --valid 128 --weights FILE

The runs, each in a process of its own, one after the other:

- stock: `ClassificationInterpretation.from_learner`, `plot_confusion_matrix`, `print_classification_report`,
  `most_confused` and `plot_top_losses(9)` as fastai's documentation has a user write them;
- octfast: the same five from octfast's `ClassificationInterpretation.from_run`, no predictions there before;
- again: the same once more, the predictions there;
- interpret: all of `octfast interpret` without heat maps, no predictions there before: seven figures and the lists;
- heatmaps: the same with Grad-CAM beside each scan.

One model is trained beforehand and given to all: fastai's body and head of the architecture. `seconds` run from the
Learner in memory (stock) or the run folder (octfast) to the figures as files; importing is listed beside. `passes` are
scans that went through the network, by its first convolution.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

RUNS = ("stock", "octfast", "again", "interpret", "heatmaps")


def main() -> None:
    args = parse()
    if args.work and args.only:
        run = {"prepare": prepare, "stock": stock}.get(args.only, octfast)
        common.write_json(args.json_out, run(args))
        return
    with common.work_folder() as work:
        result = compare(args, work)
    rows = [{"run": name, **found} for name, found in result["runs"].items()]
    print(common.describe_machine(result["machine"]))
    keys = ("run", "seconds", "times_stock", "passes", "right", "import_seconds", "peak_memory_mb")
    common.print_table([{k: row.get(k) for k in keys} for row in rows], f"{args.valid} scans, {args.arch}")
    if args.json_out:
        common.write_json(args.json_out, result)
    common.print_json(result)


def compare(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All runs in turn, each as often as asked for; the one with the middle time stands for its name."""
    about = common.machine()
    child(args, work, "prepare")
    times: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    for repeat in range(args.repeats):
        for name in RUNS:
            times[name].append(child(args, work, name, repeat))
    runs = {name: sorted(found, key=lambda r: r["seconds"])[(len(found) - 1) // 2] for name, found in times.items()}
    for name, found in runs.items():
        if name != "stock":
            found["times_stock"] = round(runs["stock"]["seconds"] / found["seconds"], 2)
    return {"runs": runs, "settings": {k: v for k, v in vars(args).items() if k != "work"}, "machine": about}


def child(args: argparse.Namespace, work: Path, name: str, repeat: int = 0) -> dict[str, Any]:
    words: list[object] = ["--only", name, "--work", work]
    for key in ("scans", "valid", "arch", "size", "bs", "weights", "data"):
        if getattr(args, key) is not None:
            words += [f"--{key}", getattr(args, key)]
    return common.run_alone(__file__, words, work, f"{name}-{repeat}")


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """The files, and one run trained on them, which all the others judge."""
    from octfast import train_classifier

    work = Path(args.work)
    if args.data:
        scans = common.real_scans(args.data, args.scans, args.valid, share=0.5)
    else:
        scans = common.phantom_scans(work / "phantoms", args.scans, args.valid)
    scans.to_csv(work / "scans.csv", index=False)
    weights = args.weights
    if weights == "none":
        weights = common.untrained_weights(args.arch, scans, args.size, work / "weights.safetensors")
    train_classifier(
        data=str(work / "scans.csv"),
        valid="folder",
        arch=args.arch,
        head="fastai",
        size=args.size,
        weights=str(weights),
        epochs=1,
        lr=3e-3,
        views=1,
        workers=0,
        cache=str(work / "cache"),
        out=str(work / "run"),
    )
    return {"train": int((scans["split"] == "train").sum()), "valid": int((scans["split"] == "valid").sum())}


def stock(args: argparse.Namespace) -> dict[str, Any]:
    """fastai by its documentation; its Learner holds the run's model."""
    begun = time.perf_counter()
    import fastai.vision.all as fv
    import matplotlib.pyplot as plt
    import pandas as pd
    import torchvision
    from safetensors.torch import load_file

    imported = time.perf_counter() - begun
    work = Path(args.work)
    table = pd.read_csv(work / "scans.csv", dtype=str)
    dls = fv.ImageDataLoaders.from_df(
        table.assign(is_valid=table["split"] == "valid"),
        path="/",
        fn_col="path",
        label_col="label",
        valid_col="is_valid",
        item_tfms=fv.Resize(args.size, method="squish"),
        batch_tfms=[fv.Normalize.from_stats(*fv.imagenet_stats)],
        bs=args.bs,
    )
    learn = fv.vision_learner(dls, getattr(torchvision.models, args.arch), pretrained=False, metrics=fv.accuracy)
    # Both networks are fastai's body and head, their tensors in the same order under other names.
    given = load_file(work / "run" / "model" / "model.safetensors")
    from octfast import load_bundle

    model, _ = load_bundle(work / "run" / "model")
    assert set(given) == set(model.state_dict())
    own = learn.model.state_dict()
    assert [v.shape for v in own.values()] == [v.shape for v in model.state_dict().values()]
    learn.model.load_state_dict(dict(zip(own, model.state_dict().values(), strict=True)))

    def judge() -> Any:
        with learn.no_bar():
            interp = fv.ClassificationInterpretation.from_learner(learn)
            interp.plot_confusion_matrix()
            plt.savefig(work / "stock-confusion.png", dpi=120)
            interp.print_classification_report()
            interp.most_confused()
            interp.plot_top_losses(9, figsize=(12, 12))
            plt.savefig(work / "stock-top-losses.png", dpi=120)
        return interp

    return measured(judge, imported, lambda interp: interp.confusion_matrix().trace())


def octfast(args: argparse.Namespace) -> dict[str, Any]:
    """octfast by its public functions."""
    begun = time.perf_counter()
    from octfast import ClassificationInterpretation, open_run
    from octfast.assess.interpret.interpret import interpret_run
    from octfast.figure import save_figure

    imported = time.perf_counter() - begun
    run = open_run(Path(args.work) / "run")
    if args.only != "again":
        run.predictions_file("valid").unlink(missing_ok=True)

    def judge() -> Any:
        if args.only in ("interpret", "heatmaps"):
            return interpret_run(run, "valid", 9, heatmaps=args.only == "heatmaps")
        interp = ClassificationInterpretation.from_run(run, "valid")
        save_figure(interp.plot_confusion_matrix(), run.figures / "confusion_matrix.png")
        interp.print_classification_report()
        interp.most_confused()
        save_figure(interp.plot_top_losses(9, figsize=(12, 12)), run.figures / "top_losses.png")
        return interp

    if args.only in ("interpret", "heatmaps"):
        return measured(judge, imported, lambda found: found.headline["right"])
    return measured(judge, imported, lambda interp: interp.confusion_matrix().trace())


def measured(judge: Callable[[], Any], imported: float, right: Callable[[Any], Any]) -> dict[str, Any]:
    """Seconds, passes and scans right of one judgement; `right` is asked afterwards."""
    from torch import nn
    from torch.nn.modules.module import register_module_forward_hook

    passes: list[int] = []

    def count(module: nn.Module, given: Any, out: Any) -> None:
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            passes.append(len(given[0]))

    hook = register_module_forward_hook(count)
    begun = time.perf_counter()
    found = judge()
    seconds = time.perf_counter() - begun
    hook.remove()
    return {
        "seconds": round(seconds, 2),
        "passes": sum(passes),
        "right": int(right(found)),
        "import_seconds": round(imported, 2),
        "peak_memory_mb": round(common.peak_memory_mb()),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scans", type=int, default=24, help="training scans (default 24)")
    add("--valid", type=int, default=64, help="scans to judge (default 64)")
    add("--arch", default="vgg16_bn", help="a torchvision VGG (default vgg16_bn)")
    add("--size", type=int, default=224, help="side of a scan in pixels (default 224)")
    add("--bs", type=int, default=16, help="scans a batch of stock (default 16)")
    add("--data", help="folder of scans; phantoms in a temporary folder where it is left out")
    add("--weights", default="none", help="file of pretrained weights; none makes random ones")
    add("--repeats", type=int, default=1, help="do all runs so many times, in turn, and show the middle one of each")
    add("--only", choices=[*RUNS, "prepare"], help=argparse.SUPPRESS)
    add("--json-out", metavar="FILE", help="write the result to a file too")
    add("--work", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
