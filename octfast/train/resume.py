"""Goes on with a training that was cut off, and makes a finished one again: `octfast train --resume` and `--config`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.data.scans import load_scans
from octfast.errors import BundleError, DataError, OctfastError, UsageError
from octfast.model.bundle.state import FINISHED, is_live, state_of
from octfast.notices import Note, noted
from octfast.processes import divided
from octfast.run.folder import RUNS, Run, new_run, set_latest
from octfast.run.state import held
from octfast.train import checkpoint
from octfast.train.assist import kinds
from octfast.train.config import TrainConfig
from octfast.train.job import check_names, prepared_scans, train_in
from octfast.train.past import Past, past_scans, recorded_config, still_there, tidy

log = logging.getLogger("octfast")

# Options that change nothing of the result, and the device: another machine may not have that of before, which is said.
_FREE = ("out", "cache", "workers", "tracker", "device")


@divided(kinds)
def resume_training(run: str | Path | None = None, **fields: Any) -> Run:
    """Go on with a training that was killed, stopped or failed, as `octfast train --resume` does.

    It goes on after the last epoch that was finished, or with the last stored feature, with the options, scans, random
    states and best weights of before, to the same result as a training that was not cut off.

    Parameters
    ----------
    run : its folder; None takes the newest unfinished one in runs/.
    fields : options of TrainConfig, which must be those that the training began with, but for `cache`, `workers`,
        `tracker` and `device`.

    Raises
    ------
    UsageError : nothing to go on with, another process is training there, or an option that is not the training's.
    OctfastError : the scans or weights are not those of before; or see `train_classifier`.
    """
    path = newest_unfinished() if run is None else Path(run).expanduser()
    if not (path / "config.json").is_file():
        raise BundleError(
            f"{path} is not a run folder: config.json is missing", "give a folder that octfast train made"
        )
    found = Run(path.resolve())
    if state_of(path) == FINISHED:
        return _finished(found, path)
    about = found.config
    config = recorded_config(about, str(path / "config.json"))
    _refuse_others(config, fields, path)
    config = replace(config, **{name: value for name, value in fields.items() if name in _FREE})
    check_names(config)
    with held(found):
        tidy(found)
        said: list[Note] = []
        prepared = past_scans(found)
        if prepared is not None:
            _make_again(config, prepared.scans)
            with noted() as said:
                prepared = still_there(found, prepared)
        state = checkpoint.read_state(found.path / "checkpoints" / checkpoint.FILE)
        epochs = 0 if state is None else len(state.rows)
        log.info("going on with %s: %s", path, f"{epochs} epochs are done" if epochs else "no epoch is done")
        earlier = [n for n in about.get("resumed") or () if isinstance(n, int)]
        notes = tuple(dict.fromkeys([*(Note.from_json(n) for n in about.get("notes") or ()), *said]))
        past = Past(about, False, None, prepared, notes, (*earlier, epochs))
        return train_in(found, replace(config, out=str(found.path)), past)


@divided(kinds)
def repeat_training(file: str | Path, **fields: Any) -> Run:
    """Train again as the config.json of a run says, into a new folder, and say what differs from it.

    Parameters
    ----------
    file : the config.json of a run, or its folder.
    fields : options of TrainConfig to take in the place of its own.

    Raises
    ------
    UsageError : it is not the config.json of a run of `octfast train`.
    OctfastError : see `train_classifier`.
    """
    file = Path(file).expanduser()
    file = file / "config.json" if file.is_dir() else file
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"cannot read {file}: {e}", "give RUN/config.json of a run of octfast train") from None
    about = about if isinstance(about, dict) else {}
    config = replace(recorded_config(about, str(file)), **{"out": None, **fields})
    check_names(config)
    scans = None
    try:
        scans = load_scans(file.with_name("scans.csv"), about["data"].get("root") or "")
    except DataError as e:
        log.info("which scans it was trained on is not known: %s", e.message)
    with noted() as said:
        for name, value in fields.items():
            if value != about.get(name) and name not in ("out", "data"):
                log.warning("not as it was: --%s %s instead of %s", name.replace("_", "-"), value, about.get(name))
    given = config.out is not None and Path(config.out).expanduser().is_dir()
    run = new_run(config.out, config.arch.replace("/", "_"))
    with held(run):
        made = train_in(run, config, Past(about, scans=scans, notes=tuple(said)), keep_folder=given)
    _compare(Run(file.parent), made)
    return made


def newest_unfinished() -> Path:
    """The unfinished run in runs/ that was written to last, and that no process is training.

    Raises
    ------
    UsageError : there is none.
    """
    files = [f for f in RUNS.glob("*/config.json") if not f.parent.is_symlink() and state_of(f.parent) != FINISHED]
    live = [f.parent for f in files if is_live(f.parent)]
    files = [f for f in files if f.parent not in live]
    if not files:
        busy = f"; {live[0]} is still being trained" if live else ""
        raise UsageError(f"no unfinished run in {RUNS.resolve()}{busy}", "name one: octfast train --resume RUN")
    return max(files, key=lambda f: f.stat().st_mtime_ns).parent


def _finished(run: Run, path: Path) -> Run:
    """A run that was killed after its end, before the last thing was tidied up; another is refused."""
    left = run.path / "checkpoints" / checkpoint.FILE
    if not left.exists():
        raise UsageError(f"{path} is finished: there is nothing to go on with", f"octfast report {path} shows it")
    with held(run):
        set_latest(run)
        left.unlink(missing_ok=True)
    return run


def _refuse_others(config: TrainConfig, fields: Mapping[str, Any], path: Path) -> None:
    """Refuse an option that the training did not begin with."""
    for name, value in fields.items():
        if name in _FREE:
            continue
        was = getattr(config, name)
        about = TrainConfig.__dataclass_fields__[name].metadata
        if about.get("path") and value is not None and was is not None:
            same = Path(value).expanduser().absolute() == Path(was).absolute()
        else:
            same = value == was or (name == "weights" and Path(value).absolute() == Path(was).absolute())
        if not same:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} {value}: the training of {path} began with {was if was is not None else 'its default'}",
                f"leave {flag} out; or train anew: octfast train --config {path / 'config.json'} {flag} {value}",
            )


def _make_again(config: TrainConfig, scans: pd.DataFrame) -> None:
    """Read the data anew where no scan is there: the cache may have lost phantoms, or pictures that were unpacked."""
    if not any(Path(p).exists() for p in scans["path"].head(16)):
        prepared_scans(config)


def _compare(was: Run, now: Run) -> None:
    """Say how far the results of a training made again are from those of before."""
    try:
        before, after = (r.history.drop(columns="seconds") for r in (was, now))
        if state_of(was.path) != FINISHED or list(before.columns) != list(after.columns):
            return
        if before.equals(after):
            log.info("the history is the same as of %s, digit by digit", was.path)
            return
        both = min(len(before), len(after))
        apart = (before["valid_loss"][:both] - after["valid_loss"][:both]).abs().max()
        log.info(
            "%d epochs, and %d of %s: validation losses differ by %.2g at most",
            *(len(after), len(before), was.path, apart),
        )
    except OctfastError as e:
        log.info("not compared with %s: %s", was.path, e.message)
