"""`octfast compare`: runs side by side on the same scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octfast.cli import options

if TYPE_CHECKING:
    from octfast.assess.compare import Comparison


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, or folders of octfast evaluate; the first is the reference."),
    ],
    split: Annotated[
        str | None, typer.Option(help="test, valid or train; by default test where all runs have one, else valid.")
    ] = None,
    level: options.Level = None,
    urgent: options.Urgent = None,
    sensitivity: Annotated[
        float | None,
        typer.Option(
            help="Wanted sensitivity of urgent referral on validation; by default each model's own, else 0.95."
        ),
    ] = None,
    costs: options.Costs = None,
    resamples: options.Resamples = 2000,
    seed: options.BootstrapSeed = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write; never overwritten.")] = None,
    as_json: options.Json = False,
) -> None:
    """Compare models on the scans that all of them were judged on.

    Differences are to the first run, with 95% intervals from a paired bootstrap: every model is judged on the same
    resamples of patients. McNemar's exact test counts the scans, and the patients, that one model alone gets right.

    Examples:

      octfast compare runs/first runs/second

      octfast compare runs/first runs/second runs/third --split valid --json

      octfast compare runs/latest --level eye      # whole eyes, against the mean of their scans
    """
    from octfast.assess.compare import compare_runs
    from octfast.cli.evaluate import split_names
    from octfast.console import print_json
    from octfast.errors import UsageError

    if out is not None and out.exists():
        raise UsageError(f"{out} exists", "give another --out; nothing is ever overwritten")
    found = compare_runs(
        runs,
        split,
        urgent=split_names(urgent),
        sensitivity=sensitivity,
        unit=level,
        costs=costs,
        resamples=resamples,
        seed=seed,
    )
    if out is not None:
        _write(found.to_dict(), out)
    if as_json:
        print_json(found.to_dict())
        return
    _show(found)
    if out is not None:
        print(out)


def _show(found: Comparison) -> None:
    from octfast.cli.evaluate import ends, number
    from octfast.console import plain_text, print_table

    names = list(dict.fromkeys(found.figures["run"]))
    level = f"{found.settings['level']:.0%}"
    print(f"{found.split}: {found.scans:,} {found.unit}s, {found.patients:,} patients")
    kept = found.figures[found.figures["section"].isin(["overall", "referral"])]
    cells = {(r.run, r.section, r.of, r.metric): f"{number(r.value)} ({ends(r)})" for r in kept.itertuples()}
    keys = list(dict.fromkeys(k[1:] for k in cells))
    rows = [[_called(k), *(cells.get((n, *k), "") for n in names)] for k in keys]
    print_table(f"Side by side, {level} intervals", ["figure", *names], rows)
    for name in names[1:]:
        part = found.differences
        part = part[(part["run"] == name) & part["section"].isin(["overall", "referral"])]
        differences: list[list[Any]] = []
        for r in part.itertuples():
            sure = r.low > 0 or r.high < 0
            value = "undefined" if r.difference != r.difference else f"{r.difference:+.3f}"
            differences.append([_called((r.section, r.of, r.metric)), value, ends(r), "*" if sure else ""])
        title = f"{name} minus {names[0]} (* where the interval leaves out 0)"
        print_table(title, ["figure", "difference", f"{level} interval", ""], differences)
    print_table(
        "McNemar's exact test",
        ["run", "against", "unit", "units", "it alone right", "the other alone right", "p", "p (Holm)"],
        [
            [r.run, r.reference, r.unit, r.n, r.only_run_right, r.only_reference_right, _p(r.p), _p(r.p_holm)]
            for r in found.mcnemar.itertuples()
        ],
    )
    for note in found.notes:
        print(plain_text(note))
    print("Not a medical device.")


def _called(key: tuple[str, ...]) -> str:
    section, of, metric = key
    point = {"argmax": "by predicted class", "operating": "at the operating point", "score": "of the score"}.get(of, of)
    return f"urgent {metric}, {point}" if section == "referral" else metric


def _write(content: dict[str, Any], out: Path) -> None:
    import json

    from octfast.errors import UsageError

    part = out.with_name(f".{out.name}.part")
    try:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(out)
    except OSError as e:
        raise UsageError(f"cannot write {out}: {e.strerror or e}", "give another --out") from None


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
