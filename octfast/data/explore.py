"""Describes a data set in tables: scans and patients a split and class, sizes, modes and formats, brightness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image, ImageStat

from octfast.console import track
from octfast.data.decode import Unreadable, decode, open_regular
from octfast.data.phantom.draw import is_synthetic
from octfast.data.readers.read import read_data
from octfast.data.readers.volumes import why_unreadable
from octfast.data.scans import SPLITS, in_order, write_csv
from octfast.data.volumes.kinds import is_named_as_volume
from octfast.errors import DataError
from octfast.files import in_threads, is_taken, usable_cores

if TYPE_CHECKING:
    from octfast.figure import Figure, Files

SYNTHETIC = "Synthetic phantoms, which show no patient."
ALL = "all"
MOST_CLASSES = 20  # that a figure has room for


@dataclass(frozen=True)
class Exploration:
    """A data set, described.

    scans : the Scans table with `width`, `height` (pixels; 0 where the file cannot be read), `mode`, `format`,
        `brightness` (mean grey, 0 to 255; NaN where it was not asked for) and `trouble` ("" or why it cannot be read).
    name : of the data set, for titles.
    synthetic : whether they are phantoms.
    """

    scans: pd.DataFrame
    name: str
    synthetic: bool

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables by name: counts, patients, balance, sizes, formats, brightness; no index, ready to be written."""
        return {
            "counts": counts(self.scans).reset_index(),
            "patients": patients(self.scans).reset_index(),
            "balance": balance(self.scans).reset_index(),
            "sizes": sizes(self.scans),
            "formats": formats(self.scans),
            "brightness": brightness(self.scans),
        }

    def figures(self, samples: int = 4, seed: int = 0) -> dict[str, Figure]:
        """All figures by name: counts, sizes, brightness where it was measured, samples.

        Of more than 20 classes, the 20 with the most scans are drawn; the tables have all.
        """
        from octfast.data import explore_figures as draw

        note = SYNTHETIC if self.synthetic else ""
        largest = self.scans["label"].value_counts().index[:MOST_CLASSES]
        shown = self.scans[self.scans["label"].isin(largest)]
        if len(shown) < len(self.scans):
            of = self.scans["label"].nunique()
            note = f"The {MOST_CLASSES} of {of} classes that have the most scans.  {note}".strip()
        figures = {
            "counts": draw.counts_figure(shown, self.name, note),
            "sizes": draw.sizes_figure(shown, self.name, note),
            "samples": draw.plot_samples(shown, samples, seed, title=f"{self.name}: samples", note=note),
        }
        if shown["brightness"].notna().any():
            figures["brightness"] = draw.brightness_figure(shown, self.name, note)
        return figures

    def save(self, out: str | Path, samples: int = 4, seed: int = 0, files: Files | None = None) -> list[Path]:
        """Write every table as CSV and every figure, as PNG unless `files` says otherwise, and give back the files.

        Raises
        ------
        DataError : `out` is not empty or cannot be written.
        """
        from octfast.figure import Files

        write = files or Files()
        out = check_folder_free(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            written = []
            for name, table in {**self.tables(), "scans": self.scans}.items():
                written.append(out / f"{name}.csv")
                write_csv(table, written[-1])
            written += [write.save(fig, out / name) for name, fig in self.figures(samples, seed).items()]
        except OSError as e:
            raise DataError(f"cannot write {out}: {e}", "choose a folder that can be written to") from e
        return written

    def to_dict(self) -> dict[str, Any]:
        """All tables as plain values for JSON."""
        return {
            "name": self.name,
            "synthetic": self.synthetic,
            "total": {
                "scans": len(self.scans),
                "patients": int(self.scans["patient"].nunique()),
                "unreadable": int((self.scans["trouble"] != "").sum()),
            },
            **{name: table.to_dict("records") for name, table in self.tables().items()},
        }


def explore(
    data: pd.DataFrame | str | Path, with_brightness: bool = True, workers: int | None = None, **columns: Any
) -> Exploration:
    """Describe a data set: reads the head of each file, and its picture too where the brightness is wanted.

    Parameters
    ----------
    data : a Scans table, or what `octfast.data.readers.read.read_data` reads.
    with_brightness : measure the mean grey of each scan; of a JPEG an eighth of the size is decoded.
    workers : threads; by default one a core, 8 at most.
    columns : further parameters of `read_data`.

    Raises
    ------
    DataError : no data set, or an empty table.
    """
    scans = (data if isinstance(data, pd.DataFrame) else read_data(data, **columns)).reset_index(drop=True)
    if scans.empty:
        raise DataError("there are no scans to explore", "give a folder or table of scans")
    with track("exploring", len(scans)) as update:
        scans = measure(scans, with_brightness, workers, update)
    name = "scans" if isinstance(data, pd.DataFrame) else Path(data).expanduser().resolve().name
    return Exploration(scans, name, is_synthetic(scans))


def measure(
    scans: pd.DataFrame,
    with_brightness: bool = True,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """A copy of a Scans table with `width`, `height`, `mode`, `format`, `brightness`, `trouble`, see `Exploration`.

    Parameters
    ----------
    progress : called with (done, all) in the calling thread.
    """
    rows = []
    threads = workers or min(8, usable_cores())
    for row in in_threads(lambda path: _measure(path, with_brightness), scans["path"], threads):
        rows.append(row)
        if progress:
            progress(len(rows), len(scans))
    measured = pd.DataFrame(rows, columns=["width", "height", "mode", "format", "brightness", "trouble"])
    return pd.concat([scans.drop(columns=measured.columns, errors="ignore").reset_index(drop=True), measured], axis=1)


def counts(scans: pd.DataFrame) -> pd.DataFrame:
    """Scans a split (rows) and class (columns), and their sums: the last row and column are `all`."""
    return _with_sums(pd.crosstab(scans["split"], scans["label"]))


def patients(scans: pd.DataFrame) -> pd.DataFrame:
    """Patients a split and class; `all` counts each patient once, so it may be less than the sum."""
    by = _in_order(scans.groupby(["split", "label"])["patient"].nunique().unstack(fill_value=0))
    by[ALL] = scans.groupby("split")["patient"].nunique()
    by.loc[ALL] = [*scans.groupby("label")["patient"].nunique().reindex(by.columns[:-1]), scans["patient"].nunique()]
    return by


def balance(scans: pd.DataFrame) -> pd.DataFrame:
    """The share of each class in each split; `largest/smallest` is how many times the largest class is the smallest."""
    number = counts(scans).drop(columns=ALL)
    share = number.div(number.sum(axis=1), axis=0)
    smallest = number.min(axis=1)
    share["largest/smallest"] = number.max(axis=1).div(smallest.where(smallest > 0))
    return share


def sizes(scans: pd.DataFrame) -> pd.DataFrame:
    """Widths and heights and how many scans have them, the most frequent first: `width`, `height`, `scans`, `share`.

    Parameters
    ----------
    scans : of `measure`.
    """
    return _frequencies(scans, ["width", "height"])


def formats(scans: pd.DataFrame) -> pd.DataFrame:
    """File formats and modes (L is grey) and how many scans have them: `format`, `mode`, `scans`, `share`.

    Parameters
    ----------
    scans : of `measure`.
    """
    return _frequencies(scans, ["format", "mode"])


def brightness(scans: pd.DataFrame) -> pd.DataFrame:
    """Mean grey (0 to 255) of the scans by split and class: `split`, `label`, `scans`, `mean`, `std`, `min`, `max`.

    Parameters
    ----------
    scans : of `measure`; those not measured are left out.
    """
    by = scans.dropna(subset="brightness").groupby(["split", "label"])["brightness"]
    table = by.agg(["size", "mean", "std", "min", "max"]).rename(columns={"size": "scans"}).reset_index()
    order = table["split"].map({s: i for i, s in enumerate(SPLITS)})
    return table.assign(order=order).sort_values(["order", "label"], ignore_index=True).drop(columns="order")


def check_folder_free(out: str | Path) -> Path:
    """The folder, where nothing is in it yet.

    Raises
    ------
    DataError : it is a file, or not empty.
    """
    out = Path(out).expanduser()
    if is_taken(out):
        raise DataError(f"{out} exists and is not empty", "choose another folder; nothing is overwritten")
    return out


def _measure(path: str, with_brightness: bool) -> tuple[int, int, str, str, float, str]:
    if is_named_as_volume(path):
        return 0, 0, "", "", float("nan"), why_unreadable(path) or "not a picture"
    try:
        if with_brightness:
            # The means of JPEG's blocks of 8 x 8 can be had without the rest.
            found = decode(path, small=True)
            mean = float(ImageStat.Stat(found.grey).mean[0])
            return found.width, found.height, found.mode, found.format, mean, ""
        with open_regular(path) as file, Image.open(file) as image:
            return image.width, image.height, image.mode, image.format or "", float("nan"), ""
    except Unreadable as e:
        return 0, 0, "", "", float("nan"), e.reason
    except Exception as e:  # see `decode`
        return 0, 0, "", "", float("nan"), "not a picture" if "cannot identify" in str(e) else str(e)


def _frequencies(scans: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    table = scans[scans["width"] > 0].groupby(columns).size().rename("scans").reset_index()
    table["share"] = table["scans"] / max(1, table["scans"].sum())
    return table.sort_values(["scans", *columns], ascending=[False, True, True], ignore_index=True)


def _with_sums(table: pd.DataFrame) -> pd.DataFrame:
    table = _in_order(table)
    table[ALL] = table.sum(axis=1)
    table.loc[ALL] = table.sum()
    return table


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    table = table.reindex([s for s in SPLITS if s in table.index]).astype(np.int64)[in_order(table.columns)]
    table.columns.name = None
    return table
