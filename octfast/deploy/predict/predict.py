"""`octfast predict`: answers for files, folders and volumes as a table, CSV, JSON lines or parquet."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from octfast.console import track
from octfast.data.volumes.reader import MAX_MEMORY, VolumeReader
from octfast.deploy.predict.aggregated import AggregatedTable
from octfast.deploy.predict.dealt import kinds, rows_of
from octfast.deploy.predict.dicom_sr import Reports, check_reports
from octfast.deploy.predict.inputs import Item, as_they_come, at_home, find_inputs, with_series
from octfast.deploy.predict.of_units import predict_for_units
from octfast.deploy.predict.outputs import check_file, check_out, check_pictures, units_file, volumes_file
from octfast.deploy.predict.prediction import Prediction
from octfast.deploy.predict.resume import digest_of, journal_of, leaving
from octfast.deploy.predict.rows import Row, Table, VolumeTable, Wanted
from octfast.deploy.predict.unit_sr import UnitReports
from octfast.deploy.predict.writers import Journal, write_table
from octfast.deploy.predictor import Predictor, as_table, load
from octfast.errors import DataError, UsageError
from octfast.model.aggregation import aggregation_of, fitted_levels
from octfast.processes import divided

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("octfast")


def predict(
    bundle: str | Path | Predictor,
    inputs: str | Path | Iterable[str | Path],
    *,
    out: str | Path | None = None,
    format: str | None = None,
    top_k: int | None = None,
    abstain_below: float | None = None,
    answer_anyway: bool = False,
    heatmaps: str | Path | None = None,
    montage: str | Path | None = None,
    recursive: bool = True,
    path_column: str | None = None,
    resume: bool = False,
    force: bool = False,
    bs: int = 16,
    precision: str = "auto",
    device: str | None = None,
    weights: str | Path | None = None,
    volume_memory: float | None = None,
    any_modality: bool = False,
    dicom_sr: str | Path | None = None,
) -> pd.DataFrame:
    """Ask a trained model about pictures and volumes; what `octfast predict` does, with the table given back.

        octfast.predict("runs/latest", ["scans/", "volume.dcm"])

    Parameters
    ----------
    bundle : the folder of a bundle, a run folder, or what `octfast.load` gave.
    inputs : files, folders, patterns, tables with a column of paths; see `octfast.deploy.predict.inputs.find_inputs`.
    out : a file to write the table to, row by row; volumes get a second one beside it, NAME-volumes. Where the model
        keeps how eyes and patients are answered for and a table names them, NAME-eyes and NAME-patients too.
    format : "csv", "jsonl" or "parquet"; None goes by the ending of `out`.
    top_k : also name the classes up to the k-th most probable.
    abstain_below : mark rows whose predicted class is less probable than this, in a column `abstained`; None goes by
        the model's prediction sets, where it has them.
    answer_anyway : give a class to scans that are unlike the training scans, too.
    heatmaps : a folder for each scan with its heat map over it; of a model of volumes, eyes or patients for the three
        that count most in each.
    montage : a picture file for the most urgent scans in a grid; of a model of units for these, each by the scan that
        counts most.
    recursive : look into the folders of folders.
    path_column : of tables, the column with the files; None takes the one that is named so.
    resume : go on with an interrupted prediction into `out`; False refuses where there is one.
    force : replace what is there.
    bs : pictures a batch.
    precision, device, weights : see `octfast.load`; a loaded model has its own.
    volume_memory : that reading a volume may take, in GB; None is 4.
    any_modality : read DICOM files of other modalities than OCT, too.
    dicom_sr : a folder for a DICOM structured report about each DICOM input; see `octfast.deploy.predict.dicom_sr`.

    Returns
    -------
    A row a scan, in the order of the inputs; columns as `Table` in `rows` has them. A file that cannot be
    read is a row with its `error`, and empty otherwise. Of a model that answers for volumes, eyes or patients a row
    a unit, as `UnitTables` in `units` has them; `out` holds the scans, and the units beside it.

    Raises
    ------
    BundleError : see `octfast.load`.
    UsageError : a parameter that cannot be, or something that would be overwritten.
    DataError : no input at all, or a table that cannot be read.
    """
    rows: list[dict[str, Any]] = []
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    found = run_prediction(
        bundle,
        given,
        lambda row, columns: rows.append(row.values),
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
    if found is None:  # one of several processes, of which the first answers
        return None
    if found.level != "scan":
        units = as_table({name: [unit[name] for unit in found.volumes] for name in found.volume_columns})
        return units.astype({"volume": "Int64", "most_frame": "Int64"})
    table = as_table({name: [row[name] for row in rows] for name in found.columns})
    return table.astype({"volume": "Int64", "frame": "Int64"})


@divided(kinds)
def run_prediction(
    bundle: str | Path | Predictor,
    inputs: Sequence[str | Path],
    on_row: Callable[[Row, list[str]], None] | None = None,
    *,
    out: str | Path | None = None,
    format: str | None = None,
    wanted: Wanted | None = None,
    heatmaps: str | Path | None = None,
    montage: str | Path | None = None,
    recursive: bool = True,
    path_column: str | None = None,
    resume: bool = False,
    force: bool = False,
    bs: int = 16,
    precision: str = "auto",
    device: str | None = None,
    weights: str | Path | None = None,
    volume_memory: float | None = None,
    any_modality: bool = False,
    dicom_sr: str | Path | None = None,
    stdin: BinaryIO | None = None,
) -> Prediction:
    """Do what `predict` does, without keeping the rows: each is handed to `on_row` with the columns as it comes.

    On resuming, the rows that were there are handed on first.
    """
    wanted = wanted or Wanted(heat_maps=heatmaps is not None)
    to = at_home(out) if out is not None else None
    kind = check_out(to, format, inputs, resume, force)
    pictures = {"--heatmaps": heatmaps, "--montage": montage}
    check_pictures({k: at_home(v) for k, v in pictures.items() if v is not None}, inputs, resume or force)
    if dicom_sr is not None:
        check_reports(at_home(dicom_sr), resume)
    names = [os.fspath(i) for i in inputs]
    items = find_inputs(names, recursive=recursive, stdin=stdin, path_column=path_column)
    total, of = None, []
    if "-" not in names:
        listed = list(items)
        total = len(listed)
        if not listed:
            raise DataError(f"nothing to predict in {', '.join(names) or 'no input'}", "give scans, or folders of them")
    predictor = bundle if isinstance(bundle, Predictor) else load(bundle, precision, device, weights)
    memory = int((volume_memory or MAX_MEMORY / (1 << 30)) * (1 << 30))
    series: dict[str, tuple[str, ...]] = {}
    if total is not None:
        with VolumeReader(memory=memory, any_modality=any_modality) as reader:
            listed = with_series(listed, reader)
        total, items, of = len(listed), iter(listed), [item.of for item in listed]
        series = {item.path: item.files for item in listed if item.files}
    else:
        items = _as_they_come(items, series, memory, any_modality)
    if predictor.info.level != "scan":
        if heatmaps is not None:
            from octfast.deploy.predict.pictures import check_heat_maps

            check_heat_maps(predictor)
        found = Prediction([], predictor.classes, predictor.info.synthetic)
        with ExitStack() as stack:
            reader = stack.enter_context(VolumeReader(memory=memory, any_modality=any_modality))
            of_units: dict[str, Any] = {"wanted": wanted, "out": to, "kind": kind, "force": force, "bs": bs}
            of_units["heatmaps"] = None if heatmaps is None else at_home(heatmaps)
            of_units["montage"] = None if montage is None else at_home(montage)
            of_units |= {"resume": resume, "series": series, "about": partial(journal_of, to, bundle, names)}
            if dicom_sr is not None:
                headers = stack.enter_context(VolumeReader(memory=memory, any_modality=any_modality))
                rule = predictor.rule(abstain_below=wanted.abstain_below, answer_anyway=wanted.answer_anyway)
                digest = digest_of(bundle, predictor)
                of_units["reports"] = UnitReports(at_home(dicom_sr), predictor, rule, digest, headers, series)
            predict_for_units(predictor, found, items, on_row, reader=reader, **of_units)
        return found
    aggregated = _aggregated(predictor, wanted, of)
    if to is not None:
        for level in aggregated:
            check_file(units_file(to, level), inputs, resume or force)
    if heatmaps is not None:
        from octfast.deploy.predict.pictures import check_heat_maps

        check_heat_maps(predictor)
    table = Table(predictor, wanted)
    found = Prediction(table.columns, predictor.classes, predictor.info.synthetic)
    if resume and to is not None and to.exists() and not Journal(to, {}).part.exists():
        log.info("%s is finished already: nothing is left to predict", to)
        found.files.append(to)
        found.whole = True
        return found
    with ExitStack() as stack:
        reader = stack.enter_context(VolumeReader(memory=memory, any_modality=any_modality))
        settings = [table.columns, wanted.abstain_below, recursive, predictor.precision]
        journal = journal_of(to, bundle, names, predictor, settings + ([True] if wanted.answer_anyway else []))
        if journal is not None:
            journal.open(resume, force)
            stack.push(leaving(journal))
        sinks = _Sinks(table, found, on_row, heatmaps, montage, aggregated, series)
        if dicom_sr is not None:
            # Headers are read by another process than pixels, which come from a thread that is ahead.
            headers = stack.enter_context(VolumeReader(memory=memory, any_modality=any_modality))
            whole = partial(_whole_volume, predictor, wanted, table)
            digest = digest_of(bundle, predictor)
            sinks.reports = Reports(at_home(dicom_sr), predictor, table.rule, digest, headers, series, whole)
        number = 0
        if journal is not None and journal.done:
            log.info("resuming after %d files and %d rows", journal.done, journal.rows)
            for row in journal.read():
                number += 1
                sinks.take(row)
            items = _after(items, journal)
        stream = enumerate(items, start=journal.done if journal is not None else 0)
        update = stack.enter_context(track("predicting", total, "files")) if total else None
        rows = rows_of(table, stream, reader, bs)
        stack.callback(rows.close)
        for row in rows:
            number += 1
            sinks.draw(row, number)
            if journal is not None:
                journal.write(row)
            sinks.take(row)
            if update is not None and row.last:
                update(row.item + 1, total or 0)
        if not number:
            raise DataError("nothing to predict: standard input named no file", "give one file name per line")
        if journal is not None:
            journal.write_out(table.columns, kind)
        sinks.end(to, kind, reader)
        if journal is not None:
            journal.finish()
    return found


def _as_they_come(
    items: Iterable[Item], series: dict[str, tuple[str, ...]], memory: int, any_modality: bool
) -> Iterator[Item]:
    """What standard input names, with one for each DICOM series, of which the files are kept in `series`."""
    with VolumeReader(memory=memory, any_modality=any_modality) as reader:
        for item in as_they_come(items, reader):
            if item.files:
                series[item.path] = item.files
            yield item


def _whole_volume(predictor: Predictor, wanted: Wanted, table: Table) -> VolumeTable | AggregatedTable:
    """An empty table of volumes, by the rule that this model has for these."""
    return _aggregated(predictor, wanted, ()).get("volume") or VolumeTable(table.rule)


def _aggregated(predictor: Predictor, wanted: Wanted, of: Sequence[Mapping[str, str]]) -> dict[str, AggregatedTable]:
    """A table a level for which the model keeps how its scans are put together."""
    kept, classes = predictor.info.calibration, predictor.classes
    hows = [aggregation_of(kept, level, classes) for level in fitted_levels(kept)]
    return {how.level: AggregatedTable(how, classes, wanted, of) for how in hows}


class _Sinks:
    """Where rows go beside the journal: the caller, the counts, the volumes and units, heat maps and the montage."""

    def __init__(
        self,
        table: Table,
        found: Prediction,
        on_row: Callable[[Row, list[str]], None] | None,
        heatmaps: str | Path | None,
        montage: str | Path | None,
        aggregated: dict[str, AggregatedTable],
        series: dict[str, tuple[str, ...]],
    ):
        self.series = series
        self.reports: Reports | None = None
        self.table = table
        self.found = found
        self.on_row = on_row
        self.aggregated = {level: of for level, of in aggregated.items() if level != "volume"}
        self.volumes: VolumeTable | AggregatedTable = aggregated.get("volume") or VolumeTable(table.rule)
        self.heatmaps = at_home(heatmaps) if heatmaps is not None else None
        self.montage = at_home(montage) if montage is not None else None
        if self.montage is not None:
            from octfast.deploy.predict.pictures import Montage

            self.shown = Montage()

    def draw(self, row: Row, number: int) -> None:
        """Write the heat map of a row, and its name into the row."""
        if self.heatmaps is None or row.values["error"] or row.values["predicted"] is None:
            return
        from octfast.deploy.predict.pictures import heat_map_name, write_heat_map

        name = heat_map_name(number, row.values)
        try:
            write_heat_map(self.table.predictor, row.picture, row.values, self.heatmaps / name)
            row.values["heat_map"] = name
        except (DataError, OSError) as e:
            log.warning("no heat map of %s: %s", row.values["path"], str(e).splitlines()[0])

    def take(self, row: Row) -> None:
        """Hand a row on."""
        self.found.add(row)
        self.volumes.add(row)
        for of_level in self.aggregated.values():
            of_level.add(row)
        if self.montage is not None:
            self.shown.add(row.values)
        if self.reports is not None:
            self.reports.add(row)
        if self.on_row is not None:
            self.on_row(row, self.table.columns)

    def end(self, out: Path | None, kind: str, reader: VolumeReader) -> None:
        """Write what is known only when all rows are there."""
        found = self.found
        found.volumes, found.volume_columns = self.volumes.rows(), self.volumes.columns
        if out is not None:
            found.files.append(out)
            if found.volumes:
                beside = volumes_file(out)
                write_table(found.volumes, found.volume_columns, beside, kind)
                found.files.append(beside)
        for level, of_level in self.aggregated.items():
            if rows := of_level.rows():
                found.units[level], found.unit_columns[level] = rows, of_level.columns
                if out is not None:
                    beside = units_file(out, level)
                    write_table(rows, of_level.columns, beside, kind)
                    found.files.append(beside)
        if self.heatmaps is not None:
            found.files.append(self.heatmaps)
        if self.reports is not None:
            self.reports.end()
            found.files.append(self.reports.folder)
        if self.montage is not None:
            from octfast.deploy.predict.pictures import write_montage

            write_montage(self.shown, self.table.predictor, self.montage, reader, self.series, "scan")
            found.files.append(self.montage)


def _after(items: Iterator[Item], journal: Journal) -> Iterator[Item]:
    """The inputs after those that are done, which must be the same as then."""
    for n, path in enumerate(journal.paths):
        item = next(items, None)
        if item is None or item.path != path:
            raise UsageError(
                f"the inputs are not those of the interrupted prediction: number {n + 1} was {path}, and is "
                f"{item.path if item is not None else 'not there'}",
                "give them as they were, or --force to start again",
            )
    return items
