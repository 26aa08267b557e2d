"""Bags of scans for tests: phantoms put together as volumes, eyes and patients, with one label each."""

from __future__ import annotations

from pathlib import Path

from octfast.data.readers.folder import read_scans


def bag_table(phantoms: Path, file: Path) -> Path:
    """A table of phantoms, three of a class and split as a volume of a patient and an eye of its own."""
    scans = read_scans(phantoms)
    place = scans.groupby(["split", "label"]).cumcount() // 3
    name = scans["split"].str[:2] + scans["label"] + place.astype(str)
    table = scans.assign(patient="p" + name, eye="OD", volume=name, frame=scans.groupby(name).cumcount())
    table.to_csv(file, index=False)
    return file
