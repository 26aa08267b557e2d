"""`octfast interpret`: where a trained model goes wrong, with pictures of it and of what it looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octfast.cli import options

if TYPE_CHECKING:
    import pandas as pd

    from octfast.assess.interpret.interpret import Findings


def interpret(
    run: options.Run = None,
    top_losses: Annotated[int, typer.Option(min=1, help="How many scans to show of each kind.")] = 9,
    smallest: Annotated[bool, typer.Option("--smallest", help="Show the smallest losses instead.")] = False,
    split: options.Split = "valid",
    heatmaps: options.HeatMaps = True,
    method: options.Method = "gradcam",
    urgent: options.Urgent = None,
    label_errors: Annotated[
        bool,
        typer.Option("--label-errors", help="List scans whose label is suspected to be wrong; nothing is changed."),
    ] = False,
    folds: Annotated[
        list[Path] | None,
        typer.Option(
            help="A run of a cross-validation, or a folder of them; repeatable. Finds label errors out of fold."
        ),
    ] = None,
    similar: Annotated[
        bool,
        typer.Option(
            "--similar", help="Also draw the top losses beside the scans of other patients that are most like them."
        ),
    ] = False,
    device: options.Device = "auto",
    format: options.FigureFormat = "png",
    dpi: options.Dpi = 120,
    data: options.DataMoved = None,
    as_json: options.Json = False,
) -> None:
    """Show where a trained model goes wrong.

    Writes into figures/ of the run folder: top_losses.png, hardest_wrong.png, easiest_right.png, missed_urgent.png,
    confusion_matrix.png, confusion_matrix_normalised.png and montage.png, but none without scans; and beside it
    predictions-<split>.csv, missed-urgent.csv and with --label-errors label-errors.csv (with the split in their names
    where it is not valid), and with --similar figures/similar.png and similar.csv. The model runs at most once over the
    split, and once a scan for its heat map.

    Heat maps show what raised the score of the predicted class. They are not evidence of disease location.

    Examples:

      octfast interpret --top-losses 9

      octfast interpret runs/first --split test --top-losses 16 --no-heatmaps

      octfast interpret runs/first --format pdf --dpi 300

      octfast interpret runs/first --folds runs/fold1 --folds runs/fold2 --folds runs/fold3
    """
    from octfast.assess.interpret.interpret import interpret_run
    from octfast.cli.evaluate import split_names
    from octfast.console import print_json
    from octfast.figure import Files
    from octfast.run.folder import open_run

    found = interpret_run(
        open_run(run, data),
        split,
        top_losses,
        largest=not smallest,
        heatmaps=heatmaps,
        method=method,
        urgent=split_names(urgent),
        label_errors=label_errors,
        folds=folds or (),
        similar=similar,
        device=device,
        files=Files(format, dpi),
    )
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found, top_losses, smallest)


def _print(found: Findings, most: int, smallest: bool) -> None:
    from octfast.assess.interpret.rows import MOST_CLASSES, confused_classes
    from octfast.console import print_table
    from octfast.notices import SYNTHETIC_NOTE

    headline = found.headline
    print(
        f"{found.split}: {headline['right']} of {headline['scans']} scans right ({headline['accuracy']:.1%}), "
        f"{headline['patients']} patients, loss {headline['loss']:.3f}"
    )
    counts, title = found.confusion, "Confusion (rows label, columns predicted)"
    if len(counts) > MOST_CLASSES:
        title = f"{title}, the {MOST_CLASSES} of {len(counts)} classes that were confused most"
        chosen = confused_classes(counts)
        counts = counts.loc[chosen, chosen]
    body = [[name, *map(int, row)] for name, row in zip(counts.index, counts.to_numpy(), strict=True)]
    print_table(title, ["label", *counts.columns], body)
    if len(found.confused):
        columns = ["label", *found.confused.columns[1:]]
        print_table("Most confused", columns, found.confused.head(10).itertuples(index=False))
    else:
        print("No scan was confused with another class.")
    _print_scans(
        f"{'Smallest' if smallest else 'Top'} losses",
        found.top,
        {"label": "label", "predicted": "predicted", "p(label)": "p_actual", "p(predicted)": "probability"},
    )
    if found.missed is not None and len(found.missed):
        _print_scans(
            f"Urgent scans ({', '.join(found.urgent)}) taken for another class: {len(found.missed)}",
            found.missed.head(most),
            {"label": "label", "predicted": "predicted", "p(urgent)": "p_urgent", "p(predicted)": "probability"},
        )
    elif found.missed is not None:
        print(f"No urgent scan ({', '.join(found.urgent)}) was taken for another class.")
    if found.label_errors is not None and len(found.label_errors):
        _print_scans(
            f"Suspected label errors by {found.label_errors_from}: {len(found.label_errors)}",
            found.label_errors.head(most),
            {"label": "label", "suggested": "suggested", "p(label)": "p_actual", "p(suggested)": "p_suggested"},
        )
    elif found.label_errors is not None:
        print(f"No label is suspected by {found.label_errors_from}.")
    if found.synthetic:
        print(SYNTHETIC_NOTE)
    print("Not a medical device.")
    for file in found.files:
        print(file)


def _print_scans(title: str, rows: pd.DataFrame, columns: dict[str, str]) -> None:
    from octfast.console import print_table

    columns = {**columns, "loss": "loss"}
    shown = rows[list(columns.values())]
    shown.insert(0, "file", [Path(p).name for p in rows["path"]])
    print_table(title, ["file", *columns], shown.itertuples(index=False))
