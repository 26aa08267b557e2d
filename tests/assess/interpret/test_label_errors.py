from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from octfast.assess.interpret.label_errors import find_label_errors
from tests.assess.interpret.test_interpretation import CLASSES, predictions, tables


def planted(n: int = 200, wrong: int = 8, seed: int = 0) -> tuple[pd.DataFrame, set[str]]:
    """Predictions of a good model, and the scans whose label was changed afterwards."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 4, n)
    logits = rng.normal(0, 1, (n, 4))
    logits[np.arange(n), true] += 6
    given_labels = true.copy()
    changed = rng.choice(n, wrong, replace=False)
    given_labels[changed] = (true[changed] + rng.integers(1, 4, wrong)) % 4
    # The names that are sorted by are made from the label and the row.
    order = np.argsort([f"{CLASSES[g]}-{i // 2}-{i}" for i, g in enumerate(given_labels)], kind="stable")
    found = predictions([CLASSES[g] for g in given_labels], logits[order])
    rows = np.array([int(p.rsplit("-", 1)[1].split(".")[0]) for p in found["path"]])
    assert list(rows) == list(order)
    return found, set(found["path"][np.isin(rows, changed)])


def test_planted_errors_are_found():
    found, changed = planted()
    suspects = find_label_errors(found, CLASSES)
    assert len(set(suspects["path"]) & changed) >= 7 and len(suspects) <= 12
    assert set(suspects["path"].head(5)) <= changed
    assert list(suspects["p_actual"]) == sorted(suspects["p_actual"])
    for row in suspects.to_dict("records"):
        assert row["suggested"] != row["label"] and row["p_suggested"] == pytest.approx(row[f"p_{row['suggested']}"])
        assert row["p_actual"] == pytest.approx(row[f"p_{row['label']}"])


def test_it_agrees_with_cleanlabs_own_datalab_free_ranking():
    """Confident learning's count of errors, from the joint that cleanlab estimates."""
    from cleanlab.count import num_label_issues

    found, _ = planted(seed=3)
    index = {c: i for i, c in enumerate(CLASSES)}
    p = found[[f"p_{c}" for c in CLASSES]].to_numpy()
    count = num_label_issues(found["label"].map(index).to_numpy(), p)
    assert abs(len(find_label_errors(found, CLASSES)) - count) <= 3


@given(tables())
@settings(max_examples=40)
def test_any_table_will_do_and_none_is_changed(found):
    before = found.copy()
    suspects = find_label_errors(found, CLASSES)
    pd.testing.assert_frame_equal(found, before)
    assert suspects["path"].is_unique and set(suspects["path"]) <= set(found["path"])
    assert (suspects["suggested"] != suspects["label"]).all()


@pytest.mark.parametrize("labels", [["CNV"], ["CNV"] * 5, []])
def test_one_class_alone_cannot_be_confused(labels):
    assert len(find_label_errors(predictions(labels, np.zeros((len(labels), 4))), CLASSES)) == 0
