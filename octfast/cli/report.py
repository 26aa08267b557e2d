"""`octfast report`: one page with all that is known of a run, and a model card."""

from __future__ import annotations

from typing import Annotated

import typer

from octfast.cli import options


def report(
    run: options.Run = None,
    split: Annotated[
        str | None, typer.Option(help="test, valid or train; by default test, or valid where there is none.")
    ] = None,
    by: options.By = None,
    top_losses: Annotated[int, typer.Option(min=0, help="How many of the largest losses to show.")] = 9,
    heatmaps: options.HeatMaps = True,
    method: options.Method = "gradcam",
    similar: Annotated[
        bool, typer.Option("--similar", help="Also show the top losses beside similar scans of other patients.")
    ] = False,
    urgent: options.Urgent = None,
    prevalence: options.Prevalence = None,
    costs: options.Costs = None,
    sensitivity: options.Sensitivity = None,
    resamples: options.Resamples = 2000,
    data: options.DataMoved = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write report.html and MODEL_CARD.md into a run folder.

    One file for a screen, a phone or paper: data, training, results with intervals, referral, calibration, errors with
    heat maps, how to repeat it, and the CLAIM checklist. It needs no network and runs no script.

    Examples:

      octfast report

      octfast report runs/first --split test --by device --open
    """
    from octfast.assess.metrics.costs import parse_prevalence, read_costs
    from octfast.assess.report.report import CARD, write_report
    from octfast.cli.evaluate import split_names
    from octfast.console import print_json
    from octfast.model.bundle.read import read_info
    from octfast.run.folder import open_run

    opened = open_run(run, data)
    classes = read_info(opened.bundle).classes
    page = write_report(
        opened,
        split,
        by=by or [],
        k=top_losses,
        heatmaps=heatmaps,
        method=method,
        similar=similar,
        urgent=split_names(urgent),
        prevalence=None if prevalence is None else parse_prevalence(prevalence, classes),
        costs=None if costs is None else read_costs(costs, classes),
        sensitivity=sensitivity,
        resamples=resamples,
    )
    if as_json:
        print_json({"report": str(page), "model_card": str(page.with_name(CARD))})
    else:
        print(page)
        print(page.with_name(CARD))
    if open_page:
        typer.launch(page.as_uri())
