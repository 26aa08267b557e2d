"""A smaller draw of scans lies within every larger one, and both are of as many patients and classes as can be."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.train.minutes.nested import POWER, drawing_order

rows = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=80)


def table(drawn) -> pd.DataFrame:
    scans = pd.DataFrame(drawn, columns=["label", "patient"]).astype(str)
    return scans.assign(path=[f"/data/{label}/{n}.png" for n, label in enumerate(scans["label"])], split="train")


@settings(max_examples=25)
@given(rows, st.integers(0, 5), st.integers(1, 8), st.data())
def test_a_smaller_draw_is_within_a_larger_and_balanced(drawn, seed, least, data):
    scans = table(drawn)
    order = drawing_order(scans, seed, least=least)
    n, m = sorted((data.draw(st.integers(0, len(scans))), data.draw(st.integers(0, len(scans)))))
    small, large = order.first(n), order.first(m)
    assert len(small) == n and len(large) == m and set(small) <= set(large)
    of, all_of = scans.iloc[small]["label"].value_counts(), scans["label"].value_counts()
    if n >= order.least:
        assert all(of[c] >= min(least, all_of[c]) for c in all_of.index)
    # Beyond the least the classes go by the roots of their frequencies, until one has no more.
    going = [(of[c], all_of[c]) for c in all_of.index if least < of.get(c, 0) < all_of[c]]
    rates = [(has / every**POWER, 1 / every**POWER) for has, every in going]
    assert all(abs(a - b) <= slack + other + 1e-9 for a, slack in rates for b, other in rates)
    # No patient gives a scan of a class twice before all its patients have given one as often.
    turns = scans.iloc[small].groupby(["label", "patient"]).size()
    for (label, patient), has in scans.groupby(["label", "patient"]).size().items():
        most = turns.loc[label].max() if label in turns.index else 0
        assert turns.get((label, patient), 0) >= min(has, most - 1)


@settings(max_examples=25)
@given(rows, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_draw_depends_on_names_and_not_on_the_order_of_the_table_or_its_folder(drawn, seed, random):
    scans = table(drawn)
    mixed = scans.sample(frac=1, random_state=random.randrange(1000)).reset_index(drop=True)
    mixed["path"] = mixed["path"].str.replace("/data", "/elsewhere")
    here, there = drawing_order(scans, seed).rows, drawing_order(mixed, seed).rows
    names = [[p.rsplit("/", 1)[1] for p in t["path"].iloc[o]] for t, o in ((scans, here), (mixed, there))]
    assert names[0] == names[1]


@settings(max_examples=25)
@given(rows, st.integers(0, 5), st.data())
def test_units_stay_whole_and_the_leading_scan_is_drawn_first(drawn, seed, data):
    scans = table(drawn).assign(label="a")
    lead, n = data.draw(st.integers(0, len(scans) - 1)), data.draw(st.integers(0, len(scans)))
    order = drawing_order(scans, seed, "patient", lead=lead)
    assert scans["patient"].iloc[order.rows[0]] == scans["patient"].iloc[lead]
    taken = set(scans["patient"].iloc[order.first(n)])
    assert len(order.first(n)) == scans["patient"].isin(taken).sum() <= n
    assert sorted(order.rows) == list(range(len(scans))) and (np.diff(order.ends) > 0).all()
    assert drawing_order(scans, seed, lead=lead).rows[0] == lead
