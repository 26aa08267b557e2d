from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.assess.metrics.costs import kermany_costs, parse_prevalence, read_costs
from octfast.assess.metrics.referral import (
    fix_operating_point,
    is_referred,
    recorded_operating_point,
    referral_at,
    referral_table,
    urgent_score,
)
from octfast.errors import DataError, OctfastError, UsageError
from octfast.model.decide import Rule, decide, urgent_classes
from tests.assess.simulated import simulated_tables
from tests.assess.tables import CLASSES, table_of, tables

URGENT = ["CNV", "DME"]


@given(tables(least=2), st.floats(0.01, 1))
@settings(max_examples=150)
def test_the_operating_point_is_the_highest_that_gives_the_sensitivity(table, wanted):
    positive = table["label"].isin(URGENT).to_numpy()
    point = fix_operating_point(table, URGENT, wanted)
    if positive.all() or not positive.any():
        assert point is None
        return
    score = urgent_score(table, URGENT)
    assert point.sensitivity == (score[positive] >= point.threshold).mean() >= wanted - 1e-9
    assert point.specificity == (score[~positive] < point.threshold).mean()
    higher = [t for t in score[positive] if t > point.threshold]
    assert all((score[positive] >= t).mean() < wanted for t in higher)


def test_nineteen_of_twenty_are_95_percent():
    p = np.array([[s, 0, 1 - s, 0] for s in np.linspace(0.05, 1, 20)] + [[0, 0, 1, 0]])
    table = table_of(["CNV"] * 20 + ["DRUSEN"], p)
    point = fix_operating_point(table, URGENT, 0.95)
    assert point.threshold == pytest.approx(0.1) and point.sensitivity == 0.95
    assert (point.scans, point.urgent_scans) == (21, 20)


def test_few_urgent_scans_are_warned_of(said):
    fix_operating_point(table_of(["CNV", "NORMAL"], np.eye(4)[[0, 3]]), URGENT)
    assert any("rests on only 1 urgent validation scan;" in line for line in said())


def test_the_urgent_classes():
    assert urgent_classes(CLASSES) == ("CNV", "DME")
    assert urgent_classes(["DRUSEN", "DME"]) == ("DME",)
    assert urgent_classes(["CNV", "DME"]) == urgent_classes(["a", "b"]) == urgent_classes(CLASSES, []) == ()
    assert urgent_classes(CLASSES, ["NORMAL", "CNV"]) == ("CNV", "NORMAL")
    with pytest.raises(UsageError, match="no class 'cnv'"):
        urgent_classes(CLASSES, ["cnv"])


def test_a_point_kept_in_the_model_is_used_where_it_answers_the_question():
    kept = {"split": "valid", "operating": {"urgent": ["DME", "CNV"], "sensitivity": 0.98, "threshold": 0.07}}
    assert recorded_operating_point(kept, URGENT).threshold == 0.07
    assert recorded_operating_point(kept, URGENT, 0.98).wanted == 0.98
    assert recorded_operating_point(kept, URGENT, 0.95) is None
    assert recorded_operating_point(kept, ["CNV"]) is None
    for damaged in ({}, {"operating": None}, {"operating": {"threshold": "x"}}, {"operating": [1]}):
        assert recorded_operating_point(damaged, URGENT) is None


def test_kermanys_costs():
    costs = kermany_costs(CLASSES, URGENT)
    assert costs.loc["CNV"].tolist() == [0, 1, 2, 4] and costs.loc["DME"].tolist() == [1, 0, 2, 4]
    assert costs.loc["NORMAL"].tolist() == [1, 1, 1, 0] and costs.loc["DRUSEN"].tolist() == [1, 1, 0, 1]
    assert kermany_costs(["a", "b"], ["a"]) is None and kermany_costs(CLASSES, []) is None


def test_costs_from_a_file(tmp_path, said):
    file = tmp_path / "costs.csv"
    file.write_text(
        "actual,NORMAL,AMD,CNV,DME,DRUSEN\nNORMAL,0,9,1,1,1\nCNV,5,9,0,1,2\nDME,5,9,1,0,2\nDRUSEN,1,9,1,1,0\n"
    )
    costs = read_costs(file, CLASSES)
    assert list(costs.index) == list(costs.columns) == CLASSES
    assert costs.loc["CNV", "NORMAL"] == 5 and costs.loc["NORMAL", "CNV"] == 1
    assert any("AMD" in line for line in said())


@pytest.mark.parametrize(
    "text, said",
    [
        ("actual,CNV,DME,DRUSEN\nCNV,0,1,1\nDME,1,0,1\nDRUSEN,1,1,0\n", "no row for NORMAL"),
        (
            "actual,CNV,DME,DRUSEN,NORMAL\nCNV,0,1,1,4\nDME,1,0,1,x\nDRUSEN,1,1,0,1\nNORMAL,1,1,1,0\n",
            "DME called NORMAL",
        ),
        (
            "actual,CNV,DME,DRUSEN,NORMAL\nCNV,0,1,1,-4\nDME,1,0,1,1\nDRUSEN,1,1,0,1\nNORMAL,1,1,1,0\n",
            "CNV called NORMAL",
        ),
        ("actual,CNV,DME,DRUSEN,NORMAL\nCNV,0,1,1,4\nCNV,1,0,1,1\n", "two rows for CNV"),
        ("", "costs.csv"),
    ],
)
def test_costs_that_cannot_be(tmp_path, text, said):
    (tmp_path / "costs.csv").write_text(text)
    with pytest.raises(DataError, match=said) as e:
        read_costs(tmp_path / "costs.csv", CLASSES)
    assert e.value.hint


@pytest.mark.parametrize("text", ["", "CNV", "CNV=", "=.1", "CNV=x", "CNV=.1,CNV=.2", "AMD=.1", "CNV=0", "CNV=nan"])
def test_prevalences_that_cannot_be(text):
    with pytest.raises(OctfastError) as e:
        parse_prevalence(text, CLASSES)
    assert e.value.exit_code == 2 and e.value.hint


def test_prevalences():
    assert parse_prevalence("CNV=.02, DME=0.01", CLASSES) == {"CNV": 0.02, "DME": 0.01}
    assert parse_prevalence("a=b=.5", ["a=b", "c"]) == {"a=b": 0.5}
    assert parse_prevalence("a=.25,b=.75", ["a", "b"]) == {"a": 0.25, "b": 0.75}
    with pytest.raises(UsageError, match=r"0\.9 together"):
        parse_prevalence("a=.25,b=.65", ["a", "b"])


@given(simulated_tables(), st.floats(0, 1))
@settings(max_examples=40)
def test_referral_at_a_threshold_is_that_of_a_plain_loop(table, threshold):
    found = referral_at(table, ["CNV", "DME"], threshold)
    refer = [row.p_CNV + row.p_DME >= threshold for row in table.itertuples()]
    urgent = [row.label in ("CNV", "DME") for row in table.itertuples()]
    assert found["urgent"] == sum(urgent) and found["others"] == len(table) - sum(urgent)
    assert found["caught"] == sum(r and u for r, u in zip(refer, urgent, strict=True))
    assert found["spared"] == sum(not r and not u for r, u in zip(refer, urgent, strict=True))
    shares = (found["caught"] / max(1, found["urgent"]), found["spared"] / max(1, found["others"]))
    np.testing.assert_allclose(np.nan_to_num([found["sensitivity"], found["specificity"]]), shares)


@given(tables(least=1), st.floats(0, 1))
@settings(max_examples=40)
def test_every_door_refers_the_same_scans(table, threshold):
    p = table[[f"p_{c}" for c in CLASSES]].to_numpy()
    for at in (None, threshold):
        decided = decide(p, Rule(tuple(CLASSES), tuple(URGENT), at)).referred
        assert list(is_referred(table, URGENT, at)) == list(decided)
        n, urgent = referral_table(table, URGENT, at), table["label"].isin(URGENT).to_numpy()
        assert (n.tp, n.fn) == ((urgent & decided).sum(), (urgent & ~decided).sum())
        assert (n.fp, n.tn) == ((~urgent & decided).sum(), (~urgent & ~decided).sum())
