"""What putting scans together changes against their mean: scikit-learn's figures, and the interval of a resampling."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from octfast.assess.metrics.paired import against_mean
from octfast.model.aggregation import MEAN, MEAN_LOG, Aggregation
from tests.assess.tables import CLASSES, table_of

URGENT = ["CNV", "DME"]


def eyes(n: int = 60, seed: int = 0) -> pd.DataFrame:
    """Scans of eyes of one label each, two eyes a patient, one to four scans an eye."""
    rng = np.random.default_rng(seed)
    eye = np.repeat(np.arange(n), rng.integers(1, 5, n))
    label = rng.integers(0, 4, n)[eye]
    z = rng.normal(0, 1.5, (len(eye), 4))
    z[np.arange(len(eye)), label] += 1
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return table_of([CLASSES[i] for i in label], p, eye // 2).assign(eye=np.where(eye % 2, "L", "R"))


def by_hand(table: pd.DataFrame, log: bool) -> tuple[pd.DataFrame, np.ndarray]:
    p = table[[f"p_{c}" for c in CLASSES]]
    found = (np.log(p) if log else p).groupby([table["patient"], table["eye"]], sort=False).mean()
    found = np.exp(found) if log else found
    found = found.div(found.sum(axis=1), axis=0)
    about = table.groupby(["patient", "eye"], sort=False)["label"].first().reset_index()
    return about, found.to_numpy()


def figures(about: pd.DataFrame, p: np.ndarray) -> dict[str, float]:
    urgent = about["label"].isin(URGENT)
    return {
        "nll": log_loss(about["label"], p, labels=CLASSES),
        "macro_roc_auc": roc_auc_score(about["label"], p, multi_class="ovr", labels=CLASSES),
        "urgent_roc_auc": roc_auc_score(urgent, p[:, :2].sum(1)),
        "accuracy": float((np.array(CLASSES)[p.argmax(1)] == about["label"]).mean()),
    }


def test_differences_are_those_of_the_same_eyes_and_of_the_same_patients():
    table = eyes()
    how = Aggregation("eye", MEAN_LOG, fitted=True)
    found = against_mean(table, CLASSES, [how], urgent=URGENT, resamples=400).set_index("metric")
    about, fitted = by_hand(table, True)
    mean = by_hand(table, False)[1]
    wanted, plain = figures(about, fitted), figures(about, mean)
    assert set(found.index) == set(wanted) and set(found["n"]) == {60} and set(found["rule"]) == {"fitted"}
    for name, value in wanted.items():
        assert found.loc[name, "difference"] == pytest.approx(value - plain[name], abs=1e-6)
    # Of whole patients, with both of their eyes and both ways at once: about what other draws give.
    rng, patients, spread = np.random.default_rng(5), about["patient"].to_numpy(), []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(patients == who) for who in rng.choice(np.unique(patients), 30)])
        spread.append(
            log_loss(about["label"].iloc[rows], fitted[rows], labels=CLASSES)
            - log_loss(about["label"].iloc[rows], mean[rows], labels=CLASSES)
        )
    assert found.loc["nll", ["low", "high"]].tolist() == pytest.approx(np.quantile(spread, [0.025, 0.975]), abs=0.015)
    assert set(found["method"]) <= {"paired bootstrap over patients"}


def test_what_is_the_mean_itself_or_of_one_scan_each_has_no_row():
    table = eyes()
    assert against_mean(table, CLASSES, [Aggregation("eye", MEAN)], resamples=100).empty
    single = table.groupby(["patient", "eye"]).head(1)
    assert against_mean(single, CLASSES, [Aggregation("eye", MEAN_LOG)], resamples=100).empty
    # Of another temperature it is not the mean, and ranks alike.
    found = against_mean(table, CLASSES, [Aggregation("eye", MEAN, temperature=2.0)], resamples=100).set_index("metric")
    assert found.loc["accuracy", "difference"] == 0 and found.loc["nll", "difference"] != 0
    assert "urgent_roc_auc" not in found.index
