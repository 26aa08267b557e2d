"""What `octfast drift` does: a table of predictions against the training scans of the run that made them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.assess.drift.compare import LEAST, compare_classes, compare_values, judged, share_interval
from octfast.assess.drift.figure import draw
from octfast.assess.drift.read import measure, patients_of, periods_of, read_answers, read_scans
from octfast.assess.drift.result import Drift
from octfast.assess.predictions import held_out_predictions
from octfast.console import track
from octfast.data.scans import write_csv
from octfast.figure import save_figure
from octfast.files import new_folder, write_text
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.read import read_info
from octfast.model.decide import decide, rule_of
from octfast.run.folder import FOLD, Run

log = logging.getLogger("octfast")

_NAMES = {
    "unlike": "the share of scans unlike the training scans",
    "class shares": "the shares of the predicted classes",
    "referred": "the share to refer urgently",
    "probability": "the probability of the predicted class",
    "distance": "the distance to the training scans",
    "brightness": "the brightness",
    "contrast": "the contrast",
}


def find_drift(
    predictions: str | Path,
    run: Run,
    *,
    by: str | None = None,
    date_column: str | None = None,
    file_dates: bool = False,
    patient_column: str | None = None,
    patient_from: str | None = None,
    scans: str | Path | None = None,
    path_column: str | None = None,
    pictures: int = 500,
    resamples: int = 2000,
    seed: int = 0,
) -> Drift:
    """Compare a table of `octfast predict` with the training and validation scans of the run that made it.

    Parameters
    ----------
    predictions : CSV, JSON lines or parquet.
    by : day, week, month, quarter or year, with dates from `date_column` or, by `file_dates`, from when each file was
        last changed; None with either of these is month, without them the whole is taken at once.
    patient_column, patient_from : whose scan each is; without, each file is a patient of its own.
    scans, path_column : a table that has the columns of patient and date where the predictions have not.
    pictures : files to read on each side, for brightness and contrast; 0 reads none.
    resamples, seed : of the bootstrap, and of which pictures are read.

    Raises
    ------
    UsageError, DataError : see `octfast.assess.drift.read`.
    BundleError : the run cannot be read.
    """
    info = read_info(run.bundle)
    new, unread = read_answers(predictions, info.classes)
    others = None if scans is None else read_scans(scans, path_column)
    new["patient"], source = patients_of(new, patient_column, patient_from, others, info.classes)
    if by or date_column or file_dates:
        new["period"] = periods_of(new, by or "month", date_column, file_dates, others)
    training = _training(run, info)
    notes = _notes(run, new, training, unread)
    if pictures:
        _add_pictures(training, new, pictures, seed, notes)
    rows = []
    for figure, column, share in (
        ("unlike", "unlike_training", True),
        ("referred", "referred", True),
        ("probability", "probability", False),
        ("distance", "distance", False),
        ("brightness", "brightness", False),
        ("contrast", "contrast", False),
    ):
        if column in new and column in training:
            rows.append(compare_values(figure, training, new, column, share=share))
    rows += compare_classes(training, new, info.classes)
    table = judged(rows, resamples, seed)
    periods = _periods(new, info.classes, resamples, seed) if "period" in new else pd.DataFrame()
    about = {
        "run": run.path.name,
        "predictions": Path(predictions).name,
        "scans": len(new),
        "patients": int(new["patient"].nunique()),
        "patients_from": source,
        "training_scans": len(training),
        "training_patients": int(training["patient"].nunique()),
        "unread": unread,
        "synthetic": info.synthetic,
        "notes": notes,
    }
    words = _words(table, periods, new, about, resamples, seed)
    labels = run.scans[run.scans["split"] != "test"]["label"].value_counts(normalize=True)
    shares = {c: float(labels.get(c, 0.0)) for c in info.classes}
    return Drift(table, periods, words, about, training, new, info.classes, shares)


def _training(run: Run, info: BundleInfo) -> pd.DataFrame:
    """The scans that the model was judged on without having seen their patients, with the columns of new ones."""
    table, _ = held_out_predictions(run)
    if FOLD not in table:
        log.warning("%s was not cross-validated: new scans are compared with its validation scans alone", run.path.name)
    table = table.drop_duplicates("path").reset_index(drop=True)
    said = decide(
        table[[f"p_{c}" for c in info.classes]].to_numpy(dtype=float), rule_of(info.classes, info.calibration)
    )
    if said.referred is not None:
        table["referred"] = said.referred.astype(float)
    distances = run.distances
    if distances is not None:
        table["distance"] = table["path"].map(distances.drop_duplicates("path").set_index("path")["distance"])
        table["unlike_training"] = (table["distance"] > 1).astype(float).where(table["distance"].notna())
    return table


def _notes(run: Run, new: pd.DataFrame, training: pd.DataFrame, unread: int) -> list[str]:
    notes = []
    if unread:
        notes.append(f"{unread:,} files could not be read and are left out")
    if "distance" not in new:
        notes.append("the model does not know its distance to the training scans: train it again for that")
    elif "distance" not in training:
        notes.append(
            f"{run.path.name} keeps no distances of its own scans, as it was made before or of too few patients; how "
            "many are unlike is told, and compared with nothing"
        )
    known = set(run.scans["path"])
    again = sum(p in known for p in (str(Path(p).absolute()) for p in new["path"].astype(str)))
    if again:
        notes.append(f"{again:,} of the scans are the run's own: they look more like training than new ones would")
    for note in notes:
        log.warning("%s", note)
    return notes


def _add_pictures(training: pd.DataFrame, new: pd.DataFrame, most: int, seed: int, notes: list[str]) -> None:
    """Give both tables `brightness` and `contrast` of at most so many scans each, drawn at random."""
    for table, name in ((training, "training"), (new, "new")):
        alone = table[table["frame"].isna()] if "frame" in table else table
        if len(alone) < len(table):
            notes.append(
                f"brightness and contrast are of pictures alone, not of {len(table) - len(alone):,} B-scans of volumes"
            )
        some = alone.sample(min(most, len(alone)), random_state=seed) if len(alone) else alone
        if len(some):
            with track(f"measuring {name} scans", len(some)) as update:
                found = measure(some["path"].astype(str).tolist(), update)
            table.loc[some.index, found.columns.tolist()] = found.to_numpy()
            lost = int(found["brightness"].isna().sum())
            if lost:
                notes.append(f"{lost:,} of {len(some):,} {name} scans are not where they were, and are not measured")
                log.warning("%s", notes[-1])


def _periods(new: pd.DataFrame, classes: tuple[str, ...], resamples: int, seed: int) -> pd.DataFrame:
    rows = []
    for period, part in new.groupby("period"):
        row: dict[str, Any] = {"period": period, "scans": len(part), "patients": part["patient"].nunique()}
        if "unlike_training" in part and part["unlike_training"].notna().any():
            said = part.dropna(subset=["unlike_training"])
            shares = share_interval(said["unlike_training"], said["patient"], resamples, seed)
            row |= dict(zip(("unlike", "low", "high"), shares, strict=True))
        for column in ("referred", "probability", "distance", "brightness", "contrast"):
            if column in part:
                row[column] = float(part[column].mean())
        answered = part[part["predicted"].isin(classes)]
        row |= {f"share_{c}": float((answered["predicted"] == c).mean()) for c in classes}
        rows.append(row)
    return pd.DataFrame(rows)


def _words(
    table: pd.DataFrame, periods: pd.DataFrame, new: pd.DataFrame, about: dict[str, Any], resamples: int, seed: int
) -> list[str]:
    words = []
    if "unlike_training" in new:
        told = new.dropna(subset=["unlike_training"])
        share, low, high = share_interval(told["unlike_training"], told["patient"], resamples, seed)
        words.append(
            f"{share:.1%} ({low:.1%} to {high:.1%}) of {about['scans']:,} scans of {about['patients']:,} patients are "
            "unlike anything the model was trained on; the limit is set for 1% of scans like those."
        )
    tested = table[table["p"].notna()]
    moved = tested[tested["moved"].eq(True)]
    same = tested[tested["moved"].eq(False)]
    if len(tested) == 0:
        words.append(f"Nothing is tested: it takes {LEAST} patients on each side.")
    if len(moved):
        words.append("Moved beyond chance: " + "; ".join(_change(r, table) for r in moved.itertuples()) + ".")
    if len(same):
        words.append("Not beyond chance with so many patients: " + "; ".join(_NAMES[f] for f in same["figure"]) + ".")
    if "unlike" in periods:
        high_ones = periods[periods["low"] > 0.01]
        if len(high_ones):
            named = ", ".join(f"{r.period} ({r.unlike:.0%})" for r in high_ones.itertuples())
            words.append(f"More than 1% unlike, beyond chance, each period by itself: {named}.")
    return words


def _change(row: Any, table: pd.DataFrame) -> str:
    if row.figure == "class shares":
        classes = table[table["figure"] == "class share"].copy()
        classes["size"] = classes["difference"].abs()
        most = classes.sort_values("size", ascending=False).head(2)
        said = ", ".join(f"{r.of} {r.new:.0%} instead of {r.training:.0%}" for r in most.itertuples())
        return f"{_NAMES[row.figure]} ({said})"
    shown = "{:.1%}" if row.figure in ("unlike", "referred") else "{:.3g}"
    a, b = shown.format(row.training), shown.format(row.new)
    if a == b:
        return f"{_NAMES[row.figure]} (mean {b} as before, but spread otherwise)"
    return f"{_NAMES[row.figure]} ({b} instead of {a})"


def save_drift(found: Drift, folder: str | Path) -> list[Path]:
    """Write drift.csv, drift.json, drift.png, and with dates drift-periods.csv, into a new folder.

    Raises
    ------
    UsageError : the folder exists and is not empty, or cannot be written to.
    """
    folder = new_folder(Path(folder).expanduser())
    files = [folder / "drift.csv", folder / "drift.json", folder / "drift.png"]
    write_csv(found.table, files[0])
    write_text(files[1], json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n")
    save_figure(draw(found), files[2])
    if len(found.periods):
        files.append(folder / "drift-periods.csv")
        write_csv(found.periods, files[-1])
    return files


def default_folder(predictions: str | Path) -> Path:
    """Beside the table of predictions, NAME-drift; with a number where that is there."""
    file = Path(predictions).expanduser()
    folder, n = file.with_name(f"{file.stem}-drift"), 1
    while folder.exists():
        n += 1
        folder = file.with_name(f"{file.stem}-drift-{n}")
    return folder
