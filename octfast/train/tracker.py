"""`octfast train --tracker`: curves, options and figures of a run for TensorBoard, MLflow or Weights & Biases.

What is sent is what history.csv and the metrics files hold, and the options that are no files or columns: no pictures,
no names of patients, files or folders but the run folder's own. fastai's callbacks for the same packages are not used:
they start their steps anew at each fit (`--unfreeze all` makes two), draw batches of their own, write what the
DataLoaders consist of, and know nothing of a training that goes on.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from octfast.errors import OctfastError, UsageError
from octfast.files import is_offline, write_text
from octfast.run.folder import Run
from octfast.train.config import TrainConfig

log = logging.getLogger("octfast")

FOLDER = "tracker"
_STATE = "octfast.json"
_TITLES = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "wandb": "Weights & Biases"}
# Where a field's value may name a person or a place.
_PRIVATE = ("_column", "_from")


def check_tracker(name: str | None) -> None:
    """
    Raises
    ------
    UsageError : its package is not installed.
    """
    if name is not None and importlib.util.find_spec(name) is None:
        raise UsageError(f"--tracker {name} needs {name}, which is not installed", f"pip install 'octfast[{name}]'")


@contextmanager
def tracked(run: Run, config: TrainConfig, about: dict[str, Any]) -> Iterator[Tracker]:
    """A Tracker of a training, which is ended with it; one that does nothing where `config.tracker` is None.

    Parameters
    ----------
    about : what config.json says; it gets `curves`.
    """
    tracker = Tracker(run, config, about)
    ended = False
    try:
        yield tracker
        tracker.results()
        ended = True
    finally:
        tracker.close(ended)


class Tracker:
    """Gives a package the rows of history.csv as they come, then what was chosen and the figures of each split.

    A package that fails costs its curves and not the training, which is said.
    """

    def __init__(self, run: Run, config: TrainConfig, about: dict[str, Any]):
        self.run, self.name, self.about = run, config.tracker, about
        self._sink: Any = None
        self._done = 0
        if self.name is not None:
            with self._safely():
                self._begin(config)

    def epochs(self) -> None:
        """Give what history.csv has more than was given."""
        if self._sink is None:
            return
        with self._safely():
            rows = self._rows()
            if len(rows) < self._done:
                log.warning("the training began again: %s gets another run for it", _TITLES[str(self.name)])
                self._sink.close(False)
                self._open(None)
            for row in rows[self._done :]:
                step = int(row["epoch"])
                values = {k: float(v) for k, v in row.items() if k != "epoch" and math.isfinite(v)}
                self._sink.numbers(values, step)
                self._keep(step)

    def results(self) -> None:
        """Give the rows that are left, what was chosen, and the figures of each split."""
        self.epochs()
        if self._sink is None:
            return
        with self._safely():
            self._sink.words({f"chosen.{k}": _text(v) for k, v in self.about.get("chosen", {}).items()})
            found: dict[str, float] = {}
            for file in sorted(self.run.path.glob("metrics-*.json")):
                figures = json.loads(file.read_text(encoding="utf-8"))
                split = file.stem.removeprefix("metrics-")
                found |= {f"{split}/{k}": float(v) for k, v in figures.items() if isinstance(v, int | float)}
            self._sink.figures({k: v for k, v in found.items() if math.isfinite(v)}, self._done)

    def close(self, ended: bool = True) -> None:
        """End what the tracker has open.

        Parameters
        ----------
        ended : whether the training came to its end.
        """
        if self._sink is not None:
            with self._safely():
                self._sink.close(ended)
        self._sink = None

    def _begin(self, config: TrainConfig) -> None:
        folder = self.run.path / FOLDER
        folder.mkdir(exist_ok=True)
        self._words = _options(config, self.about)
        kept = _kept(folder / _STATE)
        title = _TITLES[str(self.name)]
        past = kept if kept.get("name") == self.name else {}
        if kept and not past:
            log.info("%s had the curves so far, and %s gets all of them", _TITLES.get(kept["name"], "another"), title)
        self._open(past or None)
        sink = self._sink
        if past and sink.id != past["id"]:
            log.warning("%s: a new run holds all epochs of this training, those of before among them", title)
        sent = ", which sends them to the server that you are logged in to" if "wandb sync" in sink.look else ""
        log.info("curves for %s in %s; look at them with: %s%s", title, sink.where, sink.look, sent)
        if sink.online:
            log.warning("%s: curves, options and figures are sent to %s, as the environment says", title, sink.where)
        self.about["curves"] = {"where": sink.where, "look": sink.look}
        self.epochs()

    def _open(self, past: dict[str, Any] | None) -> None:
        kind = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _Wandb}[str(self.name)]
        self._sink = kind(self.run, past)
        goes_on = past is not None and self._sink.id == past["id"]
        self._done = int(past["epochs"]) if past is not None and goes_on else 0
        if not goes_on:
            self._sink.words(self._words)
        self._keep(self._done)

    def _keep(self, epochs: int) -> None:
        self._done = epochs
        state = {"name": self.name, "id": self._sink.id, "epochs": epochs}
        write_text(self.run.path / FOLDER / _STATE, json.dumps(state) + "\n")

    def _rows(self) -> list[dict[str, Any]]:
        try:
            table = pd.read_csv(self.run.path / "history.csv", index_col=False)
        except (OSError, ValueError):  # none yet
            return []
        return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]

    @contextmanager
    def _safely(self) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as e:  # whatever a package of another maker raises
            self._sink = None
            words = e.message if isinstance(e, OctfastError) else f"{type(e).__name__}: {e}".splitlines()[0][:200]
            log.warning("no more curves for %s (%s); the training goes on", _TITLES[str(self.name)], words)


class _TensorBoard:
    """Event files in the run folder; those of a training that goes on lie beside those of before."""

    online = False
    id = "events"

    def __init__(self, run: Run, past: dict[str, Any] | None):
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = run.path / FOLDER
        # What was begun anew is over for TensorBoard from this step on.
        step = (
            None if past is None and not list(folder.glob("events.*")) else int((past or {"epochs": 0})["epochs"]) + 1
        )
        self.writer = SummaryWriter(folder, purge_step=step)
        self.where, self.look = FOLDER, f"tensorboard --logdir {_shown(run.path.parent)}"

    def words(self, words: Mapping[str, str]) -> None:
        lines = ["| option | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in words.items())]
        self.writer.add_text("chosen" if "chosen.bs" in words else "options", "\n".join(lines))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    figures = numbers

    def close(self, ended: bool) -> None:
        self.writer.close()


class _MLflow:
    """A run in a database of its own in the run folder, or where MLFLOW_TRACKING_URI says."""

    def __init__(self, run: Run, past: dict[str, Any] | None):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Its tables are made with a line each.
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient

            folder = run.path / FOLDER
            own = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
            address = os.environ.get("MLFLOW_TRACKING_URI") or own
            if _is_server(address) and is_offline():
                log.warning("OCTFAST_OFFLINE is set: MLflow's server is not asked, its run is kept in %s", FOLDER)
                address = own
            # A client, as mlflow.start_run would note the user, the script and its folder.
            self.client = MlflowClient(address)
            found = self.client.get_experiment_by_name("octfast")
            place = (folder / "artifacts").as_uri() if address == own else None
            experiment = found.experiment_id if found else self.client.create_experiment("octfast", place)
        self.id = ""
        if past is not None:
            try:
                self.client.set_terminated(past["id"], "RUNNING")
                self.id = past["id"]
            except MlflowException as e:
                log.warning("MLflow does not know the run of before (%s)", str(e).splitlines()[0][:200])
        if not self.id:
            self.id = self.client.create_run(experiment, run_name=run.path.name).info.run_id
        self.online = _is_server(address)
        self.where = FOLDER if address == own else _without_password(address)
        # As a whole, since a relative address would be one below the folder that it is called in.
        self.look = "mlflow ui --backend-store-uri " + _without_password(address) if not self.online else self.where

    def words(self, words: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(self.id, params=[Param(k, v[:500]) for k, v in words.items()])

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(k, v, now, step) for k, v in values.items()])

    figures = numbers

    def close(self, ended: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if ended else "FAILED")


class _Wandb:
    """A run in the run folder, offline unless WANDB_MODE says otherwise; one that is offline cannot be gone on with."""

    def __init__(self, run: Run, past: dict[str, Any] | None):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        if mode in ("online", "shared") and is_offline():
            log.warning("OCTFAST_OFFLINE is set: the run of Weights & Biases is kept in %s", FOLDER)
            mode = "offline"
        self.online = mode in ("online", "shared")
        folder = run.path / FOLDER
        # Neither the machine, the command line, the source, the packages nor what is printed.
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            quiet=True,
            root_dir=str(folder),
            silent=not self.online,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        project = os.environ.get("WANDB_PROJECT", "octfast")
        self.run = wandb.init(project=project, name=run.path.name, mode=mode, reinit="create_new", settings=settings)
        self.id = str(self.run.id)
        self.where = str(self.run.url) if self.online else FOLDER
        made = _shown(Path(self.run.settings.sync_dir))
        self.look = self.where if self.online else f"wandb sync {made}"

    def words(self, words: Mapping[str, str]) -> None:
        self.run.config.update(dict(words), allow_val_change=True)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def figures(self, values: Mapping[str, float], step: int) -> None:
        self.run.summary.update(dict(values))

    def close(self, ended: bool) -> None:
        self.run.finish(exit_code=0 if ended else 1)


def _options(config: TrainConfig, about: Mapping[str, Any]) -> dict[str, str]:
    """The options that name no file, folder, column or person, and what the scans and the software are."""
    found: dict[str, Any] = {}
    for each in fields(config):
        value = getattr(config, each.name)
        if value is None or each.metadata.get("path") or each.name.endswith(_PRIVATE) or each.name == "tracker":
            continue
        found[each.name] = Path(value).name if each.name == "weights" else value
    data = about.get("data", {})
    found |= {f"data.{k}": data[k] for k in ("fingerprint", "synthetic") if k in data}
    versions = about.get("versions", {})
    found |= {f"versions.{k}": versions[k] for k in ("octfast", "torch", "fastai") if k in versions}
    return {**{k: _text(v) for k, v in found.items()}, "classes": _text(list(about.get("classes", {})))}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _kept(file: Path) -> dict[str, Any]:
    """What was kept of the tracker of a training that goes on; nothing where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {"name": str(found["name"]), "id": str(found["id"]), "epochs": int(found["epochs"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_server(address: str) -> bool:
    """Whether an address of MLflow's runs is not on this machine's disks."""
    return address.startswith("databricks") or ("://" in address and not address.startswith(("sqlite:", "file:")))


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else address


def _shown(path: Path) -> str:
    """A path as it is typed in the present folder."""
    path, here = path.resolve(), Path.cwd().resolve()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
