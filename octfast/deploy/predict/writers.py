"""Writes the table of answers: a journal while it grows, from which it goes on, then CSV, JSON lines or parquet."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from octfast.deploy.predict.rows import Row
from octfast.errors import DataError, UsageError
from octfast.files import disk_errors_of, whole_file

FORMATS = ("csv", "jsonl", "parquet")
_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
_TEXT = {"path", "eye", "patient", "predicted", "heat_map", "quality", "most", "name", "remarks", "error"}
_WHOLE = {"volume", "frame", "frames", "unread", "urgent_frame", "unit", "most_frame", "unlike_scans"}
_YES_NO = {"abstained", "referred", "unlike_training"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_CHUNK = 10_000


def format_of(out: str | Path | None, given: str | None) -> str:
    """The format asked for, or by the ending of the file; CSV where neither says.

    Raises
    ------
    UsageError : an unknown format or ending.
    """
    if given is not None:
        if given not in FORMATS:
            raise UsageError(f"no format named {given!r}", f"one of {', '.join(FORMATS)}")
        return given
    suffix = Path(out).suffix.lower() if out is not None else ".csv"
    if suffix not in _SUFFIXES:
        raise UsageError(f"{out} ends in {suffix or 'nothing'}", "end it in .csv, .jsonl or .parquet, or give --format")
    return _SUFFIXES[suffix]


def csv_line(values: Sequence[Any]) -> str:
    """A line of CSV, ended by CR LF as RFC 4180 has it.

    Spreadsheets take a cell that begins with = + - @ for a formula, and a file name may be one made to do harm: see
    `safe_cell`.
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow([safe_cell(v) for v in values])
    return line.getvalue()


def safe_cell(value: Any) -> Any:
    """A value as it stands in a cell: text that a spreadsheet would take for a formula begins with an apostrophe."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "'" + value if isinstance(value, str) and value.startswith(_FORMULA) else value


def json_line(values: Mapping[str, Any]) -> str:
    """A line of JSON, with null for what there is none of."""
    rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
    return json.dumps(rounded, ensure_ascii=False) + "\n"


def write_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], file: Path, format: str) -> None:
    """Write rows into a file, which has its name only when it is whole. Numbers have six digits in CSV and JSON lines.

    Raises
    ------
    UsageError : parquet without pyarrow.
    """
    with whole_file(file, durable=True) as part:
        if format == "parquet":
            _write_parquet(rows, columns, part)
            return
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as f:
            if format == "csv":
                f.write(csv_line(columns))
            for row in rows:
                f.write(csv_line([row[c] for c in columns]) if format == "csv" else json_line(row))


def check_parquet() -> None:
    """Raise UsageError where parquet cannot be written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as e:
        raise UsageError("writing parquet needs the package pyarrow", "pip install 'octfast[parquet]'") from e


def _write_parquet(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], part: Path) -> None:
    check_parquet()
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, _arrow_type(name, pa)) for name in columns])
    with pq.ParquetWriter(part, schema) as writer:
        for chunk in _chunks(rows):
            held = {name: [_encodable(row[name]) for row in chunk] for name in columns}
            writer.write_table(pa.table(held, schema=schema))


def _arrow_type(name: str, pa: Any) -> Any:
    if name in _TEXT or name.startswith("predicted_"):
        return pa.string()
    if name in _WHOLE or name.startswith("scans_"):
        return pa.int32()
    return pa.bool_() if name in _YES_NO else pa.float64()


def _chunks(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    held: list[Mapping[str, Any]] = []
    for row in rows:
        held.append(row)
        if len(held) == _CHUNK:
            yield held
            held = []
    if held:
        yield held


def _encodable(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


@dataclass
class Journal:
    """The rows so far, in a hidden file beside the one to come: `.NAME.part`, a line of JSON a row, flushed at once.

    Its first line says which model, inputs and settings it belongs to. A last line that was torn, and the rows of an
    input that was not finished, are dropped when it is opened again.

    Attributes
    ----------
    done : how many inputs are finished.
    rows : how many rows they have.
    paths : of the finished inputs, in their order.
    """

    out: Path
    belongs: dict[str, Any]
    done: int = 0
    rows: int = 0
    paths: list[str] = field(default_factory=list)
    _file: BinaryIO | None = None
    _lock: Any = None

    @property
    def part(self) -> Path:
        return self.out.with_name(f".{self.out.name}.part")

    def open(self, resume: bool, force: bool) -> None:
        """Start, or go on where an interrupted run stopped.

        Raises
        ------
        UsageError : there is one already and neither was asked for; it belongs to something else; another process is
            writing it; or the folder cannot be written to.
        """
        from filelock import FileLock, Timeout

        if not self.out.absolute().parent.is_dir():
            raise UsageError(f"no such folder: {self.out.parent}", "make it first")
        lock = FileLock(self.out.with_name(f".{self.out.name}.lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(f"another process is writing {self.out}", "wait for it, or give another --out") from None
        except OSError as e:
            raise UsageError(f"cannot write {self.out}: {e.strerror or e}", "give another --out") from None
        self._lock = lock
        try:
            if self.part.exists() and not force:
                if not resume:
                    raise UsageError(
                        f"there is an interrupted prediction in {self.part}",
                        "--resume continues it, --force starts again",
                    )
                self._reopen()
            else:
                self._file = self.part.open("wb")
                self._line(self.belongs)
        except OSError as e:
            self.close()
            raise UsageError(f"cannot write {self.part}: {e.strerror or e}", "give another --out") from None
        except BaseException:
            self.close()
            raise

    def write(self, row: Row) -> None:
        """Add a row."""
        line = {"item": row.item, "last": row.last, "of_volume": row.of_volume, "row": row.values}
        self._line(line if row.unit is None else {**line, "unit": row.unit})

    def read(self) -> Iterator[Row]:
        """The rows so far."""
        with self.part.open("rb") as f:
            next(f)
            for line in f:
                yield _as_row(json.loads(line))

    def write_out(self, columns: Sequence[str], format: str) -> None:
        """Write the table under its own name; the journal stays until all else that goes with it is there, too."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        write_table((row.values for row in self.read()), columns, self.out, format)

    def finish(self) -> None:
        """Remove the journal."""
        assert self._file is not None
        self._file.close()
        self._file = None
        self.part.unlink()
        self.close()

    def close(self) -> None:
        """Leave the journal as it is."""
        if self._file is not None:
            # What a full disk has not taken was said when it was written.
            with suppress(OSError):
                self._file.close()
            self._file = None
        if self._lock is not None:
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock = None

    def _line(self, content: dict[str, Any]) -> None:
        assert self._file is not None
        with disk_errors_of(self.out, self.part):
            self._file.write(json.dumps(content).encode() + b"\n")
            self._file.flush()

    def _reopen(self) -> None:
        file = self.part.open("r+b")
        self._file = file
        line = file.readline()
        first = _parsed(line)
        if line.endswith(b"\n") and (first is None or first.get("octfast") != "predictions"):
            raise UsageError(f"{self.part} is not an interrupted prediction", "move it away, or --force to replace it")
        if first is None:
            # Torn in its first line: nothing was done yet.
            file.seek(0)
            file.truncate()
            self._line(self.belongs)
            return
        for key, what in (("bundle", "another model"), ("inputs", "other inputs"), ("settings", "other settings")):
            if first.get(key) != self.belongs[key]:
                raise UsageError(
                    f"the interrupted prediction in {self.part} is of {what}",
                    "give the same again, or --force to start again",
                )
        whole, rows = file.tell(), 0
        while line := file.readline():
            content = _parsed(line)
            if content is None:
                break
            rows += 1
            try:
                row = _as_row(content)
                path = row.values["path"]
            except (KeyError, TypeError):
                raise DataError(f"{self.part} is damaged: row {rows} cannot be read", "--force starts again") from None
            if row.last:
                whole = file.tell()
                self.rows, self.done = rows, row.item + 1
                self.paths.append(path)
        if self.done != len(self.paths):
            raise DataError(f"{self.part} is damaged: inputs are missing in it", "--force starts again")
        file.seek(whole)
        file.truncate()


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A whole line of the journal, or None where it was torn."""
    try:
        content = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _as_row(content: dict[str, Any]) -> Row:
    return Row(content["item"], content["row"], content["last"], content["of_volume"], unit=content.get("unit"))
