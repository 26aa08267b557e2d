"""Every metric of a Predictions table with its interval: evaluate_table(table, classes) -> Evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from octfast.assess.metrics.abstain import abstain_metrics, abstain_summary
from octfast.assess.metrics.costs import check_costs, check_prevalence, class_shares, kermany_costs
from octfast.assess.metrics.intervals import ALL_EQUAL, choose_interval
from octfast.assess.metrics.paired import COLUMNS
from octfast.assess.metrics.referral import OperatingPoint
from octfast.assess.metrics.statistics import SECTIONS, Question, Statistics
from octfast.assess.metrics.subgroups import grouped, is_small, small_group_note, units
from octfast.errors import DataError, UsageError
from octfast.model.aggregation import MEAN, Aggregation
from octfast.model.decide import Rule, urgent_classes
from octfast.model.units import aggregated_tables
from octfast.notices import NOTICE, Note

log = logging.getLogger("octfast")

SCHEMA = 1
_ESTIMATE = ["metric", "value", "low", "high", "method"]
_FEW_PATIENTS = 20
# Kinds of remarks that stand elsewhere on a page than among the others.
PREVALENCE, SMALL_GROUP = "prevalence", "small group"


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a Predictions table, as tables.

    Attributes
    ----------
    overall : `metric`, `value`, `low`, `high`, `method` (of the interval).
    per_class : the same for each class against the others, with `class` before and `n`, its scans, behind.
    referral : the same for urgent against the others, with `point` before: "argmax" (referred where the predicted
        class is urgent), "operating" (where the urgent score reaches the threshold), "score" (at every threshold).
    units : the same for whole patients, and eyes and volumes where the table has such columns, with `unit`, `rule`
        ("majority" of the scans' classes, "mean_probability", or "fitted", as the model puts scans together) and `n`
        units.
    groups : the same for each group of the columns asked for, with `by`, `group`, `scans`, `patients`, `small`,
        `section` ("overall", "class", "referral") and `of` (the class, or the point).
    confusion : scans, actual by predicted.
    counts : `scans`, `patients`, `right`, `patients_right`, `urgent`, `missed_urgent`, and `classes`.
    settings : what was asked: classes, urgent, operating, costs, prevalence, top_k, level, resamples, seed.
    remarks : what a reader should know of the metrics; `notes` gives them as text.
    source : what was judged: split, run, data, arch, temperature, synthetic; empty for a bare table.
    paired : of a model of scans, what its way of putting them together changes against the mean of their probabilities,
        see `octfast.assess.metrics.paired.against_mean`; empty of a bare table.
    abstain : what comes of abstaining below a probability, see `abstain_summary`, with its metrics and
        intervals under `figures`; None where it was not asked.
    """

    overall: pd.DataFrame
    per_class: pd.DataFrame
    referral: pd.DataFrame
    units: pd.DataFrame
    groups: pd.DataFrame
    confusion: pd.DataFrame
    counts: dict[str, Any]
    settings: dict[str, Any]
    remarks: list[Note]
    source: dict[str, Any] = field(default_factory=dict)
    abstain: dict[str, Any] | None = None
    paired: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COLUMNS))

    @property
    def notes(self) -> list[str]:
        """What a reader should know of the metrics, a sentence each."""
        return [str(note) for note in self.remarks]

    def value(self, metric: str, of: str = "") -> float:
        """One metric: overall, or of a class, or of a point of referral."""
        for table, column in ((self.per_class, "class"), (self.referral, "point")):
            found = table[(table[column] == of) & (table["metric"] == metric)]
            if of and len(found):
                return float(found["value"].iloc[0])
        found = self.overall[self.overall["metric"] == metric]
        if of or found.empty:
            raise KeyError(f"no metric {metric} {of}".strip())
        return float(found["value"].iloc[0])

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, None for what is undefined or unbounded; docs/metrics-schema.md says what it holds."""
        counts = {k: self.counts[k] for k in ("scans", "patients", "right")}
        return {
            "schema": SCHEMA,
            "split": self.source.get("split"),
            **counts,
            "accuracy": _plain(self.value("accuracy")),
            "loss": _plain(self.value("nll")),
            "patients_right": self.counts["patients_right"],
            **_plain(self.settings),
            "source": _plain(self.source),
            "overall": _records(self.overall),
            "per_class": _records(self.per_class),
            "referral": _records(self.referral),
            "units": _records(self.units),
            "paired": _records(self.paired),
            "groups": _records(self.groups),
            "abstain": _plain(self.abstain),
            "confusion": {str(a): {str(p): int(n) for p, n in row.items()} for a, row in self.confusion.iterrows()},
            "counts": _plain(self.counts),
            "notes": self.notes,
        }

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        tables = {"All classes": self.overall, "Each class against the others": self.per_class}
        tables |= {"Urgent referral": self.referral} if len(self.referral) else {}
        shown = [
            f"<h4>{title}</h4>{table.to_html(index=False, float_format=lambda v: f'{v:.3f}', border=0)}"
            for title, table in tables.items()
        ]
        return "".join([*shown, *(f"<p>{escape(note)}</p>" for note in self.notes), f"<p>{NOTICE}</p>"])


def evaluate_table(
    table: pd.DataFrame,
    classes: Sequence[str],
    *,
    urgent: Sequence[str] | None = None,
    costs: pd.DataFrame | None = None,
    prevalence: dict[str, float] | None = None,
    operating_threshold: float | OperatingPoint | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    by_group: Sequence[str] = (),
    top_k: int = 2,
    abstain_below: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    aggregations: Sequence[Aggregation] = (),
    unit: str = "scan",
) -> Evaluation:
    """Judge a Predictions table.

    Point estimates are scikit-learn's where it has them. Intervals are percentile bootstraps over patients, Wilson's
    for proportions where each scan is a patient of its own; `choose_interval` in `intervals` says when which.

    Parameters
    ----------
    table : the Predictions table.
    classes : in the order of their index.
    urgent : the classes to refer; None takes CNV and DME where they exist, () judges no referral.
    costs : of a mistake, actual by predicted; None takes Kermany's where they apply.
    prevalence : share of classes at which PPV and NPV are given again, by Bayes; the classes not named share the rest
        in proportion to their scans.
    operating_threshold : of the urgent score, fixed on other scans.
    resamples : of the bootstrap; at least 100.
    seed : of the bootstrap.
    level : of the intervals, between .5 and 1.
    by_group : columns whose groups are judged one by one.
    top_k : for the accuracy among the k most probable classes.
    abstain_below : probability of the predicted class below which the model gives no answer; None judges no such rule.
    progress : called with (resamples done, all resamples) of the whole table.
    aggregations : of a model of scans, by which whole units are judged beside the rules that need no fit.
    unit : what a row is, "scan", "volume", "eye" or "patient", as methods and notes call it.

    Raises
    ------
    UsageError : a parameter that cannot be, or a column that the table lacks.
    DataError : an empty table, or one that is not of these classes.
    """
    classes = list(classes)
    check_question(resamples=resamples, level=level, top_k=top_k, abstain_below=abstain_below)
    _check(table, classes)
    point = operating_threshold
    if isinstance(point, int | float):
        point = OperatingPoint(float(point), float("nan"), "given")
    refer = urgent_classes(classes, urgent)
    cost = kermany_costs(classes, refer) if costs is None else check_costs(costs, classes)
    shares = check_prevalence(dict(prevalence or {}), classes)
    question = Question(
        classes=tuple(classes),
        urgent=refer,
        threshold=point.threshold if point and refer else None,
        costs=None if cost is None else cost.to_numpy(dtype=float),
        prevalence=shares,
        top_k=min(top_k, len(classes)),
    )
    groups = {column: grouped(table, column) for column in by_group}
    statistics = Statistics(table, question)
    estimates, notes = _estimates(statistics, resamples, seed, level, unit, progress)
    if shares:
        notes.insert(0, _prevalence_note(statistics, shares))
    if not refer:
        notes.append(Note("", "No referral was judged: none of the classes is urgent, or all are."))
    elif point is None:
        notes.append(Note("", "No operating point: none was fixed on validation scans."))
    if cost is None:
        notes.append(Note("", "No weighted error: Kermany's costs apply to urgent classes beside NORMAL or DRUSEN."))
    per_unit, more = _per_unit(table, question, resamples, seed, level, aggregations)
    per_group, still_more = _per_group(table, question, groups, resamples, seed, level, unit)
    by_section = estimates.groupby("section")
    parts = {s: by_section.get_group(s) if s in by_section.groups else estimates.iloc[:0] for s in SECTIONS}
    n = pd.Series(statistics.actual).value_counts()
    per_class = parts["class"].rename(columns={"of": "class"})[["class", *_ESTIMATE]].reset_index(drop=True)
    return Evaluation(
        overall=parts["overall"][_ESTIMATE].reset_index(drop=True),
        per_class=per_class.assign(n=[int(n.get(classes.index(c), 0)) for c in per_class["class"]]),
        referral=parts["referral"].rename(columns={"of": "point"})[["point", *_ESTIMATE]].reset_index(drop=True),
        units=per_unit,
        groups=per_group,
        confusion=_confusion(statistics),
        counts=_counts(table, statistics),
        settings={
            "classes": classes,
            "urgent": list(refer),
            "operating": point.to_dict() if point and refer else None,
            "costs": None if cost is None else cost.to_dict("index"),
            "prevalence": shares,
            "top_k": question.top_k,
            "level": level,
            "resamples": resamples,
            "seed": seed,
        },
        remarks=list(dict.fromkeys([*notes, *more, *still_more])),
        abstain=None
        if abstain_below is None
        else {
            **abstain_summary(table, abstain_below),
            "figures": abstain_metrics(table, abstain_below, resamples, seed, level).to_dict("records"),
        },
    )


def _prevalence_note(statistics: Statistics, given: dict[str, float]) -> Note:
    """The share of every class, those too that were not named, as these may have a share here that no clinic has."""
    names = statistics.question.classes
    counts = np.bincount(statistics.actual, minlength=len(names)).astype(float)[:, None]
    every = class_shares(given, counts, names)[:, 0]
    shown = [f"{c} {share:.3g}%" for c, share in zip(names, 100 * every, strict=True)]
    named = [words for c, words in zip(names, shown, strict=True) if c in given]
    rest = [words for c, words in zip(names, shown, strict=True) if c not in given]
    said = f" Not named, so sharing the rest in proportion to their scans here: {', '.join(rest)}." if rest else ""
    return Note(PREVALENCE, f"PPV and NPV at that prevalence assume {', '.join(named)}.{said}")


def _estimates(
    statistics: Statistics,
    resamples: int,
    seed: int,
    level: float,
    unit: str = "scan",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pd.DataFrame, list[Note]]:
    """`section`, `of` and the metric with its interval, a row a metric; and what to know of them."""
    values = statistics.values()
    resampled = statistics.resampled(resamples, seed, progress)
    rows: list[list[Any]] = []
    most_lost, unbounded = 0, False
    for key, value in values.items():
        drawn, counted = resampled[key], statistics.proportion(key)
        found = choose_interval(value, drawn, level=level, single=statistics.single, proportion=counted)
        if not np.isnan(value):
            most_lost = max(most_lost, int(np.isnan(drawn).sum()))
            unbounded |= bool(np.isinf(value) or np.isinf(found.high))
        rows.append([*key, value, found.low, found.high, found.method.replace("over scans", f"over {unit}s")])
    estimates = pd.DataFrame(rows, columns=["section", "of", *_ESTIMATE])
    notes = []
    empty = sorted({k[1] for k in values if k[0] == "class" and k[2] == "sensitivity" and np.isnan(values[k])})
    if empty:
        notes.append(f"No {unit} is of {', '.join(empty)}: what cannot be said of such a class has no value.")
    if statistics.patients < _FEW_PATIENTS:
        people = "1 patient" if statistics.patients == 1 else f"{statistics.patients} patients"
        notes.append(f"Only {people}: the intervals are approximate.")
    if statistics.single:
        own = "" if unit == "patient" else f"Each {unit} counts as a patient of its own; "
        notes.append(f"{own}{'p' if own else 'P'}roportions have Wilson's intervals.")
    if most_lost > resamples / 100:
        notes.append(
            f"Up to {most_lost:,} of {resamples:,} resamples left a figure undefined (no {unit} of a class); its "
            "interval is that of the others."
        )
    if (estimates["method"] == ALL_EQUAL).any():
        notes.append("Where all resamples give the same value, as for a perfect score, the bootstrap has no interval.")
    if unbounded:
        notes.append("A likelihood ratio has no upper bound (∞) where its denominator, a share of mistakes, can be 0.")
    return estimates, [Note("", text) for text in notes]


def _per_unit(
    table: pd.DataFrame,
    question: Question,
    resamples: int,
    seed: int,
    level: float,
    aggregations: Sequence[Aggregation],
) -> tuple[pd.DataFrame, list[Note]]:
    plain = [("overall", "", m) for m in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_error")]
    plain += [("referral", "argmax", m) for m in ("sensitivity", "specificity")]
    fitted = [*plain, ("overall", "", "nll"), ("overall", "", "macro_roc_auc")]
    rows, notes = [], []

    def judge(unit: str, rule: str, part: pd.DataFrame, asked: Question, wanted: list[tuple[str, str, str]]) -> None:
        estimates, _ = _estimates(Statistics(part, asked), resamples, seed, level, unit)
        for r in estimates.itertuples():
            if (r.section, r.of, r.metric) in wanted:
                name = f"urgent_{r.metric}" if r.section == "referral" else r.metric
                rows.append([unit, rule, name, r.value, r.low, r.high, r.method, len(part)])

    narrow = Question(question.classes, question.urgent, costs=question.costs, ranked=False)
    by_level = {how.level: how for how in aggregations}
    for unit, rule, part, note in units(table, question.classes):
        notes += [Note("", text) for text in note]
        if part.empty:
            continue
        how = by_level.get(unit) if rule == MEAN else None
        if how is None:
            judge(unit, rule, part, narrow, plain)
        else:
            # What was fitted has probabilities, so that those of the mean are judged beside them.
            whole = Question(question.classes, question.urgent, costs=question.costs)
            mean = aggregated_tables(table, Aggregation(unit, MEAN), question.classes)[0]
            judge(unit, rule, mean, whole, fitted)
            judge(unit, "fitted", aggregated_tables(table, how, question.classes)[0], whole, fitted)
            notes.append(Note("", f"Of {unit}s, fitted: the answer is {how.words}; octfast evaluate --level {unit}."))
    return pd.DataFrame(rows, columns=["unit", "rule", *_ESTIMATE, "n"]), notes


def _per_group(
    table: pd.DataFrame,
    question: Question,
    groups: dict[str, pd.Series],
    resamples: int,
    seed: int,
    level: float,
    unit: str,
) -> tuple[pd.DataFrame, list[Note]]:
    head = ["by", "group", "scans", "patients", "small"]
    found, notes = [], []
    for column, names in groups.items():
        for group, rows in table.groupby(names, sort=True, observed=True):
            estimates, _ = _estimates(Statistics(rows, question), resamples, seed, level, unit)
            patients = rows["patient"].nunique()
            small = is_small(len(rows), patients)
            if small:
                notes.append(Note(SMALL_GROUP, small_group_note(column, str(group), len(rows), patients)))
                log.warning(notes[-1].text.removesuffix("."))
            values = (column, str(group), len(rows), patients, small)
            found.append(estimates.assign(**dict(zip(head, values, strict=True))))
    columns = [*head, "section", "of", *_ESTIMATE]
    return (pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)), notes


def _confusion(statistics: Statistics) -> pd.DataFrame:
    classes = list(statistics.question.classes)
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(counts, (statistics.actual, statistics.predicted), 1)
    out = pd.DataFrame(counts, index=classes, columns=classes)
    out.index.name, out.columns.name = "actual", "predicted"
    return out


def _counts(table: pd.DataFrame, statistics: Statistics) -> dict[str, Any]:
    right = statistics.actual == statistics.predicted
    referrals = {point: parts.total() for point, parts in statistics.referrals.items()}
    share = np.bincount(statistics.owner, right) / np.bincount(statistics.owner)
    classes = {}
    for i, c in enumerate(statistics.question.classes):
        own = statistics.actual == i
        classes[c] = {
            "scans": int(own.sum()),
            "patients": len(np.unique(statistics.owner[own])),
            "predicted": int((statistics.predicted == i).sum()),
            "right": int((own & right).sum()),
        }
    return {
        "scans": len(table),
        "patients": statistics.patients,
        "right": int(right.sum()),
        "patients_right": int((share > 0.5).sum()),
        "urgent": int(np.isin(statistics.question.classes, statistics.question.urgent)[statistics.actual].sum()),
        "missed_urgent": {point: n.fn for point, n in referrals.items()},
        "classes": classes,
    }


def check_question(
    *, resamples: int = 2000, level: float = 0.95, top_k: int = 2, abstain_below: float | None = None, **_: Any
) -> None:
    """Refuse what `evaluate_table` cannot be asked for, whatever the table.

    Raises
    ------
    UsageError : a parameter that cannot be.
    """
    if not 100 <= resamples <= 1_000_000:
        raise UsageError(f"--resamples {resamples}: not from 100 to 1,000,000", "2000 is usual")
    if not 0.5 <= level < 1:
        raise UsageError(f"level {level}: not from 0.5 to 1", "0.95 is usual")
    if top_k < 1:
        raise UsageError(f"top_k {top_k}: less than 1", "2 is usual")
    Rule((), abstain_below=abstain_below)


def _check(table: pd.DataFrame, classes: list[str]) -> None:
    if table.empty:
        raise DataError("there are no predictions to judge", "give a split that has scans")
    numbers = ["loss", *(f"p_{c}" for c in classes)]
    lacking = [c for c in ("label", "predicted", "patient", *numbers) if c not in table]
    if lacking:
        raise DataError(f"the predictions lack {', '.join(lacking)}", "they are not of these classes")
    strange = sorted((set(table["label"].unique()) | set(table["predicted"].unique())) - set(classes), key=str)
    if strange:
        raise DataError(f"the predictions have the unknown class {strange[0]}", f"the model has {', '.join(classes)}")
    if table["patient"].isna().any():
        raise DataError("the predictions have scans without a patient", "give each a patient, or a name of its own")
    if not np.isfinite(table[numbers].to_numpy(dtype=float)).all():
        raise DataError("the predictions hold probabilities or losses that are not numbers", "make them again")


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [_plain(row) for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
