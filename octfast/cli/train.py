"""`octfast train`: from a folder of scans to a trained model in a run folder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from octfast.cli import options
from octfast.train.config import TrainConfig, range_text


def train(as_json: bool, **given: Any) -> None:
    """Train a classifier of B-scans on a frozen pretrained body.

    Without DATA it trains on synthetic phantoms, to try the tool out. Test scans are never trained on; validation is
    held out by patient. The model, its history and its predictions are kept in a run folder.

    Examples:

      octfast train --epochs 10

      octfast train OCT2017 --epochs 20 --unfreeze block5 --out runs/first
    """
    values: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
    config = TrainConfig(**values)
    from octfast.console import print_json, print_table
    from octfast.model.forward import headline
    from octfast.notices import SYNTHETIC_NOTE
    from octfast.train.job import train_classifier

    run = train_classifier(config)
    about = run.config
    results = {split: headline(table) for split in ("valid", "test") if (table := run.predictions(split)) is not None}
    if about["chosen"].get("folds"):
        results = {"folds": json.loads((run.path / "metrics-folds.json").read_text(encoding="utf-8")), **results}
    if as_json:
        notes = [note.text for note in run.notes]
        print_json({"run": str(run.path), "results": results, "chosen": about["chosen"], "notes": notes})
        return
    title = f"{about['arch']}, weights of epoch {about['chosen']['best_epoch']} of {len(run.history)}"
    columns = ("split", "scans", "patients", "right", "accuracy", "loss")
    print_table(title, columns, [[split, *(r[c] for c in columns[1:])] for split, r in results.items()])
    if about["data"]["synthetic"]:
        print(SYNTHETIC_NOTE)
    print(f"Run folder: {run.path}")
    print("Next: octfast interpret --top-losses 9, or octfast report --open for a page with all of it")


def parameters(without: Collection[str] = ()) -> list[inspect.Parameter]:
    """The argument and the options of `octfast train`, the fields of TrainConfig but for some, and --json."""
    hints = get_type_hints(TrainConfig)
    made = []
    for each in fields(TrainConfig):
        if each.name in without:
            continue
        about, kind = each.metadata, hints[each.name]
        words = range_text(about)
        text = f"{about['help']} [{words}]" if words else about["help"]
        if about.get("path"):
            kind = Path | None
        # A flag is named, as typer would add a --no-... to it.
        names = [f"--{each.name.replace('_', '-')}"] if kind is bool else []
        info = typer.Argument(help=text) if each.name == "data" else typer.Option(*names, help=text)
        made.append(_parameter(each.name, Annotated[kind, info], each.default))
    return [*made, _parameter("as_json", options.Json, False)]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


# Typer makes the command from the names, types and defaults that it finds here.
train.__signature__ = inspect.Signature(parameters())  # type: ignore[attr-defined]
train.__annotations__ = {p.name: p.annotation for p in parameters()}
