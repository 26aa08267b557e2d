"""The audit of a run's scans, kept in the run folder until a file, a label or octfast changes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from octfast.data.audit.audit import Finding, audit
from octfast.data.corrections import relative
from octfast.files import write_text
from octfast.run.folder import Run
from octfast.run.origin import fingerprint, versions

log = logging.getLogger("octfast")

AUDIT = "audit.json"


def audit_findings(run: Run, scans: pd.DataFrame) -> pd.DataFrame:
    """What `octfast.data.audit.audit.audit` finds in these scans of a run, of which files are read once.

    What was found is kept with the place, size, label, patient and split of each scan, when its file was last changed,
    and octfast's version; where any of these is another, all files are read anew.

    Parameters
    ----------
    scans : a Scans table, its paths absolute.
    """
    file, key = run.path / AUDIT, _key(run, scans)
    if (kept := _read(file, key)) is not None:
        log.info("the files are as they were when they were last looked at: see %s", file.name)
        return _placed(kept, lambda p: str(run.root / p))
    found = audit(scans).findings
    rows = _placed(found, lambda p: relative(p, run.root))
    try:
        write_text(file, json.dumps({"key": key, "findings": rows.to_dict("records")}, ensure_ascii=False) + "\n")
    except (OSError, UnicodeEncodeError) as e:
        log.warning("what was found in the files could not be kept for the next time: %s", e)
    return found


def _placed(findings: pd.DataFrame, place: Callable[[str], str]) -> pd.DataFrame:
    """The findings with other paths; "" stays."""
    return findings.assign(**{c: [place(p) if p else "" for p in findings[c]] for c in ("path", "related")})


def _key(run: Run, scans: pd.DataFrame) -> str:
    digest = hashlib.sha256(f"{versions()['octfast']} {fingerprint(scans, run.root)}".encode())
    for path in scans["path"]:
        try:
            changed = (run.root / path).stat().st_mtime_ns
        except OSError:
            changed = 0
        digest.update(f" {changed}".encode())
    return digest.hexdigest()


def _read(file: Path, key: str) -> pd.DataFrame | None:
    """What was kept under the key; None where nothing is, or the file is damaged."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] != key:
            return None
        table = pd.DataFrame(kept["findings"], columns=list(Finding._fields))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        log.warning("%s is damaged: the files are read anew", file)
        return None
    whole = all(isinstance(v, str) for v in table.to_numpy().ravel())
    return table if whole else None
