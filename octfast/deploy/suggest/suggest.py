"""`octfast suggest`: which scans or units of a pool without labels to label next, for a run to learn the most."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from octfast.assess.choose import STRATEGIES, Chosen, choose
from octfast.data.corrections import UNIT
from octfast.data.scans import write_csv
from octfast.data.units import unit_columns, units_of
from octfast.deploy.suggest.pool import find_pool
from octfast.errors import DataError, UsageError
from octfast.run.folder import Run, open_run
from octfast.train.again.pool import BodyOfRun, as_vectors

log = logging.getLogger("octfast")

_OF_UNITS = ("path", "patient", *UNIT)
COLUMNS = ("path", "patient", "predicted", "probability", "uncertainty", "novelty", "rank", "why")


@dataclass(frozen=True)
class Suggestions:
    """Scans to label next; volumes, eyes or patients of a model that answers for these.

    Attributes
    ----------
    table : a row a scan, the first to label first: `path`, `patient`, `predicted`, `probability` (of the predicted
        class), `uncertainty` (0 is sure, 1 is any class), `novelty` (0 is like a labelled scan, 1 has nothing in common
        with any), `rank` from 1, `why` in words, then `p_<class>` a class. Of units a row a unit, whose `path` is that
        of the scan that counted most, and after `patient` their `eye`, `volume`, number of `scans` and `file` (of
        volumes, as it was given).
    scans, patients : of the pool that they were chosen from.
    left_out : `path` and `reason` of what was given and could not be chosen.
    level : what is suggested, one of `octfast.data.units.LEVELS`.
    units : how many of these the pool has.
    of_units : of units a row a scan of those in `table`, in its order and the one that counted most first: `rank` of
        the unit, `path`, `patient`, `eye`, `volume`, `file` and `attention` (see `octfast.model.units.unit_tables`);
        else None.
    """

    table: pd.DataFrame
    scans: int
    patients: int
    left_out: pd.DataFrame
    level: str
    units: int
    of_units: pd.DataFrame | None = None


def suggest(
    run: str | Path | Run,
    pool: str | Path | Iterable[str | Path],
    n: int = 50,
    *,
    by: str = STRATEGIES[0],
    path_column: str | None = None,
    patient_column: str | None = None,
    patient_from: str | None = None,
    recursive: bool = True,
    seed: int = 0,
    cache: str | Path | None = None,
) -> Suggestions:
    """Choose the scans of a pool without labels that a run would learn the most from.

        octfast.suggest("runs/latest", "unlabelled/", 50).table

    The run's body is run over the pool once; what it gives is kept, so that the next call takes seconds. No patient has
    a second scan among the suggestions before each of the pool's patients has one. A run that answers for volumes, eyes
    or patients chooses among these in the same way, by their answers and the features of their scans, of which the mean
    is taken, weighed by how much each scan counts.

    Parameters
    ----------
    run : a finished run, or its folder. Its own scans must be at hand.
    pool : files, folders, patterns and tables, with or without labels, which are not looked at; see `find_pool`.
    n : how many, scans or units.
    by : see `octfast.assess.choose.choose`.
    path_column, patient_column, patient_from, recursive : see `find_pool`.
    seed : of what is drawn.
    cache : folder of the stores; None takes the run's, else the user's.

    Raises
    ------
    UsageError : n below 1, an unknown strategy, a column that a table lacks.
    DataError : nothing of the pool can be suggested.
    OctfastError : the run or its scans cannot be read.
    """
    if n < 1:
        raise UsageError(f"n is {n}: at least one scan", "such as 50")
    if by not in STRATEGIES:
        raise UsageError(f"no way to choose named {by!r}", f"one of {', '.join(STRATEGIES)}")
    opened = run if isinstance(run, Run) else open_run(run)
    given = [pool] if isinstance(pool, str | Path) else list(pool)
    body = BodyOfRun(opened, cache)
    level = body.info.level
    found = find_pool(
        opened,
        given,
        level=level,
        path_column=path_column,
        patient_column=patient_column,
        patient_from=patient_from,
        recursive=recursive,
        cache=body.cache,
    )
    features = body.features(found.scans["path"].tolist(), found.digests)
    of_units = None
    if level == "scan":
        about, vectors, logits = found.scans, as_vectors(features), body.logits(features)
    else:
        # An eye or a patient may have several files.
        units = units_of(found.scans, level, keep=["file"] if level == "volume" else [])
        vectors, logits, counts = body.of_units(features, units.number)
        of_units = found.scans.assign(unit=units.number, attention=counts)
        of_units = of_units.sort_values(["unit", "attention"], ascending=[True, False], kind="stable")
        about = units.table.assign(path=of_units.drop_duplicates("unit")["path"].to_numpy())
    p = softmax(logits.astype(float) / body.info.temperature, axis=1)
    patients = about["patient"].to_numpy()
    chosen = choose(vectors, p, patients, n, body.known(), by=by, seed=seed)
    if len(chosen.rows) < n:
        log.warning("the pool has %d %ss, fewer than the %d that were asked for", len(about), level, n)
    table = _table(about, p, chosen, body.info.classes, level)
    if of_units is not None:
        ranks = pd.Series(table["rank"].to_numpy(), index=chosen.rows)
        of_units.insert(0, "rank", of_units["unit"].map(ranks))
        of_units = of_units.dropna(subset="rank").sort_values("rank", kind="stable", ignore_index=True)
        of_units = of_units.drop(columns="unit").astype({"rank": int})
    return Suggestions(table, len(found.scans), len(set(patients)), found.left_out, level, len(about), of_units)


def scans_file(file: str | Path) -> Path:
    """Where the scans of suggested units stand: beside these, -scans in the name."""
    return Path(file).with_name(f"{Path(file).stem}-scans{Path(file).suffix}")


def short_name(name: str) -> str:
    """A patient, an eye or a volume without folders: one of its own is named by its path."""
    return Path(name).name if "/" in name or "\\" in name else name


def unit_words(table: pd.DataFrame, level: str, *, patient: bool = True) -> list[str]:
    """What suggested units are called: patient, eye, volume and file, as far as they differ and without folders."""
    keys = unit_columns(list(table.columns), level)[0 if patient else 1 :]
    rows = table[[*keys, *(["file"] if "file" in table else [])]].to_numpy()
    return [" / ".join(dict.fromkeys(filter(None, map(short_name, row)))) for row in rows]


def save_suggestions(found: Suggestions, file: str | Path) -> Path:
    """Write suggestions as CSV, with whole paths; the scans of units into `scans_file`."""
    if found.of_units is not None:
        write_csv(found.of_units, scans_file(file))
    write_csv(found.table, Path(file))
    return Path(file)


def read_suggestions(file: str | Path, classes: tuple[str, ...]) -> pd.DataFrame:
    """Suggestions as `save_suggestions` wrote them, those whose file is there, in the order of their rank.

    Raises
    ------
    DataError : the file cannot be read, is no table of suggestions, is of a model with other classes, or none of its
        scans is there.
    """
    hint = "give a file that octfast suggest wrote for this run"
    try:
        names = (*_OF_UNITS, "predicted", "why")
        table = pd.read_csv(file, dtype=dict.fromkeys(names, str), keep_default_na=False)
    except (OSError, ValueError) as e:
        raise DataError(f"cannot read {file}: {e}", hint) from None
    if missing := [c for c in (*COLUMNS, *(f"p_{c}" for c in classes)) if c not in table]:
        raise DataError(f"{file} lacks the columns {', '.join(missing)}", hint)
    if strange := sorted(set(table["predicted"]) - set(classes)):
        raise DataError(f"{file} is of a model with the class {strange[0]}", hint)
    there = np.array([Path(p).is_file() for p in table["path"]], dtype=bool)
    if not there.any():
        raise DataError(f"no scan of {file} is there", "were they moved? run octfast suggest again")
    if not there.all():
        log.warning("%s: %d scans are not there any more and are not shown", file, int((~there).sum()))
    return table[there].sort_values("rank", ignore_index=True)


def read_scans(file: str | Path, suggestions: pd.DataFrame) -> pd.DataFrame:
    """The scans of suggested units, as `save_suggestions` wrote them, in the order of their rank.

    Parameters
    ----------
    file : of the suggestions.
    suggestions : see `read_suggestions`.

    Returns
    -------
    `path`, `patient`, `eye`, `volume`, `attention` and `unit`, the path that stands for the unit.

    Raises
    ------
    DataError : the file is missing or damaged, is of other suggestions, or a scan is not there.
    """
    beside = scans_file(file)
    hint = f"octfast suggest wrote it together with {Path(file).name}; run it again"
    try:
        table = pd.read_csv(beside, dtype=dict.fromkeys(("path", "patient", *UNIT), str), keep_default_na=False)
        table = table.assign(unit=table["rank"].map(dict(zip(suggestions["rank"], suggestions["path"], strict=True))))
        # Those of units whose deciding scan is gone are not asked about either.
        table = table.dropna(subset="unit").assign(attention=lambda t: t["attention"].astype(float))
        first = table.drop_duplicates("unit")
        if list(first["path"]) != list(suggestions["path"]):
            raise DataError(f"{beside} holds the scans of other suggestions", hint)
        table = table.assign(**{c: "" for c in UNIT if c not in table})[[*_OF_UNITS, "attention", "unit"]]
    except (OSError, ValueError, KeyError) as e:
        raise DataError(f"cannot read {beside}: {e}", hint) from None
    if gone := [p for p in table["path"] if not Path(p).is_file()]:
        raise DataError(f"{len(gone)} scans of {beside} are not there any more: {gone[0]}", hint)
    return table


def _table(scans: pd.DataFrame, p: np.ndarray, chosen: Chosen, classes: tuple[str, ...], level: str) -> pd.DataFrame:
    rows = chosen.rows
    best = p[rows].argmax(1)
    table = scans.iloc[rows].reset_index(drop=True)
    table["predicted"] = np.asarray(classes, dtype=object)[best]
    table["probability"] = p[rows, best]
    table["uncertainty"], table["novelty"] = chosen.uncertainty[rows], chosen.novelty[rows]
    table["rank"] = np.arange(1, len(rows) + 1)
    # What is usual is what the pool has.
    doubtful, new = (_share_below(values)[rows] for values in (chosen.uncertainty, chosen.novelty))
    table["why"] = [_why(p[row], classes, d, v, level) for row, d, v in zip(rows, doubtful, new, strict=True)]
    for i, c in enumerate(classes):
        table[f"p_{c}"] = p[rows, i]
    about = [c for c in scans if c not in COLUMNS]
    return table[[*COLUMNS[:2], *about, *COLUMNS[2:], *(f"p_{c}" for c in classes)]]


def _share_below(values: np.ndarray) -> np.ndarray:
    """Of each value, which share of all lies below it."""
    return np.searchsorted(np.sort(values), values) / max(1, len(values))


def _why(p: np.ndarray, classes: tuple[str, ...], doubtful: float, new: float, level: str) -> str:
    """In words: between which classes the model is, and how the scan or unit stands among the pool."""
    first, second = np.argsort(-p, kind="stable")[:2]
    between = f"{classes[first]} {p[first]:.0%} or {classes[second]} {p[second]:.0%}"
    return f"{between}; less certain than {doubtful:.0%} of the pool, farther from labelled {level}s than {new:.0%}"
