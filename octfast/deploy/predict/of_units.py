"""`octfast predict` of a model of volumes, eyes or patients: a table of scans, and one of units beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from octfast.console import track
from octfast.data.volumes.reader import VolumeReader
from octfast.deploy.predict.inputs import Item
from octfast.deploy.predict.outputs import units_file
from octfast.deploy.predict.prediction import Prediction
from octfast.deploy.predict.resume import leaving
from octfast.deploy.predict.rows import Row, Wanted
from octfast.deploy.predict.unit_sr import UnitReports
from octfast.deploy.predict.units import UnitTables, groups_of, stream_units
from octfast.deploy.predict.writers import Journal, write_table
from octfast.deploy.predictor import Predictor
from octfast.errors import DataError, UsageError

log = logging.getLogger("octfast")


def predict_for_units(
    predictor: Predictor,
    found: Prediction,
    items: Iterable[Item],
    on_row: Callable[[Row, list[str]], None] | None,
    *,
    wanted: Wanted,
    out: Path | None,
    kind: str,
    force: bool,
    bs: int,
    reader: VolumeReader,
    about: Callable[[Predictor, list[Any]], Journal | None],
    resume: bool = False,
    heatmaps: Path | None = None,
    montage: Path | None = None,
    series: Mapping[str, Sequence[str]] | None = None,
    reports: UnitReports | None = None,
) -> None:
    """Ask about all units among the inputs, hand their rows on, write both tables, and say in `found` what came of it.

    Parameters
    ----------
    about : makes the journal of this prediction, of the model and the settings.
    heatmaps : a folder for the heat maps of the scans that count most in each unit.
    montage : a picture file for the most urgent units, each by the scan that counted most.
    series : see `octfast.deploy.predict.pictures.read_again`.
    reports : writes a structured report for each unit.

    Raises
    ------
    UsageError : the table of units is there already, or what is resumed is of other inputs.
    DataError : there is nothing to predict.
    """
    level = predictor.info.level
    tables = UnitTables(predictor, wanted.top_k, wanted.abstain_below, wanted.answer_anyway, heatmaps)
    found.columns, found.volume_columns, found.level = tables.columns, tables.unit_columns, level
    beside = None if out is None else units_file(out, level)
    if beside is not None and beside.exists() and not (force or resume):
        raise UsageError(f"{beside} exists", "give another --out, or --force to replace it")
    listed = list(items)
    if not listed:
        raise DataError("nothing to predict: standard input named no file", "give a name a line")
    settings = [tables.columns, tables.unit_columns, wanted.abstain_below, predictor.precision, wanted.answer_anyway]
    journal = about(predictor, settings)
    if resume and journal is not None and journal.out.exists() and not journal.part.exists():
        log.info("%s is finished already: nothing is left to predict", journal.out)
        found.files.append(journal.out)
        found.whole = True
        return
    groups = groups_of(listed, level)
    shown = None
    if montage is not None:
        from octfast.deploy.predict.pictures import Montage

        shown = Montage()
    unit_rows: list[dict[str, Any]] = []

    def take(row: Row) -> None:
        """Hand on the row of a scan, and that of its unit after the last."""
        found.add(row)
        unit_rows.append(row.values)
        if on_row is not None:
            on_row(row, tables.columns)
        if row.unit is not None:
            found.add_unit(row.unit)
            if shown is not None:
                shown.add(_drawn(row.unit, unit_rows))
            if reports is not None:
                reports.add_unit(row.unit, unit_rows)
            unit_rows.clear()

    with ExitStack() as stack:
        done: set[str] = set()
        if journal is not None:
            journal.open(resume, force)
            stack.push(leaving(journal))
            if journal.done:
                files = sum(map(len, _whole(journal, groups)))
                log.info("resuming after %d files and %d scans", files, journal.rows)
                for row in journal.read():
                    done.add(row.values["path"])
                    take(row)
        begun = 0 if journal is None else journal.done
        update = stack.enter_context(track("predicting", len(listed), "files"))
        stream = stream_units(tables, groups, reader, bs, begun, len(found.volumes))
        stack.callback(stream.close)
        for group, ends, scans, unit in stream:
            for n, values in enumerate(scans, 1):
                last = n == len(scans)
                row = Row(group, values, ends and last, True, unit=unit if last else None)
                if journal is not None:
                    journal.write(row)
                take(row)
            done |= {row["path"] for row in scans}
            update(min(len(done), len(listed)), len(listed))
        if journal is not None and beside is not None:
            journal.write_out(tables.columns, kind)
            write_table(found.volumes, tables.unit_columns, beside, kind)
            found.files += [journal.out, beside]
        if heatmaps is not None:
            found.files.append(heatmaps)
        if reports is not None:
            reports.end()
            found.files.append(reports.folder)
        if shown is not None and montage is not None:
            from octfast.deploy.predict.pictures import write_montage

            write_montage(shown, predictor, montage, reader, series, level)
            found.files.append(montage)
        if journal is not None:
            journal.finish()


def _whole(journal: Journal, groups: list[list[Item]]) -> list[list[Item]]:
    """The groups of inputs that are done, which must be the same as then.

    Raises
    ------
    UsageError : they are others.
    """
    for n, path in enumerate(journal.paths):
        there = groups[n][-1].path if n < len(groups) else "not there"
        if there != path:
            raise UsageError(
                f"the inputs are not those of the interrupted prediction: {path} was there, and now is {there}",
                "give them as they were, or --force to start again",
            )
    return groups[: journal.done]


def _drawn(unit: dict[str, Any], scans: list[dict[str, Any]]) -> dict[str, Any]:
    """A unit as a montage shows it: by the scan that counted most."""
    if unit["predicted"] is None:
        return {**unit, "error": unit["error"] or "no class"}
    most = max(scans, key=lambda row: row["attention"] or 0.0)
    known = [str(unit[name]) for name in ("patient", "eye", "name") if unit[name]]
    frame = "" if most["frame"] is None else f", B-scan {most['frame']}"
    place = f"{Path(most['path']).name[-56:]}{frame}, counts {most['attention']:.0%}"
    caption = f"{' '.join(known)}: {place}" if known else place
    return {
        **unit,
        "path": most["path"],
        "volume": most["volume"],
        "frame": most["frame"],
        "error": "",
        "caption": caption,
    }
