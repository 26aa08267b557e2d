from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from octfast.data.loaders import oct_dataloaders
from octfast.data.readers.folder import read_scans
from octfast.errors import DataError
from octfast.model.bundle.read import load_bundle
from octfast.model.bundle.write import save_bundle
from octfast.model.forward import predict_scans, predictions_table
from octfast.train.learner import bundle_info, oct_learner
from tests.data.splits.test_hold_out import table


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.just(3)), elements=st.floats(-80, 80)), st.floats(0.1, 9))
@settings(max_examples=60)
def test_the_table_of_predictions(logits, temperature):
    classes = ["b", "a", "c"]
    scans = table([(classes[i % 3], str(i)) for i in range(len(logits))])
    found = predictions_table(scans, logits, classes, temperature)
    pd.testing.assert_frame_equal(found[scans.columns], scans)
    p = found[["p_b", "p_a", "p_c"]].to_numpy()
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_allclose(p, torch.softmax(torch.tensor(logits) / temperature, 1), atol=1e-12)
    assert [classes[i] for i in p.argmax(1)] == list(found["predicted"])
    np.testing.assert_allclose(found["probability"], p.max(1))
    targets = torch.tensor([classes.index(label) for label in scans["label"]])
    wanted = torch.nn.functional.cross_entropy(torch.tensor(logits) / temperature, targets, reduction="none")
    np.testing.assert_allclose(found["loss"], wanted, atol=1e-9)


def test_log_probabilities_will_do():
    scans, logits = table([("A", "1"), ("B", "2")]), np.array([[3.0, 1.0], [-2.0, 5.0]])
    logp = torch.log_softmax(torch.tensor(logits), 1).numpy()
    pd.testing.assert_frame_equal(
        predictions_table(scans, logits, list("AB")), predictions_table(scans, logp, list("AB"))
    )


def test_no_scans_no_rows():
    found = predictions_table(table([("A", "1")]).head(0), np.zeros((0, 2)), ["A", "B"])
    assert len(found) == 0 and {"predicted", "p_A", "p_B"} <= set(found.columns)


@pytest.mark.parametrize("arch, head", [("resnet18", "octfast"), ("vgg11_bn", "fastai"), ("test_vit", "octfast")])
def test_the_bundle_says_what_the_learner_says(phantoms, tmp_path, arch, head):
    dls = oct_dataloaders(phantoms, size=64, valid=0.25, num_workers=0, device="cpu", bs=8)
    learn = oct_learner(dls, arch, head=head, weights="none")
    model, info = load_bundle(save_bundle(tmp_path, learn.model, bundle_info(learn)))
    assert info.arch == arch and info.head == head and list(info.classes) == list(dls.vocab) and info.size == 64
    scans = dls.valid.items.drop(columns="is_valid")
    calls = []
    found = predict_scans(model, info, scans, bs=4, precision="fp32", progress=lambda *a: calls.append(a))
    with learn.no_bar():
        p, y = learn.get_preds(ds_idx=1)
        losses = learn.get_preds(ds_idx=1, with_loss=True)[2]
    np.testing.assert_allclose(found[[f"p_{c}" for c in dls.vocab]], p, atol=2e-4)
    np.testing.assert_allclose(found["loss"], losses, atol=2e-3)
    assert list(found["label"]) == [dls.vocab[int(i)] for i in y]
    assert calls[-1] == (len(scans), len(scans)) and [n for n, _ in calls] == sorted(n for n, _ in calls)


def test_one_scan_at_a_time_or_many_is_the_same(trained):
    model, info = load_bundle(trained.bundle)
    scans = trained.scans.query("split == 'test'")
    one, many = (predict_scans(model, info, scans, bs=bs, precision="fp32") for bs in (1, 16))
    np.testing.assert_allclose(one["loss"], many["loss"], atol=1e-4)


def test_a_scan_that_is_gone_is_named(trained):
    model, info = load_bundle(trained.bundle)
    scans = trained.scans.head(2).assign(path=["/nowhere/a.jpeg", "/nowhere/b.jpeg"])
    with pytest.raises(DataError, match=r"no such file: /nowhere/a\.jpeg"):
        predict_scans(model, info, scans)


def test_the_model_given_is_not_changed(trained):
    model, info = load_bundle(trained.bundle)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    predict_scans(model.train(), info, trained.scans.head(3), precision="bf16")
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_order_of_the_scans_is_kept(trained):
    model, info = load_bundle(trained.bundle)
    scans = read_scans(trained.root).head(20)
    forward = predict_scans(model, info, scans, precision="fp32")
    backward = predict_scans(model, info, scans[::-1], precision="fp32")[::-1].reset_index(drop=True)
    assert list(forward["path"]) == list(scans["path"]) == list(backward["path"])
    np.testing.assert_allclose(forward["loss"], backward["loss"], atol=1e-4)
