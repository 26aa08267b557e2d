from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from octfast.model.arch import find_arch, make_network
from octfast.run.folder import open_run
from tests.conftest import Ended
from tests.pictures import scan, write_broken, write_kinds

COMMANDS = {
    (): ("--version", "--help", "train", "interpret", "evaluate", "predict", "model", "cache"),
    ("train",): (
        *("--epochs", "--lr", "--bs", "--patience", "--seed", "--size", "--arch", "--head", "--weights", "--valid"),
        *("--out", "--views", "--unfreeze", "--precision", "--cache", "--workers", "--json"),
    ),
    ("interpret",): (
        *("--top-losses", "--smallest", "--split", "--data", "--heatmaps", "--method", "--urgent"),
        *("--label-errors", "--folds", "--json"),
    ),
    ("evaluate",): (
        *("--split", "--by", "--urgent", "--sensitivity", "--prevalence", "--costs", "--resamples", "--seed"),
        *("--top-k", "--out", "--known-only", "--moved", "--json"),
    ),
    ("calibrate",): ("--coverage", "--sensitivity", "--urgent", "--data", "--json"),
    ("compare",): ("--split", "--urgent", "--sensitivity", "--costs", "--resamples", "--seed", "--out", "--json"),
    ("report",): ("--split", "--by", "--open"),
    ("show",): ("--seed", "--split", "--top", "--data", "--json"),
    ("predict",): (
        *("--out", "--format", "--top-k", "--abstain-below", "--heatmaps", "--montage", "--volume-summary"),
        *("--recursive", "--resume", "--force", "--bs", "--precision", "--device", "--weights", "--json"),
    ),
    ("export",): ("--format", "--out", "--half", "--int8", "--check", "--calibration"),
    ("app",): ("--host", "--port", "--max-mb", "--open"),
    ("doctor",): ("--json",),
    ("model",): ("summary", "show", "slim"),
    ("model", "summary"): ("--arch", "--head", "--classes", "--size", "--json"),
    ("cache",): ("list", "clear"),
    ("cache", "list"): ("--cache", "--json"),
    ("cache", "clear"): ("--cache", "--older-than", "--incomplete", "--yes", "--json"),
}


def error(ended: Ended, code: int) -> str:
    """The one line that says what is wrong, of a command that ended so; and a line that says what to do."""
    assert ended.code == code and ended.out == "", ended
    (at,) = [i for i, line in enumerate(ended.lines) if line.startswith("error: ")]
    assert ended.lines[at + 1].startswith("what to do: ") and len(ended.lines) == at + 2
    return ended.lines[at]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_mentions_every_option(octfast, command):
    from typer.main import get_command

    from octfast.cli.root import app

    ended = octfast(*command, "--help")
    assert ended.code == 0
    found = get_command(app)
    for word in command:
        found = found.commands[word]
    own = {name for p in found.params for name in p.opts if name.startswith("--")}
    for name in {*COMMANDS[command], *own, *getattr(found, "commands", ())}:
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", ended.out), name
    assert ended.out == octfast(*command, "-h").out


def test_the_version(octfast):
    from importlib.metadata import version

    assert octfast("--version").out.splitlines()[0] == f"octfast {version('octfast')}"


@pytest.mark.parametrize(
    "words", [["trian"], ["train", "--epohcs", "3"], ["train", "--epochs", "many"], ["model", "x"]]
)
def test_what_is_no_command_or_option_is_a_usage_error(octfast, words):
    ended = octfast(*words)
    assert ended.code == 2 and ended.out == "" and ended.err


def test_without_a_command_the_help_is_shown(octfast):
    ended = octfast()
    assert ended.code == 2 and "train" in ended.out + ended.err


def test_the_summary_of_the_articles_network(octfast):
    ended = octfast("model", "summary", "--arch", "vgg16", "--head", "article")
    assert ended.code == 0
    assert ended.out.endswith(
        "135,310,404 parameters in all, 1,049,860 of them trainable, 14,714,688 in the convolutions\n"
    )


def test_a_summary_as_json(octfast):
    ended = octfast("model", "summary", "--arch", "resnet18", "--classes", 3, "--size", 64, "--json")
    said = json.loads(ended.out)
    assert said["arch"] == "resnet18" and said["layers"][-1]["output"] == "3"
    assert said["total"] == 11_176_512 + said["trainable"]


@pytest.mark.parametrize(
    "words, near",
    [
        (["model", "summary", "--arch", "vgg61"], "vgg16"),
        (["model", "summary", "--head", "artcle"], "article"),
        (["train", "--unfreeze", "haed"], "head"),
    ],
)
def test_an_unknown_name_gives_the_nearest(octfast, words, near):
    ended = octfast(*words)
    error(ended, 2)
    assert re.search(rf"\b{near}\b", ended.lines[-1])


@pytest.mark.parametrize(
    "words",
    [
        *(["--epochs", 0], ["--epochs", -1], ["--lr", -0.1], ["--lr", 0], ["--lr", "nan"], ["--bs", 1], ["--size", 5]),
        *(["--patience", 0], ["--views", -1], ["--seed", -1], ["--valid", "most"], ["--valid", 0.9]),
        *(["--arch", "resnet81"], ["--head", "knee"], ["--precision", "fp7"], ["--precision", "fp16"]),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_parameters_that_cannot_be_are_usage_errors(octfast_train, phantoms, words):
    line = error(octfast_train(phantoms, *words), 2)
    assert str(words[1]) in line or words[0] in line or "fp16" in line


def test_names_are_checked_before_the_data_is_read(octfast_train, own_phantoms):
    (own_phantoms / "train" / "CNV" / "CNV-1-1.jpeg").touch()
    for words in (["--arch", "resnet81"], ["--head", "knee"], ["--precision", "fp7"], ["--valid", "most"]):
        ended = octfast_train(own_phantoms, *words)
        assert len(ended.lines) == 2, ended.err


def folder_of_one_class(phantoms, tmp_path):
    shutil.copytree(phantoms / "train" / "CNV", tmp_path / "one" / "CNV")
    return tmp_path / "one"


def folder_with_a_strange_test(phantoms, tmp_path):
    shutil.copytree(phantoms, tmp_path / "strange")
    shutil.copytree(phantoms / "test" / "CNV", tmp_path / "strange" / "test" / "AMD")
    return tmp_path / "strange"


def folder_of_broken(phantoms, tmp_path):
    for label in "AB":
        write_broken(tmp_path / "broken" / label)
    return tmp_path / "broken"


def folder_of_one_patient(phantoms, tmp_path):
    for label in "AB":
        (tmp_path / "one" / label).mkdir(parents=True)
        for image in range(3):
            Image.fromarray(scan()).save(tmp_path / "one" / label / f"{label}-7-{image}.png")
    return tmp_path / "one"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda phantoms, tmp_path: tmp_path / "nowhere", "no such file or folder"),
        (lambda phantoms, tmp_path: phantoms / "SYNTHETIC.txt", "files named by SYNTHETIC.txt exists"),
        (lambda phantoms, tmp_path: Path(__file__), "is of no kind that octfast reads"),
        (lambda phantoms, tmp_path: tmp_path / "here", "no images in"),
        (lambda phantoms, tmp_path: phantoms / "train" / "CNV", "no folder of a class"),
        (folder_of_one_class, "only one class"),
        (folder_with_a_strange_test, "classes that train lacks: AMD"),
        (folder_of_broken, "cannot be read"),
        (folder_of_one_patient, "one patient"),
    ],
)
def test_data_that_cannot_be_trained_on(octfast_train, phantoms, tmp_path, make, message):
    assert message in error(octfast_train(make(phantoms, tmp_path)), 1)
    assert not any(Path("runs").glob("*")) if Path("runs").exists() else True


def test_odd_names_and_odd_pictures_are_trained_on_and_the_broken_left_out(octfast_train, tmp_path):
    data = tmp_path / "my scans äö $HOME [1] <x> 漢"
    for number, label in enumerate(("$NEW [1]", "<alt> ä", "0")):
        write_kinds(data / label)
        for patient in range(3):
            name = f"{label}-{number}{patient}-1.png"
            Image.fromarray(scan(seed=patient)).save(data / label / name)
    broken = write_broken(data / "0")
    ended = octfast_train(data, "--out", "my run $x [y]", "--json")
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    run = open_run(said["run"])
    assert run.path.name == "my run $x [y]" and set(run.config["classes"]) == {"$NEW [1]", "<alt> ä", "0"}
    left = (run.path / "left-out.csv").read_text()
    assert all(name in left and file.exists() for name, file in broken.items())
    for word in ("16-bit", "CMYK", "RGBA", "palette", "animated", "not CLASS-PATIENT-IMAGE"):
        assert sum(line.startswith("warning: ") and word in line for line in ended.lines) == 1, word


def test_an_interpretation_of_odd_names(octfast, octfast_train, tmp_path):
    for label in ("01", "NA"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for patient in range(4):
            Image.fromarray(scan(seed=patient)).save(tmp_path / "data" / label / f"$a$ [b] <i>{patient}.png")
    assert octfast_train(tmp_path / "data", "--out", "run").code == 0
    table = octfast("interpret", "run", "--split", "train")
    assert table.code == 0 and "$a$ [b] <i>" in table.out
    said = json.loads(octfast("interpret", "run", "--json").out)
    assert set(said["confusion"]) == {"01", "NA"}
    predicted = open_run("run").predictions("valid")
    assert said["right"] == (predicted["predicted"] == predicted["label"]).sum()
    assert set(predicted["predicted"]) <= {"01", "NA"}


def test_weights_of_another_architecture(octfast_train, phantoms, tmp_path):
    save_file(make_network(find_arch("resnet18")).state_dict(), tmp_path / "w.safetensors")
    words = ["--arch", "resnet34", "--weights", tmp_path / "w.safetensors"]
    assert "w.safetensors does not fit resnet34" in error(octfast_train(phantoms, *words), 1)


@pytest.mark.parametrize("weights", ["nowhere.pth", "here"])
def test_weights_that_are_no_file(octfast_train, phantoms, weights):
    Path("here").mkdir()
    assert weights in error(octfast_train(phantoms, "--weights", weights), 1)


def test_no_weights_to_be_had(octfast_train, phantoms):
    ended = octfast_train(phantoms, "--arch", "resnet18", "--weights", "auto")
    assert "no pretrained weights for resnet18" in error(ended, 1)
    assert "--weights FILE" in ended.lines[-1] and "--weights none" in ended.lines[-1]


@pytest.mark.parametrize("out", ["file/run", "/proc/octfast/run"])
def test_an_output_folder_that_cannot_be_written(octfast_train, phantoms, out):
    Path("file").write_text("mine")
    assert "cannot write to" in error(octfast_train(phantoms, "--out", out), 2)
    assert Path("file").read_text() == "mine"


def test_an_output_folder_that_is_not_empty_is_not_touched(octfast_train, phantoms):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("all of it")
    assert "not empty" in error(octfast_train(phantoms, "--out", "mine"), 2)
    assert [p.name for p in Path("mine").iterdir()] == ["thesis.txt"] and Path(
        "mine/thesis.txt"
    ).read_text() == "all of it"


def test_a_cache_that_cannot_be_written(octfast_train, phantoms):
    Path("file").touch()
    assert "file" in error_after_lines(octfast_train(phantoms, "--cache", "file"))


def error_after_lines(ended: Ended) -> str:
    assert ended.code == 1 and ended.lines[-1].startswith("what to do: ")
    return ended.lines[-2]


def test_interpret_without_a_run(octfast):
    assert "no finished run in" in error(octfast("interpret"), 1)
    assert "not a run folder" in error(octfast("interpret", "nowhere"), 1)
    Path("folder").mkdir()
    assert "not a run folder" in error(octfast("interpret", "folder"), 1)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda run: shutil.rmtree(run / "model"), "no trained model"),
        (lambda run: (run / "model" / "octfast.json").unlink(), "octfast.json is missing"),
        (lambda run: (run / "model" / "octfast.json").write_text("{"), "octfast.json"),
        (lambda run: (run / "model" / "model.safetensors").write_text("{"), "model.safetensors"),
        (lambda run: (run / "model" / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda run: (run / "config.json").write_text("[]"), "not a run folder"),
        (lambda run: (run / "scans.csv").unlink(), "scans.csv"),
    ],
)
def test_interpret_of_a_damaged_run(octfast, own_run, damage, message):
    for file in own_run.path.glob("predictions-*"):
        file.unlink()
    damage(own_run.path)
    assert message in error(octfast("interpret", own_run.path), 1)


def test_interpret_of_what_a_run_has_not(octfast, own_run):
    assert "no split named" in error(octfast("interpret", own_run.path, "--split", "tset"), 2)
    assert "no such folder" in error(octfast("interpret", own_run.path, "--data", "gone"), 1)
    assert octfast("interpret", own_run.path, "--top-losses", 0).code == 2


def test_interpret_where_the_data_is_gone(octfast, own_run, own_phantoms):
    own_run.predictions_file("valid").unlink()
    (own_phantoms / "train").rename(own_phantoms / "moved")
    ended = octfast("interpret", own_run.path, "--data", own_phantoms)
    assert "none of the 14 files can be read" in error(ended, 1) and "no such file" in ended.err


def test_interpret_for_people(octfast, own_run):
    ended = octfast("interpret", own_run.path, "--top-losses", 2)
    assert ended.code == 0 and ended.err == ""
    found = own_run.predictions("valid")
    right = (found["predicted"] == found["label"]).sum()
    assert ended.out.startswith(f"valid: {right} of {len(found)} scans right ({right / len(found):.1%})")
    worst = found.sort_values("loss").iloc[::-1]["path"].map(lambda p: Path(p).name).tolist()
    assert all(name in ended.out for name in worst[:2]) and worst[3] not in ended.out
    assert "Confusion (rows label, columns predicted)" in ended.out and "top_losses.png" in ended.out


@pytest.mark.parametrize("words", [[], ["--split", "test", "--smallest"], ["--top-losses", 10_000, "--split", "train"]])
def test_interpret_as_json(octfast, own_run, words):
    said = json.loads(octfast("interpret", own_run.path, "--json", *words).out)
    split = words[words.index("--split") + 1] if "--split" in words else "valid"
    scans = (own_run.scans["split"] == split).sum()
    assert said["split"] == split and said["scans"] == scans
    assert sum(sum(row.values()) for row in said["confusion"].values()) == scans
    assert len(said["top_losses"]) == min(scans, words[1] if "--top-losses" in words else 9)
    assert all(Path(file).exists() for file in said["files"])
    losses = [row["loss"] for row in said["top_losses"]]
    assert losses == sorted(losses, reverse="--smallest" not in words)


def test_train_as_json_then_interpret_the_latest(octfast, octfast_train, phantoms):
    said = json.loads(octfast_train(phantoms, "--json").out)
    run = open_run()
    assert said["run"] == str(run.path) and set(said["results"]) == {"valid", "test"}
    assert said["chosen"] == run.config["chosen"] and said["notes"] == [note.text for note in run.notes]
    assert json.loads(octfast("interpret", "--json").out)["scans"] == said["results"]["valid"]["scans"]


def test_train_for_people(octfast_train, phantoms):
    ended = octfast_train(phantoms)
    assert ended.code == 0
    assert "Next: octfast interpret" in ended.out and "Run folder: " in ended.out
    epoch = [line for line in ended.lines if line.startswith("epoch  1/1")]
    assert len(epoch) == 1 and "train loss" in epoch[0] and "valid accuracy" in epoch[0]
    assert any(line.startswith("train: ") and " scans of " in line for line in ended.lines)


@pytest.mark.parametrize("words", [["--json"], []])
def test_a_terminal_that_knows_ascii_alone(octfast, own_run, monkeypatch, words):
    for name in ("predictions-valid.csv", "scans.csv"):
        table = (own_run.path / name).read_text(encoding="utf-8")
        (own_run.path / name).write_text(table.replace(".jpeg", "ä漢.jpeg"), encoding="utf-8")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert octfast("interpret", own_run.path, *words).code == 0
    terminal.flush()
    shown = terminal.buffer.getvalue().decode("ascii")
    if words:
        assert all(row["path"].endswith("ä漢.jpeg") for row in json.loads(shown)["top_losses"])
    else:
        assert "\\xe4\\u6f22" in shown


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float64("nan"), np.float32("inf")])
def test_what_is_no_number_is_null_in_json(capsys, value):
    from octfast.console import print_json

    print_json({"a": value, "b": [value, np.int64(3)], 1: Path("x"), "c": True, "d": None})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        **{"a": None, "b": [None, 3], "1": "x", "c": True, "d": None}
    }


def test_a_table_is_not_cut_in_a_pipe(capsys, monkeypatch):
    from octfast.console import print_table

    monkeypatch.delenv("COLUMNS")
    print_table("title [b]", ["name", "n"], [["[red]" + "x" * 60, 12345], ["y", 2]])
    out = capsys.readouterr().out
    assert "[red]" + "x" * 60 in out and "12,345" in out and "title [b]" in out
