"""The scans of the volumes, eyes or patients on a review's list: which they are, and how much each of them counted."""

from __future__ import annotations

import pandas as pd

from octfast.assess.predictions import scan_answers
from octfast.data.units import units_of
from octfast.model.units import unit_names
from octfast.run.folder import Run


def scans_of_units(run: Run, table: pd.DataFrame, level: str) -> pd.DataFrame:
    """The scans of the units of a Predictions table.

    Parameters
    ----------
    run : one that answers for units.
    table : of training and validation units, or some of them.

    Returns
    -------
    A row a scan, those of a unit together and the one that counted most first: `path`, `label`, `patient`, `split`,
    `attention`, `unit` (the path that stands for the unit in `table`) and `name` (of the unit).

    Raises
    ------
    OctfastError : see `octfast.assess.predictions.scan_answers`.
    """
    each = pd.concat([scan_answers(run, split) for split in dict.fromkeys(table["split"])], ignore_index=True)
    number = units_of(each, level).number
    known = pd.Series(number, index=each["path"])
    names = dict(zip(known.reindex(table["path"]), unit_names(table, level), strict=True))
    paths = dict(zip(known.reindex(table["path"]), table["path"], strict=True))
    found = each.assign(unit=pd.Series(number).map(paths), name=pd.Series(number).map(names)).dropna(subset=["unit"])
    # Of those that counted alike the one first that stands for the unit.
    found = found.assign(_other=found["path"] != found["unit"])
    found = found.sort_values(["unit", "attention", "_other"], ascending=[True, False, True], kind="stable")
    columns = ["path", "label", "patient", "split", "attention", "unit", "name"]
    return found[columns].reset_index(drop=True)


def unit_of_labels(decisions: pd.DataFrame, level: str) -> dict[str, str]:
    """Of each scan of a pool that was labelled its unit, by a path that stands for it; see `read_decisions`."""
    each = decisions.drop_duplicates("path").reset_index(drop=True)
    units = units_of(each, level)
    return dict(zip(each["path"], each["path"].to_numpy()[units.first][units.number], strict=True))


def unit_of_scans(run: Run, level: str) -> dict[str, str]:
    """Of each scan of a run its unit, by a path that stands for it; paths as corrections.csv has them."""
    from octfast.data.corrections import relative

    scans = run.scans
    units = units_of(scans, level)
    keys = [relative(path, run.root) for path in scans["path"]]
    return {key: keys[units.first[n]] for key, n in zip(keys, units.number, strict=True)}
