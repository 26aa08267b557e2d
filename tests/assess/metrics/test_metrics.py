from __future__ import annotations

import json
import logging
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from octfast.assess.metrics.intervals import wilson
from octfast.assess.metrics.metrics import evaluate_table
from octfast.errors import DataError, UsageError
from octfast.model.forward import headline
from tests.assess.tables import CLASSES, clustered, table_of, tables

URGENT = ["CNV", "DME"]


def quiet(function, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args)


@given(tables())
@settings(max_examples=20)
def test_whatever_the_table_there_are_figures_and_no_warnings(table):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate_table(table, CLASSES, resamples=100, operating_threshold=0.5, prevalence={"CNV": 0.1})
    for figures in (found.overall, found.per_class, found.referral, found.units):
        low, value, high = (figures[c].to_numpy(dtype=float) for c in ("low", "value", "high"))
        assert ((low <= high) | np.isnan(low)).all()
        assert figures["method"].map(bool).all()
        assert (np.isnan(low) == figures["method"].str.startswith("none")).all()
        wilsons = figures["method"].str.startswith("Wilson").to_numpy()
        assert ((low <= value) & (value <= high))[wilsons].all() and (high > low)[wilsons].all()
    text = json.dumps(found.to_dict(), allow_nan=False)
    told = json.loads(text)
    assert {k: told[k] for k in headline(table)} == pytest.approx(headline(table), rel=1e-12)


def test_the_same_seed_gives_the_same_figures():
    table = clustered()
    first, again, other = (evaluate_table(table, CLASSES, resamples=200, seed=s) for s in (3, 3, 4))
    assert first.to_dict() == again.to_dict()
    assert first.to_dict()["overall"] != other.to_dict()["overall"]
    shuffled = evaluate_table(table.sample(frac=1, random_state=0), CLASSES, resamples=200, seed=3)
    pd.testing.assert_series_equal(first.overall["value"], shuffled.overall["value"])


def test_patients_are_resampled_and_not_their_scans():
    """Each scan five times over: nothing is known that was not known before, so the intervals stay as wide."""
    one = clustered(60, 1)
    five = pd.concat([one] * 5, ignore_index=True).assign(path=[f"/{i}" for i in range(5 * len(one))])
    wide = evaluate_table(five, CLASSES).overall.set_index("metric").loc["accuracy"]
    honest = wilson(*(int(v) for v in ((one["label"] == one["predicted"]).sum(), len(one))))
    assert wide["method"] == "bootstrap over patients"
    assert wide["high"] - wide["low"] == pytest.approx(honest[1] - honest[0], rel=0.15)
    apart = five.assign(patient=[str(i) for i in range(len(five))])
    narrow = evaluate_table(apart, CLASSES).overall.set_index("metric").loc["accuracy"]
    assert narrow["method"] == "Wilson over scans"
    assert (narrow["high"] - narrow["low"]) < 0.55 * (wide["high"] - wide["low"])


def test_without_patients_proportions_have_wilsons_interval():
    table = clustered(100, 1)
    found = evaluate_table(table, CLASSES, resamples=200)
    right = int((table["label"] == table["predicted"]).sum())
    row = found.overall.set_index("metric").loc["accuracy"]
    assert (row["low"], row["high"]) == pytest.approx(wilson(right, 100))
    methods = found.per_class.groupby("metric")["method"].unique().map(list)
    assert methods["specificity"] == methods["sensitivity"] == methods["ppv"] == ["Wilson over scans"]
    assert methods["f1"] == methods["roc_auc"] == ["bootstrap over scans"]
    assert any("patient of its own" in note for note in found.notes)


def test_a_perfect_model_is_not_certain():
    table = clustered(50)
    p = np.eye(4)[[CLASSES.index(c) for c in table["label"]]] * 0.96 + 0.01
    found = evaluate_table(table_of(table["label"], p, table["patient"]), CLASSES, resamples=200)
    row = found.overall.set_index("metric").loc["accuracy"]
    assert (
        row["value"] == 1 and row["low"] == pytest.approx(wilson(50, 50)[0]) and "Wilson over patients" in row["method"]
    )
    cnv = found.per_class[found.per_class["class"] == "CNV"].set_index("metric")
    patients = found.counts["classes"]["CNV"]["patients"]
    assert cnv.loc["sensitivity", "low"] == pytest.approx(wilson(patients, patients)[0])
    assert np.isnan(cnv.loc["roc_auc", "low"]) and cnv.loc["roc_auc", "method"].startswith("none")
    assert found.value("lr_positive", "argmax") == np.inf
    (kept,) = [r for r in found.to_dict()["referral"] if (r["point"], r["metric"]) == ("argmax", "lr_positive")]
    assert kept["value"] is None


def test_the_weighted_error_is_kermanys():
    """The paper's test of 1,000: 34 wrong, 11 of 500 urgent missed, 13 of 500 others referred; weighted error 6.6%.

    Which of the 11 were called NORMAL is not told; with 10 of them the costs come to 65, with 11 to 67.
    """
    pairs = [("CNV", "CNV", 250 - 11), ("CNV", "NORMAL", 10), ("CNV", "DRUSEN", 1), ("DME", "DME", 240)]
    pairs += [("DME", "CNV", 10), ("DRUSEN", "CNV", 13), ("DRUSEN", "DRUSEN", 237), ("NORMAL", "NORMAL", 250)]
    labels = [a for a, _, n in pairs for _ in range(n)]
    answers = [b for _, b, n in pairs for _ in range(n)]
    table = table_of(labels, np.eye(4)[[CLASSES.index(c) for c in answers]] * 0.96 + 0.01)
    found = evaluate_table(table, CLASSES, resamples=100)
    assert found.value("accuracy") == 0.966
    row = found.overall.set_index("metric").loc["accuracy"]
    assert (round(row["low"], 3), round(row["high"], 3)) == (0.953, 0.976)
    assert found.value("sensitivity", "argmax") == 0.978 and found.value("specificity", "argmax") == 0.974
    assert found.value("weighted_error") == (10 * 4 + 1 * 2 + 10 + 13) / 1000 == 0.065
    assert found.counts["missed_urgent"] == {"argmax": 11}


@given(tables(least=10), st.floats(0.001, 0.9))
@settings(max_examples=20)
def test_predictive_values_at_a_prevalence_are_bayes(table, share):
    found = quiet(lambda: evaluate_table(table, CLASSES, resamples=100, prevalence={"CNV": share}))
    sensitivity, specificity = (found.value(m, "CNV") for m in ("sensitivity", "specificity"))
    called, spared = (
        sensitivity * share + (1 - specificity) * (1 - share),
        specificity * (1 - share) + (1 - sensitivity) * share,
    )
    for name, of, under in (
        ("ppv_at_prevalence", sensitivity * share, called),
        ("npv_at_prevalence", specificity * (1 - share), spared),
    ):
        if np.isnan(under):
            assert np.isnan(found.value(name, "CNV"))
        elif under > 1e-9:
            assert found.value(name, "CNV") == pytest.approx(of / under, rel=1e-6)


def test_a_prevalence_of_all_classes_weighs_every_class():
    table = clustered()
    shares = {"CNV": 0.01, "DME": 0.02, "DRUSEN": 0.07, "NORMAL": 0.9}
    found = evaluate_table(table, CLASSES, resamples=100, prevalence=shares)
    weight = table["label"].map(shares) / table.groupby("label")["label"].transform("size")
    for c in CLASSES:
        theirs = metrics.precision_score(table["label"] == c, table["predicted"] == c, sample_weight=weight)
        assert found.value("ppv_at_prevalence", c) == pytest.approx(theirs)
    theirs = metrics.precision_score(table["label"].isin(URGENT), table["predicted"].isin(URGENT), sample_weight=weight)
    assert found.value("ppv_at_prevalence", "argmax") == pytest.approx(theirs)


def test_an_own_sample_share_changes_nothing():
    table = clustered()
    share = float((table["label"] == "CNV").mean())
    found = evaluate_table(table, CLASSES, resamples=100, prevalence={"CNV": share})
    for c in CLASSES:
        assert found.value("ppv_at_prevalence", c) == pytest.approx(found.value("ppv", c))


def test_whole_patients_count_once():
    # Patient a: two of three scans say DME, the mean probability (.63 against .37) says CNV.
    p = [[1, 0, 0, 0], [0.45, 0.55, 0, 0], [0.45, 0.55, 0, 0], [0, 0.9, 0.1, 0], [0, 0, 0.2, 0.8]]
    table = table_of(["CNV", "CNV", "CNV", "DME", "NORMAL"], p, ["a", "a", "a", "b", "c"])
    units = evaluate_table(table, CLASSES, resamples=100).units
    assert (units["n"] == 3).all() and (units["unit"] == "patient").all()
    units = units.set_index(["rule", "metric"])
    assert units.loc[("majority", "accuracy"), "value"] == pytest.approx(2 / 3)
    assert units.loc[("majority", "accuracy"), "method"] == "Wilson over patients"
    assert units.loc[("mean_probability", "accuracy"), "value"] == 1
    assert units.loc[("majority", "urgent_sensitivity"), "value"] == 1


def test_eyes_volumes_and_patients_of_two_classes():
    table = clustered(40).assign(eye=lambda t: np.where(np.arange(len(t)) % 2, "L", "R"), volume=1)
    table.loc[table["patient"] == "0", "label"] = ["CNV", *["DME"] * (int((table["patient"] == "0").sum()) - 1)]
    assert (table["patient"] == "0").sum() > 1
    found = evaluate_table(table, CLASSES, resamples=100)
    n = found.units.groupby("unit")["n"].first()
    eyes = table[table["patient"] != "0"].groupby(["patient", "eye"]).ngroups
    of_first = table[table["patient"] == "0"].groupby("eye")["label"].nunique()
    assert n["patient"] == 39 and n["eye"] == n["volume"] == eyes + (of_first == 1).sum()
    assert any("1 of 40 patients" in note for note in found.notes)
    methods = found.units.groupby("unit")["method"].unique().map(set)
    assert "Wilson over patients" in methods["patient"] and "bootstrap over patients" in methods["eye"]


def test_groups_are_judged_as_tables_of_their_own(caplog):
    table = clustered(90).assign(device=lambda t: t["patient"].astype(int) % 3, age=lambda t: t["patient"].astype(int))
    table["site"] = np.where(table["device"] == 0, "", "Köln")
    with caplog.at_level(logging.WARNING, "octfast"):
        found = evaluate_table(table, CLASSES, resamples=200, by_group=["device", "age", "site"])
    groups = found.groups
    assert list(dict.fromkeys(groups["by"])) == ["device", "age", "site"]
    assert list(dict.fromkeys(groups[groups["by"] == "device"]["group"])) == ["0", "1", "2"]
    assert list(dict.fromkeys(groups[groups["by"] == "site"]["group"])) == ["Köln", "(not given)"]
    ages = list(dict.fromkeys(groups[groups["by"] == "age"]["group"]))
    assert ages[0].startswith("0 to ") and len(ages) == 4
    for device in (0, 1, 2):
        part = table[table["device"] == device]
        alone = evaluate_table(part, CLASSES, resamples=200)
        rows = groups[(groups["by"] == "device") & (groups["group"] == str(device))]
        assert set(rows["scans"]) == {len(part)} and set(rows["patients"]) == {30}
        overall = rows[rows["section"] == "overall"].reset_index(drop=True)
        pd.testing.assert_frame_equal(overall[alone.overall.columns], alone.overall)
    few = table[table["patient"].astype(int) < 12]
    with caplog.at_level(logging.WARNING, "octfast"):
        found = evaluate_table(few, CLASSES, resamples=100, by_group=["device"])
    assert found.groups["small"].all() and any("device 0: only" in n for n in found.notes)
    assert any("device 0: only" in r.getMessage() for r in caplog.records)


def test_numbers_with_a_gap_are_numbers_still():
    table = clustered(60)
    who = table["patient"].astype(int)
    # As read from a file, where one missing value makes text of the others.
    age = (who + 20).astype(str).where(who > 2, "")
    grade = (who % 3).astype(str).where(who > 2, "")
    found = evaluate_table(table.assign(age=age, grade=grade), CLASSES, resamples=100, by_group=["age", "grade"])
    groups = found.groups.drop_duplicates(["by", "group"])
    ages = list(groups.loc[groups["by"] == "age", "group"])
    assert len(ages) == 5 and ages[0].startswith("23 to ") and ages[-1] == "(not given)"
    assert list(groups.loc[groups["by"] == "grade", "group"]) == ["0", "1", "2", "(not given)"]


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"urgent": ["AMD"]}, "no class 'AMD'"),
        ({"urgent": CLASSES}, "all classes"),
        ({"prevalence": {"AMD": 0.1}}, "no class 'AMD'"),
        ({"prevalence": {"CNV": 1.5}}, "not between"),
        ({"prevalence": {"CNV": 0.6, "DME": 0.6}}, "1.2 together"),
        ({"resamples": 10}, "resamples 10"),
        ({"level": 95}, "level 95"),
        ({"by_group": ["devise"]}, "--by devise"),
        ({"by_group": ["path"]}, "groups, more than 30"),
        ({"costs": pd.DataFrame([[0.0]], ["CNV"], ["CNV"])}, "nothing for DME"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_questions_that_cannot_be(asked, said):
    table = clustered(40).assign(device="a")
    with pytest.raises(UsageError, match=said) as e:
        evaluate_table(table, CLASSES, **asked)
    assert e.value.hint


def test_tables_that_cannot_be():
    table = clustered(5)
    for wrong, said in (
        (table.iloc[:0], "no predictions"),
        (table.drop(columns="p_DME"), "lack p_DME"),
        (table.assign(label="AMD"), "unknown class AMD"),
        (table.assign(p_CNV=np.nan), "not numbers"),
        (table.assign(patient=[None, *table["patient"].iloc[1:]]), "without a patient"),
    ):
        with pytest.raises(DataError, match=said):
            evaluate_table(wrong, CLASSES)


def test_other_classes_have_no_referral_and_say_so():
    table = table_of(["a", "b", "a"], [[0.6, 0.4], [0.3, 0.7], [0.2, 0.8]], classes=["a", "b"])
    found = evaluate_table(table, ["a", "b"], resamples=100)
    assert found.referral.empty and "weighted_error" not in set(found.overall["metric"])
    assert any("No referral" in n for n in found.notes) and any("No weighted error" in n for n in found.notes)
    given = evaluate_table(table, ["a", "b"], resamples=100, urgent=["b"])
    assert given.value("sensitivity", "argmax") == 1 and given.settings["urgent"] == ["b"]


def test_figures_of_whole_units_do_not_speak_of_scans():
    """Each row an eye or a patient: what an interval is over, and what is missing, is told in these."""
    table = clustered(30, 1).query("label != 'DRUSEN'").reset_index(drop=True)
    for unit in ("eye", "patient"):
        found = evaluate_table(table, CLASSES, resamples=100, unit=unit, by_group=["label"])
        given = [*found.overall["method"], *found.per_class["method"], *found.groups["method"], *found.notes]
        assert not [text for text in given if "over scans" in text or "scan is" in text or "Each scan" in text]
        assert f"Wilson over {unit}s" in given and any(f"No {unit} is of DRUSEN" in note for note in found.notes)
