"""Further labelled scans that join a data set: those that octfast review labelled, or any table or folder."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from octfast.data.corrections import PATIENT, RELABEL, UNIT, read_decisions, settled
from octfast.data.readers.load import TABLE_SUFFIXES, header
from octfast.data.readers.names import patient_key
from octfast.data.readers.read import read_data
from octfast.data.scans import in_order
from octfast.data.splits.groups import identical_files, linked_groups
from octfast.errors import DataError

log = logging.getLogger("octfast")


def add_scans(scans: pd.DataFrame, file: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Let further scans join the training scans, never those of a test.

    A scan whose patient is tested on, or that is byte for byte a test scan, is left out; one whose patient is in
    validation joins validation. What the data has already stays as the data has it.

    Parameters
    ----------
    scans : a Scans table with absolute paths.
    file : see `read_labelled`.

    Returns
    -------
    The Scans table, and what is left out with a column `reason`; the log says how many there are of each.

    Raises
    ------
    DataError : see `read_labelled`.
    """
    new = read_labelled(file)
    name = Path(file).name
    known = new["path"].isin(set(scans["path"]))
    if known.any():
        log.warning("%s: %d scans are in the data already and keep its labels", name, int(known.sum()))
    new = new[~known].reset_index(drop=True)
    if strange := sorted(set(new["label"]) - set(scans["label"])):
        log.warning("%s: classes that the data does not have: %s", name, ", ".join(in_order(strange)))
    # What the data does not know of its own scans would tell no unit from another.
    new = new[[c for c in new if c in scans]]
    # A patient has one spelling.
    spelling = {patient_key(str(p)): p for p in scans["patient"]}
    new["patient"] = [spelling.get(patient_key(str(p)), p) for p in new["patient"]]
    both = pd.concat([scans, new.assign(split="train")], ignore_index=True)
    groups = linked_groups(both, identical_files(both["path"].tolist()))
    added = np.arange(len(both)) >= len(scans)

    def beside(split: str) -> np.ndarray:
        """Which of the new scans are of a patient, or copies, of scans of a split of the data."""
        return added & np.isin(groups, groups[(both["split"] == split).to_numpy() & ~added])

    tested = beside("test")
    both.loc[beside("valid") & ~tested, "split"] = "valid"
    left = both[tested].assign(reason=f"of {name}: its patient, or the same file, is in test").reset_index(drop=True)
    joined = both[added & ~tested]["split"].value_counts()
    log.info(
        "%s: %d scans join training and %d validation, where their patients are",
        *(name, joined.get("train", 0), joined.get("valid", 0)),
    )
    if len(left):
        log.warning("%s: %d scans are left out: their patients, or the same files, are in test", name, len(left))
    return both[~tested].sort_values("path", ignore_index=True), left


def read_labelled(file: str | Path) -> pd.DataFrame:
    """Labelled scans: `path` (absolute), `label`, `patient`, and where they are named `eye` and `volume`.

    Parameters
    ----------
    file : the labels of `octfast review --pool`, or what `octfast.data.readers.read.read_data` reads.

    Raises
    ------
    DataError : it cannot be read; corrections of scans that had a label; or no scan in it has one yet.
    """
    file = Path(file).expanduser()
    if not _holds_decisions(file):
        found = read_data(file, trainable=False)
        return found[[c for c in ("path", "label", "patient", "eye", "volume") if c in found]]
    decisions = read_decisions(file)
    if PATIENT not in decisions:
        raise DataError(
            f"{file} holds corrections of scans that the data has already", f"apply them: --corrections {file}"
        )
    agreed, torn = settled(decisions)
    if torn:
        log.warning("%s: %d scans are not taken: reviewers differ", file.name, len(torn))
    found = agreed[agreed["decision"] == RELABEL]
    if found.empty:
        raise DataError(f"no scan in {file} has a label yet", "give labels: octfast review --pool suggestions.csv")
    root = file.absolute().parent
    table = pd.DataFrame({"path": [str(root / p) for p in found["path"]], "label": found["new"].to_numpy()})
    return table.assign(**{c: found[c].to_numpy() for c in (PATIENT, *UNIT) if c in found})


def _holds_decisions(file: Path) -> bool:
    try:
        return file.suffix.lower() in TABLE_SUFFIXES and {"path", "decision", "old", "new"} <= set(header(file))
    except (OSError, ValueError):
        return False
