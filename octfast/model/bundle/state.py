"""How the training stands that a model comes from, as the config.json of its run folder says."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from octfast.errors import BundleError
from octfast.files import is_locked
from octfast.model.bundle.strict import open_plain

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
# Of a run folder: locked while it is trained, and removed as that ends well.
LOCK = ".lock"
_WORDS = {RUNNING: "its training was killed", STOPPED: "its training was stopped", FAILED: "its training failed"}
_MAX_JSON = 16 << 20


def state_of(run: str | Path) -> str:
    """The state of a run folder: "running", "finished", "stopped" or "failed".

    A run from before there were states, and a folder that is no run, count as finished. A training that was killed
    stays "running", see `is_live`.
    """
    state = _said(run).get("state")
    return state if state in _WORDS else FINISHED


def is_live(run: str | Path) -> bool:
    """Whether a process is training in a run folder now."""
    return is_locked(Path(run) / LOCK)


def resume_command(run: str | Path) -> str:
    """The command that goes on with an unfinished run, its path as short as it can be typed here."""
    path = Path(run).resolve()
    short = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    return shlex.join(["octfast", "train", "--resume", short])


def refuse_unfinished(run: str | Path) -> None:
    """
    Raises
    ------
    BundleError : the training of this run has not come to its end.
    """
    state = state_of(run)
    if state == FINISHED:
        return
    if is_live(run):
        raise BundleError(
            f"{run} is an unfinished run: its training is still under way", "wait for its end, or name a finished run"
        )
    hint = f"go on with it: {resume_command(run)}; or name a finished run"
    if _said(run).get("made_by") is not None:
        hint = "save it again, into another folder; or name a finished run"
    raise BundleError(f"{run} is an unfinished run: {_WORDS[state]}", hint)


def _said(run: str | Path) -> dict[str, Any]:
    """What config.json says; nothing where it cannot be read."""
    try:
        opened, _ = open_plain(Path(run) / "config.json")
        with opened:
            said = json.loads(opened.read(_MAX_JSON))
    except (BundleError, OSError, ValueError, TypeError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
