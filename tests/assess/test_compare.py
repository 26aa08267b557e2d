from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.assess.compare import compare_runs, compare_tables, holm, mcnemar
from octfast.assess.evaluate import evaluate_data
from octfast.assess.metrics.metrics import evaluate_table
from octfast.errors import DataError, UsageError
from octfast.model.bundle.write import update_info
from octfast.run.folder import open_run
from tests.assess.tables import CLASSES, clustered, table_of

FEW = {"resamples": 100}


def worse(table: pd.DataFrame, share: float = 0.2, seed: int = 0) -> pd.DataFrame:
    """The same scans by a model that guesses more."""
    rng = np.random.default_rng(seed)
    p = table[[f"p_{c}" for c in CLASSES]].to_numpy()
    guess = rng.dirichlet(np.ones(4), len(p))
    mixed = np.where(rng.random((len(p), 1)) < share, guess, p)
    return table_of(table["label"], mixed, table["patient"])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=40)
def test_mcnemars_test_is_statsmodels(pairs):
    statsmodels = pytest.importorskip("statsmodels.stats.contingency_tables")
    first, second = np.array(pairs).T
    counts = [[(first & second).sum(), (first & ~second).sum()], [(~first & second).sum(), (~first & ~second).sum()]]
    b, c, p = mcnemar(first, second)
    assert [b, c] == [counts[0][1], counts[1][0]]
    assert p == pytest.approx(statsmodels.mcnemar(counts, exact=True).pvalue if b + c else 1.0)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_holms_correction_is_statsmodels(n):
    statsmodels = pytest.importorskip("statsmodels.stats.multitest")
    for p in (np.random.default_rng(n).random(n), np.random.default_rng(n).random(n).round(1) / 20):
        assert holm(p) == pytest.approx(statsmodels.multipletests(p, method="holm")[1])


def test_differences_are_of_the_figures_and_paired():
    first = clustered(120)
    second = worse(first)
    found = compare_tables({"a": first, "b": second}, CLASSES, resamples=500)
    alone = {name: evaluate_table(t, CLASSES, resamples=500) for name, t in (("a", first), ("b", second))}
    own = found.differences.set_index(["section", "of", "metric"])
    row = own.loc[("overall", "", "accuracy")]
    assert row["difference"] == alone["b"].value("accuracy") - alone["a"].value("accuracy") < 0
    assert row["low"] < row["difference"] < row["high"] < 0 and row["method"] == "paired bootstrap over patients"
    widths = [
        (e.overall.set_index("metric").loc["accuracy", "high"] - e.overall.set_index("metric").loc["accuracy", "low"])
        for e in alone.values()
    ]
    # Unpaired, the variances would add.
    assert row["high"] - row["low"] < 0.8 * np.hypot(*widths)
    kept = found.figures[(found.figures["run"] == "b") & (found.figures["section"] == "overall")]
    pd.testing.assert_frame_equal(
        kept[["metric", "value", "low", "high", "method"]].set_index("metric"),
        alone["b"].overall.set_index("metric").loc[kept["metric"]],
    )
    assert json.dumps(found.to_dict(), allow_nan=False)
    assert compare_tables({"a": first, "b": second}, CLASSES, resamples=500).to_dict() == found.to_dict()


def test_order_and_order_of_classes_do_not_matter():
    first = clustered(60)
    second = worse(first)
    columns = [c for c in second.columns if not c.startswith("p_")] + [f"p_{c}" for c in CLASSES[::-1]]
    other = second.sample(frac=1, random_state=1)[columns]
    assert (
        compare_tables({"a": first, "b": second}, CLASSES, **FEW).to_dict()
        == compare_tables({"a": first, "b": other}, CLASSES, **FEW).to_dict()
    )


def test_a_model_does_not_differ_from_itself():
    table = clustered(40)
    found = compare_tables({"a": table, "b": table, "c": worse(table)}, CLASSES, **FEW)
    same = found.differences[found.differences["run"] == "b"]
    assert (same["difference"].dropna() == 0).all() and same["low"].isna().all()
    tests = found.mcnemar.set_index(["run", "unit"])
    assert tests.loc[("b", "scan"), "p"] == 1 and tests.loc[("c", "scan"), "p"] < 0.05
    assert tests.loc[("c", "scan"), "p_holm"] == min(1, 2 * tests.loc[("c", "scan"), "p"])
    assert tests.loc[("b", "patient"), "n"] == 40


def test_only_common_scans_are_compared(said):
    table = clustered(40)
    found = compare_tables({"a": table, "b": worse(table).iloc[10:]}, CLASSES, **FEW)
    assert found.scans == len(table) - 10 and any("Only the" in n for n in found.notes)
    assert any("Only the" in line for line in said())
    with pytest.raises(DataError, match="no scan in common"):
        compare_tables({"a": table, "b": table.assign(path="x" + table["path"])}, CLASSES, **FEW)
    with pytest.raises(DataError, match="different labels"):
        compare_tables({"a": table, "b": table.assign(label="CNV")}, CLASSES, **FEW)


def test_runs_are_compared_wherever_they_lie(own_run, trained, own_phantoms, tmp_path):
    table = own_run.predictions("test")
    p = table[[f"p_{c}" for c in CLASSES]].to_numpy()[:, ::-1]
    other = table_of(table["label"], p, table["patient"]).assign(path=table["path"])
    own_run.save_predictions(other, "test")
    moved = open_run(shutil.copytree(trained.path, tmp_path / "moved"), own_phantoms)
    found = compare_runs([moved, own_run], **FEW)
    assert found.split == "test" and found.scans == len(table)
    assert list(dict.fromkeys(found.figures["run"])) == ["moved", "own-run"]
    assert "operating" in set(found.figures["of"])
    again = compare_runs([trained, trained], "valid", **FEW)
    assert len(set(again.figures["run"])) == 2 and again.split == "valid"
    with pytest.raises(UsageError, match="two or more"):
        compare_runs([trained])


def test_operating_points_for_different_sensitivities_are_told(own_run, trained):
    kept = {"split": "valid", "operating": {"urgent": ["CNV", "DME"], "sensitivity": 0.8, "threshold": 0.3}}
    update_info(own_run.bundle, calibration=kept)
    notes = compare_runs([trained, own_run], **FEW).notes
    assert any("different sensitivities" in n and "own-run 0.8" in n for n in notes)
    assert not any("different" in n for n in compare_runs([trained, own_run], sensitivity=0.9, **FEW).notes)


def test_evaluations_of_other_scans_are_compared(own_run, trained, phantoms, tmp_path):
    for name, run in (("one", own_run), ("two", trained)):
        evaluate_data(run, phantoms / "test", tmp_path / name, **FEW)
    found = compare_runs([tmp_path / "one", tmp_path / "two"], **FEW)
    assert found.scans == len(trained.predictions("test")) and "operating" in set(found.figures["of"])
    # The same scans, copied elsewhere.
    copied = shutil.copytree(phantoms / "test", tmp_path / "copied")
    evaluate_data(own_run, copied, tmp_path / "three", **FEW)
    assert compare_runs([tmp_path / "one", tmp_path / "three"], **FEW).scans == found.scans
    # A threshold for CNV and DME is none for CNV alone, nor for another sensitivity.
    for asked in ({"urgent": ["CNV"]}, {"sensitivity": 0.5}):
        other = compare_runs([tmp_path / "one", tmp_path / "two"], **asked, **FEW)
        assert "operating" not in set(other.figures["of"])
        assert any("No operating point" in note for note in other.notes)
    assert (found.differences["difference"].dropna() == 0).all()
