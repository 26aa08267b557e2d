"""`octfast data audit`: what in a data set would spoil a result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octfast.cli import options


def audit(
    data: options.Data,
    out: Annotated[Path | None, typer.Option(help="CSV to write, a row a finding and file; never overwritten.")] = None,
    workers: options.Threads = None,
    path_column: options.PathColumn = None,
    label_column: options.LabelColumn = None,
    patient_column: options.PatientColumn = None,
    split_column: options.SplitColumn = None,
    patient_from: options.PatientFrom = None,
    label_from: options.LabelFrom = None,
    as_json: options.Json = False,
) -> None:
    """Find what is wrong with a data set: broken files, copies, leaks between splits, odd pictures.

    Every file is read once and none is changed. An error would spoil a result, and ends with exit code 1; a warning is
    doubtful; a note is worth knowing.

    Examples:

      octfast data audit OCT2017

      octfast data audit OCT2017 --out findings.csv
    """
    from octfast.console import print_json, print_table
    from octfast.data.audit.audit import audit as run_audit
    from octfast.data.audit.audit import severity_counts
    from octfast.data.scans import write_csv
    from octfast.data.splits.files import check_free

    if out is not None:
        check_free(out)
    found = run_audit(
        data,
        workers,
        path_column=path_column,
        label_column=label_column,
        patient_column=patient_column,
        split_column=split_column,
        patient_from=patient_from,
        label_from=label_from,
    )
    if out is not None:
        write_csv(found.findings, out)
    if as_json:
        print_json({**found.to_dict(), "out": None if out is None else str(out)})
        raise typer.Exit(int(found.spoils))
    counts = found.counts
    rows = [[split, *row] for split, row in zip(counts.index, counts.itertuples(index=False), strict=True)]
    print_table(f"{data}", ["split", *counts.columns], rows)
    summary = found.summary()
    if (summary["check"] != "release").any():
        shown = [
            [row.severity, row.check, f"{row.files:,}" if row.files else "", row.what, row.detail]
            for row in summary[summary["check"] != "release"].itertuples()
        ]
        print_table("Findings", ["severity", "check", "files", "what", "the first of them"], shown)
    if len(found.properties):
        told = [
            [
                *(row.property, _share(row.right, row.low, row.high), f"{row.chance:.0%}", row.label),
                _share(row.told, row.told_low, row.told_high),
            ]
            for row in found.properties.itertuples()
        ]
        columns = ["property", "gives the class", "guessing", "tells best", "from the others"]
        print_table("What a property alone says of other patients' scans, with 95% intervals", columns, told)
    if found.release:
        print(f"This is {found.release}.\n")
    numbers = severity_counts(found)
    print(
        f"{found.readable:,} of {found.scans:,} files can be read. Findings: "
        + ", ".join(f"{n:,} {name}{'' if n == 1 else 's'}" for name, n in numbers.items())
        + "."
    )
    print("Something here would spoil a result." if found.spoils else "Nothing here would spoil a result.")
    if out is not None:
        print(out)
    elif numbers["error"] or numbers["warning"]:
        print(f"Next: octfast data audit {data} --out findings.csv lists the files")
    raise typer.Exit(int(found.spoils))


def _share(share: float, low: float, high: float) -> str:
    return f"{share:.0%} ({low:.0%}-{high:.0%})"
