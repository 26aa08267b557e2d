"""`octfast predict` of a model of volumes, eyes or patients: a table of scans, and one of units beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from octfast.console import track
from octfast.data.volumes.reader import VolumeReader
from octfast.deploy.predict.inputs import Item
from octfast.deploy.predict.outputs import units_file
from octfast.deploy.predict.prediction import Prediction
from octfast.deploy.predict.rows import Row, Wanted
from octfast.deploy.predict.units import UnitTables, stream_units
from octfast.deploy.predict.writers import write_table
from octfast.deploy.predictor import Predictor
from octfast.errors import DataError, UsageError


def refuse_for_units(level: str, **given: Any) -> None:
    """
    Raises
    ------
    UsageError : what is for models of single scans was asked for.
    """
    idle = next((name for name, value in given.items() if value), None)
    if idle is not None:
        raise UsageError(f"--{idle}: the model answers for a whole {level}", f"leave --{idle} out")


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
    heatmaps: Path | None = None,
) -> None:
    """Ask about all units among the inputs, hand their rows on, write both tables, and say in `found` what came of it.

    Parameters
    ----------
    heatmaps : a folder for the heat maps of the scans that count most in each unit.

    Raises
    ------
    UsageError : the table of units is there already.
    DataError : there is nothing to predict.
    """
    level = predictor.info.level
    tables = UnitTables(predictor, wanted.top_k, wanted.abstain_below, wanted.answer_anyway, heatmaps)
    found.columns, found.volume_columns, found.level = tables.columns, tables.unit_columns, level
    beside = None if out is None else units_file(out, level)
    if beside is not None and beside.exists() and not force:
        raise UsageError(f"{beside} exists", "give another --out, or --force to replace it")
    listed = list(items)
    if not listed:
        raise DataError("nothing to predict: standard input named no file", "give a name a line")
    kept: list[dict[str, Any]] = []
    with ExitStack() as stack:
        update = stack.enter_context(track("predicting", len(listed), "files"))
        done: set[str] = set()
        for number, (scans, unit) in enumerate(stream_units(tables, listed, reader, bs)):
            found.add_unit(unit)
            for n, values in enumerate(scans, 1):
                row = Row(number, values, n == len(scans), True)
                found.add(row)
                if on_row is not None:
                    on_row(row, tables.columns)
            if out is not None:
                kept += scans
            done |= {row["path"] for row in scans}
            update(min(len(done), len(listed)), len(listed))
    if out is not None and beside is not None:
        write_table(kept, tables.columns, out, kind)
        write_table(found.volumes, tables.unit_columns, beside, kind)
        found.files += [out, beside]
    if heatmaps is not None:
        found.files.append(heatmaps)
