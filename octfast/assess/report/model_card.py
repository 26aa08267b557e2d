"""MODEL_CARD.md: what a model is, what for, on what it was trained, how well it does, and where it should not be used.

The sections are those of Mitchell et al., Model Cards for Model Reporting, FAT* 2019, doi:10.1145/3287560.3287596.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from octfast.assess.metrics.definitions import metric
from octfast.assess.metrics.metrics import Evaluation
from octfast.assess.report.provenance import (
    SPLIT_NAMES,
    Provenance,
    patients_in_words,
    repeat_rows,
    shared_in_words,
    splits_in_words,
    train_command,
    training_rows,
)
from octfast.assess.report.render import TEMPLATES
from octfast.assess.report.tables import estimate_grid, estimate_rows, find, methods_in_words
from octfast.data.fit import fit_in_words, seen_in_words
from octfast.notices import SYNTHETIC_NOTE

# What Markdown, or HTML within it, would read as more than a letter: anywhere, and at the start of a line.
_MARKS = re.compile(r"[\\`*\[\]|~$<>&]|(?<![^\W_])_|_(?![^\W_])")
_AT_START = re.compile(r"^(\s*(?=[-+=#])|\s*\d+(?=[.)](?:\s|$)))(.)")


def model_card(
    known: Provenance, split: str, evaluation: Evaluation, cautions: Sequence[str], limits: Sequence[str]
) -> str:
    """The model card as Markdown; whatever comes from the user is escaped in it.

    Parameters
    ----------
    known : of `octfast.assess.report.provenance.run_provenance`.
    evaluation : of the split.
    cautions, limits : sentences that the report has, too.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["num"] = lambda n: f"{n:,}"
    info, asked = known.info, evaluation.settings
    threshold = (asked["operating"] or {}).get("threshold")
    points = {"argmax": "highest probability", "operating": "operating point", "score": "at every threshold"}
    return env.get_template("model_card.md.j2").render(
        title=f"{info.arch} on {known.data}",
        info=info,
        fit_words=fit_in_words(info.fit, info.size),
        seen_words=seen_in_words(info.fit),
        known=known,
        split=split,
        split_name=SPLIT_NAMES[split],
        counts=evaluation.counts,
        synthetic_note=SYNTHETIC_NOTE if info.synthetic else "",
        cautions=cautions,
        limits=limits,
        training_rows=training_rows(known),
        repeat_rows=repeat_rows(known),
        command=_code(train_command(known)),
        patients_words=patients_in_words(known),
        shared_words=shared_in_words(known),
        splits_words=splits_in_words(known),
        overall=estimate_rows(evaluation.overall),
        per_class=estimate_grid(evaluation.per_class, "class"),
        urgent=asked["urgent"],
        threshold=None if threshold is None else f"{threshold:.3g}",
        referral=[
            {
                "point": points[r.point],
                "name": metric(r.metric).name,
                "cell": find(evaluation.referral, r.metric, point=r.point),
            }
            for r in evaluation.referral.itertuples()
        ],
        referral_methods=methods_in_words(evaluation.referral, "point", points),
        groups=_groups(evaluation),
        notes=evaluation.notes,
        resamples=asked["resamples"],
        seed=asked["seed"],
    )


def _groups(evaluation: Evaluation) -> list[dict[str, Any]]:
    frame = evaluation.groups
    frame = frame[(frame["section"] == "overall") & (frame["metric"] == "accuracy")]
    return [
        {
            "by": str(r.by),
            "group": str(r.group),
            "scans": int(r.scans),
            "patients": int(r.patients),
            "cell": find(frame, "accuracy", by=r.by, group=r.group),
        }
        for r in frame.itertuples()
    ]


class _Code(str):
    """Text that stands in a block of code, where nothing but the fence has a meaning."""


def _code(text: str) -> _Code:
    return _Code("".join(c if c.isprintable() else " " for c in text).replace("```", "` ` `"))


def _escaped(value: Any) -> Any:
    """Text on one line that Markdown shows letter for letter; everything else as it is."""
    if not isinstance(value, str) or isinstance(value, _Code):
        return value
    shown = "".join(c if c.isprintable() else " " for c in value)
    return _AT_START.sub(r"\1\\\2", _MARKS.sub(lambda m: f"\\{m[0]}", shown))
