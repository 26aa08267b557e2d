from __future__ import annotations

import pytest
import torch
from fastai.learner import Learner
from safetensors.torch import save_file
from torch import nn

from octfast.data.loaders import oct_dataloaders
from octfast.data.preprocess import preprocess
from octfast.data.readers.folder import read_scans
from octfast.errors import UsageError, WeightsError
from octfast.model.arch import find_arch, make_network
from octfast.model.forward import predict_scans
from octfast.train.frozen.frozen import frozen_learner
from octfast.train.learner import NLLLossFlat, bundle_info, oct_learner, unfreeze_to
from tests.conftest import SHARED


@pytest.fixture
def dls(phantoms):
    return oct_dataloaders(phantoms, size=64, valid=0.25, num_workers=0, device="cpu", bs=8)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}


def quietly(learn: Learner, epochs: int = 1, lr: float = 0.01) -> None:
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, lr)


@pytest.mark.parametrize("arch, head", [("resnet18", "octfast"), ("test_resnet", "fastai"), ("test_vit", "octfast")])
def test_a_frozen_body_is_the_same_to_the_bit_after_an_epoch(dls, arch, head):
    learn = oct_learner(dls, arch, head=head, weights="none")
    body, top = state(learn.model[0]), state(learn.model[1])
    quietly(learn)
    assert changed(learn.model[0], body) == set()
    assert {k for k, p in learn.model[1].named_parameters()} <= changed(learn.model[1], top)
    assert not any(p.requires_grad for p in learn.model[0].parameters())


def test_block5_is_trained_and_what_is_before_it_is_not(dls):
    learn = oct_learner(dls, "resnet18", weights="none", unfreeze="block5")
    early, late = state(learn.model[0][0]), state(learn.model[0][1])
    quietly(learn)
    assert changed(learn.model[0][0], early) == set()
    convolutions = {n for n, p in learn.model[0][1].named_parameters() if p.ndim == 4}
    # Batch norms stay as the weights have them, their running statistics too.
    assert changed(learn.model[0][1], late) == convolutions


def test_what_is_frozen_and_the_parameter_groups(dls):
    learn = oct_learner(dls, "resnet18", weights="none")
    sizes = [sum(p.numel() for p in group) for group in learn.splitter(learn.model)]
    assert len(sizes) == 3 and sum(sizes) == sum(p.numel() for p in learn.model.parameters())
    convolved = sum(p.numel() for p in learn.model[0][1].parameters() if p.ndim == 4)
    for what, trained in (
        ("head", sizes[2]),
        ("block5", convolved + sizes[2]),
        ("all", sum(sizes)),
        ("head", sizes[2]),
    ):
        unfreeze_to(learn, what)
        assert sum(p.numel() for p in learn.model.parameters() if p.requires_grad) == trained, what
    with pytest.raises(UsageError, match="cannot unfreeze"):
        unfreeze_to(learn, "block9")


def test_a_body_that_cannot_be_cut_has_no_last_block(dls):
    with pytest.raises(UsageError, match="no last block") as e:
        oct_learner(dls, "test_vit", weights="none", unfreeze="block5")
    assert "head or all" in e.value.hint


def test_the_same_seed_gives_the_same_weights(dls):
    first, second, other = (state(oct_learner(dls, "test_resnet", weights="none", seed=s).model) for s in (1, 1, 2))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert not all(torch.equal(v, other[k]) for k, v in first.items() if v.is_floating_point() and v.ndim > 1)


def test_an_untrained_body_is_set_to_the_training_scans_and_it_is_said(dls, said):
    learn = oct_learner(dls, "resnet18", weights="none")
    assert any("untrained (random weights); its 20 batch norms were set to" in line for line in said())
    assert learn.oct.weights.source == "none"
    norm = learn.model[0][0][1]
    assert isinstance(norm, nn.BatchNorm2d)
    seen = []
    with torch.no_grad():
        for path in dls.train.items["path"]:
            seen.append(learn.model[0][0][:2].eval()(preprocess(path, 64)[None]))
    x = torch.cat(seen).transpose(0, 1).flatten(1)
    assert x.mean(1).abs().max() < 0.15
    assert ((x.std(1) - 1).abs() < 0.15).all()


def test_an_untrained_body_without_batch_norm_is_said_to_be_poor(dls, said):
    oct_learner(dls, "test_vit", weights="none")
    assert any("no batch norms" in line for line in said())


def test_the_dataloaders_take_the_statistics_of_the_weights(dls):
    learn = oct_learner(dls, "test_vit", weights="none")
    x = next(iter(learn.dls.valid))[0].as_subclass(torch.Tensor)
    wanted = torch.stack([preprocess(p, 64, (0.5,) * 3, (0.5,) * 3) for p in dls.valid.items["path"][: len(x)]])
    torch.testing.assert_close(x, wanted)
    assert bundle_info(learn).mean == (0.5, 0.5, 0.5)


def test_classes_stand_in_the_bundle_in_the_order_of_their_index(dls):
    learn = oct_learner(dls, "test_resnet", weights="none")
    info = bundle_info(learn, training={"seed": 0}, synthetic=True)
    assert info.classes == ("CNV", "DME", "DRUSEN", "NORMAL") == tuple(dls.vocab)
    assert info.size == 64 and info.synthetic and info.weights["source"] == "none"


def test_a_scan_can_be_asked_about(dls):
    learn = oct_learner(dls, "test_resnet", weights="none")
    path = dls.valid.items["path"].iloc[0]
    with learn.no_bar():
        name, index, p = learn.predict(path)
    found = predict_scans(learn.model, bundle_info(learn), dls.valid.items.head(1), precision="fp32")
    assert name == dls.vocab[int(index)] == found["predicted"][0]
    assert float(p[index]) == pytest.approx(found["probability"][0], abs=1e-4)


def test_weights_of_the_convolutions_alone_are_refused_for_the_articles_head_unless_asked(dls, tmp_path, said):
    from safetensors.torch import save_file
    from torchvision.models.vgg import cfgs, make_layers

    file = tmp_path / "vgg11_features.safetensors"
    save_file({f"features.{name}": p for name, p in make_layers(cfgs["A"]).state_dict().items()}, file)
    with pytest.raises(WeightsError, match=r"4096-wide layers of --head article, which vgg11_features\S+ lacks") as e:
        oct_learner(dls, "vgg11", head="article", weights=file)
    assert "--random-layers" in e.value.hint
    assert oct_learner(dls, "vgg11", head="article", weights=file, random_layers=True).oct.head == "article"
    assert any("random weights in the two frozen 4096-wide layers" in line for line in said())
    assert oct_learner(dls, "vgg11", weights=file).oct.head == "linear"


def test_the_articles_head_learns_from_log_probabilities(dls):
    learn = oct_learner(dls, "vgg11", head="article", weights="none")
    assert isinstance(learn.loss_func, NLLLossFlat)
    assert [type(m).__name__ for m in learn.model[1]] == ["Linear", "ReLU", "Dropout", "Linear", "LogSoftmax"]
    assert sum(p.numel() for p in learn.model.parameters() if p.requires_grad) == 1_049_860
    before = state(learn.model[1])
    fast = frozen_learner(learn, views=1, precision="fp32")
    quietly(fast, lr=0.003)
    fast.close()
    assert changed(learn.model[1], before) == set(before)
    with learn.no_bar():
        p, y = learn.get_preds(ds_idx=1)
        logp = learn.get_preds(ds_idx=1, act=lambda x: x)[0]
    torch.testing.assert_close(p.sum(1), torch.ones(len(p)))
    torch.testing.assert_close(logp.exp(), p)
    assert float(learn.loss_func(logp, y)) == pytest.approx(float(-logp[range(len(y)), y].mean()), abs=1e-6)
    found = predict_scans(learn.model, bundle_info(learn), dls.valid.items, precision="fp32")
    torch.testing.assert_close(
        torch.tensor(found[[f"p_{c}" for c in dls.vocab]].to_numpy()).float(), p, atol=1e-4, rtol=1e-3
    )


def test_weights_of_a_file_are_in_the_body(dls, tmp_path, said):
    torch.manual_seed(9)
    network = make_network(find_arch("resnet18"))
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    learn = oct_learner(dls, "resnet18", weights=tmp_path / "mine.safetensors")
    assert torch.equal(learn.model[0][0][0].weight, network.conv1.weight)
    assert learn.oct.weights.source == "file" and any("mine.safetensors" in line for line in said())
    with pytest.raises(WeightsError, match="does not fit resnet34") as e:
        oct_learner(dls, "resnet34", weights=tmp_path / "mine.safetensors")
    assert "resnet18" in e.value.hint


@pytest.mark.parametrize("wrong", [{"arch": "resnet81"}, {"head": "knee"}, {"arch": "test_vit", "head": "article"}])
def test_unknown_names_are_usage_errors(dls, wrong):
    with pytest.raises(UsageError):
        oct_learner(dls, **{"arch": "test_resnet", "weights": "none", **wrong})


def test_fastais_own_options_go_through(dls, tmp_path):
    from fastai.callback.tracker import ReduceLROnPlateau
    from fastai.metrics import error_rate

    learn = oct_learner(
        dls, "test_resnet", weights="none", metrics=[error_rate], cbs=ReduceLROnPlateau(), path=tmp_path, wd=0.3
    )
    assert [m.name for m in learn.metrics] == ["error_rate"] and learn.wd == 0.3 and str(learn.path) == str(tmp_path)
    assert {"FrozenEval", "ReduceLROnPlateau"} <= {type(cb).__name__ for cb in learn.cbs}


@pytest.mark.realdata
def test_the_real_weights_fit(phantoms, said):
    file = SHARED / "weights" / "vgg16_bn_features.safetensors"
    if not file.exists():
        pytest.skip(f"no {file}")
    dls = oct_dataloaders(read_scans(phantoms).head(24), size=64, valid=0.25, num_workers=0, device="cpu", bs=4)
    learn = oct_learner(dls, "vgg16_bn", weights=file)
    assert learn.oct.weights.loaded == len(
        [k for k in learn.model[0].state_dict() if not k.endswith("num_batches_tracked")]
    )
    assert not any("untrained" in line for line in said())
