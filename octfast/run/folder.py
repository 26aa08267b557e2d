"""The run folder: what was trained on what, how it went, and the trained model."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.data.scans import load_scans, save_scans
from octfast.errors import BundleError, DataError, UsageError
from octfast.files import new_folder, numbered_folder, refuse_address, write_text
from octfast.model.bundle.state import refuse_unfinished
from octfast.notices import Note
from octfast.run.html import run_html

RUNS = Path("runs")
# Column of a Predictions table whose scans were predicted by the head of a fold that they were held out from.
FOLD = "cv_fold"
# Of the scans that the distance to the training scans was fixed on.
DISTANCES = "distances.csv"
REMINDER = "reminder"  # the kind of a note that repeats at the end of training what a page says elsewhere


@dataclass(frozen=True, repr=False)
class Run:
    """A run folder. It can be copied to another machine and still be read there.

    Attributes
    ----------
    path : the folder.
    data : where the scans lie now; None takes the folder they were trained from, as config.json has it.
    """

    path: Path
    data: Path | None = None

    @property
    def config(self) -> dict[str, Any]:
        """config.json: every parameter, versions, data, weights, notes."""
        try:
            config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
            if not isinstance(config, dict) or not isinstance(config["data"]["root"], str):
                raise ValueError("config.json does not say where the scans are")
            return config
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            raise BundleError(
                f"{self.path} is not a run folder: {e}", "give a folder that octfast train made"
            ) from None

    @property
    def notes(self) -> list[Note]:
        """The warnings of the training, in order; in runs from before notes had kinds only reminders are told apart."""
        said = self.config.get("notes")
        notes = [Note.from_json(n) for n in said if isinstance(n, str | dict)] if isinstance(said, list) else []
        return [replace(n, kind=REMINDER) if not n.kind and n.text.startswith("remember:") else n for n in notes]

    @property
    def root(self) -> Path:
        """The folder that the scans' paths are relative to."""
        return self.data or Path(self.config["data"]["root"])

    @property
    def scans(self) -> pd.DataFrame:
        """The Scans table, split by split."""
        return load_scans(self.path / "scans.csv", self.root)

    @property
    def history(self) -> pd.DataFrame:
        """A row an epoch.

        Raises
        ------
        BundleError : history.csv is missing or damaged.
        """
        file = self.path / "history.csv"
        try:
            rows = pd.read_csv(file, index_col=False)
        except (OSError, ValueError) as e:
            raise BundleError(f"cannot read {file}: {e}", "train again, or give another run") from None
        if not {"epoch", "train_loss", "valid_loss"} <= set(rows.columns):
            raise BundleError(f"{file} is not the history of a run", "train again, or give another run")
        return rows

    @property
    def bundle(self) -> Path:
        """The folder of the trained model.

        Raises
        ------
        BundleError : training has not ended.
        """
        folder = self.path / "model"
        if not folder.is_dir():
            raise BundleError(f"{self.path} has no trained model: training has not ended", "train again")
        return folder

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def predictions_file(self, split: str) -> Path:
        return self.path / f"predictions-{split}.csv"

    def scan_answers_file(self, split: str) -> Path:
        """Where it stands how each scan counted, of a model that answers for volumes, eyes or patients."""
        return self.path / f"predictions-{split}-scans.csv"

    def predictions(self, split: str) -> pd.DataFrame | None:
        """The Predictions table of a split, or None where none has been made."""
        file = self.predictions_file(split)
        if not file.exists():
            return None
        return load_scans(file, self.root)

    def save_predictions(self, table: pd.DataFrame, split: str) -> Path:
        save_scans(table, self.predictions_file(split), self.root)
        return self.predictions_file(split)

    @property
    def distances(self) -> pd.DataFrame | None:
        """How far each training and validation scan lies from the others, by a fit without its patient.

        `path`, `label`, `patient`, `split`, and `distance` in units of the limit (`octfast.model.unlike`). None where
        none were kept, as of a run made before.

        Raises
        ------
        DataError : the table is damaged.
        """
        file = self.path / DISTANCES
        if not file.exists():
            return None
        table = load_scans(file, self.root)
        if "distance" not in table or not pd.api.types.is_numeric_dtype(table["distance"]):
            raise DataError(f"{file} has no distances", "the file was damaged; train again, or give another run")
        return table

    def save_distances(self, table: pd.DataFrame) -> None:
        """Keep such a table."""
        save_scans(table[["path", "label", "patient", "split", "distance"]], self.path / DISTANCES, self.root)

    def __repr__(self) -> str:
        """Its name alone: where it lies on this machine is nothing for a notebook that is passed on."""
        return f"Run({self.path.name!r})"

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        return run_html(self.path, lambda: self.config, lambda: self.scans, lambda: self.history)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file of the run, under its name only when it is whole."""
        write_text(self.path / name, json.dumps(content, indent=2, ensure_ascii=False, default=_as_json) + "\n")


def _as_json(value: Any) -> Any:
    return value.to_json() if isinstance(value, Note) else str(value)


def open_run(run: str | Path | None = None, data: str | Path | None = None) -> Run:
    """Open the folder of a finished run; None takes the newest, which runs/latest names.

    Raises
    ------
    BundleError : no such run, or its training has not come to its end.
    """
    if run is None:
        run = latest_run()
        if run is None:
            raise BundleError(
                f"no finished run in {RUNS.resolve()}", "train first: octfast train; or name a run folder"
            )
    refuse_address(run, "download the run folder and give that")
    path = Path(run).expanduser()
    if not (path / "config.json").is_file():
        raise BundleError(
            f"{path} is not a run folder: config.json is missing", "give a folder that octfast train made"
        )
    refuse_unfinished(path)
    if data is not None:
        refuse_address(data)
    if data is not None and not Path(data).is_dir():
        raise DataError(f"no such folder: {data}", "give the folder that holds the scans now")
    return Run(path.resolve(), Path(data).resolve() if data else None)


def new_run(out: str | Path | None, name: str) -> Run:
    """Make the folder of a new run.

    Parameters
    ----------
    out : the folder; None makes runs/<date>-<time>-<name>.

    Raises
    ------
    UsageError : it exists and is not empty, or cannot be written to.
    """
    path = Path(out).expanduser() if out is not None else RUNS / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    try:
        path = new_folder(path) if out is not None else numbered_folder(path)
        (path / "figures").mkdir()
        (path / "checkpoints").mkdir()
    except OSError as e:
        raise UsageError(f"cannot write to {path}: {e.strerror or e}", "give another folder: --out FOLDER") from None
    return Run(path.resolve())


def set_latest(run: Run) -> bool:
    """Let runs/latest name a finished run, as a symbolic link or, where there are none, as a file with its path."""
    link = RUNS / "latest"
    part = RUNS / f".latest-{os.getpid()}"
    try:
        RUNS.mkdir(exist_ok=True)
        if link.is_dir() and not link.is_symlink():
            return False
        try:
            part.symlink_to(os.path.relpath(run.path, RUNS.resolve()), target_is_directory=True)
        except OSError:
            part.write_text(str(run.path), encoding="utf-8")
        part.replace(link)
        return True
    except OSError:
        return False


def latest_run() -> Path | None:
    """The folder that runs/latest names, or None."""
    link = RUNS / "latest"
    if link.is_dir():
        return link.resolve()
    if link.is_file():
        named = Path(link.read_text(encoding="utf-8").strip())
        return named if named.is_dir() else None
    return None
