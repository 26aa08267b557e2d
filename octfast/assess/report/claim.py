"""The 44 items of CLAIM, the checklist for artificial intelligence in medical imaging, and where a report answers each.

Tejani et al., Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update, Radiology: Artificial
Intelligence 2024;6(4):e240300, doi:10.1148/ryai.240300. The items are put in other words here; the numbers are those of
2024, and beside them those of 2020 (Mongan, Moy and Kahn, 2020;2(2):e200029) where an item stood there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

YES, PARTLY, NO, NOT_APPLICABLE = "yes", "partly", "no", "does not apply"


@dataclass(frozen=True)
class ClaimFacts:
    """What a report knows of its run and shows, from which the checklist is answered.

    Attributes
    ----------
    split : that was judged.
    synthetic : whether the scans are phantoms.
    scans, patients : in that split.
    own_patients : scans of the whole set that are taken for a patient of their own, as none is known; None where that
        is unknown.
    shared : patients that stand in two splits; None where the table of scans is missing.
    left_out : files that were left out.
    pretrained : whether the body had pretrained weights.
    history, heat_maps, referral, operating, calibrated, label_errors : whether the report has these.
    groups : columns whose subgroups are shown.
    """

    split: str
    synthetic: bool = False
    scans: int = 0
    patients: int = 0
    own_patients: int | None = None
    shared: int | None = None
    left_out: int = 0
    pretrained: bool = False
    history: bool = False
    heat_maps: bool = False
    referral: bool = False
    operating: bool = False
    calibrated: bool = False
    label_errors: bool = False
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClaimAnswer:
    """An item as a report answers it: `status` is yes, partly, no or does not apply; `where` a section's id, or ""."""

    number: int
    number_2020: str
    section: str
    asks: str
    status: str
    where: str
    words: str


_Answer = tuple[str, str, str]


@dataclass(frozen=True)
class _Item:
    number: int
    number_2020: str
    asks: str
    answer: _Answer | Callable[[ClaimFacts], _Answer]


def _yours(words: str) -> _Answer:
    return NO, "", f"octfast cannot know it: {words}"


def _yours_unless_drawn(words: str) -> Callable[[ClaimFacts], _Answer]:
    def answer(f: ClaimFacts) -> _Answer:
        return (NOT_APPLICABLE, "", "phantoms, each drawn to its class") if f.synthetic else _yours(words)

    return answer


def _sources(f: ClaimFacts) -> _Answer:
    if f.synthetic:
        return YES, "data", "phantoms that octfast draws; no patient was involved"
    return PARTLY, "data", "folder or table, counts and fingerprint; not the clinics, the dates or the ethics approval"


def _missing(f: ClaimFacts) -> _Answer:
    if f.left_out:
        return YES, "data", f"{f.left_out:,} files were left out; each is listed with its reason"
    return YES, "data", "files that cannot be read are left out and listed; there were none"


def _assigned(f: ClaimFacts) -> _Answer:
    return (YES, "data", "how validation and test were set apart") if f.shared is not None else _gone()


def _disjoint(f: ClaimFacts) -> _Answer:
    if f.shared is None:
        return _gone()
    if f.shared:
        return YES, "data", f"{f.shared:,} patients stand in more than one split: the splits are not disjoint"
    if f.own_patients:
        return PARTLY, "data", f"by patient where patients are known; {f.own_patients:,} scans name none"
    return YES, "data", "by patient"


def _gone() -> _Answer:
    return NO, "data", "the table of scans is missing from the run folder"


def _started(f: ClaimFacts) -> _Answer:
    return (
        YES,
        "training",
        "pretrained weights with their digest" if f.pretrained else "at random; no pretrained weights",
    )


def _trained(f: ClaimFacts) -> _Answer:
    if f.history:
        return YES, "training", "settings and curves; everything else stands in config.json"
    return PARTLY, "training", "the settings; the curves are missing, as history.csv cannot be read"


def _metrics(f: ClaimFacts) -> _Answer:
    more = "urgent referral, a weighted error" if f.referral else "no urgent class is named, so no referral"
    scaled = ", before and after scaling" if f.calibrated else ""
    return YES, "results", f"per class and over all, {more}; calibration{scaled}"


def _robust(f: ClaimFacts) -> _Answer:
    if f.groups:
        return PARTLY, "groups", f"results by {', '.join(f.groups)}; nothing was perturbed"
    return NO, "", "ask for subgroups with octfast report --by COLUMN; nothing was perturbed"


def _explained(f: ClaimFacts) -> _Answer:
    if f.heat_maps:
        return PARTLY, "errors", "heat maps of what raised a score; they have not been validated"
    return NO, "errors", "no heat maps were drawn"


def _internal(f: ClaimFacts) -> _Answer:
    if f.split == "test":
        return YES, "results", "on the test split, which was never trained on"
    if f.split == "valid":
        return PARTLY, "results", "on validation alone, on which the epoch was chosen; there is no test result here"
    return NO, "results", "on the scans that were trained on, which says nothing of new ones"


def _excluded(f: ClaimFacts) -> _Answer:
    if f.shared is None:
        return _gone()
    left_out = f"; {f.left_out:,} files left out" if f.left_out else ""
    return PARTLY, "data", f"scans and patients a split and class{left_out}; whom you left out octfast cannot know"


def _performance(f: ClaimFacts) -> _Answer:
    return YES, "results", f"with 95% intervals and how each was made, on {f.scans:,} scans of {f.patients:,} patients"


def _diagnostic(f: ClaimFacts) -> _Answer:
    if not f.referral:
        return PARTLY, "results", "sensitivity, specificity and predictive values a class; no urgent referral"
    point = "and at a point fixed on validation" if f.operating else "but no operating point was fixed on validation"
    return YES, "referral", f"a class, and for urgent referral by the predicted class {point}"


def _failures(f: ClaimFacts) -> _Answer:
    also = ", urgent scans that were missed" if f.referral else ""
    doubt = ", labels to look at again" if f.label_errors else ""
    return YES, "errors", f"most confused classes, scans with the largest losses{also}{doubt}"


def _limits(f: ClaimFacts) -> _Answer:
    return PARTLY, "limits", "what octfast can tell of the data and the figures; the clinical ones are yours to add"


_ITEMS: tuple[tuple[str, tuple[_Item, ...]], ...] = (
    (
        "Title and abstract",
        (
            _Item(
                1, "1", "Says that this is a study of AI, and of what kind", (YES, "summary", "a deep neural network")
            ),
            _Item(
                2, "2", "Summary of design, methods, results, conclusions", (PARTLY, "summary", "methods and results")
            ),
        ),
    ),
    (
        "Introduction",
        (
            _Item(3, "3", "Background, intended use and role", _yours("write why, and for whom, the model was made")),
            _Item(4, "4", "Aims and hypotheses", _yours("write what was asked")),
        ),
    ),
    (
        "Methods: study design",
        (
            _Item(5, "5", "Prospective or retrospective", _yours("write how the scans were collected")),
            _Item(6, "6", "Goal of the study", _yours("write whether this is a feasibility study, a trial or else")),
        ),
    ),
    (
        "Methods: data",
        (
            _Item(7, "7", "Where the data come from", _sources),
            _Item(
                8,
                "8",
                "Who was included and who excluded",
                _yours_unless_drawn("write whom the clinic's criteria let in"),
            ),
            _Item(9, "9", "Preprocessing", (YES, "training", "decoding, size, normalisation, augmentation")),
            _Item(10, "10", "Choice of parts of the data", _yours("write whether these are all scans of the source")),
            _Item(
                11,
                "12",
                "De-identification",
                _yours_unless_drawn("file names and this report may hold patient numbers"),
            ),
            _Item(12, "13", "Missing data", _missing),
            _Item(13, "", "How the pictures were taken", _yours_unless_drawn("write device, scan pattern and eye")),
        ),
    ),
    (
        "Methods: reference standard",
        (
            _Item(
                14, "14", "How the true classes were found", _yours_unless_drawn("the labels are taken as they stand")
            ),
            _Item(15, "15", "Why this reference standard", _yours_unless_drawn("write why it was chosen")),
            _Item(16, "16", "Who annotated, with what experience", _yours_unless_drawn("write who graded the scans")),
            _Item(
                17,
                "",
                "How the test set was annotated",
                _yours_unless_drawn("write whether test was graded with more care"),
            ),
            _Item(
                18, "18", "Agreement between and within annotators", _yours_unless_drawn("write how far graders agreed")
            ),
        ),
    ),
    (
        "Methods: partitions",
        (
            _Item(19, "20", "How data were assigned to partitions", _assigned),
            _Item(20, "21", "At which level the partitions are disjoint", _disjoint),
        ),
    ),
    (
        "Methods: testing data",
        (
            _Item(
                21,
                "19",
                "Intended sample size",
                (NO, "results", "write what was planned; intervals show what it allows"),
            ),
        ),
    ),
    (
        "Methods: model",
        (
            _Item(
                22, "22", "The model in detail", (YES, "training", "architecture, head, input, output; octfast.json")
            ),
            _Item(23, "23", "Software and versions", (YES, "repeat", "all versions")),
            _Item(24, "24", "Initialisation of the parameters", _started),
        ),
    ),
    (
        "Methods: training",
        (
            _Item(25, "25", "Training in detail", _trained),
            _Item(26, "26", "How the final model was chosen", (YES, "training", "the lowest validation loss")),
            _Item(27, "27", "Ensembles", (NOT_APPLICABLE, "", "one model")),
        ),
    ),
    (
        "Methods: evaluation",
        (
            _Item(28, "28", "Metrics", _metrics),
            _Item(29, "29", "Significance and uncertainty", (YES, "results", "95% intervals, each with its method")),
            _Item(30, "30", "Robustness or sensitivity analysis", _robust),
            _Item(31, "31", "Explainability, and how it was validated", _explained),
            _Item(32, "", "Evaluation on internal data", _internal),
            _Item(33, "32", "Testing on external data", (NO, "limits", "no scans of another place were judged here")),
            _Item(34, "40", "Registration of a clinical trial", _yours("write the number, if there is one")),
        ),
    ),
    (
        "Results: data",
        (
            _Item(35, "33", "Patients or examinations included and excluded", _excluded),
            _Item(
                36,
                "34",
                "Who the patients are, in each partition",
                _yours_unless_drawn("add age, sex and stage of disease"),
            ),
        ),
    ),
    (
        "Results: performance",
        (
            _Item(37, "35", "Performance with its uncertainty", _performance),
            _Item(38, "36", "Diagnostic performance and its precision", _diagnostic),
            _Item(39, "37", "Analysis of failures", _failures),
        ),
    ),
    (
        "Discussion",
        (
            _Item(40, "38", "Limitations", _limits),
            _Item(
                41, "39", "What it means for practice", (PARTLY, "limits", "not a medical device; the rest is yours")
            ),
        ),
    ),
    (
        "Other information",
        (
            _Item(
                42, "41", "Protocol, or further technical details", (PARTLY, "repeat", "config.json has all settings")
            ),
            _Item(
                43, "", "Availability of software, model and data", (PARTLY, "repeat", "software and versions alone")
            ),
            _Item(44, "42", "Funding, and what funders had a say in", _yours("write who paid")),
        ),
    ),
)


def claim_answers(facts: ClaimFacts) -> list[ClaimAnswer]:
    """The 44 items in order, each with whether and where a report with these facts answers it."""
    answers = []
    for section, items in _ITEMS:
        for item in items:
            status, where, words = item.answer(facts) if callable(item.answer) else item.answer
            answers.append(ClaimAnswer(item.number, item.number_2020, section, item.asks, status, where, words))
    return answers
