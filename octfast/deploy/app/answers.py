"""What the web page and its endpoint say of one picture: from the bytes of an upload to an answer as JSON takes it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from octfast.assess.interpret.heatmap import overlay, wedges_in_words
from octfast.assess.similar import label_words
from octfast.data.decode import Decoded, Unreadable, decode
from octfast.data.fit import box_of, seen_in_words
from octfast.data.look import unusual
from octfast.data.units import one
from octfast.data.volumes.kinds import EXPORT_SUFFIX, VOLUME_SUFFIXES, kind_of_bytes
from octfast.data.volumes.reader import MAX_MEMORY
from octfast.deploy.app.similar import SHOWN_TO_ALL, Similar, thumbnail
from octfast.deploy.predictor import Answer, Predictor
from octfast.errors import OctfastError
from octfast.model.bundle.info import BundleInfo
from octfast.model.decide import decide, unlike_words
from octfast.notices import CAUTION, LONG_NOTICE, SYNTHETIC_NOTE, UNSEEN

FORMATS = {"PNG": ".png", "JPEG": ".jpg, .jpeg", "TIFF": ".tif, .tiff", "BMP": ".bmp", "GIF": ".gif", "WEBP": ".webp"}
# Endings of files of volumes; TIFF of several pages is one, too.
VOLUMES = [*VOLUME_SUFFIXES, EXPORT_SUFFIX]
# The longer side of the pictures that are sent back to look at, in pixels.
SHOWN = 1024


@dataclass(frozen=True)
class Limits:
    """What the page takes.

    Attributes
    ----------
    max_bytes : of a picture's file.
    max_pixels : of a picture, read from its header before anything is decoded.
    max_files : that the page takes at once.
    queue : pictures held at a time, waiting or being answered; further ones are refused for the moment.
    seconds : that an upload may take.
    volumes : read at a time; further ones are refused for the moment.
    volume_memory : that reading a volume may take, in bytes.
    """

    max_bytes: int = 20 << 20
    max_pixels: int = 25_000_000
    max_files: int = 50
    queue: int = 32
    seconds: float = 30.0
    volumes: int = 2
    volume_memory: int = MAX_MEMORY


class Refused(Exception):  # noqa: N818
    """A request that is refused: the status of the answer, what is wrong, and what to do."""

    def __init__(self, status: int, message: str, hint: str = "", retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.hint, self.retry_after = status, message, hint, retry_after


class Answers:
    """Answers for pictures, one at a time.

    Parameters
    ----------
    predictor : a loaded model.
    limits : see `Limits`.
    urgent : urgent classes instead of the bundle's; see `octfast.model.decide.rule_of`.
    abstain_below : least probability of the predicted class at which the model answers; None goes by the bundle's
        prediction sets, where it has them.
    answer_anyway : give a class to scans that are unlike the training scans, too.
    similar : finds the training scans to stand beside each class that is given; None shows none.

    Raises
    ------
    UsageError : urgent names a class that the model has not, or abstain_below is no probability.
    """

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits | None = None,
        urgent: Sequence[str] | None = None,
        abstain_below: float | None = None,
        answer_anyway: bool = False,
        similar: Similar | None = None,
    ):
        self.predictor = predictor
        self.limits = limits or Limits()
        self.similar = similar
        self.rule = predictor.rule(urgent, abstain_below, answer_anyway)

    def about(self) -> dict[str, Any]:
        """The model and the limits, as JSON takes them."""
        info, limits = self.predictor.info, self.limits
        return {
            "notice": LONG_NOTICE,
            "synthetic": SYNTHETIC_NOTE if info.synthetic else None,
            "classes": list(info.classes),
            "urgent_classes": list(self.rule.urgent),
            "urgent_threshold": self.rule.threshold,
            "abstains": self.rule.abstains,
            "knows_unlike": self.rule.unlike,
            "answer_anyway": self.rule.answer_anyway,
            "unlike": self._unlike_words(),
            "similar": " ".join(filter(None, (SHOWN_TO_ALL, label_words(info.level)))) if self.similar else None,
            "calibrated": info.calibrated,
            "calibration": calibration_words(info),
            "level": info.level,
            "answers_for": self._level_words(),
            "arch": info.arch,
            "size": info.size,
            "fit": info.fit,
            "precision": self.predictor.precision,
            "formats": ", ".join([*FORMATS.values(), *VOLUMES]),
            "volume_endings": VOLUMES,
            "heat_map_caution": "; ".join(w for w in (CAUTION, seen_in_words(info.fit)) if w),
            "max_bytes": limits.max_bytes,
            "max_pixels": limits.max_pixels,
            "max_files": limits.max_files,
        }

    def _level_words(self) -> str:
        """What is to be given of a model that answers for whole volumes, eyes or patients."""
        level = self.predictor.info.level
        if level == "scan":
            return ""
        return (
            f"The model answers for a whole {level}, from all of its scans: give the file of a volume, or the pictures "
            f"of {one(level)} together. A single picture is taken for {one(level)} of one scan, and said to be."
        )

    def _unlike_words(self) -> str:
        """What becomes of a scan that is unlike the training scans, and what is not noticed."""
        if not self.rule.unlike:
            return "This model does not know which scans are unlike its training scans: any picture gets a class."
        given = ", and a class is given all the same" if self.rule.answer_anyway else " and gets no class"
        return f"A scan unlike anything the model was trained on is marked{given}. {UNSEEN}"

    def answer(self, content: bytes, *, heat_map: bool = False, of: str | None = None) -> dict[str, Any]:
        """What the model says of a picture; where it answers for whole units, of a unit of this one scan.

        Parameters
        ----------
        content : of a picture's file.
        heat_map : whether to add the scan and its heat map, as data URIs, and pictures of the similar scans.
        of : the class that the heat map is of; None takes the one that is given.

        Raises
        ------
        Refused : it is no picture that is taken, or `of` is no class.
        """
        classes = self.rule.classes
        if of is not None and of not in classes:
            raise Refused(422, f"no class named {of!r}", f"one of {', '.join(classes)}")
        read = read_picture(content, self.limits)
        grey = read.grey
        level = self.predictor.info.level
        try:
            if level == "scan":
                (said,) = self.predictor.stream([grey])
            else:
                # Of one scan that is its own answer, whatever the pooling.
                ((said, _),) = self.predictor.stream_scans([grey])
        except OctfastError as e:
            raise Refused(422, e.message, e.hint) from None
        if said.error is not None:
            raise Refused(422, said.error.message, said.error.hint)
        found, best = self.in_json(said, grey.size, [words for _, words in unusual(read)])
        if level != "scan":
            found |= {"level": level, "scans": 1, "note": f"{one(level)} of this one scan".capitalize()}
        if of is not None:
            best = classes.index(of)
        if self.similar:
            # Where no class is given, none is suggested by a neighbour either.
            found["similar"] = [] if best is None else self._similar(self.similar, grey, heat_map)
        found["notice"] = LONG_NOTICE
        if self.predictor.info.synthetic:
            found["synthetic"] = SYNTHETIC_NOTE
        return {**found, **self._pictures(grey, best)} if heat_map else found

    def in_json(
        self, said: Answer, size: tuple[int, int], remarks: Sequence[str] = ()
    ) -> tuple[dict[str, Any], int | None]:
        """An answer as JSON takes it, and the index of the class that is given, or None.

        Parameters
        ----------
        said : of a scan that could be read.
        size : width and height of the scan.
        remarks : of the picture, beside those of the answer.
        """
        assert said.probabilities is not None
        found, best = self.decided(said.probabilities, said.distance)
        return {**found, **self.of_picture(said, size, remarks)}, best

    def of_picture(self, said: Answer, size: tuple[int, int], remarks: Sequence[str] = ()) -> dict[str, Any]:
        """What is said of a picture itself: parameters as of `in_json`."""
        return {
            "width": size[0],
            "height": size[1],
            "seen": list(box_of(*size, self.predictor.info.fit)),
            "remarks": [*remarks, *said.quality],
            "quality": list(said.quality),
        }

    def decided(self, p: np.ndarray, distance: float | None) -> tuple[dict[str, Any], int | None]:
        """The answer that probabilities are, as JSON takes it, and the index of the class that is given, or None.

        Parameters
        ----------
        p : of shape (classes,).
        distance : to the training scans, where it is known.
        """
        far = None if distance is None else np.array([distance])
        d = decide(p[None], self.rule, far)
        best = int(d.predicted[0])
        classes = self.rule.classes
        found: dict[str, Any] = {
            "predicted": classes[best],
            "probability": float(d.probability[0]),
            "probabilities": {c: float(q) for c, q in zip(classes, p, strict=True)},
            "abstained": None if d.abstained is None else bool(d.abstained[0]),
            "possible": None if d.possible is None else [classes[i] for i in np.flatnonzero(d.possible[0])],
            "urgent_score": None if d.urgent_score is None else float(d.urgent_score[0]),
            "referred": None if d.referred is None else bool(d.referred[0]),
            "calibrated": self.predictor.info.calibrated,
        }
        withheld = d.withheld is not None and bool(d.withheld[0])
        if d.unlike_training is not None:
            found |= {"unlike_training": bool(d.unlike_training[0]), "distance": distance, "unlike_reason": None}
            if found["unlike_training"]:
                found["unlike_reason"] = unlike_words(float(distance or 0.0), withheld)
        if withheld:
            hidden = ("predicted", "probability", "abstained", "possible", "urgent_score", "referred")
            found |= {**dict.fromkeys(hidden), "probabilities": {}}
        return found, None if withheld else best

    def _similar(self, similar: Similar, grey: Image.Image, pictures: bool) -> list[dict[str, Any]]:
        """The scans beside an answer: class and distance, and where asked a small picture; never where a file lies."""
        rows = []
        for near in similar.beside(grey):
            row: dict[str, Any] = {"class": near.label, "distance": round(near.distance, 4)}
            if pictures:
                small = thumbnail(near.path)
                row["picture"] = None if small is None else _data_uri(small)
            rows.append(row)
        return rows

    def _pictures(self, grey: Image.Image, target: int | None) -> dict[str, Any]:
        grey.thumbnail((SHOWN, SHOWN))
        shown: dict[str, Any] = {"picture": _data_uri(grey), "heat_map": None, "heat_map_of": None}
        if target is None:
            return {**shown, "heat_map_reason": "no class is given, so there is nothing to map"}
        try:
            heat = self.predictor.heat_map(grey, target)
        except OctfastError as e:
            return {**shown, "heat_map_reason": e.message}
        if not np.any(heat):
            return {**shown, "heat_map_reason": "nothing in this scan raised the score of the predicted class"}
        over = overlay(grey, heat, fit=self.predictor.info.fit)
        shown |= {"heat_map": _data_uri(over), "heat_map_of": self.predictor.classes[target]}
        hidden = wedges_in_words(grey, heat)
        return {**shown, "heat_map_note": hidden} if hidden else shown


def read_picture(content: bytes, limits: Limits) -> Decoded:
    """A picture's file, decoded; its header is judged before anything is decoded.

    Raises
    ------
    Refused : too large, empty, of another kind, or damaged.
    """
    kinds = ", ".join(FORMATS.values())
    if not content:
        raise Refused(400, "the file is empty", "choose a picture")
    if len(content) > limits.max_bytes:
        raise too_large(limits)
    try:
        return decode(content, formats=list(FORMATS), max_pixels=limits.max_pixels)
    except Unreadable as e:
        if e.trouble == "too-large":
            raise Refused(413, e.message, e.hint) from None
        if e.trouble != "not-a-picture":
            raise Refused(422, e.message, e.hint) from None
    if kind_of_bytes(content[:132]) not in ("", "picture"):
        raise Refused(415, "the file is an OCT volume, and this reads pictures", "send it to /api/volume")
    raise Refused(415, "unsupported file type", f"choose one of {kinds}")


def too_large(limits: Limits) -> Refused:
    """The refusal of a file that is too large."""
    return Refused(
        413, f"the file is larger than {limits.max_bytes / (1 << 20):g} MB", "save it smaller, as PNG or JPEG"
    )


def calibration_words(info: BundleInfo) -> str:
    """One sentence on whether the probabilities can be taken at their word."""
    found, noun = info.calibration, f"{info.level}s"
    if not info.calibrated:
        return "Probabilities are not calibrated and may be overconfident."
    on = ""
    if isinstance(found.get("scans"), int) and isinstance(found.get("patients"), int):
        on = f" on {found['scans']:,} held-out {noun} of {found['patients']:,} patients"
    return f"Probabilities are calibrated{on}; they hold for {noun} like those."


def _data_uri(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
