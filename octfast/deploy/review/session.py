"""A review of a run, or of scans to label for it, by one reviewer: the list, decisions, pictures and training again."""

from __future__ import annotations

import io
import logging
import shlex
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from octfast.assess.interpret.heatmap import overlay
from octfast.assess.review.agreement import agreement
from octfast.assess.review.effect import effect_of
from octfast.assess.review.units import scans_of_units, unit_of_labels, unit_of_scans
from octfast.assess.review.worklist import review_list, second_list
from octfast.assess.similar import similar
from octfast.data.corrections import (
    AGREE,
    COLUMNS,
    LEAVE_OUT,
    PATIENT,
    RELABEL,
    UNDO,
    UNIT,
    read_decisions,
    record,
    relative,
    settled,
)
from octfast.data.fit import seen_in_words
from octfast.data.preprocess import decode_grey
from octfast.deploy.predictor import Predictor, load
from octfast.deploy.suggest.suggest import read_scans, read_suggestions, short_name, unit_words
from octfast.errors import DataError, UsageError
from octfast.files import is_taken
from octfast.model.bundle.read import read_info
from octfast.notices import CAUTION, LONG_NOTICE, SYNTHETIC_NOTE
from octfast.run.folder import Run
from octfast.train.again.again import Stored, stored_features
from octfast.train.again.again_units import StoredUnits, stored_units
from octfast.train.config import TrainConfig

log = logging.getLogger("octfast")

# The longer side of the pictures that the page shows, in pixels, and of those beside them.
SHOWN, BESIDE = 1536, 320
# Scans like the one that is looked at, and scans of a unit that are shown, those that counted most.
NEAR, SCANS = 4, 6


class Review:
    """What the page asks for. The files of the scans are only read.

    Parameters
    ----------
    run : a finished run.
    file : where decisions are kept; None takes corrections.csv in the run folder.
    reviewer : initials, kept with each decision, or "".
    second : show the scans that other reviewers decided about, and not what they decided.
    blind : do not show what the model says either.
    limit : the most scans on the list.
    pictures, kinds : see `octfast.assess.review.worklist.review_list`.
    pool : what `octfast suggest` wrote: its scans or units, which have no label yet, are shown in place of the run's.
        `file` is then labels.csv beside it, unless another is named.

    Raises
    ------
    UsageError : a second review without initials of its own, or of a pool; or `file` is no file, or of another kind.
    DataError : nothing deserves a look; a damaged file; no other reviewer's decisions for a second review.
    """

    def __init__(
        self,
        run: Run,
        file: str | Path | None = None,
        *,
        reviewer: str = "",
        second: bool = False,
        blind: bool = False,
        limit: int = 200,
        pictures: bool = True,
        kinds: tuple[str, ...] | None = None,
        pool: str | Path | None = None,
    ):
        self.run, self.reviewer, self.second, self.blind = run, reviewer.strip(), second, blind
        usual = run.path / "corrections.csv" if pool is None else Path(pool).expanduser().parent / "labels.csv"
        self.file = Path(file).expanduser() if file is not None else usual
        self.labelling = pool is not None
        # What paths in the file are relative to.
        self.root = self.file.absolute().parent if self.labelling else run.root
        if self.file.is_dir():
            raise UsageError(f"{self.file} is a folder", "name a file: --out corrections.csv")
        if second and self.labelling:
            raise UsageError("--second is for a run's own scans", "label a pool without it, under other initials")
        if second and not self.reviewer:
            raise UsageError("a second review needs the reviewer's initials", "add --reviewer AB")
        info = read_info(run.bundle)
        self.level = info.level
        self.classes, self.synthetic, self.fit = list(info.classes), info.synthetic, info.fit
        known = self._decisions()
        if len(known) and self.labelling != (PATIENT in known):
            raise UsageError(
                f"{self.file} holds {'corrections' if self.labelling else 'labels of a pool'}",
                "name another: --out FILE",
            )
        if len(known) and self.labelling and (UNIT[0] in known) != (self.level != "scan"):
            raise UsageError(f"{self.file} holds no labels of {self.level}s", "name another: --out FILE")
        if pool is not None:
            listed = read_suggestions(pool, info.classes)
            if ("scans" in listed) != (self.level != "scan"):
                raise UsageError(
                    f"{pool} does not suggest {self.level}s, which this run answers for",
                    "give a file that octfast suggest wrote for this run",
                )
            listed = listed.assign(label="", kind="suggested", reasons=listed["why"], related="")
        elif second:
            others = list(dict.fromkeys(known.loc[known["reviewer"] != self.reviewer, "path"]))
            if not others:
                raise DataError(
                    f"{self.file} has no decisions of another reviewer", "the first reviews without --second"
                )
            listed = second_list(run, [str(run.root / key) for key in others])
        else:
            listed = review_list(run, pictures=pictures, kinds=kinds)
        self.total = len(listed)
        self.rows = listed.head(limit).reset_index(drop=True)
        self.keys = [relative(path, self.root) for path in self.rows["path"]]
        if not len(self.rows):
            raise DataError(f"nothing in {run.path.name} deserves a look", "look at all of it: octfast interpret")
        # Of each item its scans, the one that counted most first; without units it is the scan itself.
        self.scans = [pd.DataFrame({"path": [path], "name": Path(path).name}) for path in self.rows["path"]]
        if self.level != "scan":
            if pool is None:
                each = scans_of_units(run, self.rows, self.level)
            else:
                each = read_scans(pool, listed)
                each["name"] = each["unit"].map(dict(zip(listed["path"], unit_words(listed, self.level), strict=True)))
            of_units = dict(list(each.groupby("unit", sort=False)))
            self.scans = [of_units[path].reset_index(drop=True) for path in self.rows["path"]]
        own = known[known["reviewer"] == self.reviewer]
        at = {key: i for i, key in enumerate(self.keys)}
        self.done = {at[r.path]: (r.decision, r.new) for r in own.itertuples() if r.path in at}
        # In the order in which they were made, for `undo`.
        self.order = list(self.done)
        self._before: np.ndarray | None = None
        self._near: dict[int, list[dict[str, Any]]] = {}

    def about(self) -> dict[str, Any]:
        """The list and what was decided about it, as JSON takes it."""
        return {
            "notice": LONG_NOTICE,
            "synthetic": SYNTHETIC_NOTE if self.synthetic else None,
            "run": self.run.path.name,
            "file": self.shown_file,
            "reviewer": self.reviewer,
            "second": self.second,
            "blind": self.blind,
            "labelling": self.labelling,
            "level": self.level,
            "classes": self.classes,
            "total": self.total,
            "caution": "; ".join(w for w in (CAUTION, seen_in_words(self.fit)) if w),
            "command": self.command,
            "items": [self.item(i) for i in range(len(self.rows))],
        }

    @property
    def command(self) -> str:
        """What trains on the corrected or further labels, otherwise as the run was trained."""
        config, usual = self.run.config, TrainConfig()
        source = config["data"].get("source")
        words = ["octfast", "train", *([str(source)] if source else [])]
        further = ("level", "pooling", "top_k", "valid", "splits", "fold", "seed", *usual.columns)
        for name in ("arch", "head", "weights", "size", "fit", *further):
            if config.get(name) not in (None, getattr(usual, name)):
                words += [f"--{name.replace('_', '-')}", str(config[name])]
        option = "--also" if self.labelling else "--corrections"
        # What the run took in goes on being taken in, but for the file that takes its place.
        for name in {"corrections", "also"} - {option[2:]}:
            if config.get(name):
                words += [f"--{name}", str(config[name])]
        return shlex.join([*words, option, self.shown_file])

    @property
    def shown_file(self) -> str:
        """The file of decisions as a reader here would name it."""
        whole, here = self.file.absolute(), Path.cwd()
        return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)

    def decide(self, item: int, decision: str, new: str = "") -> None:
        """Keep a decision; it is on the disk when this returns.

        Raises
        ------
        UsageError : no such scan, decision or class; or the file cannot be written.
        """
        if not 0 <= item < len(self.rows):
            raise UsageError(f"there is no scan {item} on the list", f"it has {len(self.rows)}")
        row = self.rows.iloc[item]
        if decision == AGREE and self.labelling:
            raise UsageError("the scan has no label yet that could be right", "give it one: relabel")
        if decision not in (RELABEL, LEAVE_OUT, AGREE):
            raise UsageError(f"no decision named {decision!r}", f"one of {RELABEL}, {LEAVE_OUT}, {AGREE}")
        if decision == RELABEL and new not in self.classes:
            raise UsageError(f"no class named {new!r}", f"one of {', '.join(self.classes)}")
        if decision == RELABEL and new == row["label"]:
            decision = AGREE
        new = new if decision == RELABEL else ""
        if item in self.done:
            # Of each scan one decision stands: a new one takes the place of the one before.
            self._record(item, UNDO)
            self.order.remove(item)
        self._record(item, decision, new)
        self.done[item] = decision, new
        self.order.append(item)

    def undo(self) -> int | None:
        """Take the last decision back; gives the scan that it was about, or None where there was none."""
        if not self.order:
            return None
        item = self.order.pop()
        del self.done[item]
        self._record(item, UNDO)
        return item

    def picture(self, item: int, of: int = 0, most: int = SHOWN) -> bytes:
        """The scan as PNG, upright, no larger than the page needs it.

        Parameters
        ----------
        of : which scan of a unit, 0 being the one that counted most.
        most : pixels of the longer side.
        """
        return _png(_shown(self._path(item, of), most))

    def _path(self, item: int, of: int) -> str:
        scans = self.scans[item]
        if not 0 <= of < len(scans):
            raise UsageError(f"there is no scan {of} in it", f"it has {len(scans)}")
        return str(scans["path"].iloc[of])

    def neighbours(self, item: int) -> list[dict[str, Any]]:
        """The most similar scans of other patients by stored features: `path`, `name`, `label`, `distance`.

        Raises
        ------
        OctfastError : the run has no stored features; or the review is blind to the model.
        """
        self._refuse_blind()
        if item not in self._near:
            found = similar(self.run, [self.rows["path"].iloc[item]], NEAR, stored=self._of_scans)
            self._near[item] = [
                {
                    "path": r.neighbour,
                    "name": Path(r.neighbour).name,
                    "label": r.label,
                    "distance": round(r.distance, 3),
                }
                for r in found.itertuples()
            ]
        return self._near[item]

    def neighbour(self, item: int, rank: int) -> bytes:
        """A small picture of one of `neighbours`, as PNG; the first has rank 0."""
        near = self.neighbours(item)
        if rank >= len(near):
            raise UsageError(f"there is no neighbour {rank}", f"there are {len(near)}")
        return _png(_shown(near[rank]["path"], BESIDE))

    def heat_map(self, item: int, of: int = 0) -> bytes:
        """The scan beside what raised the score of the predicted class, as PNG; `of` as of `picture`.

        Raises
        ------
        OctfastError : none can be made of this network; or the review is blind to the model.
        """
        self._refuse_blind()
        row = self.rows.iloc[item]
        grey = _shown(self._path(item, of), SHOWN)
        heat = self._predictor.heat_map(grey, self.classes.index(row["predicted"]))
        return _png(overlay(grey, heat, fit=self.fit))

    def prepare(self) -> None:
        """Read the stored features and train on the labels as they are, so that training again takes seconds.

        Raises
        ------
        OctfastError : see `octfast.train.again.again.stored_features`.
        """
        if self._before is None and not self.labelling:
            self._before = self._stored.out_of_fold(self._stored.scans["label"].tolist())

    def train(self) -> dict[str, Any]:
        """Train the heads on the labels as they are decided now, and compare.

        Raises
        ------
        OctfastError : nothing was changed yet; or see `octfast.assess.review.effect.effect_of`.
        """
        if self.labelling:
            raise UsageError("further labels are learned from by octfast train", self.command)
        decisions, torn = settled(self._decisions())
        changes = decisions[decisions["decision"].isin([RELABEL, LEAVE_OUT])]
        if changes.empty:
            raise UsageError("no label was changed yet", "give a scan another label, or leave one out")
        self.prepare()
        paths = [str(self.run.root / key) for key in changes["path"]]
        effect = effect_of(self._stored, pd.DataFrame({"path": paths, "new": changes["new"]}), self._before)
        if self._unit_of is not None:
            torn = list({self._unit_of.get(path, path) for path in torn})
        return {**effect.to_dict(), "differing": len(torn), "command": self.command}

    def agreement(self) -> dict[str, Any]:
        """How far this reviewer and the other agree; see `octfast.assess.review.agreement.agreement`."""
        return agreement(self._decisions(), self._unit_of).to_dict()

    @cached_property
    def _unit_of(self) -> dict[str, str] | None:
        if self.level == "scan":
            return None
        if self.labelling:
            return unit_of_labels(self._decisions(), self.level)
        return unit_of_scans(self.run, self.level)

    @cached_property
    def _stored(self) -> Stored | StoredUnits:
        return stored_features(self.run) if self.level == "scan" else stored_units(self.run)

    @property
    def _of_scans(self) -> Stored:
        return self._stored.of_scans if isinstance(self._stored, StoredUnits) else self._stored

    @cached_property
    def _predictor(self) -> Predictor:
        return load(self.run.bundle)

    def _decisions(self) -> pd.DataFrame:
        if not is_taken(self.file):
            return pd.DataFrame(columns=list(COLUMNS), dtype=str)
        return read_decisions(self.file)

    def item(self, i: int) -> dict[str, Any]:
        """A scan of the list and what was decided about it, as JSON takes it."""
        row = self.rows.iloc[i]
        decision, new = self.done.get(i, ("", ""))
        item = {
            "id": i,
            "name": str(self.scans[i]["name"].iloc[0]),
            "label": row["label"],
            "patient": short_name(row["patient"]) if self.labelling else row["patient"],
            "scans": len(self.scans[i]),
            "decision": decision,
            "new": new,
        }
        if self.blind:
            return item
        p = {c: float(row[f"p_{c}"]) for c in self.classes}
        related = row["related"]
        beside = relative(related, self.run.root) if related else ""
        if self.level != "scan":
            counted = self.scans[i].head(SCANS)
            item["counted"] = [
                {"name": Path(r.path).name, "share": round(float(r.attention), 4)} for r in counted.itertuples()
            ]
        return {
            **item,
            "predicted": row["predicted"],
            "p": p,
            "kind": row["kind"],
            "reasons": row["reasons"].split("; ") if row["reasons"] else [],
            "related": beside,
        }

    def _refuse_blind(self) -> None:
        if self.blind:
            raise UsageError("this review is blind to the model", "start it without --blind")

    def _record(self, item: int, decision: str, new: str = "") -> None:
        row = self.rows.iloc[item]
        reason = row["reasons"] if decision != UNDO else ""
        patient = str(row["patient"]) if self.labelling else None
        keys = [relative(path, self.root) for path in self.scans[item]["path"]]
        # The scan by which it is known first, so that it is found again whatever comes of the line after it.
        keys = [self.keys[item], *(key for key in keys if key != self.keys[item])]
        unit = None
        if self.labelling and self.level != "scan":
            unit = {c: str(self.scans[item][c].iloc[0]) for c in UNIT}
        record(self.file, keys, decision, row["label"], new, reason, self.reviewer, patient, unit)


def _shown(path: str, most: int) -> Image.Image:
    grey = decode_grey(path)
    grey.thumbnail((most, most))
    return grey


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
