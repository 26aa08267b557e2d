"""What the web page says of a whole volume, eye or patient: its answer, and how much each of its scans counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from octfast.data.look import unusual
from octfast.data.units import one
from octfast.data.volumes.about import About, BScan
from octfast.deploy.app.answers import Answers, Refused, read_picture
from octfast.deploy.app.together import Upload
from octfast.deploy.app.volume import STEP, Volume
from octfast.deploy.predictor import Answer
from octfast.errors import DataError
from octfast.model.pooling import deciding_scans, pooling_in_words

_Seen = tuple[int, Answer, torch.Tensor | None]


@dataclass(frozen=True)
class _Picture(BScan):
    """A picture of a unit: `name` as it was sent, `remarks` what was changed on reading it, or `error`."""

    name: str = ""
    remarks: tuple[str, ...] = ()
    error: DataError | None = None


class UnitVolume(Volume):
    """A file of volumes, asked of a model that answers for whole volumes, eyes or patients.

    The volumes of a file are units where the model answers for volumes, its eyes where it does for eyes (volumes of
    which the eye is not known each alone), and the file where it does for patients. Parameters and attributes are those
    of `Volume`.
    """

    def __init__(self, answers: Answers, content: bytes | Sequence[Upload], name: str = "", pictures: bool = False):
        super().__init__(answers, content, name, pictures)
        self._begin()

    def _begin(self) -> None:
        self._seen: dict[int, list[_Seen]] = {}
        self._eyes: dict[int, str] = {}

    def answer(self, found: list[About | BScan]) -> list[dict[str, Any]]:
        """A line for what a file says of a volume, and one for each B-scan with what it says `alone`, no answer."""
        scans = [_given(scan) for scan in found if isinstance(scan, BScan)]
        said = iter(self.answers.predictor.stream_scans(scans, STEP)) if scans else iter(())
        return [self._about(one) if isinstance(one, About) else self._scan(one, *next(said)) for one in found]

    def end(self) -> dict[str, Any]:
        """The last line: of each volume the answer for the unit that it is of, and how much each of its scans counts.

        Each of `volumes` has `volume`, `eye`, `level`, `frames`, `unread`, `scans` (of the unit) and `of_volumes` (all
        of it); what `octfast.deploy.app.answers.Answers.decided` gives; `attention`, a number a B-scan that sums to 1
        over the unit, null where it could not be read; `deciding`, the fewest frames that count for half of it, but
        none that counts about as others do; `most_volume`, `most_frame` and `most_attention`; and `how` in words.

        Raises
        ------
        Refused : the file could not be read.
        """
        if self.error is not None and not self.frames:
            raise self.error
        rows: list[dict[str, Any]] = []
        for volumes in self._units():
            rows += self._rows(volumes)
        found: dict[str, Any] = {"end": True, "volumes": sorted(rows, key=lambda row: row["volume"])}
        if self.error is not None:
            found["volumes"][-1]["unread"] += 1
            found |= {"error": self.error.message, "hint": self.error.hint}
        return found | self._notices()

    def _units(self) -> list[list[int]]:
        """The volumes of each unit."""
        level = self.answers.predictor.info.level
        found: dict[Any, list[int]] = {}
        for volume in self._seen:
            eye = self._eyes.get(volume, "")
            key = None if level == "patient" else eye if level == "eye" and eye else volume
            found.setdefault(key, []).append(volume)
        return list(found.values())

    def _rows(self, volumes: list[int]) -> list[dict[str, Any]]:
        predictor = self.answers.predictor
        places = [(volume, frame) for volume in volumes for frame, *_ in self._seen[volume]]
        seen = [row for volume in volumes for row in self._seen[volume]]
        answer = predictor.pooled([said for _, said, _ in seen], [outputs for *_, outputs in seen])
        if answer.probabilities is None:
            return [self._unread(volume) for volume in volumes]
        said, _ = self.answers.decided(answer.probabilities, answer.distance)
        most = int(answer.attention.argmax())
        read = sum(outputs is not None for *_, outputs in seen)
        deciding = {places[i] for i in deciding_scans(answer.attention, read)}
        about = {"level": predictor.info.level, "scans": read, "of_volumes": volumes, **said}
        about |= {"most_volume": places[most][0], "most_frame": places[most][1]}
        about["most_attention"] = float(answer.attention[most])
        about["how"] = self.how
        shares = dict(zip(places, answer.attention.tolist(), strict=True))
        rows = []
        for volume in volumes:
            own = self._seen[volume]
            counts = [None if outputs is None else shares[volume, frame] for frame, _, outputs in own]
            row = {**self._counts(volume), **about, "attention": counts}
            rows.append({**row, "deciding": [frame for frame, *_ in own if (volume, frame) in deciding]})
        return rows

    @property
    def how(self) -> str:
        """How scans become the answer, in a sentence."""
        info = self.answers.predictor.info
        return f"The answer for {one(info.level)} is {pooling_in_words(info.pooling or {})}."

    def _counts(self, volume: int) -> dict[str, Any]:
        rows = self._seen[volume]
        unread = sum(outputs is None for *_, outputs in rows)
        return {"volume": volume, "eye": self._eyes.get(volume, ""), "frames": len(rows) - unread, "unread": unread}

    def _unread(self, volume: int) -> dict[str, Any]:
        found = {"level": self.answers.predictor.info.level, "scans": 0, "of_volumes": [volume], "predicted": None}
        counts = [None] * len(self._seen[volume])
        return {**self._counts(volume), **found, "probabilities": {}, "attention": counts, "deciding": []}

    def _scan(self, scan: BScan, said: Answer, outputs: torch.Tensor | None) -> dict[str, Any]:
        self._seen.setdefault(scan.volume, []).append((scan.frame, said, outputs))
        self._eyes[scan.volume] = self._eyes.get(scan.volume) or scan.eye
        place = self._place(scan)
        changed: Sequence[str] = ()
        if isinstance(scan, _Picture):
            place["name"], changed = scan.name, scan.remarks
        self.frames += 1
        if said.error is not None:
            return {**place, "error": said.error.message, "hint": said.error.hint}
        size = scan.pixels.shape[1], scan.pixels.shape[0]
        assert said.probabilities is not None
        alone = {c: float(p) for c, p in zip(self.answers.rule.classes, said.probabilities, strict=True)}
        remarks = [*changed, *(str(r) for r in said.remarks if str(r) not in said.quality)]
        found = {**place, "alone": alone, **self.answers.of_picture(said, size, remarks)}
        if self.answers.rule.unlike:
            found |= {
                "unlike_training": bool(said.distance is not None and said.distance > 1),
                "distance": said.distance,
            }
        return found


class Pictures(UnitVolume):
    """Several pictures that are one unit.

    Parameters
    ----------
    files : of each its name and its content.

    Raises
    ------
    Refused : the model answers for single scans, or there are more files than are taken.
    """

    def __init__(self, answers: Answers, files: Sequence[tuple[str, bytes]], pictures: bool = False):
        level = answers.predictor.info.level
        if level == "scan":
            raise Refused(422, "this model answers for single scans", "send each picture to /api/predict")
        if len(files) > answers.limits.max_files:
            words = f"{len(files)} pictures, and {answers.limits.max_files} are taken"
            raise Refused(413, words, "octfast app --max-files takes more, and octfast predict takes any")
        self.answers, self.pictures = answers, pictures
        self.frames, self.error = 0, None
        self._found = self._read(files)
        self._begin()

    def _read(self, files: Sequence[tuple[str, bytes]]) -> Iterator[About | BScan]:
        yield About()
        for n, (name, content) in enumerate(files):
            try:
                read = read_picture(content, self.answers.limits)
            except Refused as e:
                yield _Picture(np.zeros((0, 0), np.uint8), 0, n, name=name, error=DataError(e.message, e.hint))
                continue
            words = tuple(words for _, words in unusual(read))
            yield _Picture(np.asarray(read.grey), 0, n, name=name, remarks=words)

    def read(self) -> list[About | BScan]:
        return list(islice(self._found, STEP))

    def close(self) -> None:
        """There is nothing to let go of."""


def open_volume(answers: Answers, content: bytes | Sequence[Upload], name: str = "", pictures: bool = False) -> Volume:
    """A `Volume`, or a `UnitVolume` where the model answers for these; parameters and what is raised as of it."""
    kind = Volume if answers.predictor.info.level == "scan" else UnitVolume
    return kind(answers, content, name, pictures)


def _given(scan: BScan) -> Any:
    return scan.error if isinstance(scan, _Picture) and scan.error is not None else scan.pixels
