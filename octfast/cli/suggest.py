"""`octfast suggest`: which scans, volumes, eyes or patients without labels to label next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octfast.cli import options


def suggest(
    pool: Annotated[
        list[str],
        typer.Argument(metavar="POOL...", help="Folders, files, quoted patterns or CSV tables with a column of paths."),
    ],
    run: Annotated[Path | None, typer.Option(help="Run folder; by default the newest, runs/latest.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="How many scans, or units.")] = 50,
    by: Annotated[
        str,
        typer.Option(
            help="badge (far apart in what they would teach), centre (uncertain and unlike all that is labelled), "
            "doubt (the most uncertain) or random."
        ),
    ] = "badge",
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("suggestions.csv"),
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    path_column: options.PathColumn = None,
    patient_column: options.PatientColumn = None,
    patient_from: options.PatientFrom = None,
    recursive: Annotated[
        bool, typer.Option("--recursive/--no-recursive", help="Look into the folders of a folder.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn, by badge and random.")] = 0,
    cache: options.Cache = None,
    data: options.DataMoved = None,
    as_json: options.Json = False,
) -> None:
    """Say which scans of a pool without labels to label next, so that a run learns the most from them.

    Chosen are scans that the model is unsure of and that differ from each other, each from another patient. The run's
    body runs over the pool once, and what it gives is kept. Scans that the run has already, and those of patients that
    it is tested on, are left out. The table of suggestions goes to suggestions.csv; `octfast review --pool FILE` shows
    them one by one, a key gives a label, and `octfast train DATA --also labels.csv` learns from them.

    A run that answers for volumes, eyes or patients suggests these: of files of volumes, and of pictures that a table's
    columns patient, eye and volume or else their folder put together. Their scans go to suggestions-scans.csv.

    Examples:

      octfast suggest unlabelled/ --run runs/first --n 50

      octfast suggest pool.csv --patient-column patient_id --out next.csv
    """
    from octfast.console import print_json, print_table
    from octfast.deploy.suggest.suggest import save_suggestions, scans_file, short_name, suggest, unit_words
    from octfast.errors import UsageError
    from octfast.files import is_taken
    from octfast.model.bundle.read import read_info
    from octfast.run.folder import open_run

    opened = open_run(run, data)
    units = read_info(opened.bundle).level != "scan"
    for file in (out, *([scans_file(out)] if units else [])):
        if is_taken(file) and not force:
            raise UsageError(f"{file} exists", "give another --out, or --force to replace it")
        if any(Path(name).expanduser().resolve() == file.expanduser().resolve() for name in pool):
            raise UsageError(f"{file} is an input", "give another --out; inputs are never overwritten")
    found = suggest(
        opened,
        pool,
        n,
        by=by,
        path_column=path_column,
        patient_column=patient_column,
        patient_from=patient_from,
        recursive=recursive,
        seed=seed,
        cache=cache,
    )
    file = save_suggestions(found, out)
    if as_json:
        about = {"pool": found.scans, "patients": found.patients, "file": str(file)}
        suggestions = found.table.to_dict("records")
        if found.of_units is not None:
            about |= {"level": found.level, "units": found.units, "scans_file": str(scans_file(file))}
            of = dict(list(found.of_units.groupby("rank")))
            suggestions = [{**s, "of": of[s["rank"]][["path", "attention"]].to_dict("records")} for s in suggestions]
        print_json({**about, "suggestions": suggestions, "left_out": found.left_out.to_dict("records")})
        return
    names = [Path(p).name for p in found.table["path"]]
    if found.of_units is not None:
        names = unit_words(found.table, found.level, patient=False)  # who has a column
    rows = [
        [
            *(r.rank, *([] if found.level == "patient" else [name]), short_name(r.patient), r.predicted),
            *(round(v, 2) for v in (r.probability, r.uncertainty, r.novelty)),
            r.why.split(";")[0],
        ]
        for r, name in zip(found.table.itertuples(), names, strict=True)
    ]
    columns = [
        "",
        *dict.fromkeys([found.level, "patient"]),
        "predicted",
        "probability",
        "uncertainty",
        "novelty",
        "between",
    ]
    of_scans = "" if found.of_units is None else f" ({found.scans} scans)"
    print_table(f"{len(rows)} of {found.units} {found.level}s{of_scans} of {found.patients} patients", columns, rows)
    if len(found.left_out):
        print(f"{len(found.left_out)} files were left out, see above.")
    beside = "" if found.of_units is None else f", and their scans in {scans_file(file)}"
    print(f"They stand in {file}{beside}. To label them: octfast review {run or 'runs/latest'} --pool {file}")
    print("Not a medical device.")
