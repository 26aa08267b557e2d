"""`octfast data download`: fetch a public data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octfast.cli import options


def download(
    name: Annotated[str, typer.Argument(help="octmnist or oct2017.")],
    out: Annotated[Path, typer.Option(help="Folder for OCTMNIST's file, or that OCT2017 becomes.")],
    size: Annotated[int, typer.Option(help="Size of OCTMNIST's pictures: 28, 64, 128 or 224.")] = 28,
    as_json: options.Json = False,
) -> None:
    """Fetch OCTMNIST (through medmnist) or OCT2017 (through kagglehub), and show licence and citation.

    Needs pip install 'octfast[download]'. OCT2017 goes on where an interrupted download stopped.

    Examples:

      octfast data download octmnist --size 64 --out data

      octfast data download oct2017 --out OCT2017
    """
    import logging

    from octfast.console import print_json
    from octfast.data.download import SOURCES
    from octfast.data.download import download as fetch

    log = logging.getLogger("octfast")
    source = SOURCES.get(name)
    if source is not None:
        # Before the download, as a licence is to be known by who takes the data.
        for line in (source.title, f"licence: {source.licence}", f"cite: {source.citation}", f"from: {source.page}"):
            log.info("%s", line)
    path = fetch(name, out, size)
    if as_json and source is not None:
        print_json({"path": str(path), "licence": source.licence, "citation": source.citation, "page": source.page})
        return
    print(f"Fetched: {path}")
    print(f"Next: octfast data audit {path}")
