"""Data flows one way: a room imports from rooms to its left, and what runs before a command is asked for is light."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "octfast"
ROOMS = ("data", "model", "run", "train", "assess", "deploy", "cli")
FOR_ALL = {"errors", "console", "figure", "files", "notices"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str:
    return [*name.split("."), ""][1]


def imports(file: Path) -> set[str]:
    """The modules that a file imports, anywhere in it, by their full names."""
    package = name_of(file).split(".") if file.name == "__init__.py" else name_of(file).split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


def test_the_rooms_are_those_of_the_design():
    assert {f.parent.name for f in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_a_module_keeps_to_its_room(file):
    own = room_of(name_of(file))
    if own == "" or own == "__main__":
        return
    allowed = set(ROOMS[: ROOMS.index(own) + 1]) | FOR_ALL if own in ROOMS else FOR_ALL
    strange = {i for i in imports(file) if i.startswith("octfast.") and room_of(i) not in allowed}
    assert not strange


def test_nothing_but_main_imports_the_command_line():
    users = {name_of(f) for f in MODULES for i in imports(f) if i.startswith("octfast.cli")}
    assert {u for u in users if not u.startswith("octfast.cli")} == {"octfast.__main__"}


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_a_module_is_described_in_one_sentence_and_not_too_long(file):
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    first = (ast.get_docstring(tree) or "").split("\n")[0]
    sentence = first.removesuffix(" Not a medical device.")
    assert re.fullmatch(r"(`|\w).*[.]", sentence) and not re.search(r"[.!?] [A-Z]", sentence), first
    assert len(text.splitlines()) <= 500
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)]


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_nothing_is_unpickled(file):
    """Loading what a user gives runs no code of it: no pickle, and torch.load with weights_only=True alone."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("pickle.load", "pickle.loads", "joblib.load", "load_learner", "eval", "exec"), called
            if called == "torch.load":
                assert {k.arg: ast.unparse(k.value) for k in node.keywords}.get("weights_only") == "True"
            if called in ("np.load", "numpy.load"):
                assert {k.arg: ast.unparse(k.value) for k in node.keywords}.get("allow_pickle", "False") == "False"
