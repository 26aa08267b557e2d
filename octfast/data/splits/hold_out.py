"""Holds validation scans out by whole patients, each class in its proportion."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pandas as pd

from octfast.data.scans import check_class_names
from octfast.data.splits.groups import group_names
from octfast.errors import DataError, UsageError

log = logging.getLogger("octfast")


def hold_out(scans: pd.DataFrame, share: float, seed: int = 0) -> np.ndarray:
    """Choose about `share` of the scans by whole patients, each class in about its proportion.

    scikit-learn's StratifiedGroupKFold cuts the patients into round(1 / share) groups, and the group whose class
    proportions are nearest to those asked for is held out. A patient stays in training where a class would have no
    training scan without them. The order of the rows does not matter.

    Parameters
    ----------
    scans : with `label` and `patient`; scans of one patient may have several labels.
    share : between 0 and .5.
    seed : of the shuffling.

    Returns
    -------
    A boolean array of shape (len(scans),), True where held out.

    Raises
    ------
    DataError : fewer than two patients, or each is the only one of a class.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    labels, label = np.unique(scans["label"].to_numpy(), return_inverse=True)
    patients, patient = np.unique(scans["patient"].to_numpy(), return_inverse=True)
    if len(patients) < 2:
        raise DataError(
            f"all {len(scans)} scans are of one patient, so none can be held out",
            "more patients are needed; name the files CLASS-PATIENT-IMAGE",
        )
    scans_of = np.zeros((len(patients), len(labels)), dtype=int)
    np.add.at(scans_of, (patient, label), 1)
    counts = scans_of.sum(0)
    if (scans_of == counts).any(1).all():
        raise DataError(
            f"each of the {len(patients)} patients is the only one of a class, so none can be held out",
            "more patients are needed, or --valid folder",
        )
    wanted = counts * share
    folds = max(2, min(round(1 / share), len(patients), int(counts.max())))
    with warnings.catch_warnings():
        # A class with fewer scans than folds is no reason to stop, and the counts are shown to the user anyway.
        warnings.filterwarnings("ignore", "The least populated class")
        splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
        groups = [
            _keep_classes(np.unique(patient[held]), scans_of) for _, held in splitter.split(label, label, patient)
        ]

    def misfit(group: list[int]) -> float:
        got = scans_of[group].sum(0)
        return float(((got - wanted) ** 2 / wanted).sum()) + 1e6 * int((got == 0).sum())

    return np.isin(patient, min((group for group in groups if group), key=misfit))


def _keep_classes(group: np.ndarray, scans_of: np.ndarray) -> list[int]:
    """The patients of a group, in order, but for those without whom a class would have no training scan."""
    left = scans_of.sum(0)
    kept = []
    for patient in group:
        if (left > scans_of[patient]).all():
            left = left - scans_of[patient]
            kept.append(int(patient))
    return kept


def assign_validation(scans: pd.DataFrame, valid: str | float = 0.1, seed: int = 0) -> pd.DataFrame:
    """Give each scan its split; the test scans stay as they are.

    Scans that are linked, by a patient or by files that are the same byte for byte, stay together; where such files
    link all patients, as a blank picture in each may, the patients alone do, and the log says so.

    Parameters
    ----------
    valid : the share of the training and validation scans to hold out by patient, or "folder" to keep the given ones.

    Returns
    -------
    A copy of the table with `split` set.

    Raises
    ------
    UsageError : a share outside 0 to .5, or another word.
    DataError : a name of a class that no model can be saved with; "folder" without a validation folder, or with a class
        that train lacks; too few patients.
    """
    check_class_names(scans["label"].unique())
    out = scans.copy()
    if valid == "folder":
        if not (out["split"] == "valid").any():
            raise DataError("there is no validation folder to keep", "leave --valid out, or give a share: --valid 0.1")
        untrained = sorted(
            set(out.loc[out["split"] == "valid", "label"]) - set(out.loc[out["split"] == "train", "label"])
        )
        if untrained:
            raise DataError(
                f"validation has classes that train lacks: {', '.join(untrained)}",
                "rename or remove them, or have validation held out: --valid 0.1",
            )
        return out
    share = validation_share(valid)
    pool = out.index[out["split"] != "test"]
    held = _held_out(out.loc[pool], share, seed)
    out.loc[pool, "split"] = np.where(held, "valid", "train")
    lacking = sorted(set(out.loc[pool, "label"]) - set(out.loc[out["split"] == "valid", "label"]))
    if lacking:
        log.warning("validation has no scan of %s: too few patients of that class", ", ".join(lacking))
    return out


def _held_out(pool: pd.DataFrame, share: float, seed: int) -> np.ndarray:
    """`hold_out` by groups that no identical file crosses; by patients alone where such files link too many of them."""
    groups = group_names(pool)
    try:
        return hold_out(pool.assign(patient=groups), share, seed)
    except DataError:
        held = hold_out(pool, share, seed)
    log.warning(
        "identical files link so many patients that they cannot all be kept in one split: see octfast data audit"
    )
    return held


def shared_patients(scans: pd.DataFrame) -> pd.DataFrame:
    """The patients that stand in more than one split: a row a patient, with `splits` joined by '+'."""
    splits = scans.groupby("patient")["split"].agg(lambda s: "+".join(sorted(set(s))))
    return splits[splits.str.contains("+", regex=False)].rename("splits").reset_index()


def validation_share(valid: str | float) -> float:
    """The share that --valid gives, where it is not "folder".

    Raises
    ------
    UsageError : outside 0 to .5, or no number.
    """
    try:
        share = float(valid)
    except ValueError:
        raise UsageError(f"--valid {valid}: neither 'folder' nor a number", "for example --valid 0.1") from None
    if not 0 < share <= 0.5:
        raise UsageError(f"--valid {valid}: outside 0 to 0.5", "for example --valid 0.1")
    return share
