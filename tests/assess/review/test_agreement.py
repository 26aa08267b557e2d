"""Two reviewers of the same scans."""

import pandas as pd
import pytest

from octfast.assess.review.agreement import agreement
from octfast.data.corrections import AGREE, COLUMNS, LEAVE_OUT, RELABEL
from octfast.errors import DataError


def decisions(rows):
    full = [(path, what, old, new, "", who, str(i)) for i, (path, what, old, new, who) in enumerate(rows)]
    return pd.DataFrame(full, columns=list(COLUMNS))


def test_kappa_is_cohens():
    # Cohen's own measure on the 2x2 table 20, 5, 10, 15: po = .7, pe = .5, kappa = .4.
    rows = []
    for n, (a, b) in enumerate([("A", "A")] * 20 + [("A", "B")] * 5 + [("B", "A")] * 10 + [("B", "B")] * 15):
        rows += [(f"{n}", AGREE if a == "A" else RELABEL, "A", "" if a == "A" else "B", "XX")]
        rows += [(f"{n}", AGREE if b == "A" else RELABEL, "A", "" if b == "A" else "B", "YY")]
    found = agreement(decisions(rows))
    assert found.reviewers == ("XX", "YY") and (found.scans, found.same) == (50, 35)
    assert found.kappa == pytest.approx(0.4)
    assert len(found.differing) == 15 and set(found.differing["old"]) == {"A"}


def test_leaving_out_is_an_answer_of_its_own_and_scans_of_one_reviewer_do_not_count():
    rows = [("a", LEAVE_OUT, "A", "", "XX"), ("a", AGREE, "A", "", "YY"), ("b", AGREE, "A", "", "XX")]
    found = agreement(decisions(rows))
    assert found.scans == 1 and found.same == 0
    assert found.differing.to_dict("records") == [{"path": "a", "old": "A", "XX": "leave out", "YY": "A"}]


def test_kappa_of_one_label_throughout_is_undefined():
    rows = [(p, AGREE, "A", "", who) for p in "abc" for who in ("XX", "YY")]
    assert agreement(decisions(rows)).kappa is None


@pytest.mark.parametrize(
    "rows",
    [
        [("a", AGREE, "A", "", "XX")],
        [("a", AGREE, "A", "", "XX"), ("b", AGREE, "A", "", "YY")],
        [("a", AGREE, "A", "", who) for who in ("XX", "YY", "ZZ")],
    ],
)
def test_it_takes_two_reviewers_of_one_scan(rows):
    with pytest.raises(DataError):
        agreement(decisions(rows))
