"""The command line: its commands, put together."""

from __future__ import annotations

import logging
import os
from typing import Annotated

import typer

from octfast.cli import app as app_
from octfast.cli import cache, data, model
from octfast.cli.calibrate import calibrate
from octfast.cli.compare import compare
from octfast.cli.doctor import doctor
from octfast.cli.drift import drift
from octfast.cli.evaluate import evaluate
from octfast.cli.export import export
from octfast.cli.help import set_help
from octfast.cli.interpret import interpret
from octfast.cli.predict import predict
from octfast.cli.report import report
from octfast.cli.review import review
from octfast.cli.show import show
from octfast.cli.similar import similar
from octfast.cli.suggest import suggest
from octfast.cli.train import train
from octfast.cli.tune import tune
from octfast.cli.verbosity import QuietOption, VerboseOption, add_verbosity
from octfast.launcher import launched

log = logging.getLogger("octfast")

app = typer.Typer(
    name="octfast",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(versions())
        raise typer.Exit()


def versions() -> str:
    """octfast's version, and on a second line those of Python and of what octfast stands on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    others = [f"Python {platform.python_version()}"]
    for name in ("torch", "torchvision", "fastai", "timm"):
        try:
            others.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            others.append(f"{name} missing")
    return f"octfast {version('octfast')}\n{', '.join(others)}"


# What is divided among several processes; every other command is left to the first of them.
_DIVIDED = ("train", "tune", "predict")


@app.callback()
def _octfast(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Print octfast's version and those that matter."
        ),
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train, judge and hand on classifiers of retinal OCT B-scans. Not a medical device.

    Examples:

      octfast doctor

      octfast train OCT2017 --epochs 10

      octfast train --help
    """
    if quiet or verbose:
        from octfast.console import set_verbosity

        set_verbosity(quiet, verbose)
    if (started := launched()) is not None and ctx.invoked_subcommand not in _DIVIDED:
        rank, size = started
        if rank:
            raise typer.Exit()
        for name in ("RANK", "WORLD_SIZE"):  # by which fastai would wait for the others
            os.environ.pop(name)
        log.info("octfast %s is not divided: of %d processes the first does it alone", ctx.invoked_subcommand, size)


for command in (
    train,
    tune,
    interpret,
    evaluate,
    calibrate,
    compare,
    show,
    report,
    review,
    similar,
    suggest,
    predict,
    drift,
    export,
):
    app.command()(command)
app.command("app")(app_.app)
app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
app.add_typer(cache.app, name="cache")
app.command()(doctor)
# After all commands, as these give each of them its options and its help.
add_verbosity(app)
set_help(app)
