"""`octfast report`: one page with all that is known of a run, and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path | None, typer.Argument(help="Run folder; by default the newest, runs/latest.")] = None,
    split: Annotated[
        str | None, typer.Option(help="test, valid or train; by default test, or valid where there is none.")
    ] = None,
    by: Annotated[list[str] | None, typer.Option(help="Column whose groups are judged one by one; repeatable.")] = None,
    top_losses: Annotated[int, typer.Option(min=0, help="How many of the largest losses to show.")] = 9,
    heatmaps: Annotated[
        bool, typer.Option("--heatmaps/--no-heatmaps", help="Beside each scan what raised the predicted class's score.")
    ] = True,
    method: Annotated[
        str, typer.Option(help="Of the heat maps: gradcam, hirescam, or occlusion (slow, and for any network).")
    ] = "gradcam",
    urgent: Annotated[
        str | None, typer.Option(help="Classes to refer, as CNV,DME; 'none' for none. By default these two.")
    ] = None,
    prevalence: Annotated[
        str | None, typer.Option(help="Shares of classes to give PPV and NPV at, as CNV=.02,DME=.01.")
    ] = None,
    costs: Annotated[
        Path | None, typer.Option(help="CSV of what a mistake costs, actual by predicted; by default Kermany's.")
    ] = None,
    sensitivity: Annotated[
        float | None,
        typer.Option(help="Wanted of urgent referral on validation; by default the model's own, else 0.95."),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap over patients.")] = 2000,
    data: Annotated[
        Path | None,
        typer.Option("--data", "--moved", help="Where the scans are now, if the run was copied from elsewhere."),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths as JSON.")] = False,
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
