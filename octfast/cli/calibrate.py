"""`octfast calibrate`: fit temperature, operating point and prediction sets of a run on its validation scans."""

from __future__ import annotations

from typing import Annotated

import typer

from octfast.cli import options


def calibrate(
    run: options.Run = None,
    coverage: Annotated[float, typer.Option(help="How often a prediction set should hold the truth.")] = 0.9,
    sensitivity: Annotated[float, typer.Option(help="Wanted sensitivity of urgent referral.")] = 0.95,
    urgent: options.Urgent = None,
    format: options.FigureFormat = "png",
    dpi: options.Dpi = 120,
    data: options.DataMoved = None,
    as_json: options.Json = False,
) -> None:
    """Calibrate a trained model on scans that it has not learned from.

    Fits the temperature that divides the logits, the threshold of urgent referral for the wanted sensitivity, and
    prediction sets with the wanted coverage, and writes them into the model's octfast.json. A cross-validated run is
    fitted on the out-of-fold predictions of all its training and validation patients, another one on validation. On
    test scans the results are measured, never fitted. Refused on fewer than 200 scans or 30 patients, or 10 scans of a
    class. Writes figures/reliability.png. Calibrating again gives the same.

    Examples:

      octfast calibrate

      octfast calibrate runs/first --sensitivity 0.98 --coverage 0.95
    """
    from octfast.assess.calibration.calibrate import calibrate_run
    from octfast.cli.evaluate import split_names
    from octfast.console import print_json, print_table
    from octfast.figure import Files
    from octfast.notices import SYNTHETIC_NOTE
    from octfast.run.folder import open_run

    names = split_names(urgent)
    write = Files(format, dpi)
    found = calibrate_run(open_run(run, data), coverage=coverage, sensitivity=sensitivity, urgent=names, files=write)
    if as_json:
        print_json(found.to_dict())
        return
    info, fitted = found.info, found.info.calibration
    print(f"fitted on {fitted['scans']} {found.basis} of {fitted['patients']} patients")
    if "temperature_interval" in fitted:
        low, high = fitted["temperature_interval"]
        said = "less" if info.temperature > 1 else "more"
        print(
            f"temperature {info.temperature:.3g} (95% interval {low:.3g} to {high:.3g}): {said} confident than before"
        )
    print_table(
        "Calibration (a temperature of 1 is uncalibrated; ECE in 15 bins, and what to expect if perfectly calibrated)",
        ["split", f"{info.level}s", "temperature", "NLL", "Brier", "ECE", "expected ECE"],
        found.scores.itertuples(index=False),
    )
    if len(found.referral):
        point = fitted["operating"]
        print_table(
            f"Urgent referral: p({') + p('.join(point['urgent'])}) of {point['threshold']:.4g} or more",
            list(found.referral.columns),
            found.referral.itertuples(index=False),
        )
    sets = fitted["conformal"]
    rows = []
    for row in found.sets.to_dict("records"):
        shown = [_with_ends(row[n], row["intervals"][n]) for n in ("coverage", "coverage_by_patient", "mean_size")]
        rows.append([row["split"], row["scans"], *shown, row["single"]])
    print_table(
        f"Prediction sets for a coverage of {sets['coverage']:g}: classes with p of {sets['threshold']:.4g} or more",
        ["split", f"{info.level}s", "coverage (95% interval)", "by patient", "mean size", "of one class"],
        rows,
    )
    for note in found.notes:
        print(note)
    if info.synthetic:
        print(SYNTHETIC_NOTE)
    print("Not a medical device.")
    for file in found.files:
        print(file)


def _with_ends(value: float, ends: list[float | None]) -> str:
    low, high = ends
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"
