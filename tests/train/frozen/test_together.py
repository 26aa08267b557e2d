"""Heads computed as one learn what each would learn alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from octfast.model.heads import POOLED, pooled_head, set_dropout
from octfast.train.frozen.folds import IGNORED, FoldHeads
from octfast.train.frozen.together import HeadsTogether

WIDTH, CLASSES, FOLDS = 20, 3, 4


def data(seed: int, n: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    # Far from zero, as activations are, so that what cancels badly would be seen.
    x = rng.gamma(2.0, 1.0, (n, WIDTH)) + 40 * (np.arange(WIDTH) % 3 == 0)
    return torch.tensor(x, dtype=torch.float32), torch.arange(n) % FOLDS, torch.tensor(rng.integers(0, CLASSES, n))


@pytest.mark.parametrize("name", POOLED)
def test_they_learn_what_each_would_alone(name):
    torch.manual_seed(1)
    head = pooled_head(name, WIDTH, CLASSES)
    set_dropout(head, 0.0)
    one_by_one = FoldHeads(nn.Identity(), copy.deepcopy(head), FOLDS)
    together = HeadsTogether(head, FOLDS)
    steps = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (one_by_one, together)]
    for seed in range(4):
        x, fold, y = data(seed)
        targets = torch.where(fold[:, None] == torch.arange(FOLDS), IGNORED, y[:, None])
        for model, step in zip((one_by_one, together), steps, strict=True):
            model.train()
            out = model(x, fold)[:, :FOLDS]
            # Alone each head learns by the mean over its own scans; FoldHeads counts one head more.
            scale = FOLDS / (FOLDS + 1) if model is one_by_one else 1.0
            loss = nn.functional.cross_entropy(out.reshape(-1, CLASSES), targets.reshape(-1), ignore_index=IGNORED)
            step.zero_grad()
            (loss * scale).backward()
            step.step()
    x, fold, _ = data(9)
    with torch.no_grad():
        found, expected = together.eval()(x, fold), one_by_one.eval()(x, fold)[:, :FOLDS]
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", POOLED)
def test_a_head_knows_nothing_of_its_own_fold(name):
    torch.manual_seed(2)
    head = pooled_head(name, WIDTH, CLASSES)
    set_dropout(head, 0.0)
    x, fold, _ = data(3)
    changed = torch.where((fold == 1)[:, None], x + 100, x)
    outs = []
    for given in (x, changed):
        model = HeadsTogether(copy.deepcopy(head), FOLDS).train()
        model(given, fold)
        outs.append(model.eval()(x, fold)[:, 1])
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-2, atol=1e-2)


def test_a_batch_of_one_fold_has_no_scan_to_normalise_by():
    x, _, _ = data(4, 8)
    model = HeadsTogether(pooled_head("linear", WIDTH, CLASSES), FOLDS).train()
    assert torch.isfinite(model(x, torch.zeros(8, dtype=torch.long))).all()
