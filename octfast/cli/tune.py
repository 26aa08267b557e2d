"""`octfast tune`: searches a recipe on stored features, by patient, and trains the best."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octfast.cli.train import parameters

if TYPE_CHECKING:
    from octfast.train.tune.result import Tuned

# Options of `octfast train` that a search chooses, takes several of, or that are of more than a head on its features.
_CHOSEN = {"arch", "head", "dropout", "wd", "lr", "views", "weights", "out"}
_CHOSEN |= {"unfreeze", "balance", "loss", "patience", "random_layers", "compile", "minutes"}


def tune(as_json: bool, **given: Any) -> None:
    """Search a recipe for the head on stored features, and train the best.

    Features are stored once; each trial then takes seconds. A trial is judged by its log-loss over folds by patient of
    training and validation scans. One fold is held back from the search, and at the end the winner and the default
    recipe are judged on it. Test scans are never touched. Needs pip install 'octfast[tune]'.

    The same command with --out and the folder of a search goes on with it.

    Examples:

      octfast tune OCT2017 --minutes 5

      octfast tune OCT2017 --arch vgg16_bn --arch resnet50 --views 1 --views 4 --minutes 30 --out runs/search
    """
    from octfast.console import print_json, print_table
    from octfast.train.tune.search import tune as search

    values: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
    found = search(values.pop("data"), **values)
    if found is None:  # one of several processes, of which the first speaks
        return
    if as_json:
        print_json({**found.to_dict(), "folder": str(found.folder), "run": str(found.run)})
        return
    whole = found.trials[found.trials["state"] == "complete"]
    shown = whole[(whole.index < 8) | (whole["number"] == found.default)]
    columns = ("trial", "body", "views", "head", "dropout", "decay", "rate", "log-loss", "95%", "minus default", "95%")
    rows = [
        [
            f"{r.number}{' (default)' if r.number == found.default else ''}",
            *(r.arch, int(r.views), r.head, f"{r.dropout:.2f}", f"{r.wd:.2g}", f"{r.lr:.2g}"),
            *(f"{r.log_loss:.3f}", f"{r.low:.3f} to {r.high:.3f}"),
            *(f"{r.minus_default:+.3f}", f"{r.minus_low:+.3f} to {r.minus_high:+.3f}"),
        ]
        for r in shown.itertuples()
    ]
    given_up = len(found.trials) - len(whole)
    print_table(f"{len(found.trials)} trials, {given_up} of them given up early", columns, rows)
    print("\n".join(_verdict(found)))
    print(f"Search: {found.folder} (search.{given['format']}, trials.csv, tune.json)")
    print(f"Run folder: {found.run}")


def _verdict(found: Tuned) -> list[str]:
    """What the winner's lead is worth, in sentences."""
    if found.best == found.default:
        return ["No recipe was better than the default, which was trained."]
    held = found.held_back
    lead, low, high = found.corrected["minus_default"]
    said = [
        f"The winner's log-loss minus the default's, corrected for its having been chosen: {_ends(lead, low, high)}.",
        f"On the {held['scans']} scans of {held['patients']} patients that the search never saw: "
        f"{_ends(*held['minus_default'])}; "
        f"log-loss {held['log_loss'][0]:.3f} against {held['default_log_loss'][0]:.3f}.",
    ]
    if high >= 0:
        said.append("That is no sure gain: the default recipe may do as well.")
    return said


def _ends(value: float, low: float, high: float) -> str:
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def _options() -> list[inspect.Parameter]:
    """The options of `octfast train` that a search takes as they are, and its own."""

    def made(name: str, kind: Any, default: Any, *names: str, text: str, **about: Any) -> inspect.Parameter:
        annotation = Annotated[kind, typer.Option(*names, help=text, **about)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    own = [
        made("minutes", float, 5.0, text="Minutes of the search, after the features are stored."),
        made("trials", int | None, None, text="Stop after so many trials in all.", min=1),
        made("arch", list[str], ["vgg16_bn"], text="Body to choose from; repeatable. Only those with weights at hand."),
        made("weights", list[str], ["auto"], text="auto, none or a file; of one of several bodies as ARCH=FILE."),
        made("views", list[int], [1], text="Readings of the training scans to choose from; repeatable.", min=1),
        made("out", Path | None, None, text="Folder of the search, new or to go on with; by default in runs/."),
    ]
    data, *others = parameters(without=_CHOSEN)
    return [data, *own, *others]


# Typer makes the command from the names, types and defaults that it finds here.
tune.__signature__ = inspect.Signature(_options())  # type: ignore[attr-defined]
tune.__annotations__ = {p.name: p.annotation for p in _options()}
