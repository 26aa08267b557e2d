"""Audits a data set: what in it would spoil a result, what is doubtful, and what is worth knowing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from octfast.console import track
from octfast.data.audit.checks import (
    ERROR,
    MEANING,
    NOTE,
    SEVERITIES,
    TWO_PATIENTS,
    WARNING,
    Finding,
    check_table,
    copy_findings,
    quick_audit,
    sort_findings,
)
from octfast.data.audit.duplicates import exact_copies, near_copies
from octfast.data.audit.giveaways import giveaway_findings, giveaways
from octfast.data.audit.image_stats import TEXTURE_SIZE, ImageStats, all_image_stats
from octfast.data.audit.releases import find_release
from octfast.data.readers.read import read_data
from octfast.data.scans import describe_scans
from octfast.errors import DataError

__all__ = ["Audit", "Finding", "audit", "quick_audit"]

# Of the shares of white pixels; less may be a bright spot at the edge.
_BORDER = 0.005
# How far from the middle of the set a size must lie to be odd. OCT2017 has 512x496 and 1536x496 side by side.
_FAR_AREA, _FAR_SHAPE, _USUAL_SHARE = 4.0, 3.5, 0.02


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    findings : a row a finding and file, the worst first: `severity` (error, warning, note), `check`, `path` ("" where
        the set as a whole is meant), `detail`, `related` (the other file, or "").
    counts : scans a split and class, and patients a split, see `octfast.data.scans.describe_scans`.
    release : which release of OCT2017 it is and what is known of that, or "".
    properties : how well each cheap property of the files alone gives the class, see `giveaways`.
    scans, readable, patients : how many.
    seconds : that the audit took.
    """

    findings: pd.DataFrame
    counts: pd.DataFrame
    release: str
    properties: pd.DataFrame
    scans: int
    readable: int
    patients: int
    seconds: float

    @property
    def spoils(self) -> bool:
        """Whether something was found that would spoil a result."""
        return bool((self.findings["severity"] == ERROR).any())

    def summary(self) -> pd.DataFrame:
        """A row a check that found something, the worst first: `severity`, `check`, `files`, `what`, a `detail`."""
        rows = []
        for (severity, check), part in self.findings.groupby(["severity", "check"], sort=False):
            files = int((part["path"] != "").sum())
            two = int(part["detail"].str.contains(TWO_PATIENTS, regex=False).sum())
            what = MEANING[str(check)] + (f"; {two:,} of them under two patients" if two else "")
            rows.append((severity, check, files, what, part["detail"].iloc[0]))
        return pd.DataFrame(rows, columns=["severity", "check", "files", "what", "detail"])

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        return {
            "spoils": self.spoils,
            "scans": self.scans,
            "readable": self.readable,
            "patients": self.patients,
            "counts": self.counts.to_dict("index"),
            "release": self.release or None,
            "properties": self.properties.to_dict("records"),
            "summary": self.summary().to_dict("records"),
            "findings": self.findings.to_dict("records"),
            "seconds": round(self.seconds, 2),
        }


def audit(data: pd.DataFrame | str | Path, workers: int | None = None, **columns: Any) -> Audit:
    """Read every file of a data set once, and say what is wrong with it; no file is changed.

    Parameters
    ----------
    data : a Scans table, or what `octfast.data.readers.read.read_data` reads.
    workers : threads; by default one a core, 8 at most.
    columns : further parameters of `read_data`.

    Raises
    ------
    DataError : no data set, or an empty table.
    """
    started = time.perf_counter()
    scans = (data if isinstance(data, pd.DataFrame) else read_data(data, **columns)).reset_index(drop=True)
    if scans.empty:
        raise DataError("there are no scans to audit", "give a folder or table of scans")
    paths = scans["path"].astype(str).tolist()
    with track("auditing", len(paths)) as update:
        stats = all_image_stats(paths, workers, update)
    release = find_release(scans)
    findings = check_table(scans)
    findings += [Finding(ERROR, s.trouble, p, s.detail) for p, s in zip(paths, stats, strict=True) if s.trouble]
    findings += _remarks(paths, stats)
    findings += _sizes(paths, stats)
    findings += _formats(paths, stats)
    findings += _borders(stats)
    findings += _copies(scans, stats)
    properties = giveaways(scans, stats)
    findings += giveaway_findings(properties)
    if release:
        # A known release with known trouble is worth a warning only where the trouble itself is found, which has its
        # own checks.
        findings.append(Finding(NOTE, "release", "", str(release)))
    return Audit(
        findings=pd.DataFrame(sort_findings(findings), columns=list(Finding._fields)),
        counts=describe_scans(scans),
        release=str(release) if release else "",
        properties=properties,
        scans=len(scans),
        readable=sum(not s.trouble for s in stats),
        patients=int(scans["patient"].nunique()),
        seconds=time.perf_counter() - started,
    )


def _remarks(paths: Sequence[str], stats: Sequence[ImageStats]) -> Iterator[Finding]:
    often = Counter(check for s in stats for check, _ in s.remarks)
    for path, s in zip(paths, stats, strict=True):
        for check, detail in s.remarks:
            # What most files are is how this set was made, not a fault of one of them.
            usual = check in ("16-bit", "cmyk", "transparent") and often[check] > len(paths) / 2
            yield Finding(NOTE if usual else WARNING, check, path, detail)


def _sizes(paths: Sequence[str], stats: Sequence[ImageStats]) -> Iterator[Finding]:
    at = [i for i, s in enumerate(stats) if not s.trouble]
    if not at:
        return
    sizes = np.array([(stats[i].width, stats[i].height) for i in at], dtype=float)
    area, shape = sizes.prod(1), sizes[:, 0] / sizes[:, 1]
    middle, square = float(np.median(area)), float(np.median(shape))
    often = Counter(map(tuple, sizes.tolist()))
    odd = (np.maximum(area / middle, middle / area) > _FAR_AREA) | (
        np.maximum(shape / square, square / shape) > _FAR_SHAPE
    )
    usual = np.array([often[w, h] > max(1, _USUAL_SHARE * len(at)) for w, h in sizes.tolist()])
    (width, height), _ = often.most_common(1)[0]
    for i in np.flatnonzero(odd & ~usual):
        w, h = sizes[i].astype(int)
        yield Finding(WARNING, "odd-size", paths[at[i]], f"{w}x{h} pixels, most are {width:.0f}x{height:.0f}")


def _formats(paths: Sequence[str], stats: Sequence[ImageStats]) -> Iterator[Finding]:
    often = Counter(s.format for s in stats if not s.trouble)
    if len(often) < 2:
        return
    usual, _ = often.most_common(1)[0]
    rare = {f for f, n in often.items() if n < 0.05 * len(stats) and f != usual and {f, usual} != {"JPEG", "MPO"}}
    for path, s in zip(paths, stats, strict=True):
        if s.format in rare and not s.trouble:
            yield Finding(NOTE, "other-format", path, f"{s.format}, most are {usual}")


def _borders(stats: Sequence[ImageStats]) -> Iterator[Finding]:
    readable = sum(not s.trouble for s in stats)
    bordered = sum(s.border > _BORDER and not any(c == "blank" for c, _ in s.remarks) for s in stats)
    if bordered:
        share = bordered / readable
        yield Finding(NOTE, "white-border", "", f"{bordered:,} of {readable:,} scans ({share:.0%})")
    small = sum(0 < min(s.width, s.height) < TEXTURE_SIZE for s in stats if not s.trouble)
    if small:
        detail = f"{small:,} scans are lower or narrower than {TEXTURE_SIZE} pixels; only identical ones are found"
        yield Finding(NOTE, "too-small", "", detail)


def _copies(scans: pd.DataFrame, stats: Sequence[ImageStats]) -> Iterator[Finding]:
    by_bytes = exact_copies([s.content if s.pixels else b"" for s in stats], "the same bytes")
    again = {c.copy for c in by_bytes}
    # A file that repeats another's bytes repeats its pixels, too.
    by_pixels = exact_copies([b"" if i in again else s.pixels for i, s in enumerate(stats)], "the same pixels")
    again |= {c.copy for c in by_pixels}
    # Copies in their own right would be compared with each other once more for each of them.
    near = near_copies([ImageStats() if i in again else s for i, s in enumerate(stats)])
    found = [("duplicate", c) for c in (*by_bytes, *by_pixels)] + [("near-duplicate", c) for c in near]
    yield from copy_findings(scans, ((c.of, c.copy, check, c.how) for check, c in found))


def severity_counts(audited: Audit) -> dict[str, int]:
    """How many findings there are of each severity."""
    counts = audited.findings["severity"].value_counts()
    return {severity: int(counts.get(severity, 0)) for severity in SEVERITIES}
