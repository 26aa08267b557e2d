"""`octfast data`: look at, check, split, extract, fetch and make sets of scans.

From outside: the folder itself, which has the commands.
"""

from __future__ import annotations

import typer

from octfast.cli.data.audit import audit
from octfast.cli.data.download import download
from octfast.cli.data.explore import explore
from octfast.cli.data.extract import extract
from octfast.cli.data.phantom import phantom
from octfast.cli.data.split import split

app = typer.Typer(help="Look at, check, split, extract, fetch and make sets of scans.", no_args_is_help=True)

for command in (explore, audit, split, extract, download, phantom):
    app.command()(command)
