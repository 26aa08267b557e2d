"""How the training stands that a model comes from, as the config.json of its run folder says."""

from __future__ import annotations

import json
from pathlib import Path

from octfast.errors import BundleError
from octfast.model.bundle.strict import open_plain

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
_WORDS = {
    RUNNING: "its training is still under way, or was killed",
    STOPPED: "its training was stopped",
    FAILED: "its training failed",
}
_MAX_JSON = 16 << 20


def state_of(run: str | Path) -> str:
    """The state of a run folder: "running", "finished", "stopped" or "failed".

    A run from before there were states, and a folder that is no run, count as finished.
    """
    try:
        opened, _ = open_plain(Path(run) / "config.json")
        with opened:
            state = json.loads(opened.read(_MAX_JSON))["state"]
    except (BundleError, OSError, ValueError, TypeError, KeyError, RecursionError):
        return FINISHED
    return state if state in _WORDS else FINISHED


def refuse_unfinished(run: str | Path) -> None:
    """
    Raises
    ------
    BundleError : the training of this run has not come to its end.
    """
    state = state_of(run)
    if state != FINISHED:
        raise BundleError(
            f"{run} is an unfinished run: {_WORDS[state]}",
            "name a finished run, or train again with the same options: what the frozen body gave is stored",
        )
