"""`octfast data extract`: the B-scans of volumes as pictures without names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octfast.cli import options

_SHOWN = 12


def extract(
    volumes: Annotated[
        list[Path],
        typer.Argument(help="Files, folders of them, CSV tables with a column of paths, or .txt lists of paths."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; given again, it goes on where it stopped.")],
    key: Annotated[
        Path | None,
        typer.Option(help="File with the key of the pseudonyms; by default OCTFAST_KEY, or your own, which is made."),
    ] = None,
    keep_names: Annotated[
        bool,
        typer.Option("--keep-names", help="Keep file names and patients' numbers, which name patients."),
    ] = False,
    patient_from: Annotated[
        str | None,
        typer.Option(help="Where the patient stands: tag (in the file), folder, folder:2, a pattern or a column."),
    ] = None,
    label_from: options.LabelFrom = None,
    path_column: options.PathColumn = None,
    label_column: options.LabelColumn = None,
    patient_column: options.PatientColumn = None,
    any_modality: Annotated[
        bool, typer.Option("--any-modality", help="Read DICOM files that say they are no OCT, too.")
    ] = False,
    workers: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Write the B-scans of volumes as PNG beside a table scans.csv, without what names a patient.

    Heidelberg .vol, .e2e and HEYEX's XML, Topcon .fda and .fds, Zeiss .img, DICOM, TIFF of several pages, and folders
    of 25 to 200 numbered pictures (pip install 'octfast[oct]'). Patients, volumes and files get keyed digests as
    names; the key stays with you, and the same key gives the same names. Text burnt into the pixels stays in them.

    Examples:

      octfast data extract clinic --out bscans

      octfast data extract volumes.csv --out bscans --key clinic.key
    """
    from octfast.console import print_json, print_table, track
    from octfast.data.extract import TABLE, extract

    columns = {"path": path_column, "label": label_column, "patient": patient_column}
    with track("reading volumes", len(volumes), "files") as update:
        found = extract(
            volumes,
            out,
            key=key,
            keep_names=keep_names,
            patient_from=patient_from,
            label_from=label_from,
            columns=columns,
            any_modality=any_modality,
            workers=workers,
            progress=update,
        )
    if as_json:
        print_json(
            {
                **{"out": str(out), "volumes": found.volumes, "bscans": len(found.scans)},
                **{"patients": int(found.scans["patient"].nunique()), "removed": found.removed},
                **{"unreadable": [{"path": str(path), "error": why} for path, why in found.unreadable]},
                "key": None if found.key is None else str(found.key),
            }
        )
        return
    if found.removed:
        rows = list(found.removed.items())
        more = f"; {len(rows) - _SHOWN} more are listed in extracted.json" if len(rows) > _SHOWN else ""
        print_table(f"Left behind, in so many volumes{more}", ("field", "volumes"), rows[:_SHOWN])
    if found.unreadable:
        print_table("Not read", ("file", "why"), [[str(path), why] for path, why in found.unreadable])
    patients = found.scans["patient"].nunique()
    print(f"{len(found.scans):,} B-scans of {found.volumes:,} volumes and {patients:,} patients in {out / TABLE}")
    if found.key is not None:
        print(f"Key: {found.key}; who has it can tell which patient is which")
    print(f"Next: octfast data explore {out}")
