"""`octfast similar`: the training and validation scans of a run that are most like a scan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octfast.cli import options


def similar(
    run: Annotated[Path, typer.Argument(help="Run folder; runs/latest is the newest.")],
    scans: Annotated[list[Path], typer.Argument(metavar="SCAN...", help="Scans of the run, or others.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Neighbours of each.")] = 5,
    same_patient: Annotated[
        bool,
        typer.Option("--same-patient", help="Include scans of the same patient, where the scan is one of the run's."),
    ] = False,
    data: options.DataMoved = None,
    as_json: options.Json = False,
) -> None:
    """Show the training and validation scans of a run that are most like a scan, with class and distance.

    Likeness is that of the features that the model judges by, read from the run's store where it is at hand. Scans of
    the same patient are left out. A distance of 0 is the same picture, 1 nothing in common. That a neighbour has a
    class is no proof that the scan has it. Of a run that answers for volumes, eyes or patients scans are compared, too,
    and the label of one is that of its whole.

    Examples:

      octfast similar runs/latest scan.jpeg

      octfast similar runs/latest a.jpeg b.jpeg --n 10 --json
    """
    from octfast.assess.similar import label_words, similar
    from octfast.console import print_json, print_table
    from octfast.model.bundle.read import read_info
    from octfast.run.folder import open_run

    opened = open_run(run, data)
    found = similar(opened, [str(s) for s in scans], n, same_patient=same_patient)
    if as_json:
        print_json(found.to_dict("records"))
        return
    level = read_info(opened.bundle).level
    of = "label" if level == "scan" else f"label of its {level}"
    for path, rows in found.groupby("path", sort=False):
        lines = [(r.rank, r.neighbour, r.label, f"{r.distance:.3f}") for r in rows.itertuples()]
        print_table(f"Scans like {Path(str(path)).name}", ["", "scan", of, "distance"], lines)
    if words := label_words(level):
        print(words)
    print("Not a medical device.")
