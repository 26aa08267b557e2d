"""A trained model ready to answer: pictures in, calibrated probabilities out, by torch alone."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from octfast.data.units import one
from octfast.errors import DataError, UsageError
from octfast.model.aggregation import aggregation_of, fitted_levels
from octfast.model.bundle.distance import load_distance
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.read import find_bundle, load_bundle
from octfast.model.decide import Rule, decide, rule_of
from octfast.model.device import find_device
from octfast.model.engine import Engine
from octfast.model.forward import run_pictures
from octfast.model.pooling import pool
from octfast.model.prefetch import Picture, decode_picture, display_name
from octfast.model.quality import QualityNote
from octfast.model.units import scan_view, weighted_medians
from octfast.model.unlike import Unlike, with_distance

if TYPE_CHECKING:
    import pandas as pd
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

# Heat maps hook into the model, so that two at once would see each other's. No part of a Predictor, which is to be
# copied and pickled.
_one_heat_map = threading.Lock()


@dataclass(frozen=True)
class Answer:
    """What the model says of one picture: either `probabilities`, float64 of shape (classes,), or `error`.

    `distance` is that to the training scans, above 1 where it is unlike them; None where the model does not know.
    `remarks` says what was changed in the picture on reading it and what is doubtful about it, a sentence each; see
    `octfast.data.look.unusual`. `quality` are those of them that say in what it is worse than the training scans.
    """

    picture: Any
    probabilities: np.ndarray | None = None
    error: DataError | None = None
    remarks: tuple[str, ...] = ()
    distance: float | None = None

    @property
    def quality(self) -> tuple[str, ...]:
        return tuple(str(note) for note in self.remarks if isinstance(note, QualityNote))


def load(
    bundle: str | Path,
    precision: str = "auto",
    device: str | torch.device | None = None,
    weights: str | Path | None = None,
) -> Predictor:
    """Load a trained model to ask it; nothing of the bundle is executed, and nothing is fetched.

        predictor = octfast.load("runs/latest")
        predictor.predict(["scan.jpeg"])

    Parameters
    ----------
    bundle : the folder of a bundle, or a run folder, whose model is taken.
    precision : "auto" is the half precision that the machine has, else float32; or "fp32", "bf16", "fp16".
    device : where to run; None takes a CUDA GPU where there is one, else the CPU.
    weights : for a slim bundle, the file of its stock weights; None looks where torch and timm keep theirs.

    Raises
    ------
    BundleError : see `octfast.model.bundle.read.load_bundle`.
    UsageError : an unknown precision or device, or two that do not go together.
    """
    on = find_device(device)
    model, info = load_bundle(find_bundle(bundle), weights=weights, units=True)
    unlike = load_distance(find_bundle(bundle), info)
    return Predictor(model, info, precision=precision, device=on, unlike=unlike)


@dataclass(frozen=True)
class UnitAnswer:
    """What the model says of a unit, all scans of which were given.

    Attributes
    ----------
    probabilities : float64 of shape (classes,); None where no scan could be read.
    scans : an `Answer` a scan, in the order given; its probabilities are what the scan says alone, and no answer.
    attention : how much each scan counts, of shape (scans,), summing to 1; 0 for those that could not be read. Of a
        model of scans that is by the rule that puts them together, see `octfast.model.aggregation.Aggregation.weights`.
    distance : the median distance of the scans to the training scans, weighed by attention; see `Answer`. None of a
        model of scans, where those that are unlike the training scans do not count.
    """

    probabilities: np.ndarray | None
    scans: list[Answer]
    attention: np.ndarray
    distance: float | None = None


class Predictor:
    """A trained model that answers for pictures: files, their bytes, PIL images of any mode, or arrays, mixed.

    Arrays are uint8 (or uint16, of which the bits in use count): grey of shape (H, W), or
    colour of shape (H, W, 3) or (H, W, 4), uint8 alone. An array of shape (N, H, W) is N grey pictures, as a volume is.
    Colour becomes grey, and every picture is squeezed to the size that the model was trained at. Several threads may
    ask it at once; heat maps wait for each other.

    Parameters
    ----------
    model : a Sequential of body and head.
    info : what its bundle says of it.
    precision, device : see `load`.
    unlike : gives the distance of a scan to the training scans; None where nothing is known of them.

    Attributes
    ----------
    info : what the bundle says.
    classes : the names, in the order of the probabilities.
    model : in float32, on `device`.
    engine : the folded copy of it that answers.
    """

    def __init__(
        self,
        model: nn.Sequential,
        info: BundleInfo,
        *,
        precision: str = "auto",
        device: str | torch.device | None = None,
        unlike: Unlike | None = None,
    ):
        self.info = info
        self.unlike = unlike
        self.device = find_device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        if precision == "int8":
            raise UsageError("a loaded model does not run in int8", "use precision auto, fp32, bf16 or fp16")
        self.engine = Engine(self.model[0], precision, self.device, tail=with_distance(self.model[1], unlike))

    def __repr__(self) -> str:
        about = f"{self.info.arch} with the head {self.info.head}, {self.engine.description}"
        return f"Predictor({about}; classes {', '.join(self.classes)})"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    @property
    def precision(self) -> str:
        """What it runs in: fp32, bf16 or fp16."""
        return self.engine.precision

    def stream(self, pictures: Iterable[Picture] | Picture, bs: int = 16) -> Iterator[Answer]:
        """Answer picture by picture, in the order given, however many there are.

        The pictures are taken from their source and decoded ahead in threads, a few batches and no more. A picture
        that cannot be read has its error for an answer, and the stream goes on. A batch that is not full is run when
        its source has nothing more for a moment.

        Parameters
        ----------
        pictures : may be a generator that never ends; it is read in another thread.
        bs : pictures a batch, fewer for scans larger than 512 x 512.

        Raises
        ------
        UsageError : the model answers for whole volumes, eyes or patients, see `answer_unit`.
        """
        if bs < 1:
            raise UsageError(f"bs is {bs}: at least one picture a batch is needed")
        if self.info.level != "scan":
            level = self.info.level
            raise UsageError(
                f"this model answers for a whole {level}, and not for single scans",
                f"give all scans of {one(level)} at once: predictor.answer_unit(scans); or octfast predict",
            )
        for picture, outputs, remarks in run_pictures(self.engine, self.info, pictures, bs, quality=True):
            if isinstance(outputs, DataError):
                yield Answer(picture, error=outputs)
                continue
            yield self._answer(picture, outputs, remarks)

    @property
    def unit_levels(self) -> list[str]:
        """The levels that `answer_unit` answers at: the model's own, or those for which it keeps how its scans are put
        together."""
        return fitted_levels(self.info.calibration) if self.info.level == "scan" else [self.info.level]

    def answer_unit(
        self,
        pictures: Iterable[Picture] | Picture,
        bs: int = 16,
        level: str | None = None,
        answer_anyway: bool = False,
    ) -> UnitAnswer:
        """Answer for a volume, an eye or a patient from all of its scans.

        Parameters
        ----------
        pictures : as of `stream`; an array of shape (N, H, W) is N scans. Those that cannot be read are left out of
            account.
        level : what the scans are of, one of `unit_levels`; None takes the only one there is.
        answer_anyway : of a model of scans, count those that are unlike the training scans, too.

        Raises
        ------
        UsageError : the model answers for single scans and keeps nothing of such units.
        """
        level = self.unit_level(level)
        if self.info.level == "scan":
            return self.aggregated(list(self.stream(pictures, bs)), level, answer_anyway)
        found = list(self.stream_scans(pictures, bs))
        return self.pooled([answer for answer, _ in found], [outputs for _, outputs in found])

    def unit_level(self, level: str | None) -> str:
        """One of `unit_levels`; None takes the only one there is.

        Raises
        ------
        UsageError : none, or several and none was named.
        """
        there = self.unit_levels
        if not there:
            raise UsageError(
                "this model answers for single scans, and keeps nothing of volumes, eyes or patients",
                "predictor.predict(scans); octfast calibrate fits it where the run's scans tell these",
            )
        if level is None and len(there) == 1:
            return there[0]
        if level not in there:
            asked = "no level was named" if level is None else f"the model does not answer for {one(level)}"
            raise UsageError(asked, f"it answers for {', '.join(map(one, there))}: level={there[0]!r}")
        return level

    def aggregated(self, scans: list[Answer], level: str, answer_anyway: bool = False) -> UnitAnswer:
        """The answer for a unit from those for its scans; see `answer_unit`."""
        how = aggregation_of(self.info.calibration, level, self.classes)
        attention = np.zeros(len(scans))
        unlike = np.array([scan.distance is not None and scan.distance > 1 for scan in scans], dtype=bool)
        counted = np.array([scan.probabilities is not None for scan in scans], dtype=bool)
        counted &= ~unlike | answer_anyway
        if not counted.any():
            return UnitAnswer(None, scans, attention)
        p = np.stack([scan.probabilities for scan, yes in zip(scans, counted, strict=True) if yes])  # type: ignore[misc]
        number = np.zeros(len(p), dtype=int)
        found = how.probabilities(p, number, 1, self.classes)
        attention[counted] = how.weights(p, number, found.argmax(1), self.classes)
        return UnitAnswer(found[0], scans, attention)

    def stream_scans(
        self, pictures: Iterable[Picture] | Picture, bs: int = 16
    ) -> Iterator[tuple[Answer, torch.Tensor | None]]:
        """What each scan says by itself, and what `pooled` makes the answer for a unit of; None where it is unread.

        A batch waits until it is full or cut short by `octfast.model.prefetch.CUT`: nothing is answered before a unit
        has come to its end.
        """
        given = run_pictures(self.engine, self.info, pictures, bs, quality=True, max_wait=None)
        for picture, outputs, remarks in given:
            if isinstance(outputs, DataError):
                yield Answer(picture, error=outputs), None
                continue
            answer = self._answer(picture, outputs, remarks)
            yield answer, outputs[: self.info.outputs].double() if answer.error is None else None

    def pooled(self, scans: list[Answer], outputs: list[torch.Tensor | None]) -> UnitAnswer:
        """The answer for a unit from what `stream_scans` gave of all of its scans."""
        attention = np.zeros(len(scans))
        read = np.array([row is not None for row in outputs], dtype=bool)
        rows = [row for row in outputs if row is not None]
        if not rows:
            return UnitAnswer(None, scans, attention)
        assert self.info.pooling is not None  # as of every model that answers for units
        logits, weights = pool(torch.stack(rows), torch.zeros(len(rows), dtype=torch.long), 1, self.info.pooling)
        attention[read] = weights.numpy()
        distance = None
        if self.unlike is not None:
            distances = np.array([scan.distance for scan in scans if scan.error is None], dtype=float)
            distance = float(weighted_medians(distances, weights.numpy(), np.zeros(len(rows), dtype=int), 1)[0])
        return UnitAnswer(torch.softmax(logits[0] / self.info.temperature, 0).numpy(), scans, attention, distance)

    def _answer(self, picture: Any, outputs: torch.Tensor, remarks: tuple[str, ...]) -> Answer:
        """What a scan says by itself."""
        distance = float(outputs[-1]) if self.unlike is not None else None
        logits = outputs[: len(self.classes)]
        # In double precision, so that the classes sum to one as closely as in the Predictions tables.
        row = torch.softmax(logits.double() / self.info.temperature, 0).numpy()
        if bool(torch.isfinite(outputs).all()):
            return Answer(picture, row, remarks=remarks, distance=distance)
        hint = "the bundle is damaged, or half precision is too little for it: try fp32"
        return Answer(picture, error=DataError(f"the model gives no numbers for {display_name(picture)}", hint))

    @property
    def tells_quality(self) -> bool:
        """Whether it knows how dark, clipped, cut off or blurred its training scans were."""
        return self.info.calibration.get("quality") is not None

    def rule(
        self, urgent: Sequence[str] | None = None, abstain_below: float | None = None, answer_anyway: bool = False
    ) -> Rule:
        """By which answers are made of what this model gives; see `octfast.model.decide.rule_of`."""
        return rule_of(
            self.classes,
            self.info.calibration,
            urgent,
            abstain_below,
            unlike=self.unlike is not None,
            answer_anyway=answer_anyway,
        )

    def probabilities(self, pictures: Iterable[Picture] | Picture, bs: int = 16) -> np.ndarray:
        """Probabilities with the temperature applied, float64 of shape (pictures, classes).

        Raises
        ------
        DataError : for the first picture that cannot be read.
        """
        rows = []
        for answer in self.stream(pictures, bs):
            if answer.error is not None:
                raise answer.error
            assert answer.probabilities is not None
            rows.append(answer.probabilities)
        return np.stack(rows) if rows else np.zeros((0, len(self.classes)))

    def predict(
        self,
        pictures: Iterable[Picture] | Picture,
        k: int | None = None,
        *,
        abstain_below: float | None = None,
        answer_anyway: bool = False,
        errors: str = "raise",
        bs: int = 16,
    ) -> pd.DataFrame:
        """A table, a row a picture in the order given.

        Parameters
        ----------
        k : also name the classes up to the k-th most probable: columns `predicted_2`, `probability_2` and so on.
        abstain_below : least probability of the predicted class at which the model answers; see `Rule`.
        answer_anyway : give a class to scans that are unlike the training scans, too.
        errors : "raise" stops at a picture that cannot be read; "keep" gives it a row with no answer, and its error in
            a column `error`, which is empty for the others.

        Returns
        -------
        `path` (empty for a picture that is no file), then the columns of `answer_columns`, then `quality` where the
        model knows that of its training scans: in what the scan is worse, else empty.

        Raises
        ------
        DataError : a picture cannot be read, unless errors is "keep".
        UsageError : k is not between 1 and the number of classes; abstain_below is not between 0 and 1.
        """
        rule = self.rule(abstain_below=abstain_below, answer_anyway=answer_anyway)
        if k is not None and not 1 <= k <= len(self.classes):
            raise UsageError(f"k is {k}: it must lie between 1 and the {len(self.classes)} classes")
        if errors not in ("raise", "keep"):
            raise UsageError(f"errors is {errors!r}", 'one of "raise", "keep"')
        paths, rows, messages, distances, quality = [], [], [], [], []
        for answer in self.stream(pictures, bs):
            if answer.error is not None and errors == "raise":
                raise answer.error
            row = answer.probabilities
            paths.append(str(answer.picture) if isinstance(answer.picture, str | Path) else "")
            rows.append(np.full(len(self.classes), np.nan) if row is None else row)
            messages.append("" if answer.error is None else answer.error.message)
            distances.append(np.nan if answer.distance is None else answer.distance)
            quality.append("; ".join(answer.quality))
        p = np.stack(rows) if rows else np.zeros((0, len(self.classes)))
        columns = {"path": paths, **answer_columns(p, rule, k or 1, np.array(distances))}
        if self.tells_quality:
            columns["quality"] = quality
        if errors == "keep":
            columns["error"] = messages
        return as_table(columns)

    def heat_map(self, picture: Picture, target: int | None = None, method: str = "gradcam") -> np.ndarray:
        """Where the model looked: float32 of the picture's own (H, W), in 0..1 (see `heat_map`).

        Parameters
        ----------
        target : index of the class that is asked about; None takes the predicted one.
        """
        from octfast.assess.interpret.heatmap import heat_map

        grey = decode_picture(picture)
        with _one_heat_map:
            return heat_map(*scan_view(self.model, self.info), grey, target=target, method=method)

    def to_learner(self, dls: DataLoaders | None = None) -> Learner:
        """A fastai Learner of the same model, whose `predict` and `get_preds` give the same probabilities.

        Parameters
        ----------
        dls : to train on or validate with; None gives the Learner empty ones, enough to predict with.

        Raises
        ------
        UsageError : the classes of `dls` are others than the model's, or in another order.
        """
        from octfast.deploy.learner import make_learner

        if self.info.level != "scan":
            raise UsageError(
                f"this model answers for a whole {self.info.level}, and a fastai Learner for single scans",
                "predictor.answer_unit(scans)",
            )
        with _one_heat_map:
            return make_learner(self.model, self.info, dls)


def answer_columns(
    probabilities: np.ndarray, rule: Rule, k: int = 1, distances: np.ndarray | None = None
) -> dict[str, list[Any]]:
    """The columns of a table of answers, as `Predictor.predict`, `octfast predict` and the web page give them.

    Parameters
    ----------
    probabilities : of shape (n, classes); a row of NaN is a picture that could not be read.
    rule : see `octfast.model.decide`.
    k : how many classes are named, from the most probable down.
    distances : see `octfast.model.decide.decide`.

    Returns
    -------
    `predicted`, `probability`, then `predicted_2`, `probability_2` and so on; `abstained` where the rule abstains;
    `urgent_score` and `referred` where it has urgent classes; `unlike_training` and `distance` where the model knows
    how far a scan is from its training scans; `p_<class>` a class. Of a scan that is unlike these no more than
    `unlike_training` and `distance` is given, unless the rule is to answer anyway.
    """
    decision = decide(probabilities, rule, distances)
    hidden = np.zeros(len(probabilities), bool) if decision.withheld is None else decision.withheld
    if hidden.any():
        probabilities = np.where(hidden[:, None], np.nan, probabilities)
    # A stable sort, so that of equally probable classes the first is named, as `decide` does.
    order = np.argsort(-probabilities, axis=1, kind="stable")
    read = ~np.isnan(decision.probability) & ~hidden
    columns: dict[str, list[Any]] = {}
    for n in range(k):
        end = f"_{n + 1}" if n else ""
        columns[f"predicted{end}"] = [rule.classes[i] if r else None for i, r in zip(order[:, n], read, strict=True)]
        columns[f"probability{end}"] = np.take_along_axis(probabilities, order[:, n : n + 1], 1)[:, 0].tolist()
    for name in ("abstained", "urgent_score", "referred"):
        values = getattr(decision, name)
        if values is not None:
            columns[name] = [None if h else v for v, h in zip(values.tolist(), hidden, strict=True)]
    if decision.unlike_training is not None and distances is not None:
        columns["unlike_training"] = decision.unlike_training.tolist()
        columns["distance"] = np.asarray(distances, dtype=float).tolist()
    return columns | {f"p_{c}": probabilities[:, i].tolist() for i, c in enumerate(rule.classes)}


def as_table(columns: dict[str, Any]) -> pd.DataFrame:
    """A DataFrame of columns; names of files that are no text, which pandas' strings cannot hold, stay as they are."""
    import pandas as pd

    def column(values: Any) -> pd.Series:
        try:
            return pd.Series(values)
        except UnicodeEncodeError:
            return pd.Series(values, dtype=object)

    return pd.DataFrame({name: column(values) for name, values in columns.items()})
