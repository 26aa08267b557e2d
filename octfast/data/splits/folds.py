"""Draws splits and folds that share no patient and no file, each with its proportion of every class."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from octfast.data.scans import describe_scans
from octfast.data.splits.assign import assign_groups
from octfast.data.splits.groups import identical_files, linked_groups
from octfast.data.splits.hold_out import shared_patients
from octfast.data.splits.leaks import drop_leaks
from octfast.errors import DataError, UsageError

log = logging.getLogger("octfast")

COLUMNS = ("path", "label", "patient", "split", "fold")
DEFAULT_TEST = 0.15
# A share that is further off than this is said in the log.
TOLERANCE = 0.05


def make_splits(
    scans: pd.DataFrame, valid: float = 0.1, test: float | None = None, folds: int = 5, seed: int = 0
) -> pd.DataFrame:
    """Draw splits and folds by whole patients, each class in about its proportion; see `assign_groups` for how close.

    Scans linked by a patient or by byte-identical files stay in one split. Where too few patients make a wanted share
    impossible, the log says so.

    Parameters
    ----------
    scans : a Scans table.
    valid : the share of all scans for validation; 0 for none.
    test : the share of all scans for the test; 0 for none. None keeps the test scans that there are, leaving out
        scans elsewhere of their patients, and draws .15 where there are none.
    folds : how many folds to share the scans outside of test into, 2 or more; 0 for none. Training with fold k
        validates on fold k, and on nothing of `split`'s validation.
    seed : of the shuffles, 0 or more.

    Returns
    -------
    The scans sorted by path, with `path` (absolute), `label`, `patient`, `split` and `fold` (0 to folds - 1, missing
    for test scans).

    Raises
    ------
    UsageError : a share or number out of range.
    DataError : too few patients for these splits, or a class of which none is left to train on.
    """
    given = scans["split"] == "test"
    keep = test is None and bool(given.any())
    share = 0.0 if keep else DEFAULT_TEST if test is None else test
    _check_numbers(valid, share, folds, seed)
    scans = scans.sort_values("path", ignore_index=True)
    scans["_same"] = identical_files(scans["path"].tolist())
    if keep:
        log.info("the %d test scans are kept as the test split; --test would draw one anew", given.sum())
        # Validation is drawn anew, so the given one keeps no training scan out.
        given = scans["split"] == "test"
        scans, _ = drop_leaks(scans.assign(split=np.where(given, "test", "train")), scans["_same"].to_numpy())
    elif given.any():
        log.warning("--test %s: the %d given test scans are shared out anew with the others", share, given.sum())
    out = scans.reset_index(drop=True)
    pool = np.flatnonzero((out["split"] != "test") if keep else np.ones(len(out), dtype=bool))
    if not len(pool):
        raise DataError("all scans are test scans, none is left to train on", "draw a test anew: --test 0.15")
    group = linked_groups(out.iloc[pool], out["_same"].to_numpy()[pool])
    counts = np.array(pd.crosstab(group, out["label"].iloc[pool].to_numpy()))
    classes = sorted(out["label"].iloc[pool].unique())
    rng = np.random.default_rng(seed)
    # Where a given test is kept, validation still gets its share of all scans.
    parts = {"train": 0.0, "valid": valid * len(out) / len(pool) if keep else valid, "test": share}
    parts["train"] = 1 - parts["valid"] - parts["test"]
    if parts["train"] <= 0:
        raise UsageError(f"--valid {valid}: that leaves nothing to train on beside the given test", "ask for less")
    parts = {name: part for name, part in parts.items() if part > 0}
    assigned = _assign(counts, parts, classes, rng)
    split = out["split"].to_numpy(dtype=object, copy=True)
    split[pool] = np.array(list(parts), dtype=object)[assigned][group]
    out["split"] = split
    out["fold"] = _folds(out, folds, rng)
    leaked = shared_patients(out)
    assert leaked.empty, leaked
    return out[list(COLUMNS)]


def describe_splits(splits: pd.DataFrame, by: str = "split") -> pd.DataFrame:
    """A row a split (or fold): a column a class with its scans, then `scans`, `share` of all, and `patients`."""
    counts = describe_scans(splits, by)
    counts.insert(len(counts.columns) - 1, "share", counts["scans"] / counts["scans"].sum())
    return counts


def _check_numbers(valid: float, test: float, folds: int, seed: int) -> None:
    for name, share in (("valid", valid), ("test", test)):
        if not 0 <= share <= 0.5:
            raise UsageError(f"--{name} {share}: outside 0 to 0.5", f"for example --{name} 0.1")
    if valid + test > 0.9:
        raise UsageError(f"--valid {valid} and --test {test} leave too little to train on", "ask for less")
    if folds != 0 and folds < 2:
        raise UsageError(f"--folds {folds}: must be 2 or more, or 0 for none", "for example --folds 5")
    if seed < 0:
        raise UsageError(f"--seed {seed}: must be 0 or more", "for example --seed 1")


def _assign(counts: np.ndarray, parts: dict[str, float], classes: list[str], rng: np.random.Generator) -> np.ndarray:
    """The split of each group; shares far from those wanted are logged, and what cannot be trained on is refused."""
    if len(counts) < len(parts):
        raise DataError(
            f"{' and '.join(parts)} cannot be drawn from {len(counts)} groups of patients",
            "more patients are needed, or fewer splits: --valid 0, --test 0",
        )
    assigned = assign_groups(counts, np.array(list(parts.values())), rng, main=0)
    have = np.stack([counts[assigned == i].sum(0) for i in range(len(parts))])
    for i, name in enumerate(parts):
        absent = [c for c, n in zip(classes, have[i], strict=True) if n == 0]
        groups = (counts > 0).sum(0)
        told = ", ".join(f"{c} (patients in all: {groups[classes.index(c)]})" for c in absent)
        if have[i].sum() == 0 or (name == "train" and absent):
            raise DataError(
                f"there are too few patients for a {name} split" + (f" with {told}" if have[i].sum() else ""),
                "more patients are needed, or fewer splits: --valid 0, --test 0",
            )
        if absent:
            log.warning("too few patients: %s has no scan of %s", name, told)
    _log_far_shares(have, parts, classes, (counts > 0).sum(0))
    return assigned


def _log_far_shares(have: np.ndarray, parts: dict[str, float], classes: list[str], groups: np.ndarray) -> None:
    for i, (name, wanted) in enumerate(parts.items()):
        share = have[i].sum() / have.sum()
        if abs(share - wanted) > TOLERANCE:
            log.warning(
                "too few or too uneven patients: %s has %.0f%% of the scans, not %.0f%%",
                *(name, 100 * share, 100 * wanted),
            )
        for k, label in enumerate(classes):
            share = have[i, k] / have[:, k].sum()
            if have[i, k] and abs(share - wanted) > TOLERANCE:
                log.warning(
                    "too few or too uneven patients of %s (%d): %s has %.0f%% of its scans, not %.0f%%",
                    *(label, groups[k], name, 100 * share, 100 * wanted),
                )


def _folds(out: pd.DataFrame, folds: int, rng: np.random.Generator) -> pd.Series:
    fold = pd.Series(pd.NA, index=out.index, dtype="Int64")
    if not folds:
        return fold
    pool = np.flatnonzero(out["split"] != "test")
    group = linked_groups(out.iloc[pool], out["_same"].to_numpy()[pool])
    table = pd.crosstab(group, out["label"].iloc[pool].to_numpy())
    if len(table) < folds:
        raise DataError(
            f"{folds} folds cannot be made of {len(table)} groups of patients",
            f"ask for fewer: --folds {max(2, len(table))}, or 0 for none",
        )
    assigned = assign_groups(table.to_numpy(), np.full(folds, 1 / folds), rng)
    fold.iloc[pool] = assigned[group]
    for label in table.columns:
        holders = np.unique(assigned[table[label].to_numpy() > 0])
        if len(holders) == 1:
            log.warning(
                "too few patients: %s is in fold %d alone, so --fold %d cannot train it", label, *[holders[0]] * 2
            )
        elif len(holders) < folds:
            log.warning("too few patients: %s is in %d of %d folds", label, len(holders), folds)
    return fold
