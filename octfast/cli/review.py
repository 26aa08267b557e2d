"""`octfast review`: go through the scans that deserve a look, put labels right, and see what it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octfast.cli import options


def review(
    run: options.Run = None,
    out: Annotated[
        Path | None, typer.Option(help="Where decisions are kept; by default corrections.csv in the run folder.")
    ] = None,
    pool: Annotated[
        Path | None,
        typer.Option(help="Give labels to what octfast suggest wrote here; by default into labels.csv."),
    ] = None,
    reviewer: Annotated[str, typer.Option(metavar="AB", help="Initials, kept with each decision.")] = "",
    second: Annotated[
        bool, typer.Option("--second", help="Review what others have reviewed, without seeing what they decided.")
    ] = False,
    blind: Annotated[bool, typer.Option("--blind", help="Do not show what the model says.")] = False,
    n: Annotated[int, typer.Option("--n", min=1, help="The most scans to look at, the likeliest errors first.")] = 200,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only for this reason, such as label-error or missed-urgent; repeatable."),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Read every file, to find copies and odd pictures.")
    ] = True,
    list_: Annotated[bool, typer.Option("--list", help="Print the list and end.")] = False,
    agreement: Annotated[bool, typer.Option("--agreement", help="Print how far two reviewers agree, and end.")] = False,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of the page; by default 8731, or a free one if that is taken."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the page in your browser.")] = False,
    data: options.DataMoved = None,
    as_json: options.Json = False,
) -> None:
    """Look through the scans that deserve it on a page on this machine, and put labels right.

    On the list are suspected label errors, missed urgent scans, the largest losses, copies under other labels or
    patients and odd pictures of training and validation, each judged by a model that never saw its patient. Test scans
    are not on it. Your files are only read: each decision is kept at once as a line of corrections.csv, and
    `octfast train DATA --corrections FILE` applies them. A button on the page trains again on the stored features,
    within seconds. Of a model that answers for whole volumes, eyes or patients these are on the list, each with the
    scans that counted most, and a decision holds for all scans of one. With --pool what octfast suggest chose is
    shown, scans or whole ones, which have no label yet, and `octfast train DATA --also labels.csv` learns from them.

    Examples:

      octfast review --open

      octfast review runs/first --reviewer AB --kind label-error

      octfast review runs/first --reviewer CD --second --blind

      octfast review runs/first --list --no-pictures

      octfast review runs/first --pool suggestions.csv --open

      octfast review runs/first --agreement
    """
    from octfast.console import print_json
    from octfast.errors import UsageError
    from octfast.run.folder import open_run

    opened = open_run(run, data)
    kinds = tuple(kind) if kind else None
    if agreement:
        usual = opened.path / "corrections.csv" if pool is None else pool.parent / "labels.csv"
        _print_agreement(out or usual, as_json, opened, pool is not None)
        return
    if list_ and pool is not None:
        raise UsageError("--list is of the run's own scans", "the scans of a pool stand in its file")
    if list_:
        from octfast.assess.review.worklist import review_list

        found = review_list(opened, pictures=pictures, kinds=kinds)
        if as_json:
            print_json(found.head(n).to_dict("records"))
        else:
            _print_list(found, n, _level(opened))
        return
    from octfast.deploy.app.app import need_app

    need_app("octfast review")
    from octfast.deploy.review.app import serve_review
    from octfast.deploy.review.session import Review

    session = Review(
        *(opened, out),
        reviewer=reviewer,
        second=second,
        blind=blind,
        limit=n,
        pictures=pictures,
        kinds=kinds,
        pool=pool,
    )
    what, kept = ("label", "labels") if pool else ("look at", "decisions")
    print(f"{len(session.rows)} of {session.total} {session.level}s to {what}; {kept} go to {session.shown_file}")
    print("Not a medical device.")
    serve_review(
        session,
        port,
        open_browser=open_,
        ready=lambda address: print(f"page: {address}   (Ctrl-C ends it)", flush=True),
    )


def _level(run) -> str:
    from octfast.model.bundle.read import read_info

    return read_info(run.bundle).level


def _print_list(found, n: int, level: str) -> None:
    from octfast.console import print_table
    from octfast.model.units import unit_names

    columns = ["file" if level == "scan" else level, "label", "p(label)", "suggested", "why"]
    names = [Path(path).name for path in found["path"]] if level == "scan" else unit_names(found, level)
    rows = [
        [name, r.label, round(r.p_actual, 3), r.suggested, r.reasons]
        for name, r in zip(names[:n], found.head(n).itertuples(), strict=True)
    ]
    print_table(f"{min(n, len(found))} of {len(found)} {level}s that deserve a look", columns, rows)
    print("Not a medical device.")


def _print_agreement(file: Path, as_json: bool, run, labels: bool) -> None:
    from octfast.assess.review.agreement import agreement
    from octfast.assess.review.units import unit_of_labels, unit_of_scans
    from octfast.console import print_json, print_table
    from octfast.data.corrections import read_decisions

    level, decisions = _level(run), read_decisions(file)
    unit_of = None
    if level != "scan":
        unit_of = unit_of_labels(decisions, level) if labels else unit_of_scans(run, level)
    found = agreement(decisions, unit_of)
    if as_json:
        print_json(found.to_dict())
        return
    a, b = found.reviewers
    kappa = "undefined, as both gave every scan the same label" if found.kappa is None else f"{found.kappa:.2f}"
    print(f"{a} and {b} agree on {found.same} of {found.scans} {level}s; Cohen's kappa {kappa}")
    if len(found.differing):
        print_table("Where they differ", ["scan", "label", a, b], found.differing.itertuples(index=False))
