"""`octfast data`: look at, check, split, fetch and make sets of scans."""

from __future__ import annotations

import typer

from octfast.cli.data_audit import audit
from octfast.cli.data_download import download
from octfast.cli.data_explore import explore
from octfast.cli.data_phantom import phantom
from octfast.cli.data_split import split

app = typer.Typer(help="Look at, check, split, fetch and make sets of scans.", no_args_is_help=True)

for command in (explore, audit, split, download, phantom):
    app.command()(command)
