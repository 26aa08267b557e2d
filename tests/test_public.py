from __future__ import annotations

import json
import subprocess
import sys

import pytest

import octfast

HEAVY = ("torch", "fastai", "pandas", "matplotlib", "numpy", "timm", "sklearn", "scipy", "PIL", "torchvision")
NAMES = [
    *("ClassificationInterpretation", "Learner", "OctfastError", "Run", "TrainConfig", "frozen_learner"),
    *("interpret_run", "load_bundle", "oct_dataloaders", "oct_learner", "open_run", "preprocess", "read_scans"),
    *("train_classifier", "write_phantoms"),
]


def loaded_by(program: str) -> set[str]:
    """The heavy packages that are loaded when a program has run in a Python of its own."""
    ask = "import json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    ended = subprocess.run([sys.executable, "-c", f"{program}\n{ask}"], capture_output=True, text=True, check=True)
    return set(json.loads(ended.stdout.splitlines()[-1])) & set(HEAVY)


@pytest.mark.parametrize("words", ["--help", "train --help", "interpret --help", "model summary --help", "--version"])
def test_help_loads_nothing_heavy(words):
    program = f"""
import sys
sys.argv = ["octfast", *{words!r}.split()]
from octfast.__main__ import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
"""
    assert loaded_by(program) == set()


def test_importing_octfast_loads_nothing_heavy():
    assert loaded_by("import octfast; dir(octfast); octfast.OctfastError; octfast.__doc__") == set()
    # Were nothing ever seen, this would tell.
    assert {"numpy", "PIL"} <= loaded_by("import octfast; octfast.preprocess")


@pytest.mark.parametrize("name", NAMES)
def test_each_public_name_is_there_and_described(name):
    assert name in octfast.__all__ and name in dir(octfast)
    found = getattr(octfast, name)
    assert (found.__doc__ or "").strip()
    assert getattr(octfast, name) is found


def test_all_public_names_are_known_to_type_checkers():
    """What __getattr__ gives, an editor must find too."""
    import ast
    from pathlib import Path

    tree = ast.parse(Path(octfast.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    imported = {(i.module, i.names[0].name) for i in block.body if isinstance(i, ast.ImportFrom)}
    assert imported == {
        (getattr(octfast, n).__module__, n) if n != "Learner" else ("fastai.learner", n) for n in octfast.__all__
    }


def test_a_star_import_gives_the_public_names():
    assert set(NAMES) <= set(octfast.__all__)
    space: dict = {}
    exec("from octfast import *", space)
    assert set(octfast.__all__) <= set(space)


def test_learner_is_fastais():
    from fastai.learner import Learner as Fastai

    from octfast import Learner

    assert Learner is Fastai


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Lerner'"):
        octfast.Lerner  # noqa: B018


def test_python_m_octfast():
    from importlib.metadata import version

    ended = subprocess.run([sys.executable, "-m", "octfast", "--version"], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[0] == f"octfast {version('octfast')}"


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert octfast.__version__ == version("octfast")
