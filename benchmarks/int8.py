"""What the frozen part costs and loses in bf16 and int8: speed, features, and heads trained on them.

    python benchmarks/int8.py --weights vgg16_bn.safetensors

The augmented views and the seeds of the heads are the same for all engines. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.torch_core import apply_init
from torch import Tensor, nn

from octfast.data.loaders import oct_dataloaders
from octfast.data.phantom.draw import write_phantoms
from octfast.data.readers.folder import read_scans
from octfast.model.engine import make_engine
from octfast.model.openvino import CALIBRATION_PICTURES
from octfast.train.frozen.frozen import cut_model
from octfast.train.frozen.views import seeded
from octfast.train.learner import oct_learner

ENGINES = (("torch", "auto"), ("openvino", "auto"), ("openvino", "int8"))
BATCH = 16


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure and print; gives what the line of JSON holds."""
    given = _arguments().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = given.data or write_phantoms(Path(folder) / "phantoms", given.scans, seed=given.seed, test=0.25)
        result = measure(given, _loaders(root, given.size))
    _show(result["rows"])
    print(json.dumps(result))
    return result


def measure(given: argparse.Namespace, dls: DataLoaders) -> dict[str, Any]:
    """All figures of all engines."""
    learn = oct_learner(dls, given.arch, weights=given.weights)
    prefix, head = cut_model(learn.model)
    body = nn.Sequential(*prefix)
    labels = {what: _labels(dl) for what, dl in (("train", dls.train), ("valid", dls.valid))}
    valid = torch.cat(list(_pictures(dls.valid, 0, 0)))
    exact: Any = make_engine(body, engine="torch", precision="fp32")
    reference = torch.cat([exact(x) for x in valid.split(BATCH)])
    step = max(1, len(labels["train"]) // CALIBRATION_PICTURES)
    engines: list[Any] = []
    rows: list[dict[str, Any]] = []
    features: list[tuple[list[Tensor], Tensor]] = []
    for name, precision in ENGINES:
        start = time.perf_counter()
        engine = make_engine(
            body,
            engine=name,
            precision=precision,
            calibration=lambda: [torch.cat(list(_pictures(dls.train, 0, given.seed)))[::step]],
        )
        engine(valid[:BATCH])
        engines.append(engine)
        rows.append({"engine": engine.description, "ready_s": round(time.perf_counter() - start, 1)})
    for row, speed in zip(rows, _speeds([exact, *engines], valid[:BATCH], given.rounds)[1:], strict=True):
        row.update(speed)
    for engine, row in zip(engines, rows, strict=True):
        views = [torch.cat([engine(x) for x in _pictures(dls.train, view, given.seed)]) for view in range(given.views)]
        held = torch.cat([engine(x) for x in valid.split(BATCH)])
        features.append((views, held))
        row.update(_nearness(held, reference))
    for (views, held), row in zip(features, rows, strict=True):
        scores = []
        for seed in range(given.seeds):
            trained = _trained(head, views, labels["train"], seed, given.epochs)
            own, exactly = _score(trained, held, labels["valid"]), _score(trained, reference, labels["valid"])
            scores.append((*own, exactly[0]))
        row["scores"] = scores
        for i, what in enumerate(("loss", "accuracy", "loss_on_fp32")):
            values = [s[i] for s in scores]
            row[what], row[f"{what}_sd"] = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        against = [s[0] - first[0] for s, first in zip(scores, rows[0]["scores"], strict=True)]
        row["loss_difference"] = statistics.mean(against)
        row["loss_difference_sd"] = statistics.stdev(against) if len(against) > 1 else 0.0
    return {
        **{k: v for k, v in vars(given).items() if k != "weights"},
        "train": len(labels["train"]),
        "valid": len(labels["valid"]),
        "calibration": CALIBRATION_PICTURES,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="auto", help="file of the body's pretrained weights")
    parser.add_argument("--data", help="folder of scans with train/ and test/; by default phantoms are drawn")
    parser.add_argument("--arch", default="vgg16_bn")
    for name, default, what in (
        ("scans", 320, "phantoms to draw, a quarter of them held out"),
        ("size", 224, "side, in pixels"),
        ("views", 4, "augmented readings"),
        ("epochs", 12, "of each head"),
        ("seeds", 5, "heads an engine"),
        ("rounds", 7, "timings an engine, taken in turn"),
        ("seed", 0, "of the phantoms and the views"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    return parser


def _loaders(root: str | Path, size: int) -> DataLoaders:
    scans = read_scans(root)
    # The held-out folder is what is judged on: no choice is made on it.
    scans["split"] = np.where(scans["split"] == "test", "valid", "train")
    return oct_dataloaders(scans, size=size, bs=BATCH, num_workers=0, device="cpu")


def _pictures(dl: Any, view: int, seed: int) -> Iterator[Tensor]:
    """The pictures of a DataLoader in order, float32 of shape (at most BATCH, 3, size, size), as one view."""
    dl.before_iter()
    for start in range(0, len(dl.dataset), BATCH):
        rows = range(start, min(len(dl.dataset), start + BATCH))
        batch = dl.do_batch([dl.do_item(i) for i in rows])[0]
        with seeded(seed, start, view):
            yield dl.after_batch((batch,))[0].as_subclass(Tensor)


def _labels(dl: Any) -> Tensor:
    return torch.tensor([int(dl.dataset.tls[-1][i]) for i in range(len(dl.dataset))])


def _speeds(engines: list[Any], x: Tensor, rounds: int) -> list[dict[str, float]]:
    """Scans a second, the median of rounds in which the engines take turns, since other work comes and goes."""
    seconds: list[list[float]] = [[] for _ in engines]
    for _ in range(rounds):
        for engine, taken in zip(engines, seconds, strict=True):
            start = time.perf_counter()
            engine(x)
            taken.append(time.perf_counter() - start)
    medians = [statistics.median(t) for t in seconds]
    return [{"scans_per_s": len(x) / m, "times_fp32": medians[0] / m, "times_first": medians[1] / m} for m in medians]


def _nearness(features: Tensor, reference: Tensor) -> dict[str, float]:
    cosine = nn.functional.cosine_similarity(features, reference).mean()
    return {"cosine": float(cosine), "relative_error": float((features - reference).norm() / reference.norm())}


def _trained(head: list[nn.Module], views: list[Tensor], labels: Tensor, seed: int, epochs: int) -> nn.Module:
    """A head trained on view after view with a one-cycle schedule."""
    torch.manual_seed(seed)
    model = copy.deepcopy(nn.Sequential(*head))
    apply_init(model, nn.init.kaiming_normal_)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    steps = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=epochs * steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(labels))
        for at in order[: steps * BATCH].split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(views[epoch % len(views)][at]), labels[at]).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def _score(model: nn.Module, features: Tensor, labels: Tensor) -> tuple[float, float]:
    with torch.no_grad():
        logits = model(features)
    return float(nn.functional.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())


def _show(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'engine':34}{'scans/s':>8}{'x fp32':>8}{'ready s':>8}{'cosine':>9}{'rel err':>9}"
        f"{'loss':>16}{'to the first':>17}{'accuracy':>16}{'loss on fp32':>14}"
    )
    for r in rows:
        print(
            f"{r['engine']:34}{r['scans_per_s']:8.1f}{r['times_fp32']:8.2f}{r['ready_s']:8.1f}{r['cosine']:9.5f}"
            f"{r['relative_error']:9.4f}{r['loss']:9.4f}±{r['loss_sd']:.4f}"
            f"{r['loss_difference']:+10.4f}±{r['loss_difference_sd']:.4f}"
            f"{r['accuracy']:9.4f}±{r['accuracy_sd']:.4f}{r['loss_on_fp32']:14.4f}"
        )


if __name__ == "__main__":
    main()
