from __future__ import annotations

import pytest
import torch
from torch import nn

from octfast.model.arch import find_arch, make_network
from octfast.model.heads import body_and_head
from octfast.model.weights.untrained import calibrate_batch_norm


def made(name: str, head: str = "octfast", size: int = 64, classes: int = 4):
    arch = find_arch(name)
    torch.manual_seed(0)
    network = make_network(arch, size).eval()
    return network, *body_and_head(network, arch, head, classes)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "test_resnet", "densenet121"])
def test_calibrated_batch_norms_have_zero_mean_and_unit_variance(name):
    _, body, _ = made(name)
    # Pictures of other statistics than a network's random weights expect.
    pictures = 3 + 2 * torch.randn(24, 3, 64, 64)
    seen: dict[str, list[torch.Tensor]] = {}
    norms = {n: m for n, m in body.named_modules() if isinstance(m, nn.BatchNorm2d)}

    def note(where, module, args):
        x = args[0]
        normal = (x - module.running_mean[:, None, None]) / (module.running_var[:, None, None] + module.eps).sqrt()
        seen.setdefault(where, []).append(normal.detach())

    before = [m.momentum for m in norms.values()]
    weights = {n: p.clone() for n, p in body.named_parameters()}
    assert calibrate_batch_norm(body, [pictures]) == len(norms) > 3
    assert [m.momentum for m in norms.values()] == before
    assert all(torch.equal(p, weights[n]) for n, p in body.named_parameters())
    hooks = [m.register_forward_pre_hook(lambda m, a, n=n: note(n, m, a)) for n, m in norms.items()]
    with torch.no_grad():
        body.eval()(pictures)
    for hook in hooks:
        hook.remove()
    for where, parts in seen.items():
        x = torch.cat(parts).transpose(0, 1).flatten(1)
        if x.shape[1] < 200:
            continue
        alive = x.std(1) > 1e-3
        assert x.mean(1).abs().max() < 0.05, where
        assert (x.std(1)[alive] - 1).abs().max() < 0.05, where


def test_several_batches_are_averaged_and_the_mode_is_kept():
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    body.train()
    batches = [torch.full((4, 3, 8, 8), 2.0) + torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)]
    with torch.no_grad():
        means = torch.stack([body[0](b).mean((0, 2, 3)) for b in batches])
    calibrate_batch_norm(body, batches)
    torch.testing.assert_close(body[1].running_mean, means.mean(0))
    assert body.training and body[1].training


def test_a_body_without_batch_norm_is_left_alone():
    body = nn.Sequential(nn.Conv2d(3, 4, 1))
    assert calibrate_batch_norm(body, iter(())) == 0
