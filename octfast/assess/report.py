"""What `octfast interpret` finds of a run's split, with its figures in the run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.assess.figures import plot_confusion_matrix, plot_top_losses
from octfast.assess.interpret import confusion_matrix, most_confused, top_losses
from octfast.assess.predictions import run_predictions
from octfast.train.job import headline
from octfast.train.plots import save_figure
from octfast.train.run import SYNTHETIC_NOTE, Run


@dataclass(frozen=True)
class Findings:
    """What was found: `headline` figures, `confusion`, `confused` pairs, `top` losses, the `files` written."""

    split: str
    headline: dict[str, Any]
    confusion: pd.DataFrame
    confused: pd.DataFrame
    top: pd.DataFrame
    files: list[Path]
    synthetic: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "split": self.split,
            **self.headline,
            "synthetic": self.synthetic,
            "confusion": self.confusion.to_dict("index"),
            "most_confused": self.confused.to_dict("records"),
            "top_losses": self.top.to_dict("records"),
            "files": [str(f) for f in self.files],
        }


def interpret_run(run: Run, split: str = "valid", k: int = 9, *, largest: bool = True) -> Findings:
    """Find where a run's model goes wrong in a split, and draw it into the run folder.

    Parameters
    ----------
    k : how many scans to show.
    largest : whether those with the largest loss, or the smallest.

    Raises
    ------
    OctfastError : see `octfast.assess.predictions.run_predictions`.
    """
    table, info = run_predictions(run, split)
    counts = confusion_matrix(table, info.classes)
    top = top_losses(table, k, largest=largest)
    suffix = "" if split == "valid" else f"-{split}"
    note = SYNTHETIC_NOTE if info.synthetic else ""
    right = f"{split}: {(table['label'] == table['predicted']).sum()} of {len(table)} scans right"
    which = "top_losses" if largest else "smallest_losses"
    files = [
        save_figure(
            plot_top_losses(top, f"{'Top' if largest else 'Smallest'} losses, {right}", note),
            run.figures / f"{which}{suffix}.png",
        ),
        save_figure(
            plot_confusion_matrix(counts, f"Confusion, {right}", note), run.figures / f"confusion_matrix{suffix}.png"
        ),
        run.predictions_file(split),
    ]
    return Findings(split, headline(table), counts, most_confused(table), top, files, info.synthetic)
