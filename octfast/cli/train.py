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
from octfast.errors import UsageError
from octfast.train.config import TrainConfig, range_text


def train(ctx: typer.Context, as_json: bool, resume: bool, config: Path | None, **given: Any) -> None:
    """Train a classifier of B-scans on a frozen pretrained body.

    Without DATA it trains on synthetic phantoms, to try the tool out. Test scans are never trained on; validation is
    held out by patient. The model, its history and its predictions are kept in a run folder.

    A training that was cut off goes on with --resume and its run folder in the place of DATA; the options are those
    that it began with.

    With --level volume, eye or patient the model learns one answer for all scans of each of these, from labels that are
    theirs; see docs/units.md.

    Examples:

      octfast train --epochs 10

      octfast train OCT2017 --epochs 20 --unfreeze block5 --out runs/first

      octfast train --resume runs/first
    """
    values: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
    if resume and config is not None:
        raise UsageError("--resume and --config: one goes on with a run, the other makes it again", "give one of them")
    made = TrainConfig(**values) if not resume and config is None else None
    from octfast.console import print_json, print_table
    from octfast.model.forward import headline
    from octfast.notices import SYNTHETIC_NOTE
    from octfast.train.job import train_classifier
    from octfast.train.resume import repeat_training, resume_training

    named = {k: v for k, v in values.items() if _is_given(ctx, k)}
    if resume:
        run = resume_training(named.pop("data", None), **named)
    elif config is not None:
        run = repeat_training(config, **named)
    else:
        run = train_classifier(made)
    if run is None:  # one of several processes, of which the first speaks
        return
    about = run.config
    results = {split: headline(table) for split in ("valid", "test") if (table := run.predictions(split)) is not None}
    if about["chosen"].get("folds"):
        results = {"folds": json.loads((run.path / "metrics-folds.json").read_text(encoding="utf-8")), **results}
    if as_json:
        notes = [note.text for note in run.notes]
        print_json({"run": str(run.path), "results": results, "chosen": about["chosen"], "notes": notes})
        return
    title = f"{about['arch']}, weights of epoch {about['chosen']['best_epoch']} of {len(run.history)}"
    keys, level = ("scans", "patients", "right", "accuracy", "loss"), about.get("level") or "scan"
    # Of a model of patients there is one column of them.
    shown = [key for key in keys if key != "scans" or level != "patient"]
    heads = [f"{level}s" if key == "scans" else key for key in shown]
    print_table(title, ["split", *heads], [[split, *(r[key] for key in shown)] for split, r in results.items()])
    if level != "scan":
        print(f"The model answers for whole {level}s.")
    if about["data"]["synthetic"]:
        print(SYNTHETIC_NOTE)
    print(f"Run folder: {run.path}")
    print("Next: octfast interpret --top-losses 9, or octfast report --open for a page with all of it")


def _is_given(ctx: typer.Context, name: str) -> bool:
    """Whether an option or argument stands on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


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


def _options() -> list[inspect.Parameter]:
    """Those of a training, and of one that goes on or is made again."""
    resume = typer.Option(
        "--resume", help="Go on with the run named in the place of DATA, else with the newest unfinished one in runs/."
    )
    config = typer.Option(help="Train again as this config.json of a run says; options given beside it go before.")
    *training, as_json = parameters()
    return [
        inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *training,
        _parameter("resume", Annotated[bool, resume], False),
        _parameter("config", Annotated[Path | None, config], None),
        as_json,
    ]


# Typer makes the command from the names, types and defaults that it finds here.
train.__signature__ = inspect.Signature(_options())  # type: ignore[attr-defined]
train.__annotations__ = {p.name: p.annotation for p in _options()}
