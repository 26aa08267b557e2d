"""`octfast predict`: answers of a trained model for pictures, folders and volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octfast.cli import options

if TYPE_CHECKING:
    from octfast.deploy.predict.prediction import Prediction
    from octfast.deploy.predict.rows import Row

_SHOWN = 100


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle or run folder of a trained model.")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Files, folders, quoted patterns, CSV tables with a column of paths, volumes, or - for names on "
            "standard input.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write: .csv, .jsonl or .parquet. The table of volumes goes into NAME-volumes beside it."
        ),
    ] = None,
    format: Annotated[str | None, typer.Option(help="csv, jsonl or parquet; by default the ending of --out.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Also name the classes up to the k-th most probable.")] = None,
    abstain_below: Annotated[
        float | None, typer.Option(help="Mark rows whose predicted class is less probable than this.")
    ] = None,
    answer_anyway: options.AnswerAnyway = False,
    heatmaps: Annotated[
        Path | None,
        typer.Option(help="Folder for the heat maps, one per scan; of a model of units, of the 3 that count most."),
    ] = None,
    montage: Annotated[Path | None, typer.Option(help="Picture of the 48 most urgent scans, or units.")] = None,
    dicom_sr: Annotated[
        Path | None,
        typer.Option(
            "--dicom-sr",
            metavar="DIR",
            help="Folder for a DICOM structured report about each DICOM input, or each unit of a model of units; it "
            "names the patient, as its source does. Needs pip install 'octfast[sr]'.",
        ),
    ] = None,
    volume_summary: Annotated[
        bool, typer.Option("--volume-summary", help="Print one row per volume instead of one per scan.")
    ] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive/--no-recursive", help="Look into the folders of a folder.")
    ] = True,
    path_column: options.PathColumn = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted prediction into --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    volume_memory: Annotated[
        float | None, typer.Option(min=0.25, help="Memory that reading a volume may take, in GB; by default 4.")
    ] = None,
    any_modality: Annotated[
        bool, typer.Option("--any-modality", help="Read DICOM files that are not of an OCT, too (CT, MR, CR).")
    ] = False,
    bs: Annotated[int, typer.Option(min=1, help="Pictures a batch.")] = 16,
    precision: options.Precision = "auto",
    device: options.Device = "auto",
    weights: options.StockWeights = None,
    as_json: options.Json = False,
) -> None:
    """Ask a trained model about pictures and volumes of B-scans.

    Reads JPEG, PNG, TIFF and other pictures, DICOM, Heidelberg .vol, .e2e and HEYEX's XML with its pictures, Topcon
    .fda and .fds and Zeiss .img (volumes need pip install 'octfast[oct]'). Each scan is a row, written as it comes,
    in the order of the inputs; a file that cannot be read is a row with its error. Probabilities have the model's
    temperature applied; urgent_score is the sum over the urgent classes, referred whether it reaches the operating
    point of octfast calibrate, or without one whether the predicted class is urgent. A scan that is unlike anything
    the model was trained on is marked unlike_training and gets no class, but with --answer-anyway; a disease that
    it has not seen is mostly not noticed (docs/unlike.md). One darker, more clipped, cut off or blurred than the
    training scans gets a remark and keeps its class. Nothing of a patient is taken from a volume but which eye it
    is.

    A model of scans that keeps how those of a volume, an eye or a patient are put together also answers for these, for
    the volumes of files and for what a table with the columns patient, eye and volume names: FILE-volumes, FILE-eyes
    and FILE-patients.

    A model that was trained for volumes, eyes or patients answers for these alone: --out FILE gets how each scan
    counted, and FILE-volumes, -eyes or -patients beside it has the answers. The pictures of a folder are one of them,
    or those of a table with the columns patient, eye and volume that agree in these.

    Without --out, a terminal shows a table and a pipe gets CSV; --format asks for rows in both. Nothing is overwritten
    but with --force. Exit code 0: all was read; 1: something was not, and the rest is written.

    Examples:

      octfast predict runs/latest scans/ --out answers.csv

      octfast predict runs/latest volume.dcm "export/*.vol" --abstain-below 0.7 --heatmaps maps

      octfast predict runs/latest series/ --dicom-sr reports

      find /data -name "*.e2e" | octfast predict model - --format jsonl
    """
    import sys

    from octfast.deploy.predict.predict import run_prediction
    from octfast.deploy.predict.rows import Wanted

    kept: list[dict[str, Any]] = []
    # What was asked for by its name is given, in a terminal too.
    printed = out is None and not as_json and (format is not None or not sys.stdout.isatty())
    streamed = printed and not volume_summary
    print_row = _printer(format or "csv") if streamed else None
    most = None if as_json else _SHOWN

    def on_row(row: Row, columns: list[str]) -> None:
        if print_row is not None:
            print_row(row.values, columns)
        elif out is None and not volume_summary and (most is None or len(kept) < most):
            kept.append(row.values)

    try:
        found = run_prediction(
            bundle,
            inputs,
            on_row,
            out=out,
            format=format,
            wanted=Wanted(top_k, abstain_below, heatmaps is not None, answer_anyway),
            heatmaps=heatmaps,
            montage=montage,
            recursive=recursive,
            path_column=path_column,
            resume=resume,
            force=force,
            bs=bs,
            precision=precision,
            device=device,
            weights=weights,
            volume_memory=volume_memory,
            any_modality=any_modality,
            dicom_sr=dicom_sr,
        )
        if found is None:  # one of several processes, of which the first speaks
            return
        _end(found, kept, as_json, volume_summary, printed, out is not None, format or "csv")
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_quietly()
    raise typer.Exit(int(found.failed > 0))


def _printer(format: str) -> Callable[[dict[str, Any], list[str]], None]:
    """Prints rows as they come, as CSV with a line of names, or JSON lines."""
    import sys

    from octfast.console import plain_text
    from octfast.deploy.predict.writers import csv_line, json_line

    begun = False
    # Programs get a file's name as it is; a terminal would obey what may stand in it.
    shown = plain_text if sys.stdout.isatty() else str

    def show(values: dict[str, Any], columns: list[str]) -> None:
        nonlocal begun
        if format == "jsonl":
            text = json_line({c: values[c] for c in columns})
        else:
            # In a pipe lines end as they do there; a line end within a cell stands in quotes all the same.
            text = ("" if begun else csv_line(columns)[:-2] + "\n") + csv_line([values[c] for c in columns])[:-2] + "\n"
        begun = True
        sys.stdout.write(shown(text))
        sys.stdout.flush()

    return show


def _end(
    found: Prediction,
    kept: list[dict[str, Any]],
    as_json: bool,
    volume_summary: bool,
    printed: bool,
    in_file: bool,
    format: str,
) -> None:
    import sys

    from octfast.console import print_json
    from octfast.notices import SYNTHETIC_NOTE, UNSEEN

    if as_json:
        counts = {"scans": found.scans, "failed": found.failed, "abstained": found.abstained}
        counts |= {"referred": found.referred, "unlike_training": found.unlike, "synthetic": found.synthetic}
        rows = {} if in_file or volume_summary else {"rows": kept}
        files = [str(f) for f in found.files]
        units = {f"{level}s": of_level for level, of_level in found.units.items()}
        tables = {**rows, "volumes": found.volumes, **units}
        print_json({**counts, **tables, "files": files, "note": "Not a medical device."})
        return
    if not printed:
        _tables(found, kept)
    elif volume_summary:
        show = _printer(format)
        for row in found.volumes:
            show(row, found.volume_columns)
    # Between rows for programs nothing else is to stand.
    told = print if not printed else lambda line: print(line, file=sys.stderr)
    if not found.whole:
        told(_sentence(found))
        if found.unlike is not None:
            told(UNSEEN)
    if found.synthetic:
        told(SYNTHETIC_NOTE)
    told("Not a medical device.")
    for file in found.files:
        told(str(file))


def _tables(found: Prediction, kept: list[dict[str, Any]]) -> None:
    from octfast.console import print_table

    if found.level != "scan":
        _units(found.level, found.volumes, found.volume_columns)
        return
    if kept:
        names = ["path", "predicted", "probability"]
        names += [n for n in ("abstained", "urgent_score", "referred", "unlike_training") if n in found.columns]
        rows = [
            [_place(row), *("" if row[n] is None else _word(row[n]) for n in names[1:]), row["error"] or row["remarks"]]
            for row in kept
        ]
        print_table("Scans", ["scan", *names[1:], "error or remarks"], rows)
        more = found.scans + found.failed - len(kept)
        if more:
            print(f"... and {more:,} more; --out FILE writes them all")
    together = {"volume": (found.volumes, found.volume_columns)} if "most" in found.volume_columns else {}
    together |= {level: (rows, found.unit_columns[level]) for level, rows in found.units.items()}
    for level, (units, columns) in together.items():
        if units:
            _units(level, units, columns)
    if found.volumes and "volume" not in together:
        urgent = [n for n in ("urgent_score", "urgent_frame", "referred") if n in found.volume_columns]
        names = ["path", "eye", "frames", "unread", *urgent]
        rows = [
            [*("" if row[n] is None else _word(row[n]) for n in names), _counts(row, found.classes), row["error"]]
            for row in found.volumes[:_SHOWN]
        ]
        title = "Volumes, the most urgent first" if urgent else "Volumes"
        print_table(title, [*names, "B-scans", "error"], rows)
        if len(found.volumes) > _SHOWN:
            print(f"... and {len(found.volumes) - _SHOWN:,} more")


def _units(level: str, units: list[dict[str, Any]], columns: list[str]) -> None:
    from octfast.console import print_table

    about = [n for n in ("name", "patient", "eye") if any(row[n] for row in units)]
    names = ["path", *about, "frames", "unread", "predicted", "probability"]
    names += [n for n in ("abstained", "urgent_score", "referred", "unlike_training") if n in columns]
    rows = [
        [*("" if row[n] is None else _word(row[n]) for n in names), _most(row), row["error"] or row["remarks"]]
        for row in units[:_SHOWN]
    ]
    print_table(f"{level.capitalize()}s", [*names, "counted most", "error or remarks"], rows)
    if len(units) > _SHOWN:
        print(f"... and {len(units) - _SHOWN:,} more; --out FILE writes them all")


def _most(unit: dict[str, Any]) -> str:
    """Which scan counted most, and how much."""
    if unit["most"] is None:
        return ""
    which = Path(unit["most"]).name if unit["most_frame"] is None else f"B-scan {unit['most_frame']}"
    return f"{which} ({unit['most_attention']:.0%})"


def _place(row: dict[str, Any]) -> str:
    if row["frame"] is None:
        return row["path"]
    volume = f"volume {row['volume']}, " if row["volume"] else ""
    return f"{row['path']} ({volume}B-scan {row['frame']}{', ' + row['eye'] if row['eye'] else ''})"


def _word(value: Any) -> Any:
    return ("yes" if value else "") if isinstance(value, bool) else value


def _counts(volume: dict[str, Any], classes: tuple[str, ...]) -> str:
    return ", ".join(f"{volume[f'scans_{c}']} {c}" for c in classes if volume[f"scans_{c}"])


def _sentence(found: Prediction) -> str:
    parts = [f"{found.scans:,} scan{'' if found.scans == 1 else 's'} read"]
    if found.volumes:
        noun = "volume" if found.level == "scan" else found.level
        parts.append(f"{len(found.volumes):,} {noun}{'' if len(found.volumes) == 1 else 's'}")
    parts += [f"{len(rows):,} {level}{'' if len(rows) == 1 else 's'}" for level, rows in found.units.items()]
    if found.referred is not None:
        parts.append(f"{found.referred:,} to refer")
    if found.abstained is not None:
        parts.append(f"{found.abstained:,} abstained")
    if found.unlike is not None:
        parts.append(f"{found.unlike:,} unlike the training scans")
    if found.failed:
        parts.append(f"{found.failed:,} could not be read (see error)")
    if found.remarked:
        parts.append(f"{found.remarked:,} with remarks (see remarks)")
    return ", ".join(parts) + "."


def _leave_quietly() -> None:
    """Who reads a pipe may have seen enough."""
    import os
    import sys

    # Python would complain on flushing what is left.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(141)
