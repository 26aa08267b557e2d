"""Tells the releases of OCT2017 apart by how many scans of each class they hold, and says what is known of each."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

_CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")
_V2 = (
    "of OCT2017, Mendeley v2 has the same patients in several of its folders, and file names that collide when "
    "train and test are merged; such leaks raised accuracy by 5 to 30 points over the sets that Tampu, Eklund and "
    "Haj-Hosseini examined (Scientific Data 2022)"
)
_EIGHT = "32 scans cannot steer early stopping or choose a model"
_PAPER = "the paper's own best model was chosen on its test set"


@dataclass(frozen=True)
class Release:
    """A release of OCT2017, or a folder of one: its name, and what is known of it."""

    name: str
    trouble: str
    exact: bool = True

    def __str__(self) -> str:
        return f"{'' if self.exact else 'nearly '}{self.name}: {self.trouble}"


# Counts of CNV, DME, DRUSEN and NORMAL by split; a single number where only the sum is known (Kermany et al., Cell
# 2018).
_KAGGLE: dict[str, tuple[int, ...]] = {
    "train": (37205, 11348, 8616, 26315),
    "valid": (8, 8, 8, 8),
    "test": (242, 242, 242, 242),
}
_WHOLE: tuple[tuple[str, dict[str, tuple[int, ...]], str], ...] = (
    ("OCT2017, the copy on Kaggle", _KAGGLE, f"{_V2}; {_EIGHT}"),
    ("OCT2017, Mendeley v3", {"train": (108309,), "test": (250, 250, 250, 250)}, f"no validation folder; {_PAPER}"),
    ("OCT2017 as the paper counts it", {"train": (37206, 11349, 8617, 51140), "test": (250, 250, 250, 250)}, _PAPER),
)
_FOLDERS = (
    ("the training folder of OCT2017's copy on Kaggle", _KAGGLE["train"], _V2),
    ("the validation folder of OCT2017's copy on Kaggle", _KAGGLE["valid"], _EIGHT),
    ("the test folder of OCT2017's copy on Kaggle", _KAGGLE["test"], _V2),
    ("the training folder of OCT2017, Mendeley v3", (108309,), "its test folder has 1,000 scans"),
    ("the training scans of OCT2017 as the paper counts them", (37206, 11349, 8617, 51140), _PAPER),
    ("the test folder of OCT2017, Mendeley v3", (250, 250, 250, 250), _PAPER),
)


def find_release(scans: pd.DataFrame) -> Release | None:
    """Which release of OCT2017, or which folder of one, a Scans table holds, by its counts; None where none fits.

    A table that differs from a whole release by less than 2% in all is said to be nearly that one.

    Parameters
    ----------
    scans : with `label` and `split`.
    """
    counts = {
        str(split): tuple(int((part["label"] == c).sum()) for c in _CLASSES) for split, part in scans.groupby("split")
    }
    if set(scans["label"]) != set(_CLASSES):
        return None
    if len(counts) == 1:
        (only,) = counts.values()
        return next((Release(name, known) for name, of, known in _FOLDERS if _same(only, of)), None)
    for name, of, known in _WHOLE:
        if counts.keys() == of.keys() and all(_same(counts[s], of[s]) for s in of):
            return Release(name, known)
    for name, of, known in _WHOLE:
        off = sum(_distance(counts.get(s, (0, 0, 0, 0)), of.get(s, (0,))) for s in {*counts, *of})
        total = sum(sum(c) for c in of.values())
        if off < 0.02 * total:
            return Release(name, f"{off:,} scans more or fewer than its {total:,}; {known}", exact=False)
    return None


def _same(counts: tuple[int, ...], of: tuple[int, ...]) -> bool:
    return _distance(counts, of) == 0


def _distance(counts: tuple[int, ...], of: tuple[int, ...]) -> int:
    if len(of) == 1:
        return abs(sum(counts) - of[0])
    return sum(abs(a - b) for a, b in zip(counts, of, strict=True))
