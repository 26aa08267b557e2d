"""Models side by side on the same scans: paired bootstrap of the differences, and McNemar's test."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from octfast.assess.at_level import at_level, check_level_asked
from octfast.assess.evaluate import evaluation_root, operating_point, read_evaluation
from octfast.assess.metrics.costs import check_costs, kermany_costs, read_costs
from octfast.assess.metrics.intervals import choose_interval, paired_interval
from octfast.assess.metrics.statistics import Key, Question, Statistics
from octfast.assess.metrics.subgroups import units
from octfast.assess.predictions import run_predictions
from octfast.data.units import LEVELS, one
from octfast.errors import DataError, UsageError
from octfast.model.aggregation import MEAN, Aggregation
from octfast.model.bundle.info import BundleInfo
from octfast.model.decide import urgent_classes
from octfast.model.units import aggregated_tables, unit_names
from octfast.run.folder import Run, open_run

log = logging.getLogger("octfast")

_KEY = ["section", "of", "metric"]


@dataclass(frozen=True)
class Comparison:
    """Models on the same scans.

    Attributes
    ----------
    figures : `run`, `section`, `of`, `metric`, `value`, `low`, `high`, `method`.
    differences : `run`, `reference` (the first), `section`, `of`, `metric`, `difference` (run minus reference),
        `low`, `high`, `method`: both models are judged on the same resamples of patients.
    mcnemar : `run`, `reference`, `unit` (what has a row, or "patient" by mean probability), `n`, `only_run_right`,
        `only_reference_right`, `p` (exact, two-sided), `p_holm` (held against all the runs that were compared).
    split, scans, patients : what they were judged on.
    settings : level, resamples, seed.
    notes : what a reader should know of it.
    unit : what has a row of the tables, one of `octfast.data.units.LEVELS`.
    """

    figures: pd.DataFrame
    differences: pd.DataFrame
    mcnemar: pd.DataFrame
    split: str
    scans: int
    patients: int
    settings: dict[str, Any]
    notes: list[str]
    unit: str = "scan"

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "split": self.split,
            "unit": self.unit,
            "scans": self.scans,
            "patients": self.patients,
            **self.settings,
            "figures": _records(self.figures),
            "differences": _records(self.differences),
            "mcnemar": _records(self.mcnemar),
            "notes": list(self.notes),
        }


def compare_runs(
    runs: Sequence[Run | str | Path],
    split: str | None = None,
    *,
    urgent: Sequence[str] | None = None,
    sensitivity: float | None = None,
    unit: str | None = None,
    costs: pd.DataFrame | str | Path | None = None,
    **asked: Any,
) -> Comparison:
    """Compare runs on the scans of a split that all of them have; the first is the reference.

    One model of scans is compared with itself where `unit` is given: the answers for whole units as it puts their scans
    together, with the mean of the scans' probabilities, the reference.

    Parameters
    ----------
    runs : two or more runs, or folders of runs or of what `octfast evaluate` made of other scans; or one of a model of
        scans.
    split : None takes test where all runs have it, else valid; what evaluate made has but one.
    urgent, sensitivity : see `octfast.assess.evaluate.evaluate_run`.
    unit : compare answers for a "volume", an "eye" or a "patient", also of models of scans, see
        `octfast.assess.at_level.at_level`; None takes what each answers for.
    costs : as in `evaluate_table`, or the CSV that holds them.
    asked : the further parameters of `compare_tables`.

    Raises
    ------
    UsageError : fewer than two runs, and not one that can be compared with the mean of its scans.
    DataError : models of other classes, no scan in common, or other labels.
    """
    opened = [_open(r) for r in runs]
    alone = len(opened) == 1 and unit in LEVELS[1:] and isinstance(opened[0], Run)
    if len(opened) < 2 and not alone:
        raise UsageError(
            "comparing needs two or more runs",
            "octfast compare runs/first runs/second; or --level eye and one run, whose answers for whole eyes are "
            "compared with the mean of their scans",
        )
    if split is None:
        own = [r for r in opened if isinstance(r, Run)]
        split = "test" if all((r.scans["split"] == "test").any() for r in own) else "valid"
    names = _names([r.path if isinstance(r, Run) else r for r in opened])
    tables: dict[str, pd.DataFrame] = {}
    classes: dict[str, list[str]] = {}
    points: dict[str, float | None] = {}
    notes: list[str] = []
    aims: dict[str, float | None] = {}
    levels: dict[str, str] = {}
    for name, run in zip(names, opened, strict=True):
        if isinstance(run, Run):
            table, info = run_predictions(run, split)
            levels[name] = check_level_asked(unit, info)
            tables[name], _, _, how = at_level(table, info, levels[name])
            if alone:
                _check_puts_together(info, name)
                plain = f"{name}, the mean of its scans"
                mean = aggregated_tables(table, Aggregation(levels[name], MEAN), info.classes)[0]
                tables, points = {plain: mean, **tables}, {plain: None}
                levels[plain], classes[plain] = levels[name], list(info.classes)
            notes += [f"{name}: {note}" for note in how]
            classes[name] = list(info.classes)
            point, said = operating_point(info, run, urgent, sensitivity, levels[name])
            points[name] = None if point is None else point.threshold
            aims[name] = None if point is None else point.wanted
            notes += [f"{name}: {note}" for note in said]
        else:
            tables[name], metrics = read_evaluation(run)
            levels[name] = metrics["source"].get("level", "scan")
            classes[name] = list(metrics["classes"])
            points[name], said = _kept_point(metrics, urgent, sensitivity)
            aims[name] = None if points[name] is None else (metrics.get("operating") or {}).get("wanted")
            notes += [f"{name}: {note}" for note in said]
    known = {name: aim for name, aim in aims.items() if aim is not None}
    if len(set(known.values())) > 1:
        told = ", ".join(f"{name} {aim:g}" for name, aim in known.items())
        notes.append(f"The operating points are for different sensitivities ({told}): --sensitivity fixes one for all.")
    names = list(tables)
    first, of = classes[names[0]], levels[names[0]]
    if other := next((name for name in names if levels[name] != of), None):
        raise DataError(
            f"{names[0]} answers for {one(of)} and {other} for {one(levels[other])}: figures count different things",
            f"answers for scans can be put together: --level {next(v for v in levels.values() if v != 'scan')}",
        )
    for name in names[1:]:
        if set(classes[name]) != set(first):
            raise DataError(
                f"{names[0]} and {name} are of different classes: {', '.join(first)}; {', '.join(classes[name])}",
                "only models of the same classes can be compared",
            )
    if of != "scan":
        # A row's path is that of the scan that counted most, which is another one for another model.
        tables = {name: table.assign(path=unit_names(table, of)) for name, table in tables.items()}
    if not set.intersection(*(set(t["path"]) for t in tables.values())):
        # The scans may have lain in another folder each time.
        for name, run in zip(names, opened, strict=False):
            base = run.root if isinstance(run, Run) else evaluation_root(run)
            relative = [
                Path(p).relative_to(base).as_posix() if Path(p).is_relative_to(base) else p
                for p in tables[name]["path"]
            ]
            tables[name] = tables[name].assign(path=relative)
    cost = read_costs(costs, first) if isinstance(costs, str | Path) else costs
    found = compare_tables(tables, first, urgent=urgent, costs=cost, thresholds=points, split=split, unit=of, **asked)
    found.notes[:0] = notes
    return found


def compare_tables(
    tables: Mapping[str, pd.DataFrame],
    classes: Sequence[str],
    *,
    urgent: Sequence[str] | None = None,
    costs: pd.DataFrame | None = None,
    thresholds: Mapping[str, float | None] | None = None,
    split: str = "",
    unit: str = "scan",
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    top_k: int = 2,
) -> Comparison:
    """Compare Predictions tables of the same scans, found by their paths; the first is the reference.

    Parameters
    ----------
    tables : by the name of the model.
    thresholds : each model's operating point of urgent referral; None for none.
    unit : what has a row.
    urgent, costs, resamples, seed, level, top_k : see `octfast.assess.metrics.metrics.evaluate_table`.

    Raises
    ------
    DataError : no scan in common, or other labels.
    """
    aligned, notes = _aligned(tables, unit)
    names = list(aligned)
    refer = urgent_classes(classes, urgent)
    cost = kermany_costs(classes, refer) if costs is None else check_costs(costs, classes)
    first = aligned[names[0]]
    owner = pd.factorize(first["patient"])[0]
    values: dict[str, dict[Key, float]] = {}
    drawn: dict[str, dict[Key, np.ndarray]] = {}
    figures = []
    for name, table in aligned.items():
        question = Question(
            classes=tuple(classes),
            urgent=refer,
            threshold=(thresholds or {}).get(name),
            costs=None if cost is None else cost.to_numpy(dtype=float),
            top_k=min(top_k, len(classes)),
        )
        statistics = Statistics(table, question, owner)
        values[name] = statistics.values()
        # The same seed and patients, so the same resamples for every model.
        drawn[name] = statistics.resampled(resamples, seed)
        for key, value in values[name].items():
            interval = choose_interval(
                value, drawn[name][key], level=level, single=statistics.single, proportion=statistics.proportion(key)
            )
            figures.append([name, *key, value, *interval])
    single = bool(owner.max() + 1 == len(first))
    rows = []
    for name in names[1:]:
        for key in (k for k in values[names[0]] if k in values[name]):
            with np.errstate(invalid="ignore"):  # of likelihood ratios that are both infinite
                spread = drawn[name][key] - drawn[names[0]][key]
            found = paired_interval(values[name][key] - values[names[0]][key], spread, level, single)
            rows.append([name, names[0], *key, *found])
    mcnemar = _mcnemar_table(aligned, classes, unit)
    if len(rows):
        notes.append("Each interval stands alone: of twenty figures of equal models, one leaves out 0 by chance.")
    if not single and len(names) > 1:
        notes.append(f"McNemar's test takes {unit}s for independent; that of patients does not need to.")
    head = ["value", "low", "high", "method"]
    return Comparison(
        figures=pd.DataFrame(figures, columns=["run", *_KEY, *head]),
        differences=pd.DataFrame(rows, columns=["run", "reference", *_KEY, "difference", *head[1:]]),
        mcnemar=mcnemar,
        split=split,
        scans=len(first),
        patients=int(owner.max()) + 1,
        settings={
            "classes": list(classes),
            "urgent": list(refer),
            "level": level,
            "resamples": resamples,
            "seed": seed,
        },
        notes=notes,
        unit=unit,
    )


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test (McNemar 1947), a binomial test of the pairs in which one alone is right.

    Returns
    -------
    (only the first right, only the second right, two-sided p; 1 without such pairs).
    """
    b = int((first_right & ~second_right).sum())
    c = int((second_right & ~first_right).sum())
    return b, c, float(binomtest(b, b + c).pvalue) if b + c else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """p-values held against all of their number (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    out = np.empty(len(p))
    most = 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (len(p) - rank) * p[i]))
        out[i] = most
    return out.tolist()


def _open(run: Run | str | Path) -> Run | Path:
    if isinstance(run, Run):
        return run
    path = Path(run).expanduser()
    made = path.is_dir() and not (path / "config.json").exists() and any(path.glob("metrics-*.json"))
    return path.resolve() if made else open_run(path)


def _check_puts_together(info: BundleInfo, name: str) -> None:
    if info.level != "scan":
        raise UsageError(
            f"{name} answers for {one(info.level)}, and puts no scans together that could be compared with their mean",
            "give two or more runs: octfast compare runs/first runs/second",
        )


def _kept_point(
    metrics: dict[str, Any], urgent: Sequence[str] | None, sensitivity: float | None
) -> tuple[float | None, list[str]]:
    """The threshold of an evaluation, where it is of these urgent classes and this sensitivity; and why it is not."""
    kept = metrics.get("operating")
    refer = urgent_classes(metrics["classes"], urgent)
    if not isinstance(kept, dict) or not refer:
        return None, []
    if set(metrics.get("urgent", ())) != set(refer):
        return None, ["No operating point, as it was fixed for other urgent classes."]
    if sensitivity is not None and kept.get("wanted") != sensitivity:
        return None, [f"No operating point, as none was fixed for a sensitivity of {sensitivity:g}; evaluate it again."]
    return float(kept["threshold"]), []


def _names(paths: Sequence[Path]) -> list[str]:
    """A name for each: the folder's, with its number behind where several have the same."""
    plain = [p.name for p in paths]
    return [n if plain.count(n) == 1 else f"{n} ({i + 1})" for i, n in enumerate(plain)]


def _aligned(tables: Mapping[str, pd.DataFrame], unit: str = "scan") -> tuple[dict[str, pd.DataFrame], list[str]]:
    """The scans that all tables have, in the order of the first."""
    names = list(tables)
    by_path = {name: t.drop_duplicates("path").set_index("path", drop=False) for name, t in tables.items()}
    common = set.intersection(*(set(t.index) for t in by_path.values()))
    if not common:
        raise DataError(
            f"{', '.join(names)} have no scan in common", "compare runs on the same scans, such as the same test split"
        )
    order = [p for p in by_path[names[0]].index if p in common]
    out = {name: t.loc[order].reset_index(drop=True) for name, t in by_path.items()}
    notes = []
    most = max(len(t) for t in by_path.values())
    if len(order) < most:
        notes.append(f"Only the {len(order):,} {unit}s that all have are compared; one has {most:,}.")
        log.warning(notes[0].removesuffix("."))
    for name in names[1:]:
        other = (out[name]["label"] != out[names[0]]["label"]).sum()
        if other:
            raise DataError(
                f"{names[0]} and {name} have different labels for {other:,} of {len(order):,} scans",
                "compare runs of the same labels",
            )
        if (out[name]["patient"] != out[names[0]]["patient"]).any():
            notes.append(f"{name} has other patients than {names[0]}, whose are used.")
    return out, notes


def _mcnemar_table(aligned: Mapping[str, pd.DataFrame], classes: Sequence[str], of: str) -> pd.DataFrame:
    names = list(aligned)
    right: dict[str, dict[str, np.ndarray]] = {of: {}, **({} if of == "patient" else {"patient": {}})}
    for name, table in aligned.items():
        right[of][name] = (table["predicted"] == table["label"]).to_numpy()
        # Patients of the first, so that each model has the same.
        table = table.assign(patient=aligned[names[0]]["patient"])
        for unit, rule, part, _ in units(table, classes):
            if (unit, rule) == ("patient", "mean_probability") and of != "patient":
                right["patient"][name] = (part["predicted"] == part["label"]).to_numpy()
    rows = []
    for unit, by_name in right.items():
        found = [mcnemar(by_name[name], by_name[names[0]]) for name in names[1:]]
        held = holm([p for _, _, p in found])
        for name, (only, only_first, p), h in zip(names[1:], found, held, strict=True):
            rows.append([name, names[0], unit, len(by_name[name]), only, only_first, p, h])
    columns = ["run", "reference", "unit", "n", "only_run_right", "only_reference_right", "p", "p_holm"]
    return pd.DataFrame(rows, columns=columns)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}
        for row in table.to_dict("records")
    ]
