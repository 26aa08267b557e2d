"""What `octfast interpret` does: it asks a ClassificationInterpretation and draws the answers into the run folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.assess.interpret.heatmap import check_method
from octfast.assess.interpret.interpretation import ClassificationInterpretation
from octfast.assess.interpret.missed_units import MOST_UNITS, frames_of, plot_units, put_together, wrong_units
from octfast.assess.interpret.neighbours import NEAR, plot_neighbours
from octfast.assess.interpret.rows import MOST_CLASSES
from octfast.assess.predictions import out_of_fold, scan_answers
from octfast.assess.similar import label_words
from octfast.assess.similar import similar as similar_scans
from octfast.console import track
from octfast.data.corrections import relative
from octfast.data.scans import save_scans, write_csv
from octfast.errors import OctfastError, UsageError
from octfast.figure import Figure, Files
from octfast.model.bundle.read import read_info
from octfast.model.decide import urgent_classes
from octfast.model.forward import headline
from octfast.model.units import level_note
from octfast.notices import SYNTHETIC_NOTE
from octfast.run.folder import Run, open_run

log = logging.getLogger("octfast")


@dataclass(frozen=True)
class Findings:
    """Where a model goes wrong in a split.

    Attributes
    ----------
    headline : counts, accuracy and loss.
    confusion, confused : the confusion matrix; the pairs that were confused, the most frequent first.
    top : the scans with the largest (or smallest) losses.
    easiest, hardest : the scans that were surest right; and wrong with the largest loss.
    urgent, missed : the urgent classes; the urgent scans taken for another class, or None without urgent classes.
    label_errors : scans whose label is suspected, or None where it was not asked; `label_errors_from` says on which
        predictions.
    files : what was written, and `figures` the plots among them by name.
    near : the scans most like those of `top`, see `octfast.assess.similar.similar`; None where it was not asked or
        there are none.
    notes : what could not be done, and why.
    """

    split: str
    headline: dict[str, Any]
    confusion: pd.DataFrame
    confused: pd.DataFrame
    top: pd.DataFrame
    easiest: pd.DataFrame
    hardest: pd.DataFrame
    urgent: tuple[str, ...]
    missed: pd.DataFrame | None
    label_errors: pd.DataFrame | None
    label_errors_from: str
    files: list[Path]
    figures: dict[str, Path]
    synthetic: bool
    near: pd.DataFrame | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        missed, suspects = self.missed, self.label_errors
        return {
            "split": self.split,
            **self.headline,
            "synthetic": self.synthetic,
            "confusion": self.confusion.to_dict("index"),
            "most_confused": self.confused.to_dict("records"),
            "top_losses": self.top.to_dict("records"),
            "easiest_right": self.easiest.to_dict("records"),
            "hardest_wrong": self.hardest.to_dict("records"),
            "urgent": list(self.urgent),
            "missed_urgent": None if missed is None else missed.to_dict("records"),
            "label_errors": None if suspects is None else suspects.to_dict("records"),
            "label_errors_from": self.label_errors_from,
            "similar": None if self.near is None else self.near.to_dict("records"),
            "files": [str(f) for f in self.files],
            "notes": self.notes,
        }


def interpret_run(
    run: Run | str | Path | None = None,
    split: str = "valid",
    k: int = 9,
    *,
    largest: bool = True,
    heatmaps: bool = True,
    method: str = "gradcam",
    urgent: Sequence[str] | None = None,
    label_errors: bool = False,
    folds: Sequence[Run | str | Path] = (),
    similar: bool = False,
    device: str | None = None,
    files: Files | None = None,
) -> Findings:
    """Find where a run's model goes wrong in a split, and draw it into the run folder.

    The model runs at most once over the split, and once more for each scan that is drawn beside its heat map.

    Parameters
    ----------
    run : a run or its folder; None takes the newest.
    k : how many scans to show of each kind.
    largest : whether those with the largest loss, or the smallest.
    heatmaps : whether to draw each scan beside what raised the score of its predicted class.
    method : see `octfast.assess.interpret.heatmap.heat_maps`.
    urgent : classes to be referred urgently; None takes CNV and DME where they exist.
    label_errors : whether to list the scans whose label is suspected, by the predictions of this split.
    folds : runs of a cross-validation (or folders of them), whose out-of-fold predictions then tell the suspected
        labels instead.
    similar : whether to draw the scans of the largest losses beside those of other patients that are most like them.
    device : that the model runs on; None takes a GPU where there is one.
    files : how to write the figures; None writes PNG.

    Raises
    ------
    OctfastError : see `octfast.assess.predictions.run_predictions`,
        `octfast.model.decide.urgent_classes` and `octfast.assess.predictions.out_of_fold`.
    """
    if method != "gradcam":
        check_method(method)
    run = run if isinstance(run, Run) else open_run(run)
    interp = ClassificationInterpretation.from_run(run, split, device)
    info = read_info(run.bundle)
    table, synthetic = interp.table, info.synthetic
    named = urgent_classes(interp.classes, urgent)
    missed = interp.missed_urgent(named) if named else None
    suspects, basis = _suspects(interp, split, label_errors, folds)
    top = interp.top_scans(k, largest)
    easiest, hardest = interp.easiest_right(k), interp.hardest_wrong(k)
    right = int((table["label"] == table["predicted"]).sum())
    said = f"{split}: {right} of {len(table)} scans right"
    first = "top_losses" if largest else "smallest_losses"
    shown = {
        first: (top, f"{'Top' if largest else 'Smallest'} losses, {said}"),
        "hardest_wrong": (hardest, f"Hardest of {len(table) - right} wrong, {split}"),
        "easiest_right": (easiest, f"Easiest of {right} right, {split}"),
    }
    if missed is not None:
        of = table[table["label"].isin(named)]["path"].nunique()
        title = f"Urgent scans ({', '.join(named)}) taken for another class: {len(missed)} of {of}, {split}"
        shown["missed_urgent"] = (missed.head(k), f"{title}{_shown(missed, k)}")
    if suspects is not None:
        title = f"Suspected label errors by {basis}: {len(suspects)}{_shown(suspects, k)}"
        shown["label_errors"] = (suspects.head(k), title)
    notes: list[str] = []
    write = files or Files()
    heat = heatmaps and _compute_heat_maps(interp, method, [scans for scans, _ in shown.values()], notes)
    note = SYNTHETIC_NOTE if synthetic else ""
    suffix = "" if split == "valid" else f"-{split}"
    figures: dict[str, Path] = {}

    def keep(name: str, figure: Figure) -> None:
        figures[name] = write.save(figure, run.figures / f"{name}{suffix}")

    for name, (scans, title) in shown.items():
        if len(scans) or name == first:
            keep(name, interp.plot_scans(scans, title, heatmaps=heat and method, note=note, place=None))
        else:
            # A picture of an earlier question would be taken for the answer to this one.
            (run.figures / f"{name}{suffix}.{write.format}").unlink(missing_ok=True)
        if name == first:
            keep("confusion_matrix", interp.plot_confusion_matrix(title=f"Confusion, {said}", note=note, place=None))
            title = f"Confusion, share of each labelled class, {split}"
            keep("confusion_matrix_normalised", interp.plot_confusion_matrix(True, title, note=note, place=None))
    keep("montage", interp.plot_montage(title=f"Montage of the classes, {said}", note=note, place=None))
    near = _near(run, top, notes) if similar and len(top) else None
    if near is not None:
        title = f"Scans like those of the {first.replace('_', ' ')}, {split}"
        said_of_labels = "\n".join(filter(None, (label_words(info.level), note)))
        keep("similar", plot_neighbours(top, near, title, said_of_labels))
    more = []
    if info.level != "scan":
        units = missed if missed is not None else interp.hardest_wrong(len(interp.table))
        of_units = (units, scan_answers(run, split), info.level)
        more = _missed_units(run, split, interp, of_units, named, heat and method, note, keep, suffix)
        notes.append(level_note(table, info.level))
    for level, whole, each, said_of in put_together(table, info):
        of_units = (wrong_units(whole, named), each, level)
        more += _missed_units(run, split, interp, of_units, named, heat and method, note, keep, f"-{level}s{suffix}")
        notes += said_of
    written = [*figures.values(), *more, *(f for f in [run.predictions_file(split)] if f.exists())]
    if len(interp.classes) > MOST_CLASSES:
        written.append(run.path / f"confusion-matrix{suffix}.csv")
        write_csv(interp.confusion().reset_index(), written[-1])
    if missed is not None:
        written.append(_save(missed, run, f"missed-urgent{suffix}.csv"))
    if near is not None:
        written.append(run.path / f"similar{suffix}.csv")
        write_csv(
            near.assign(**{c: [relative(p, run.root) for p in near[c]] for c in ("path", "neighbour")}), written[-1]
        )
    if suspects is not None:
        written.append(_save(suspects.assign(predictions=basis), run, f"label-errors{suffix}.csv"))
    return Findings(
        split=split,
        headline=headline(table),
        confusion=interp.confusion(),
        confused=interp.confused_pairs(),
        top=top,
        easiest=easiest,
        hardest=hardest,
        urgent=named,
        missed=missed,
        label_errors=suspects,
        label_errors_from=basis,
        files=written,
        figures=figures,
        synthetic=synthetic,
        near=near,
        notes=notes,
    )


def _compute_heat_maps(
    interp: ClassificationInterpretation, method: str, parts: list[pd.DataFrame], notes: list[str]
) -> bool:
    """Compute the heat maps of all scans that will be drawn; False, and a note that says why, where there are none."""
    scans = pd.concat(parts, ignore_index=True).drop_duplicates(["path", "predicted"])
    if scans.empty:
        return False
    try:
        maps = interp.heat_maps(method)
    except UsageError as e:
        notes.append(f"no heat maps: {e.message}; {e.hint}")
        log.warning("%s", notes[-1])
        return False
    with track("heat maps", len(scans)) as update:
        maps.compute(scans["path"], scans["predicted"], update)
    if len(maps) < len(scans):
        notes.append(f"no heat maps of {len(scans) - len(maps)} scans, which cannot be read now")
        log.warning("%s", notes[-1])
    return True


def _near(run: Run, scans: pd.DataFrame, notes: list[str]) -> pd.DataFrame | None:
    """The scans most like these, of other patients; None, and a note that says why, where they cannot be found."""
    try:
        return similar_scans(run, scans["path"].tolist(), NEAR)
    except OctfastError as e:
        notes.append(f"no similar scans: {e.message}")
        log.warning("%s", notes[-1])
        return None


def _missed_units(
    run: Run,
    split: str,
    interp: ClassificationInterpretation,
    of: tuple[pd.DataFrame, pd.DataFrame, str],
    urgent: tuple[str, ...],
    method: str | bool,
    note: str,
    keep: Callable[[str, Figure], None],
    suffix: str,
) -> list[Path]:
    """Draw the urgent units that were missed, or without urgent classes the wrong ones, and list what counted there.

    Parameters
    ----------
    of : the units that were missed, how the scans of these and others counted, and the level.
    """
    units, each, level = of
    info = read_info(run.bundle)
    # Of scans that are put together by a mean all count alike.
    suspicious = info.level == "scan"
    asked = urgent if suspicious else None
    frames = frames_of(units, each, level, suspicious=asked)
    heat = None
    if method and len(units):
        maps = interp.heat_maps(str(method))
        drawn = frames_of(units.head(MOST_UNITS), each, level, suspicious=asked)
        with track("heat maps", len(drawn)) as update:
            maps.compute(drawn["path"], drawn["label"], update)
        heat = maps.get
    what = f"urgent {level}s ({', '.join(urgent)}) taken for another class" if urgent else f"wrong {level}s"
    title = f"{len(units)} {what}, {split}{_shown(units, MOST_UNITS)}"
    own = suffix.removesuffix("" if split == "valid" else f"-{split}").replace("-", "_")
    keep(
        f"missed_units{own}",
        plot_units(units, each, level, title, note, asked=urgent, heat=heat, fit=info.fit, suspicious=suspicious),
    )
    return [_save(frames, run, f"missed-units{suffix}.csv")]


def _suspects(
    interp: ClassificationInterpretation, split: str, wanted: bool, folds: Sequence[Run | str | Path]
) -> tuple[pd.DataFrame | None, str]:
    """The suspected label errors, and on which predictions they were found."""
    if folds:
        held_out, classes, n = out_of_fold(folds)
        return ClassificationInterpretation(held_out, classes).label_errors(), f"out-of-fold predictions of {n} runs"
    if not wanted:
        return None, ""
    if split == "train":
        log.warning("label errors among scans that the model was trained on: it has learned some, which do not show")
    return interp.label_errors(), f"this run's {split} predictions"


def _shown(rows: pd.DataFrame, k: int) -> str:
    return f"; the first {k} shown" if len(rows) > k else ""


def _save(rows: pd.DataFrame, run: Run, name: str) -> Path:
    save_scans(rows, run.path / name, run.root)
    return run.path / name
