"""`octfast data explore`: what a data set holds, in tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octfast.cli import options


def explore(
    data: options.Data,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures and the tables (CSV); never overwritten.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=12, help="Scans of each class in the figure of samples.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of samples.")] = 0,
    brightness: Annotated[
        bool, typer.Option(help="Measure the brightness, which decodes the scans; without, their heads are read.")
    ] = True,
    format: options.FigureFormat = "png",
    dpi: options.Dpi = 120,
    workers: options.Threads = None,
    path_column: options.PathColumn = None,
    label_column: options.LabelColumn = None,
    patient_column: options.PatientColumn = None,
    split_column: options.SplitColumn = None,
    patient_from: options.PatientFrom = None,
    label_from: options.LabelFrom = None,
    as_json: options.Json = False,
) -> None:
    """Show what a data set holds: scans and patients a split and class, sizes, formats, brightness, samples.

    Examples:

      octfast data explore OCT2017

      octfast data explore OCT2017 --out figures --samples 6
    """
    from octfast.console import print_json, print_table
    from octfast.data.explore import SYNTHETIC, check_folder_free
    from octfast.data.explore import explore as run_explore
    from octfast.figure import Files

    write = Files(format, dpi)
    if out is not None:
        check_folder_free(out)
    found = run_explore(
        data,
        brightness,
        workers,
        path_column=path_column,
        label_column=label_column,
        patient_column=patient_column,
        split_column=split_column,
        patient_from=patient_from,
        label_from=label_from,
    )
    files = [] if out is None else found.save(out, samples, seed, write)
    if as_json:
        print_json({**found.to_dict(), "files": [str(f) for f in files]})
        return
    tables = found.tables()
    titles = {
        "counts": f"{found.name}: scans",
        "patients": "Patients (all counts each once)",
        "balance": "Share of each class",
        "sizes": "Widths and heights, in pixels",
        "formats": "Formats and modes (L is grey)",
        "brightness": "Mean grey of a scan, 0 to 255",
    }
    for name, title in titles.items():
        table = tables[name]
        if table.empty:
            continue
        shown = table.head(12)
        print_table(title, list(map(str, table.columns)), [_plain(row) for row in shown.itertuples(index=False)])
        if len(table) > len(shown):
            print(f"... and {len(table) - len(shown):,} more rows, in {name}.csv of --out DIR")
    unreadable = found.scans[found.scans["trouble"] != ""]
    if len(unreadable):
        first = unreadable.iloc[0]
        print(f"{len(unreadable):,} files cannot be read; the first: {first['path']} ({first['trouble']})")
    if found.synthetic:
        print(SYNTHETIC)
    for file in files:
        print(file)
    print(f"Next: octfast data audit {data}")


def _plain(row: tuple) -> list:
    """Numbers of numpy as those of Python, which the table knows."""
    return [value.item() if hasattr(value, "item") else value for value in row]
