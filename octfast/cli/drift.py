"""`octfast drift`: how scans that were predicted compare with those that the model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octfast.cli import options


def drift(
    predictions: Annotated[Path, typer.Argument(help="Table that octfast predict --out wrote.")],
    run: Annotated[Path | None, typer.Option(help="Run folder of the model; by default the newest run.")] = None,
    by: Annotated[
        str | None, typer.Option(metavar="PERIOD", help="Also over time: day, week, month, quarter or year.")
    ] = None,
    date_column: Annotated[
        str | None, typer.Option(help="Column with the dates, as 2026-02-01; of the predictions or of --scans.")
    ] = None,
    file_dates: Annotated[
        bool, typer.Option("--file-dates", help="Take as its date when each file was last changed.")
    ] = False,
    patient_column: Annotated[
        str | None, typer.Option(help="Column with the patients; of the predictions or of --scans.")
    ] = None,
    patient_from: Annotated[
        str | None,
        typer.Option(help="Where in the path the patient stands: folder, folder:2 (the one above), name, a pattern."),
    ] = None,
    scans: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="Table of the scans with patients and dates, by path.")
    ] = None,
    path_column: Annotated[str | None, typer.Option(help="Column of --scans with the files; by default path.")] = None,
    pictures: Annotated[
        int, typer.Option(min=0, help="Files to read on each side for brightness and contrast; 0 for none.")
    ] = 500,
    resamples: options.Resamples = 2000,
    seed: options.BootstrapSeed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for the results; by default beside PREDICTIONS.")
    ] = None,
    data: options.DataMoved = None,
    as_json: options.Json = False,
) -> None:
    """Compare scans that were predicted with those that the model was trained on: what moved?

    Compared are the share of scans unlike the training scans, predicted classes, urgent referrals, probabilities,
    distances, brightness and contrast, each with a 95% interval of the difference by patient and a test in which only
    patients count, corrected for how many figures are looked at. Training scans stand as they were judged out of fold.
    Writes drift.csv, drift.json and drift.png. No labels are needed, and none are judged: whether answers are right
    octfast evaluate says. Nothing is guessed: patients and dates are taken from where you say.

    Examples:

      octfast drift november.csv

      octfast drift year.csv --run runs/first --scans scans.csv --patient-column pid --date-column taken --by month
    """
    from octfast.assess.drift.drift import default_folder, find_drift, save_drift
    from octfast.assess.drift.result import LIMITS
    from octfast.console import plain_text, print_json, print_table
    from octfast.errors import UsageError
    from octfast.files import is_taken
    from octfast.notices import SYNTHETIC_NOTE
    from octfast.run.folder import open_run

    folder = out or default_folder(predictions)
    if is_taken(folder):
        raise UsageError(f"{folder} exists and is not empty", "give another --out; nothing is ever overwritten")
    found = find_drift(
        predictions,
        open_run(run, data),
        by=by,
        date_column=date_column,
        file_dates=file_dates,
        patient_column=patient_column,
        patient_from=patient_from,
        scans=scans,
        path_column=path_column,
        pictures=pictures,
        resamples=resamples,
        seed=seed,
    )
    files = save_drift(found, folder)
    if as_json:
        print_json({**found.to_dict(), "files": [str(f) for f in files]})
        return
    rows = [
        [
            f"{r.figure} {r.of}".strip(),
            _number(r.training, r.figure),
            _number(r.new, r.figure),
            "" if r.low != r.low else f"{_number(r.low, r.figure)} to {_number(r.high, r.figure)}",
            "" if r.p_adjusted != r.p_adjusted else f"{r.p_adjusted:.2g}",
            {True: "yes", False: "no"}.get(r.moved, ""),
        ]
        for r in found.table.itertuples()
    ]
    heads = ["figure", "training", "new", "difference, 95% interval", "adjusted p", "moved"]
    print_table(f"{found.about['scans']:,} scans against training", heads, rows)
    if len(found.periods):
        shown = [c for c in ("period", "scans", "patients", "unlike", "low", "high", "distance") if c in found.periods]
        lines = [
            [v if isinstance(v, str) else f"{v:.3g}" for v in r] for r in found.periods[shown].itertuples(index=False)
        ]
        print_table("Over time", shown, lines)
    for words in [*found.words, LIMITS]:
        print(plain_text(words))
    if found.about["synthetic"]:
        print(SYNTHETIC_NOTE)
    print("Not a medical device.")
    for file in files:
        print(file)


def _number(value: float, figure: str) -> str:
    if value != value:
        return ""
    return f"{value:.1%}" if figure in ("unlike", "referred", "class share") else f"{value:.3f}"
