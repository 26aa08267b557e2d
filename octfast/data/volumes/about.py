"""One B-scan of a volume, and what a file says of the volume: eye, spacing, device; what it does not say is blank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

MAX_FRAMES = 4096
MAX_FRAME_PIXELS = 16 << 20
_TEXT = 64


@dataclass(frozen=True)
class BScan:
    """One B-scan of a volume, and its place there.

    Attributes
    ----------
    pixels : grey, uint8 of shape (H, W).
    volume : which of the file's volumes, from 0.
    frame : which of the volume's B-scans, from 0, in the order of the file.
    eye : "R", "L", or "" where the file does not say.
    position_mm : how far its middle lies from that of the first B-scan, in millimetres; None where the file tells
        neither the place of its B-scans nor the distance between them.
    line : where it begins and ends on the picture of the fundus, (x, y, x, y) as shares of that picture's width and
        height from its upper left corner; None where the file does not say.
    """

    pixels: np.ndarray
    volume: int
    frame: int
    eye: str = ""
    position_mm: float | None = None
    line: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class About:
    """What a file says of one of its volumes.

    Attributes
    ----------
    volume : which of the file's, from 0.
    patient : the patient's number as the file has it, or "". It names a person: it is for nothing that leaves the
        machine, see `octfast.data.volumes.pseudonym`.
    eye : "R", "L" or "".
    maker, device : as "Heidelberg" and "Spectralis", or "".
    axial_um, lateral_um, between_um : micrometres from pixel to pixel in depth and across, and from B-scan to B-scan.
    slo : the picture of the fundus that was taken with the volume, uint8 of shape (H, W), or None.
    left_behind : the fields that could name a person or a day, or hold what nobody knows, and how often each is filled.
    notes : what the file does not tell, or tells in a way that is not used.
    """

    volume: int = 0
    patient: str = ""
    eye: str = ""
    maker: str = ""
    device: str = ""
    axial_um: float | None = None
    lateral_um: float | None = None
    between_um: float | None = None
    slo: np.ndarray | None = None
    left_behind: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def noted(self) -> About:
        """The same with a note on each thing that the file does not tell."""
        blanks = {
            "patient": not self.patient,
            "eye": not self.eye,
            "device": not self.device,
            "spacing in depth": self.axial_um is None,
            "spacing across": self.lateral_um is None,
            "distance between B-scans": self.between_um is None,
            "picture of the fundus": self.slo is None,
        }
        missing = [what for what, blank in blanks.items() if blank]
        note = (f"the file does not say: {', '.join(missing)}",) if missing else ()
        return About(**{**self.__dict__, "notes": (*self.notes, *note)})


def micrometres(millimetres: object) -> float | None:
    """A distance in a header as micrometres; None where it is none that a scan of an eye can have."""
    try:
        found = 1000 * float(millimetres)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return round(found, 4) if math.isfinite(found) and 0.01 <= found <= 20_000 else None


def words(raw: object) -> str:
    """The text of a field of a header: printable, on one line, 64 characters at most."""
    text = raw.split(b"\0")[0].decode("latin-1") if isinstance(raw, bytes) else str(raw or "")
    return "".join(c if c.isprintable() else " " for c in text).strip()[:_TEXT].strip()


def distances(middles: np.ndarray) -> list[float] | None:
    """How far each B-scan's middle lies from the first one's, in millimetres; None where the places tell no order.

    Parameters
    ----------
    middles : of shape (B-scans, 2 or 3), in millimetres.
    """
    if len(middles) < 2 or not np.isfinite(middles).all() or np.abs(middles).max() > 1000:
        return None
    away = np.linalg.norm(middles - middles[0], axis=1)
    return [round(float(mm), 4) for mm in away] if (np.diff(away) > 0).all() and away[-1] < 100 else None


def on_fundus(ends: np.ndarray, sides: tuple[float, float]) -> list[tuple[float, float, float, float] | None]:
    """Each B-scan on the picture of the fundus, in shares of its sides; None for what does not lie on it.

    Parameters
    ----------
    ends : where each begins and ends, (B-scans, 2, 2) with x before y, in millimetres from the upper left corner.
    sides : width and height of the picture in millimetres, 0 where they are not known.
    """
    if not (0 < sides[0] < math.inf and 0 < sides[1] < math.inf):
        return [None] * len(ends)
    with np.errstate(all="ignore"):
        shares = ends / np.array(sides)
        on_it = np.isfinite(shares).all(axis=(1, 2)) & (np.abs(shares - 0.5) <= 0.75).all(axis=(1, 2))
        on_it &= (ends[:, 0] != ends[:, 1]).any(axis=1)
    rounded = [tuple(round(float(v), 5) for v in share.ravel()) for share in shares]
    return [line if there else None for line, there in zip(rounded, on_it, strict=True)]  # type: ignore[misc]
