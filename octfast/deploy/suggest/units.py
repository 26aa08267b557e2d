"""Which scans of a pool are of one volume, eye or patient: by a table, by the files of volumes, or by folders."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from octfast.data.readers.volumes import TAG, with_volumes
from octfast.data.units import unit_columns
from octfast.data.volumes.kinds import is_volume
from octfast.errors import UsageError

log = logging.getLogger("octfast")


def scans_of_units(
    paths: Sequence[str],
    of_table: Mapping[str, Mapping[str, str]],
    patients: Sequence[str],
    level: str,
    base: Path,
    *,
    rule: str | None = None,
    cache: str | Path | None = None,
) -> pd.DataFrame:
    """The scans of a pool with what tells their units apart.

    Files of volumes, and folders that a table names, become a row a B-scan, see
    `octfast.data.readers.volumes.with_volumes`. Pictures of which a table says nothing are put
    together by the folder that they lie in, which is said.

    Parameters
    ----------
    paths : absolute, of pictures and of volumes.
    of_table : by path, what a table says: `patient`, `eye`, `volume`.
    patients : of the paths, "" where nothing says any.
    level : of the units.
    base : the folder of them all.
    rule : by which patients were found; "tag" takes those that files of volumes name.
    cache : see `octfast.data.readers.volumes.with_volumes`.

    Returns
    -------
    `path` and the columns of `octfast.data.units.unit_columns`, sorted by path; where there are volumes `file`, of one
    as it was given. A volume that cannot be read keeps the row of its file.

    Raises
    ------
    UsageError : a table names eyes and nothing says whose they are.
    DataError : see `with_volumes`.
    """
    about = {"path": list(paths), "label": "", "patient": list(patients), "split": "", "file": list(paths)}
    table = pd.DataFrame(about, dtype=object)
    for role in ("eye", "volume"):
        table[role] = [of_table.get(path, {}).get(role, "") for path in paths]
    whose = (table["eye"] != "") & (table["patient"] == "")
    if level == "eye" and whose.any():
        raise UsageError(
            f"{table['path'][whose].iloc[0]}: the table says which eye it is of, and not whose",
            "give the table a column patient; all right eyes would be taken for one",
        )
    whole = table["path"].map(lambda path: Path(path).is_dir() or is_volume(path)).to_numpy(dtype=bool)
    read = table[whole]
    if whole.any():
        named = rule not in (None, "name", TAG) or any(of.get("patient") for of in of_table.values())
        read = with_volumes(read, base, named_patients=named, patient_from=rule, cache=cache)
    scans = pd.concat([table[~whole], read], ignore_index=True).sort_values("path", ignore_index=True)
    folder = scans["path"].map(lambda path: str(Path(path).parent))
    alone = scans[level] == ""
    # A volume of which nothing says the eye or the patient is one of its own.
    own = scans["volume"].where(scans["volume"] != "", folder)
    unread = scans["path"].isin(set(table["path"][whole]))
    if (by_folder := alone & (scans["volume"] == "") & ~unread).any():
        log.warning(
            "the pictures of a folder are taken for one %s (%d folders); a table with the columns path and %s says "
            "otherwise",
            *(level, folder[by_folder].nunique(), level),
        )
    scans[level] = scans[level].where(~alone, own)
    if (unknown := (scans["patient"] == "") & ~unread).any():
        log.warning(
            "patients: of %d of %d scans nothing says the patient; each %s of these is taken for a patient of its own, "
            "so that several of one patient may be suggested; --patient-from folder or a pattern names them",
            *(int(unknown.sum()), len(scans), level),
        )
        scans["patient"] = scans["patient"].where(~unknown, own)
    if (scans["eye"] == "").all():
        scans = scans.drop(columns="eye")
    scans["file"] = scans["file"].where(scans["file"] != scans["path"], "")
    file = ["file"] if whole.any() else []
    return scans[["path", *unit_columns(list(scans.columns), level), *file]]
