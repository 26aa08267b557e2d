"""corrections.csv: what people decided about the labels of scans, a line a decision, and its use before training."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd

from octfast.data.scans import in_order
from octfast.errors import DataError, UsageError

log = logging.getLogger("octfast")

COLUMNS = ("path", "decision", "old", "new", "reason", "reviewer", "time")
# Of scans that had no label: whose they are; where whole units are labelled, their eye and volume, too.
PATIENT = "patient"
UNIT = ("eye", "volume")
RELABEL, LEAVE_OUT, AGREE, UNDO = "relabel", "leave out", "agree", "undo"
DECISIONS = (RELABEL, LEAVE_OUT, AGREE, UNDO)


@dataclass(frozen=True)
class Applied:
    """What a file of corrections changed.

    Attributes
    ----------
    relabelled, left_out : the numbers of scans.
    agreed : scans whose label a reviewer found right.
    open : reasons for which a decision was not applied, with the number of scans of each.
    """

    relabelled: int
    left_out: int
    agreed: int
    open: dict[str, int]

    def __str__(self) -> str:
        return f"{self.relabelled} scans get another label, {self.left_out} are left out, {self.agreed} labels stand"


def relative(path: str | Path, root: str | Path) -> str:
    """The path of a scan as corrections.csv has it: below the data folder where it lies there, with slashes."""
    path = Path(path)
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def record(
    file: str | Path,
    path: str | Sequence[str],
    decision: str,
    old: str,
    new: str = "",
    reason: str = "",
    reviewer: str = "",
    patient: str | None = None,
    unit: Mapping[str, str] | None = None,
) -> None:
    """Append one decision; it is on the disk when this returns, and no earlier line is ever changed.

    Parameters
    ----------
    file : made with its header where it is missing.
    path : see `relative`; of several scans, which are decided about as one, a line each, all of them or none.
    decision : one of `DECISIONS`; "undo" takes back the reviewer's last decision about this scan.
    old, new : the label that the scan has, and the one that it should have ("" but for "relabel").
    reason : why the scan was looked at.
    reviewer : initials, or "".
    patient : of a scan that had no label before; such a file has a column more, and every line of it has a patient.
    unit : with a patient, of the scans of a volume, an eye or a patient, its `UNIT`, which are columns then, too.

    Raises
    ------
    UsageError : an unknown decision, or the file cannot be written.
    """
    if decision not in DECISIONS:
        raise UsageError(f"no decision named {decision!r}", f"one of {', '.join(DECISIONS)}")
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    about = {} if patient is None else {PATIENT: patient, **({c: unit[c] for c in UNIT} if unit else {})}
    paths = [path] if isinstance(path, str) else path
    line = b"".join(_line([p, decision, old, new, reason, reviewer, now, *about.values()]) for p in paths)
    try:
        # One write in append mode: two reviewers at one file never mix their lines, and a kill leaves whole ones.
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        try:
            size = os.fstat(handle).st_size
            start = b""
            if not size:
                start = _line([*COLUMNS, *about])
            else:
                os.lseek(handle, size - 1, os.SEEK_SET)
                start = b"" if os.read(handle, 1) == b"\n" else b"\r\n"
            os.write(handle, start + line)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as e:
        raise UsageError(f"cannot write {file}: {e.strerror or e}", "name another file: --out FILE") from None


def read_decisions(file: str | Path) -> pd.DataFrame:
    """The decisions that stand, of each reviewer the last one about each scan; what was undone is gone.

    Returns
    -------
    The columns of `COLUMNS`, and `patient` and those of `UNIT` where the file has them, a row a scan and reviewer, in
    the order of time.

    Raises
    ------
    DataError : the file is missing, or is no corrections.csv.
    """
    try:
        with Path(file).open(encoding="utf-8", errors="surrogateescape", newline="") as content:
            rows = list(csv.reader(content))
    except (OSError, ValueError, csv.Error) as e:
        raise DataError(f"cannot read {file}: {e}", "give a file that octfast review wrote") from None
    if not rows or not {"path", "decision", "old", "new"} <= set(rows[0]):
        raise DataError(
            f"{file} is not a file of corrections: it needs the columns path, decision, old and new",
            "give a file that octfast review wrote",
        )
    stacks: dict[tuple[str, str], list[dict[str, str]]] = {}
    for number, values in enumerate(rows[1:], 2):
        if not values:
            continue
        row = dict.fromkeys(COLUMNS, "") | dict(zip(rows[0], values, strict=False))
        if len(values) != len(rows[0]) or row["decision"] not in DECISIONS:
            raise DataError(
                f"{file}, line {number}: not a decision that octfast knows",
                f"mend or remove the line; decisions are {', '.join(DECISIONS)}",
            )
        stack = stacks.setdefault((row["path"], row["reviewer"]), [])
        if row["decision"] != UNDO:
            stack.append(row)
        elif stack:
            stack.pop()
    last = [stack[-1] for stack in stacks.values() if stack]
    columns = [*COLUMNS, *(c for c in (PATIENT, *UNIT) if c in rows[0])]
    return pd.DataFrame(sorted(last, key=lambda r: r["time"]), columns=columns, dtype=str)


def settled(decisions: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A row a scan where all of its reviewers decided alike, and the paths of the scans where they differ."""
    outcome = decisions["decision"] + "\0" + decisions["new"].where(decisions["decision"] == RELABEL, "")
    ways = outcome.groupby(decisions["path"]).transform("nunique")
    return decisions[ways == 1].drop_duplicates("path", keep="last"), sorted(set(decisions["path"][ways > 1]))


def apply_corrections(
    scans: pd.DataFrame, file: str | Path, root: str | Path
) -> tuple[pd.DataFrame, pd.DataFrame, Applied]:
    """Give scans the labels that reviewers decided on, and leave out what they left out; the files stay as they are.

    Parameters
    ----------
    scans : a Scans table with absolute paths.
    file : see `record`.
    root : the folder that the paths of the file are relative to.

    Returns
    -------
    The Scans table, what is left out with a column `reason`, and what was done, which is logged too.

    Raises
    ------
    DataError : see `read_decisions`; a label that no scan has; or no scan of the file is in this data set.
    """
    decisions, torn = settled(read_decisions(file))
    name = Path(file).name
    by_path = decisions.set_index("path")
    keys = pd.Series([relative(p, root) for p in scans["path"]], index=scans.index)
    known = keys.isin(by_path.index)
    unknown = len(set(by_path.index) - set(keys))
    if len(by_path) and not known.any():
        raise DataError(
            f"none of the {len(by_path)} scans in {file} is in this data set: {by_path.index[0]}",
            f"its paths are relative to the data folder, here {root}",
        )
    found = by_path.reindex(keys[known])
    found.index = scans.index[known]
    strange = sorted(set(found.loc[found["decision"] == RELABEL, "new"]) - set(scans["label"]))
    if strange:
        labels = ", ".join(in_order(scans["label"].unique()))
        raise DataError(f"{file}: no scan has the label {strange[0]}", f"labels are {labels}")
    now = scans["label"][known]
    relabel = (found["decision"] == RELABEL) & (now != found["new"])
    moved = (now != found["old"]) & (now != found["new"])
    change = found.index[relabel & ~moved]
    drop = found.index[(found["decision"] == LEAVE_OUT) & ~moved]
    reasons = {
        "the label has changed since": int(moved.sum()),
        "reviewers differ": len(torn),
        "not in this data set": unknown,
    }
    done = Applied(
        relabelled=len(change),
        left_out=len(drop),
        agreed=int((found["decision"] == AGREE).sum()),
        open={why: n for why, n in reasons.items() if n},
    )
    log.info("%s: %s", name, done)
    for why, n in done.open.items():
        log.warning("%s: %d decisions are not applied: %s", name, n, why)
    out = scans.copy()
    out.loc[change, "label"] = found.loc[change, "new"]
    left = out.loc[drop].assign(reason=f"left out by {name}")
    return out.drop(index=drop).reset_index(drop=True), left.reset_index(drop=True), done


def _line(values: list[str]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(values)
    return out.getvalue().encode("utf-8", "surrogateescape")
