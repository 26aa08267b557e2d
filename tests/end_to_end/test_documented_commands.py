"""Every octfast command of the README, the docs and the guides is run as it is printed, in this process.

A page's commands are run in its order in one folder, where the data sets and runs lie that it names. Small stand-ins
take the place of what would cost minutes: `SMALLER` says what is added to a line. `ELSEWHERE` lists the lines that are
not run, and what they need.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import save_file

from octfast.model.arch import find_arch, make_network
from tests.data.volumes.volume_files import frames_of, write_dicom, write_e2e, write_vol
from tests.test_docs import FENCE, PAGES, label

# An option that stands twice takes its last value.
TRAIN = (
    "--arch test_resnet --size 32 --weights none --folds 2 --epochs 1 --lr 0.003 --precision fp32 --views 1 --workers 1"
)
SMALLER = {
    "train": TRAIN,
    "tune": "--arch test_resnet --size 32 --weights none --folds 2 --epochs 1 --precision fp32 --workers 1 --trials 1",
    "data phantom": "--scans 48 --size 32",
    "evaluate": "--resamples 100",
    "compare": "--resamples 100",
    "report": "--resamples 100 --top-losses 3",
    "interpret": "--top-losses 2",
}
# Lines that need more than SMALLER: (part of the line, what is added after it).
MORE = (
    ("--unfreeze block5", "--arch vgg11_bn --folds 0"),
    ("--fault patient-across-splits=40", "--scans 160"),
    # A page asks for suggestions round after round.
    ("octfast suggest", "--force"),
    ("phantom .*--volumes", "--volumes 4 --frames 3 --diseased 1"),
    # Without DATA hundreds of phantoms would be drawn.
    (r"octfast train( --epochs 10| --fit crop)?$", "DATA"),
    # Where nobody can be asked.
    ("cache clear$", "--yes"),
    # The stand-in's pretrained weights are a file, and not where torch keeps its own.
    ("octfast model slim", "--weights weights.safetensors"),
)
# Lines that speak of a run on a table with columns device and eye, of enough scans, or on pretrained weights.
OF_THE_TABLE = ("--by ", "--level eye", "octfast calibrate", "octfast model slim")
REPLACED = {"/data/oct": "OCT2017"}
ELSEWHERE = {
    "octfast data download": "needs the network; tests/data/test_download.py",
    "octfast tune OCT2017 --arch": "needs the weights of two large bodies; tests/train/test_tune.py",
    "octfast predict runs/latest series/": "needs highdicom; tests/deploy/predict/test_dicom_sr.py",
    "octfast app": "serves until it is stopped; tests/deploy/app and tests/end_to_end/test_app_browser.py",
    "octfast train OCT2017 --arch vgg16 --head article": "needs two layers of 4096; tests/train/test_learner.py",
    "octfast review": "serves until it is stopped; tests/deploy/review",
    "octfast train --resume": "needs a training that was cut off; tests/train/test_resume.py",
    "octfast train DATA --corrections": "needs what a review has decided; tests/data/test_corrections.py",
    "octfast train DATA --minutes": "takes what fits its clock; tests/train/minutes/test_minutes.py",
    "octfast train --level volume": "needs volumes of several scans; tests/train/frozen/test_bags.py",
    "octfast train scans.csv --level volume": "needs volumes of several scans; tests/train/frozen/test_bags.py",
    "octfast drift november.csv": "needs predictions of a month; docs/unlike.md makes them first",
    "octfast drift year.csv": "needs predictions of a year; tests/assess/drift",
    "octfast --install-completion": "changes the user's shell",
    "octfast --show-completion": "asks which shell it runs in",
}
# The exit code that the text beside the line speaks of, where it is not 0.
CODES = {"octfast data audit faulty": 1}
NEEDS = {
    "octfast tune": "optuna",
    "--tracker": "tensorboard",
    "volume.e2e": "oct_converter",
    "volume.dcm": "pydicom",
    "export ": "onnxscript",
}


def commands(page: Path) -> list[str]:
    """The octfast commands of a page in its order; one quoted without its arguments is a name, not a command."""
    from tests.cli.test_help import read_line

    text = page.read_text(encoding="utf-8")
    found = []
    for language, fence, inline in re.findall(rf"{FENCE.pattern}|`(octfast [^`\n]+)`", text, re.M | re.S):
        for line in (fence if language in ("bash", "sh", "console") else inline).splitlines():
            for part in re.split(r" && |; ", line.strip().removeprefix("$ ")):
                part = re.split(r"\s+#", part)[0].strip()
                if not part.startswith("octfast ") or re.search(r"\.\.\.|…|<", part):
                    continue
                try:
                    read_line(part)
                except Exception:
                    assert inline, f"{label(page)}: {part}"
                    continue
                found.append(part)
    return found


def once() -> dict[Path, list[str]]:
    """The commands of each page, without those that stand on a page before but for names of files and numbers."""
    seen: set[str] = set()
    pages: dict[Path, list[str]] = {}
    for page in PAGES:
        for line in commands(page):
            alike = re.sub(r" --epochs \d+| --out \S+", "", line)
            alike = re.sub(r"\b([\d.]+|[A-Z][A-Z\d-]+|phantoms|[\w-]*/[\w./-]*)(?=[\s,]|$)", "X", alike)
            if alike not in seen:
                seen.add(alike)
                pages.setdefault(page, []).append(line)
    return pages


ONCE = once()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with everything that the pages name: data sets, tables, volumes, runs."""
    place = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    rows = []
    for split, patients in (("train", 24), ("test", 5)):
        for c, name in enumerate(("CNV", "DME", "DRUSEN", "NORMAL")):
            folder = place / "DATA" / split / name
            folder.mkdir(parents=True)
            for who in range(patients):
                for n in range(3):
                    grey = rng.normal(90, 30, (40, 48))
                    grey[8 * c : 8 * c + 10] += 70  # a bright band, at another height for each class
                    patient = 1016042 + 1000 * (split == "train") + 100 * c + who
                    file = folder / f"{name}-{patient}-{n}.jpeg"
                    Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(file)
                    device = ("Alpha", "Beta")[who % 2]
                    rows.append(
                        (f"DATA/{split}/{name}/{file.name}", name, patient, split, device, device, "OD" if n else "OS")
                    )
    table = pd.DataFrame(rows, columns=["path", "label", "mrn", "split", "device", "COLUMN", "eye"])
    table.to_csv(place / "scans.csv", index=False)
    table[table["split"] == "test"].to_csv(place / "hospital.csv", index=False)
    for name in ("OCT2017", "FOLDER", "OTHER-DATA", "new-scans", "my-scans", "phantoms", "first-labels"):
        (place / name).symlink_to("DATA", target_is_directory=True)
    # Scans without labels, and what labels they got.
    pool = []
    (place / "unlabelled").mkdir()
    (place / "POOL").symlink_to("unlabelled", target_is_directory=True)
    for n in range(9):
        Image.fromarray(rng.normal(90, 30, (40, 48)).clip(0, 255).astype(np.uint8)).save(
            place / "unlabelled" / f"{n}.png"
        )
        pool.append((f"unlabelled/{n}.png", "CNV", f"new{n}"))
    new = pd.DataFrame(pool, columns=["path", "label", "patient_id"])
    new.drop(columns="label").to_csv(place / "pool.csv", index=False)
    new.to_csv(place / "labels.csv", index=False)
    # A folder a patient, in names that say the patient too.
    for path, name, patient, split, *_ in rows:
        if split == "train":
            file = place / "scans" / name / f"P{patient}" / f"P{patient}_{Path(path).name}"
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(place / path, file)
    arrays = {}
    for part, split, first in (("train", "train", 0), ("val", "test", 0), ("test", "test", 1)):
        own = table[table["split"] == split].iloc[first::2]
        arrays[f"{part}_images"] = np.stack([np.asarray(Image.open(place / p).resize((28, 28))) for p in own["path"]])
        arrays[f"{part}_labels"] = own["label"].astype("category").cat.codes.to_numpy()[:, None]
    np.savez(place / "octmnist_224.npz", **arrays)
    body = make_network(find_arch("test_resnet"), 32)
    save_file(body.state_dict(), place / "weights.safetensors")
    for row, name in enumerate(("scan.jpeg", "a.jpeg", "b.jpeg")):
        shutil.copy(place / rows[row][0], place / name)
    frames = frames_of()
    (place / "export").mkdir()
    write_vol(place / "export" / "one.vol", frames)
    (place / "clinic").mkdir()
    for n, name in enumerate(("CNV", "NORMAL")):
        write_vol(place / "clinic" / f"{name}.vol", frames_of(seed=n))
    (place / "VOLUMES").symlink_to("clinic", target_is_directory=True)
    volumes = pd.DataFrame({"path": ["clinic/CNV.vol", "clinic/NORMAL.vol"], "label": ["CNV", "NORMAL"]})
    volumes.to_csv(place / "volumes.csv", index=False)
    if importlib.util.find_spec("pydicom"):
        write_dicom(place / "volume.dcm", frames)
    write_e2e(place / "volume.e2e", [frames])
    return place


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory) -> Path:
    """Runs on the data of `world`: of a table with a column device, and of three folds."""
    from octfast.data.readers.read import read_data
    from octfast.data.splits.files import save_splits
    from octfast.data.splits.folds import make_splits
    from octfast.train.job import train_classifier

    place = tmp_path_factory.mktemp("made") / "runs"
    small = {"arch": "test_resnet", "size": 32, "weights": "none", "epochs": 2, "lr": 0.003, "precision": "fp32"}
    small |= {"folds": 2, "workers": 1, "epochs": 5}
    save_splits(make_splits(read_data(world / "DATA"), folds=3), place.parent / "folds.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.parent)
        stock = {"weights": str(world / "weights.safetensors")}
        first = small | stock | {"data": str(world / "scans.csv"), "patient_column": "mrn", "out": str(place / "first")}
        train_classifier(**first)
        for k in range(3):
            folds = {"splits": str(place.parent / "folds.csv"), "fold": k, "out": str(place / f"fold{k + 1}")}
            train_classifier(data=str(world / "DATA"), **small | {"folds": 0}, **folds)
    return place


@pytest.fixture
def here(world, runs, tmp_path, monkeypatch) -> Path:
    """A folder of its own with the data and the runs of the pages, `runs/latest` among them."""
    shutil.copytree(world, tmp_path / "here", symlinks=True)
    place = tmp_path / "here"
    for name in ("second", "third", "a", "b", "fold-0", "fold-1", "latest", "head-fastai", "block5"):
        shutil.copytree(runs / "first", place / "runs" / name)
    shutil.copytree(runs, place / "runs", dirs_exist_ok=True)
    shutil.rmtree(place / "runs" / "latest")
    (place / "runs" / "latest").symlink_to("first", target_is_directory=True)
    shutil.copytree(runs / "first", place / "RUN")
    for name in ("model", "my-model", "BUNDLE"):
        shutil.copytree(runs / "first" / "model", place / name)
    monkeypatch.chdir(place)
    monkeypatch.setenv("OCTFAST_CACHE", str(tmp_path / "cache"))
    # A page that a command opens is not to stand on somebody's screen.
    monkeypatch.setattr("typer.launch", lambda *_: 0)
    return place


def smaller(line: str) -> list[str]:
    """The words of a line with what makes it cheap."""
    words = [REPLACED.get(word, word) for word in shlex.split(line)[1:]]
    own = " ".join(words)
    for command, added in SMALLER.items():
        if own == command or own.startswith(f"{command} "):
            words += shlex.split(added)
    for part, added in MORE:
        if re.search(part, line):
            words += shlex.split(added)
    return words


def clear(words: list[str], place: Path) -> None:
    """Remove what the line will write: its reader has none of it yet."""
    for option, name in pairwise(words):
        if option in ("--out", "--heatmaps"):
            target = place / name.rstrip("/")
            # Beside a table of scans stand those of volumes, eyes and patients.
            for beside in target.parent.glob(f"{target.stem}-*{target.suffix}") if target.suffix == ".csv" else ():
                beside.unlink()
            if target.is_symlink() or target.is_file():
                target.unlink()
            elif target.is_dir():
                shutil.rmtree(target)


def point_to_the_table(place: Path, runs: Path) -> None:
    """Let runs/first and runs/latest be the run on the table again, whatever was trained since."""
    shutil.rmtree(place / "runs" / "first")
    shutil.copytree(runs / "first", place / "runs" / "first")
    (place / "runs" / "latest").unlink()
    (place / "runs" / "latest").symlink_to("first", target_is_directory=True)


@pytest.mark.skipif(
    not importlib.util.find_spec("onnxscript"), reason="the pages speak of optional packages: pip install '.[dev]'"
)
@pytest.mark.parametrize("page", ONCE, ids=label)
def test_every_command_works_as_printed(page, here, runs, monkeypatch, capsys):
    from octfast.__main__ import main

    failed = []
    for line in ONCE[page]:
        if any(line.startswith(start) for start in ELSEWHERE):
            continue
        if any(part in line and not importlib.util.find_spec(package) for part, package in NEEDS.items()):
            continue
        words = smaller(line)
        clear(words, here)
        if any(part in line for part in OF_THE_TABLE):
            point_to_the_table(here, runs)
        monkeypatch.setattr("sys.argv", ["octfast", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        if int(ended.value.code or 0) != CODES.get(line, 0):
            failed.append(f"{line}\n    exit {ended.value.code}: {said.err[-600:]}")
    assert not failed, "\n".join(failed)


def test_what_is_not_run_is_still_in_the_pages():
    every = [line for own in ONCE.values() for line in own]
    assert len(every) > 60
    for start in (*ELSEWHERE, *CODES):
        assert any(line.startswith(start) for line in every), start
