"""`octfast data split`: draw splits and folds by patient into a CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octfast.cli import options


def split(
    data: options.Data,
    out: Annotated[Path, typer.Option(help="CSV to write; never overwritten.")],
    valid: Annotated[float, typer.Option(help="Share of all scans for validation.")] = 0.1,
    test: Annotated[
        float | None,
        typer.Option(help="Share of all scans for the test; by default the given test scans are kept, else 0.15."),
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of the scans outside of test; 0 for none.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the shuffles.")] = 0,
    path_column: options.PathColumn = None,
    label_column: options.LabelColumn = None,
    patient_column: options.PatientColumn = None,
    split_column: options.SplitColumn = None,
    patient_from: options.PatientFrom = None,
    label_from: options.LabelFrom = None,
    as_json: options.Json = False,
) -> None:
    """Draw splits and folds in which no patient and no identical file stands on two sides.

    Each class gets about its share of each split, as far as whole patients allow. Training with --fold K validates on
    fold K and trains on the others.

    Examples:

      octfast data split OCT2017 --out splits.csv

      octfast train OCT2017 --splits splits.csv --fold 2
    """
    from octfast.console import print_json, print_table
    from octfast.data.readers.read import read_data
    from octfast.data.splits.files import check_free, save_splits
    from octfast.data.splits.folds import describe_splits, make_splits

    check_free(out)
    scans = read_data(
        data,
        path_column=path_column,
        label_column=label_column,
        patient_column=patient_column,
        split_column=split_column,
        patient_from=patient_from,
        label_from=label_from,
    )
    drawn = make_splits(scans, valid, test, folds, seed)
    save_splits(drawn, out)
    by = {"split": describe_splits(drawn), "fold": describe_splits(drawn, "fold")}
    if as_json:
        print_json(
            {
                "out": str(out),
                "seed": seed,
                "left_out": len(scans) - len(drawn),
                "splits": by["split"].to_dict("index"),
                "folds": by["fold"].to_dict("index"),
            }
        )
        return
    for name, table in by.items():
        if len(table):
            rows = [[index, *row] for index, row in zip(table.index, table.itertuples(index=False), strict=True)]
            title = "Splits, in scans of each class" if name == "split" else "Folds of train and valid"
            print_table(title, [name, *table.columns], rows)
    print(f"{len(drawn):,} scans in {out}")
    fold = " --fold 0" if folds else ""
    print(f"Next: octfast train {data} --splits {out}{fold}")
