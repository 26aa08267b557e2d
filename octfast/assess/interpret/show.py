"""One scan with its label and the probabilities of the likeliest classes; accuracy and top-k accuracy a class."""

from __future__ import annotations

import logging
import re
import secrets
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from octfast.assess.interpret.plots import RIGHT, WRONG, bound
from octfast.assess.predictions import run_predictions
from octfast.data.fit import hides, seen_in_words
from octfast.data.preprocess import decode_grey
from octfast.errors import DataError, UsageError
from octfast.figure import Figure, Files, short
from octfast.files import refuse_address
from octfast.model.bundle.read import load_bundle, read_info, refuse_units
from octfast.model.forward import predict_scans
from octfast.notices import NOTICE, SYNTHETIC_NOTE
from octfast.run.folder import Run, open_run

log = logging.getLogger("octfast")

OTHER = "#999999"


@dataclass(frozen=True)
class Shown:
    """One scan and its answer.

    Attributes
    ----------
    path : of the scan; `label` is its class as the data set has it, or None where that is not known.
    predicted : the likeliest class; `table` has the likeliest ones: `class`, `probability`.
    figure : the scan beside a bar chart of them; `file` is where it was written.
    seed : of the random choice; None where the scan was named.
    """

    path: str
    label: str | None
    predicted: str
    table: pd.DataFrame
    figure: Figure
    file: Path
    synthetic: bool
    seed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "path": self.path,
            "actual": self.label,
            "predicted": self.predicted,
            "probabilities": dict(zip(self.table["class"], self.table["probability"], strict=True)),
            "file": str(self.file),
            "seed": self.seed,
            "synthetic": self.synthetic,
        }


def show_scan(
    run: Run | str | Path | None = None,
    scan: str | Path | None = None,
    *,
    split: str = "test",
    seed: int | None = None,
    k: int = 4,
    files: Files | None = None,
) -> Shown:
    """Show one scan with its label and the k likeliest classes, and draw it into the run folder.

    Parameters
    ----------
    run : a run or its folder; None takes the newest.
    scan : a file, or the name of one of the split's scans; None draws one of the split at random. The model is run for
        a file that is in no predictions of the run.
    split : where to draw from; without test scans, validation.
    seed : of the draw, 0 or more; None takes another each time, which stands in the answer.
    k : how many classes.
    files : how to write the figure; None writes PNG.

    Raises
    ------
    DataError : the scan does not exist or cannot be read, or its name is that of several.
    UsageError : k is less than 1, or the seed less than 0.
    OctfastError : see `octfast.assess.predictions.run_predictions`.
    """
    if k < 1:
        raise UsageError(f"cannot show the {k} likeliest classes", "give 1 or more")
    if seed is not None and seed < 0:
        raise UsageError(f"--seed {seed}: less than 0", "give 0 or more")
    run = run if isinstance(run, Run) else open_run(run)
    if scan is None:
        seed = secrets.randbelow(10_000) if seed is None else seed
        if split == "test" and run.predictions("test") is None and not (run.scans["split"] == "test").any():
            log.info("the run has no test scans: one of validation is shown")
            split = "valid"
        table, info = run_predictions(run, split)
        row = table.iloc[int(np.random.default_rng(seed).integers(len(table)))]
        label: str | None = str(row["label"])
    else:
        seed = None
        row, label, info = _named(run, str(scan))
    path = str(row["path"])
    picture = decode_grey(path)
    probabilities = row[[f"p_{c}" for c in info.classes]].to_numpy(dtype=float)
    order = np.argsort(-probabilities, kind="stable")[:k]
    likely = pd.DataFrame({"class": [info.classes[i] for i in order], "probability": probabilities[order]})
    note = SYNTHETIC_NOTE if info.synthetic else ""
    figure = plot_scan(picture, likely, label, Path(path).name, note, info.fit)
    stem = re.sub(r"[^\w.-]+", "_", Path(path).stem)[:80] or "scan"
    file = (files or Files()).save(figure, run.figures / f"show-{stem}")
    return Shown(path, label, str(likely["class"].iloc[0]), likely, figure, file, info.synthetic, seed)


def plot_scan(
    picture: Image.Image,
    likely: pd.DataFrame,
    label: str | None = None,
    name: str = "",
    note: str = "",
    fit: str = "squeeze",
) -> Figure:
    """A scan with its label, beside a bar chart of the likeliest classes, the likeliest at the top.

    Parameters
    ----------
    picture : of mode L.
    likely : `class` and `probability`, the likeliest first.
    label : its bar is blue, that of a wrong prediction orange.
    name : stands below the scan; `note` below the plot.
    fit : that of the model; lines bound what it sees of the scan.
    """
    predicted = str(likely["class"].iloc[0])
    high = max(3.8, 0.45 * len(likely) + 1.6)
    scan_wide = min(6.5, max(2.6, (high - 1) * picture.width / picture.height))
    fig = Figure(figsize=(scan_wide + 5.6, high), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=(scan_wide, 5.2))
    left.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255)
    bound(left, picture, fit)
    seen = f"{seen_in_words(fit)}, within the lines" if hides(picture.width, picture.height, fit) else ""
    below = [*textwrap.wrap(name, 70), *textwrap.wrap(seen, 70)]
    left.set(xticks=[], yticks=[], xlabel="\n".join(below))
    left.xaxis.label.set(fontsize=8, color="#444444")
    verdict = "label not known" if label is None else f"label {short(label)}"
    colour = "black" if label is None else RIGHT if label == predicted else WRONG
    # Above the whole figure, which leaves room for it; above the scan alone it could be cut off.
    fig.suptitle(f"{verdict}\npredicted {short(predicted)}", x=0.01, ha="left", fontsize=11, color=colour)
    left.set_anchor("N")
    lines = np.arange(len(likely))
    colours = [RIGHT if c == label else WRONG if c == predicted and label else OTHER for c in likely["class"]]
    bars = right.barh(lines, likely["probability"], color=colours)
    right.bar_label(bars, [f"{p:.1%}" for p in likely["probability"]], padding=3, fontsize=9)
    ticks = [f"{short(c)} (label)" if c == label else short(c) for c in likely["class"]]
    right.set_yticks(lines, ticks)
    right.invert_yaxis()
    right.set(xlim=(0, 1.14), xlabel="probability", xticks=np.linspace(0, 1, 6))
    right.spines[["top", "right"]].set_visible(False)
    fig.supxlabel(f"{note}  {NOTICE}".strip(), fontsize=8, color="#444444")
    return fig


def class_accuracy(table: pd.DataFrame, classes: Sequence[str], k: int = 2) -> pd.DataFrame:
    """Accuracy and top-k accuracy of each class, and of all scans in the last row.

    Parameters
    ----------
    table : a Predictions table.
    classes : in the order of their index; of equal probabilities the first class counts as the likelier.
    k : a scan counts where its class is among the k likeliest.

    Returns
    -------
    `class`, `scans`, `right`, `accuracy`, `top<k>_accuracy`; not a number for a class without scans.

    Raises
    ------
    UsageError : k is less than 1.
    """
    if k < 1:
        raise UsageError(f"no top-{k} accuracy", "give 1 or more")
    actual = pd.Categorical(table["label"], categories=list(classes)).codes
    order = np.argsort(-table[[f"p_{c}" for c in classes]].to_numpy(dtype=float), axis=1, kind="stable")
    right = (table["label"] == table["predicted"]).to_numpy()
    # Where two probabilities differ by less than float64 tells, the prediction knows which was larger.
    among = (order[:, :k] == actual[:, None]).any(axis=1) | right
    groups = [(c, actual == i) for i, c in enumerate(classes)] + [("all", np.ones(len(table), dtype=bool))]
    return pd.DataFrame(
        [
            {
                "class": name,
                "scans": int(chosen.sum()),
                "right": int(right[chosen].sum()),
                "accuracy": float(right[chosen].mean()) if chosen.any() else float("nan"),
                f"top{k}_accuracy": float(among[chosen].mean()) if chosen.any() else float("nan"),
            }
            for name, chosen in groups
        ]
    )


def _named(run: Run, scan: str) -> tuple[pd.Series, str | None, Any]:
    """The row of a scan in the run's predictions by its path or file name; else a row made by running the model."""
    refuse_address(scan, "download it and give the picture")
    refuse_units(read_info(run.bundle), run.path.name)
    path = Path(scan).expanduser()
    scans = run.scans
    mine = scans[scans["path"] == str(path.absolute())]
    if mine.empty and not path.is_file():
        mine = scans[[p.endswith(f"/{path.as_posix()}") for p in scans["path"].str.replace("\\", "/")]]
        if mine.empty:
            raise DataError(f"no such file: {scan}", "give a picture, or the name of one of the run's scans")
        if len(mine) > 1:
            raise DataError(f"{len(mine)} scans of the run are named {scan}", "give the folder too, as CNV/name")
    if len(mine):
        row = mine.iloc[0]
        table, info = run_predictions(run, row["split"])
        predicted = table[table["path"] == row["path"]]
        if len(predicted):
            return predicted.iloc[0], str(predicted["label"].iloc[0]), info
        path = Path(row["path"])
    model, info = load_bundle(run.bundle)
    folder = path.absolute().parent.name
    label = str(mine["label"].iloc[0]) if len(mine) else folder if folder in info.classes else None
    if len(mine) == 0 and label:
        log.info("the label, %s, is the name of the folder", label)
    one = pd.DataFrame({"path": [str(path)], "label": [label or info.classes[0]], "patient": "", "split": "test"})
    table = predict_scans(model, info, one, precision=run.config.get("precision", "auto"))
    return table.iloc[0], label, info
