"""`octfast interpret`: confusion, most confused pairs and the scans with the top losses of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def interpret(
    run: Annotated[Path | None, typer.Argument(help="Run folder; by default the newest, runs/latest.")] = None,
    top_losses: Annotated[int, typer.Option(min=1, help="How many scans to show.")] = 9,
    smallest: Annotated[bool, typer.Option("--smallest", help="Show the smallest losses instead.")] = False,
    split: Annotated[str, typer.Option(help="valid, test or train.")] = "valid",
    data: Annotated[
        Path | None, typer.Option(help="Where the scans are now, if the run was copied from elsewhere.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Show where a trained model goes wrong.

    Writes figures/top_losses.png and figures/confusion_matrix.png into the run folder (with the split in their names
    where it is not valid), and predictions-<split>.csv. The model runs at most once.

    Examples:

      octfast interpret --top-losses 9

      octfast interpret runs/first --split test --top-losses 16
    """
    from octfast.assess.report import interpret_run
    from octfast.cli.output import print_json, print_table
    from octfast.train.run import SYNTHETIC_NOTE, open_run

    found = interpret_run(open_run(run, data), split, top_losses, largest=not smallest)
    if as_json:
        print_json(found.to_dict())
        return
    headline = found.headline
    print(
        f"{split}: {headline['right']} of {headline['scans']} scans right ({headline['accuracy']:.1%}), "
        f"{headline['patients']} patients, loss {headline['loss']:.3f}"
    )
    print_table(
        "Confusion (rows actual, columns predicted)",
        ["actual", *found.confusion.columns],
        [[name, *map(int, row)] for name, row in zip(found.confusion.index, found.confusion.to_numpy(), strict=True)],
    )
    if len(found.confused):
        print_table("Most confused", list(found.confused.columns), found.confused.head(10).itertuples(index=False))
    else:
        print("No scan was confused with another class.")
    columns = ["path", "label", "predicted", "p_actual", "probability", "loss"]
    rows = found.top[columns].assign(path=[Path(p).name for p in found.top["path"]])
    print_table(
        f"{'Smallest' if smallest else 'Top'} losses",
        ["file", "actual", "predicted", "p(actual)", "p(predicted)", "loss"],
        rows.itertuples(index=False),
    )
    if found.synthetic:
        print(SYNTHETIC_NOTE)
    for file in found.files:
        print(file)
