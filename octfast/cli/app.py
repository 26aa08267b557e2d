"""The command line: its commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from octfast.cli import cache, data, model
from octfast.cli.interpret import interpret
from octfast.cli.train import train

app = typer.Typer(
    name="octfast",
    help="Train, judge and hand on classifiers of retinal OCT B-scans. Not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"octfast {version('octfast')}")
        raise typer.Exit()


@app.callback()
def _octfast(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, judge and hand on classifiers of retinal OCT B-scans. Not a medical device."""


app.command()(train)
app.command()(interpret)
app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
app.add_typer(cache.app, name="cache")
