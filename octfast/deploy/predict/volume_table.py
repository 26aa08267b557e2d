"""A row a volume from the rows of its B-scans, the urgent ones first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octfast.deploy.predict.rows import Row


class VolumeTable:
    """Gathers the rows of B-scans into a row a volume.

    No vote is taken: one B-scan with an urgent finding among many without is what matters. A volume is as urgent as its
    most urgent B-scan.

    Attributes
    ----------
    columns : `path`; `volume` (which of the file's, from 0); `eye`; `frames` and `unread` (B-scans with and without an
        answer); `urgent` (the highest of its B-scans), `urgent_frame` (which one that is), `referred` (whether any is);
        `scans_<class>` (B-scans with that predicted class) and `highest_p_<class>` a class; `error`.
    """

    def __init__(self, classes: Sequence[str], urgent: bool, referred: bool):
        self.classes = list(classes)
        self.columns = [
            *("path", "volume", "eye", "frames", "unread"),
            *(("urgent", "urgent_frame") if urgent else ()),
            *(("referred",) if referred else ()),
            *(f"scans_{c}" for c in classes),
            *(f"highest_p_{c}" for c in classes),
            "error",
        ]
        self._found: dict[tuple[int, int], dict[str, Any]] = {}
        self._last: dict[int, int] = {}

    def add(self, row: Row) -> None:
        """Count a row; those of pictures are passed over."""
        if not row.of_volume:
            return
        seen = row.values
        # What went wrong belongs to the volume that was being read.
        which = seen["volume"] if seen["volume"] is not None else self._last.get(row.item, 0)
        self._last[row.item] = which
        if (row.item, which) not in self._found:
            empty = {**dict.fromkeys(self.columns), "frames": 0, "unread": 0, "error": "", "eye": ""}
            empty |= {f"scans_{c}": 0 for c in self.classes} | {"path": seen["path"], "volume": which}
            self._found[row.item, which] = empty
        volume = self._found[row.item, which]
        volume["eye"] = volume["eye"] or seen["eye"]
        if seen["error"]:
            volume["unread"] += 1
            volume["error"] = volume["error"] or seen["error"]
            return
        volume["frames"] += 1
        volume[f"scans_{seen['predicted']}"] += 1
        for c in self.classes:
            volume[f"highest_p_{c}"] = max(volume[f"highest_p_{c}"] or 0.0, seen[f"p_{c}"])
        if "urgent" in self.columns and (volume["urgent"] is None or seen["urgent"] > volume["urgent"]):
            volume["urgent"], volume["urgent_frame"] = seen["urgent"], seen["frame"]
        if "referred" in self.columns:
            volume["referred"] = bool(volume["referred"]) or bool(seen["referred"])

    def rows(self) -> list[dict[str, Any]]:
        """The volumes, the most urgent first; without urgent classes in the order of the inputs; unread ones last."""
        found = [self._found[key] for key in sorted(self._found)]
        return sorted(found, key=lambda v: (v["frames"] == 0, -(v.get("urgent") or 0.0)))
