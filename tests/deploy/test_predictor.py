from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from octfast.data.preprocess import MAX_PIXELS, preprocess
from octfast.deploy.predictor import Answer, load
from octfast.errors import BundleError, DataError, UsageError
from octfast.model.arch import find_arch, make_network
from octfast.model.bundle.info import MODEL_FILE
from octfast.model.bundle.read import load_bundle, read_info
from octfast.model.bundle.show import describe_bundle
from octfast.model.bundle.stock import digest
from octfast.model.bundle.write import save_bundle, slim_bundle, update_info
from octfast.model.forward import predict_scans
from octfast.model.heads import body_and_head
from octfast.model.prefetch import decode_picture
from tests.conftest import SHARED, quick
from tests.model.bundle.test_bundle import info, model_of
from tests.pictures import scan, write_broken, write_kinds


def test_the_same_probabilities_from_scans_predictor_and_learner(bundle, predictor, scans):
    paths = list(scans["path"])
    columns = [f"p_{c}" for c in predictor.classes]
    model, about = load_bundle(bundle)
    expected = predict_scans(model, about, scans, precision="fp32", device="cpu")[columns].to_numpy()
    assert np.ptp(expected, axis=0).max() > 0.05
    assert np.abs(predictor.probabilities(paths) - expected).max() < 1e-5
    assert np.abs(predictor.probabilities(paths, bs=3) - expected).max() < 1e-5
    learn = predictor.to_learner()
    given, _ = learn.get_preds(dl=learn.dls.test_dl(paths))
    assert np.abs(given.numpy() - expected).max() < 1e-3
    for i in (0, 5):
        name, index, p = learn.predict(paths[i])
        assert np.abs(p.numpy() - expected[i]).max() < 1e-3
        assert name == predictor.classes[int(index)] == predictor.classes[expected[i].argmax()]
    half = predict_scans(model, about, scans, precision="bf16", device="cpu")[columns].to_numpy()
    assert np.abs(load(bundle, precision="bf16", device="cpu").probabilities(paths) - half).max() < 1e-5
    assert not np.array_equal(half, expected)


def test_the_temperature_matters(trained, predictor, scans):
    cold = load(trained.path, precision="fp32", device="cpu")
    assert cold.info.temperature == 1
    path = scans["path"][0]
    logits = np.log(cold.probabilities(path)) / 1.7
    assert predictor.probabilities(path) == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=1e-9)


def test_fastai_is_not_imported(tmp_path):
    for head in ("octfast", "fastai"):
        about = info(head=head)
        save_bundle(tmp_path / head, model_of(about), about)
    code = """
import sys, numpy
from octfast.deploy.predictor import load
for head in ("octfast", "fastai"):
    predictor = load(sys.argv[1] + "/" + head, precision="fp32", device="cpu")
    print(predictor.predict([numpy.zeros((9, 9), numpy.uint8)]).shape)
print(sorted({m.split(".")[0] for m in sys.modules} & {"fastai", "fastcore", "matplotlib", "sklearn", "captum"}))
"""
    words = [sys.executable, "-c", code, tmp_path]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    assert ended.stdout.splitlines() == ["(1, 8)", "(1, 8)", "[]"]


@pytest.mark.parametrize("pool", [True, False])
def test_fastais_head_without_fastai_is_fastais(pool):
    from fastai.vision.learner import create_head

    from octfast.model.heads import _fastai_head

    torch.manual_seed(4)
    theirs = create_head(24, 3, pool=pool)
    torch.manual_seed(4)
    ours = _fastai_head(24, 3, pool)
    assert {k: v.tolist() for k, v in theirs.state_dict().items()} == {
        k: v.tolist() for k, v in ours.state_dict().items()
    }
    x = torch.randn(5, 24, 6, 7) if pool else torch.randn(5, 24)
    torch.manual_seed(5)
    one = theirs.train()(x)
    torch.manual_seed(5)
    assert torch.equal(one, ours.train()(x))


class TestPictures:
    def test_any_kind_is_read_as_predict_scans_would(self, predictor, tmp_path):
        kinds = write_kinds(tmp_path)
        with torch.no_grad():
            x = torch.stack([preprocess(p, 64, predictor.info.mean, predictor.info.std) for p in kinds.values()])
            expected = torch.softmax(predictor.model(x).double() / 1.7, 1).numpy()
        assert np.abs(predictor.probabilities(list(kinds.values())) - expected).max() < 1e-5

    def test_files_bytes_images_and_arrays_of_one_scan_are_one(self, predictor, tmp_path):
        file = write_kinds(tmp_path / "ünï cödé 眼")["grey.png"]
        grey = scan()
        given = [
            *(file, str(file), file.read_bytes(), Image.open(file), Image.fromarray(grey)),
            *(Image.fromarray(grey).convert("RGB"), Image.fromarray(grey).convert("RGBA")),
            *(grey, grey[:, :, None], np.stack([grey] * 3, 2), np.stack([grey] * 4, 2), grey.astype(np.uint16) * 257),
            *(np.asfortranarray(grey), np.stack([grey] * 3, 2)[:, ::-1][:, ::-1]),
        ]
        found = predictor.probabilities(given)
        assert np.ptp(found, axis=0).max() < 1e-6

    def test_one_picture_alone(self, predictor, tmp_path):
        file = write_kinds(tmp_path)["grey.png"]
        for one in (file, str(file), file.read_bytes(), Image.open(file), scan(), np.stack([scan()] * 3, 2)):
            assert predictor.probabilities(one).shape == (1, 4)

    def test_an_array_of_pictures(self, predictor):
        volume = np.stack([scan(seed=i) for i in range(5)])
        assert np.array_equal(predictor.probabilities(volume), predictor.probabilities(list(volume)))
        assert predictor.probabilities([]).shape == (0, 4)

    @pytest.mark.parametrize(
        "picture",
        [
            scan().astype(np.float32),
            scan().astype(np.int64),
            scan() > 3,
            np.zeros((3, 60, 80, 2), np.uint8),
            np.zeros((0, 4), np.uint8),
            np.zeros((), np.uint8),
            7,
            None,
            ["scan.png"],
            "nowhere.png",
            "null\0.png",
            "x" * 5000,
            "",
            b"",
            b"not a picture",
            Image.new("F", (4, 4)),
            Image.new("L", (0, 0)),
        ],
        ids=lambda p: type(p).__name__,
    )
    def test_what_is_no_picture_is_said(self, predictor, picture):
        (answer,) = predictor.stream([picture])
        assert isinstance(answer.error, DataError) and answer.probabilities is None
        assert "\n" not in answer.error.message
        with pytest.raises(DataError):
            predictor.probabilities([picture])

    def test_a_picture_larger_than_100_million_pixels_is_refused(self):
        picture = Image.new("1", (MAX_PIXELS // 10_000 + 1, 10_000))
        with pytest.raises(DataError, match="10,001 x 10,000 pixels"):
            decode_picture(picture)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
    def test_a_pipe_is_not_waited_for(self, tmp_path, predictor):
        os.mkfifo(tmp_path / "scan.png")
        (answer,) = predictor.stream([tmp_path / "scan.png"])
        assert "not a plain file" in answer.error.message


class TestStream:
    def test_errors_stand_in_their_place_and_do_not_end_it(self, predictor, tmp_path):
        broken = list(write_broken(tmp_path / "b").values())
        good = [write_kinds(tmp_path / "g")["grey.png"]] * 3
        given = [good[0], *broken, good[1], tmp_path / "gone.png", good[2]]
        answers = list(predictor.stream(iter(given), bs=2))
        assert [a.picture for a in answers] == given
        assert [a.error is None for a in answers] == [True, *[False] * len(broken), True, False, True]
        assert all(a.probabilities is not None for a in answers if a.error is None)

    def test_it_takes_no_more_ahead_than_a_few_batches(self, predictor):
        taken = 0

        def endless():
            nonlocal taken
            while True:
                taken += 1
                yield scan(seed=taken)

        stream = predictor.stream(endless(), bs=4)
        for _ in range(5):
            assert isinstance(next(stream), Answer)
        assert taken <= 5 + 4 * 4
        stream.close()

    def test_answers_come_before_a_slow_source_has_more(self, predictor):
        more = threading.Event()

        def slow():
            yield scan()
            assert more.wait(60)
            yield scan()

        stream = predictor.stream(slow(), bs=8)
        assert next(stream).error is None
        more.set()
        assert len(list(stream)) == 1

    def test_a_source_that_fails_gives_what_it_had_first(self, predictor):
        def failing():
            yield scan()
            yield scan()
            raise RuntimeError("no more")

        stream = predictor.stream(failing())
        assert [next(stream).error, next(stream).error] == [None, None]
        with pytest.raises(RuntimeError, match="no more"):
            next(stream)

    def test_no_threads_are_left(self, predictor):
        before = threading.active_count()
        list(predictor.stream([scan()] * 40, bs=4))
        stream = predictor.stream([scan()] * 40, bs=2)
        next(stream)
        stream.close()
        for thread in threading.enumerate():
            if thread.daemon and thread is not threading.current_thread() and "_feed" in str(thread):
                thread.join(5)
        assert threading.active_count() <= before

    def test_a_batch_of_none(self, predictor):
        with pytest.raises(UsageError):
            next(predictor.stream([scan()], bs=0))

    def test_a_model_that_gives_no_numbers_says_so(self, tmp_path):
        about = info()
        model = model_of(about)
        with torch.no_grad():
            model[1][-1].weight.fill_(3e38)
        save_bundle(tmp_path, model, about)
        (answer,) = load(tmp_path, precision="fp32", device="cpu").stream([scan()])
        assert "no numbers" in answer.error.message


class TestPredict:
    def test_the_table(self, predictor, scans):
        paths = list(scans["path"])
        table = predictor.predict(paths)
        p = predictor.probabilities(paths)
        assert list(table.columns) == [
            "path",
            "predicted",
            "probability",
            "urgent_score",
            "referred",
            "p_CNV",
            "p_DME",
            *(f"p_{c}" for c in predictor.classes[2:]),
        ]
        assert list(table["path"]) == paths
        assert list(table["predicted"]) == [predictor.classes[i] for i in p.argmax(1)]
        assert table["probability"].to_numpy() == pytest.approx(p.max(1))
        assert table["urgent_score"].to_numpy() == pytest.approx(p[:, :2].sum(1))
        assert list(table["referred"]) == list(table["urgent_score"] >= 0.5)

    def test_the_next_best_and_abstentions(self, predictor):
        table = predictor.predict([scan(), scan(seed=1)], k=3, abstain_below=0.9)
        assert (table["probability"] >= table["probability_2"]).all() and (
            table["probability_2"] >= table["probability_3"]
        ).all()
        assert len(set(table.loc[0, ["predicted", "predicted_2", "predicted_3"]])) == 3
        assert list(table["abstained"]) == list(table["probability"] < 0.9)
        assert list(table["path"]) == ["", ""]

    def test_errors_kept(self, predictor, tmp_path):
        table = predictor.predict(["gone.png", scan()], k=2, abstain_below=0.5, errors="keep")
        assert "no such file" in table["error"][0] and table["error"][1] == ""
        assert pd.isna(table["predicted"][0]) and pd.isna(table["probability"][0]) and not table["abstained"][0]
        assert not table["referred"][0]
        with pytest.raises(DataError, match="no such file"):
            predictor.predict(["gone.png", scan()])

    def test_nothing(self, predictor):
        assert len(predictor.predict([])) == 0

    @pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 5}, {"abstain_below": 1.1}, {"errors": "drop"}])
    def test_what_cannot_be(self, predictor, wrong):
        with pytest.raises(UsageError):
            predictor.predict([scan()], **wrong)

    def test_without_an_operating_point_the_predicted_class_decides(self, trained):
        table = load(trained.path, precision="fp32", device="cpu").predict([scan(seed=n) for n in range(5)])
        assert list(table["referred"]) == [c in ("CNV", "DME") for c in table["predicted"]]
        assert table["urgent_score"].to_numpy() == pytest.approx(table["p_CNV"] + table["p_DME"])

    def test_the_heat_map_is_as_large_as_the_picture(self, predictor):
        pytest.importorskip("captum")
        heat = predictor.heat_map(scan())
        assert heat.shape == (60, 80) and heat.dtype == np.float32 and 0 <= heat.min() <= heat.max() <= 1

    def test_threads_do_not_see_each_others_heat_maps(self, predictor):
        pytest.importorskip("captum")
        pictures = [scan(seed=n) for n in range(24)]
        alone = [predictor.heat_map(p, n % 3) for n, p in enumerate(pictures)]
        p = predictor.probabilities(pictures)
        with ThreadPoolExecutor(8) as pool:
            asked = pool.map(
                lambda n: (predictor.heat_map(pictures[n], n % 3), predictor.probabilities(pictures)), range(24)
            )
            for heat, (other, q) in zip(alone, asked, strict=True):
                assert np.array_equal(heat, other) and np.array_equal(p, q)


class TestLoad:
    def test_read_only_under_a_strange_name(self, bundle, tmp_path):
        folder = shutil.copytree(bundle, tmp_path / "Modell für 眼 $x$")
        for f in folder.iterdir():
            f.chmod(0o444)
        folder.chmod(0o555)
        try:
            assert load(folder).classes == load(str(folder)).classes
        finally:
            folder.chmod(0o755)

    def test_a_link_to_the_folder_is_followed(self, bundle, tmp_path):
        (tmp_path / "latest").symlink_to(bundle)
        assert load(tmp_path / "latest").info == read_info(bundle)

    def test_what_is_no_bundle(self, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "scan.jpeg").write_bytes(b"x")
        for wrong in (tmp_path, tmp_path / "model", tmp_path / "nowhere", tmp_path / "scan.jpeg", "null\0"):
            with pytest.raises(BundleError) as e:
                load(wrong)
            assert e.value.hint and "\n" not in e.value.message

    @pytest.mark.parametrize(
        "how",
        [{"precision": "fp16"}, {"precision": "int8"}, {"precision": "fp23"}, {"device": "moon"}, {"device": "meta"}],
    )
    def test_how_it_cannot_run(self, bundle, how):
        with pytest.raises(UsageError):
            load(bundle, **{"device": "cpu", **how})

    def test_stored_in_half_precision(self, bundle, tmp_path, predictor, scans):
        model, about = load_bundle(bundle)
        save_bundle(tmp_path, model, replace(about, tensors="float16"))
        half = load(tmp_path, precision="fp32", device="cpu")
        assert half.info.tensors == "float16" and next(half.model.parameters()).dtype == torch.float32
        assert (tmp_path / MODEL_FILE).stat().st_size < 0.6 * (bundle / MODEL_FILE).stat().st_size
        paths = list(scans["path"])
        assert np.abs(half.probabilities(paths) - predictor.probabilities(paths)).max() < 0.02

    def test_half_precision_that_is_not_declared_is_refused(self, bundle, tmp_path):
        model, about = load_bundle(bundle)
        save_bundle(tmp_path, model, replace(about, tensors="float16"))
        update_info(tmp_path, tensors="float32")
        with pytest.raises(BundleError, match="float16 instead of float32"):
            load(tmp_path)

    def test_numbers_that_half_precision_has_no_room_for(self, tmp_path):
        about = info(tensors="float16")
        model = model_of(about)
        with torch.no_grad():
            model[1][-1].weight.fill_(1e6)
        with pytest.raises(BundleError, match="no room"):
            save_bundle(tmp_path / "m", model, about)


class TestSlim:
    """A network whose stock weights are a file, and a model whose body was left as it was but for its last block."""

    @pytest.fixture(scope="class")
    def made(self, tmp_path_factory):
        from safetensors.torch import save_file

        work = tmp_path_factory.mktemp("slim")
        arch, about = (
            find_arch("resnet18"),
            info("resnet18", size=32, weights={"source": "file", "file": "stock.safetensors"}),
        )
        torch.manual_seed(11)
        network = make_network(arch, 32)
        save_file(network.state_dict(), work / "stock.safetensors")
        model = nn.Sequential(*body_and_head(network, arch, "octfast", 3)).eval()
        with torch.no_grad():
            model[0][1].stage[1][1].conv2.weight += 0.01
        return save_bundle(work / "whole", model, about), work / "stock.safetensors"

    def test_it_is_small_and_the_same_model(self, made, tmp_path):
        whole, stock = made
        small = slim_bundle(whole, tmp_path / "slim", stock)
        assert sorted(p.name for p in small.iterdir()) == sorted(p.name for p in whole.iterdir())
        assert (small / MODEL_FILE).stat().st_size < 0.3 * (whole / MODEL_FILE).stat().st_size
        assert read_info(small).base["source"] == "file" and read_info(whole).base is None
        one, other = load_bundle(whole)[0], load_bundle(small, weights=stock)[0]
        assert digest(one.state_dict()) == digest(other.state_dict())
        assert load(small, weights=stock).probabilities(scan()).shape == (1, 3)

    def test_where_the_stock_weights_are_not_it_says_so_and_fetches_nothing(self, made, tmp_path, monkeypatch):
        monkeypatch.delenv("OCTFAST_OFFLINE", raising=False)
        monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: pytest.fail("the network was asked"))
        small = slim_bundle(made[0], tmp_path / "slim", made[1])
        with pytest.raises(BundleError, match="was trained from a file") as e:
            load(small)
        assert "weights=FILE" in e.value.hint
        base = {**read_info(small).base, "source": "torchvision"}
        update_info(small, base=base, weights={"source": "cache"})
        with pytest.raises(BundleError, match="not on this machine, and none are fetched") as e:
            load(small)
        assert "resnet18" in e.value.hint and "weights=FILE" in e.value.hint

    def test_other_stock_weights_are_refused(self, made, tmp_path):
        from safetensors.torch import save_file

        small = slim_bundle(made[0], tmp_path / "slim", made[1])
        torch.manual_seed(12)
        save_file(make_network(find_arch("resnet18"), 32).state_dict(), tmp_path / "other.safetensors")
        with pytest.raises(BundleError, match="not those it was made with"):
            load(small, weights=tmp_path / "other.safetensors")
        with pytest.raises(BundleError, match="nothing of"):
            slim_bundle(made[0], tmp_path / "again", tmp_path / "other.safetensors")
        assert not (tmp_path / "again").exists()
        (tmp_path / "tiny.safetensors").write_bytes((tmp_path / "slim" / MODEL_FILE).read_bytes())
        with pytest.raises(BundleError):
            load(small, weights=tmp_path / "tiny.safetensors")
        with pytest.raises(BundleError, match="no weights file"):
            load(small, weights=tmp_path / "gone.safetensors")

    def test_a_slim_one_is_not_slimmed_and_nothing_is_overwritten(self, made, tmp_path):
        small = slim_bundle(made[0], tmp_path / "slim", made[1])
        with pytest.raises(UsageError, match="not empty"):
            slim_bundle(made[0], small, made[1])
        model, about = load_bundle(small, weights=made[1])
        assert read_info(save_bundle(tmp_path / "whole again", model, about)).base is None

    def test_the_commands(self, made, tmp_path, octfast):
        ended = octfast("model", "slim", made[0], "--out", tmp_path / "slim", "--weights", made[1])
        assert ended.code == 0 and "MB instead of" in ended.out
        ended = octfast("model", "show", tmp_path / "slim")
        assert ended.code == 0 and "slim: needs the file of resnet18 weights" in ended.out
        assert octfast("model", "slim", made[0], "--out", tmp_path / "b").code == 1

    def test_a_body_that_began_with_random_numbers(self, made, tmp_path):
        whole = Path(shutil.copytree(made[0], tmp_path / "whole"))
        update_info(whole, weights={"source": "none"})
        with pytest.raises(BundleError, match="random numbers"):
            slim_bundle(whole, tmp_path / "slim")
        assert not (tmp_path / "slim").exists()


def test_show(octfast, trained, bundle):
    ended = octfast("model", "show", trained.path)
    assert ended.code == 0 and "test_resnet with the head linear" in ended.out and "Not a medical device" in ended.out
    import json

    said = json.loads(octfast("model", "show", bundle, "--json").out)
    assert said["temperature"] == 1.7 and said["file"]["tensors"] == describe_bundle(bundle).tensors > 10
    assert octfast("model", "show", bundle / "nowhere").code == 1


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """A head trained on real scans and a body of ImageNet, in two epochs."""
    from octfast.train.job import train_classifier

    words = {"arch": "vgg16_bn", "weights": str(STOCK), "size": 96, "views": 1, "lr": 0.002}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("real"))
        return train_classifier(**quick(SHARED / "data" / "oct2017-sample", **words))


REAL, STOCK = SHARED / "data" / "oct2017-sample", SHARED / "weights" / "vgg16_bn_features.safetensors"


@pytest.mark.realdata
@pytest.mark.skipif(not (REAL.is_dir() and STOCK.is_file()), reason=f"no real scans and weights in {SHARED}")
class TestReal:
    def test_half_precision_and_a_learner_give_the_same(self, real_run):
        paths = list(real_run.scans["path"])[::2]
        whole, half = (load(real_run.path, precision=p, device="cpu") for p in ("fp32", "bf16"))
        expected = whole.probabilities(paths)
        assert np.ptp(expected, axis=0).max() > 0.2
        assert np.abs(half.probabilities(paths) - expected).max() < 0.02
        learn = whole.to_learner()
        assert np.abs(learn.get_preds(dl=learn.dls.test_dl(paths))[0].numpy() - expected).max() < 1e-3

    def test_a_slim_bundle_is_of_a_few_megabytes(self, real_run, tmp_path):
        small = slim_bundle(real_run.bundle, tmp_path / "slim", STOCK)
        assert (small / MODEL_FILE).stat().st_size < 4e6 < 50e6 < (real_run.bundle / MODEL_FILE).stat().st_size
        one, other = load_bundle(real_run.bundle)[0], load_bundle(small, weights=STOCK)[0]
        assert digest(one.state_dict()) == digest(other.state_dict())
