"""`octfast show`: one scan with its label and a bar chart of the likeliest classes."""

from __future__ import annotations

from typing import Annotated

import typer

from octfast.cli import options


def show(
    run: options.Run = None,
    scan: Annotated[
        str | None, typer.Argument(help="A picture, or the name of one of the run's scans; by default one at random.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of the random choice; by default a new one each time, which is printed."),
    ] = None,
    split: Annotated[str, typer.Option(help="Where to choose from: test, valid or train.")] = "test",
    top: Annotated[int, typer.Option("--top-k", "--top", min=1, help="How many classes to show.")] = 4,
    format: options.FigureFormat = "png",
    dpi: options.Dpi = 120,
    data: options.DataMoved = None,
    as_json: options.Json = False,
) -> None:
    """Show one scan, at random or by name, with its label and the likeliest classes.

    Writes figures/show-<name>.png into the run folder. The model runs only for a scan that it has not predicted yet.

    Examples:

      octfast show

      octfast show runs/first --seed 7

      octfast show runs/first CNV-1016042-1.jpeg
    """
    from octfast.assess.interpret.show import show_scan
    from octfast.console import print_json, print_table
    from octfast.figure import Files
    from octfast.notices import SYNTHETIC_NOTE
    from octfast.run.folder import open_run

    # One word alone that names a picture is a scan of the newest run.
    if run is not None and scan is None and run.suffix and not run.is_dir():
        run, scan = None, str(run)
    shown = show_scan(open_run(run, data), scan, split=split, seed=seed, k=top, files=Files(format, dpi))
    if as_json:
        print_json(shown.to_dict())
        return
    label = "not known" if shown.label is None else shown.label
    verdict = "" if shown.label is None else " (right)" if shown.label == shown.predicted else " (wrong)"
    print(f"{shown.path}\nlabel {label}, predicted {shown.predicted}{verdict}")
    if shown.seed is not None:
        print(f"chosen at random; the same again: --seed {shown.seed}")
    print_table("Probabilities", ["class", "probability"], shown.table.itertuples(index=False))
    print("Not a medical device.")
    if shown.synthetic:
        print(SYNTHETIC_NOTE)
    print(shown.file)
