"""Data flows one way: a room imports from rooms to its left, and what runs before a command is asked for is light."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "octfast"
ROOMS = ("data", "model", "run", "train", "assess", "deploy", "cli")
FOR_ALL = {"errors", "console", "figure", "files", "launcher", "meeting", "notices", "processes"}
BESIDE = {"doctor"}  # may look into every room but the command line, which alone may ask it
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted(file.parent for file in PACKAGE.glob("*/**/__init__.py"))
HOUSE = runpy.run_path(str(PACKAGE.parent / "docs" / "house.py"))
GRAPH = HOUSE["imports"](HOUSE["modules"](PACKAGE.parent))


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
    rooms = ROOMS[: ROOMS.index(own) + 1] if own in ROOMS else ROOMS[:-1] if own in BESIDE else ()
    allowed = {*rooms, *FOR_ALL, *(BESIDE if own == "cli" else ())}
    strange = {i for i in imports(file) if i.startswith("octfast.") and room_of(i) not in {*allowed, "__version__"}}
    assert not strange


def test_nothing_but_main_imports_the_command_line():
    users = {name_of(f) for f in MODULES for i in imports(f) if i.startswith("octfast.cli")}
    assert {u for u in users if not u.startswith("octfast.cli")} == {"octfast.__main__"}


def test_no_module_and_no_folder_needs_itself():
    """Imports inside functions and for types alone count too."""
    assert HOUSE["circles"](GRAPH) == []
    assert HOUSE["circles"](HOUSE["boxed"](GRAPH)) == []


def test_a_circle_would_be_seen():
    assert HOUSE["circles"]({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_a_folder_says_what_may_be_imported_from_outside_of_it(folder):
    """All of its own modules that others import are listed, and each that is listed is imported by others.

    The list of a room may also name the modules of its folders, and then names all that other rooms import.
    """
    name = name_of(folder / "__init__.py")
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    line = re.search(r"\n\nFrom outside: (.*)[.]$", text, re.S)
    assert line, "no line that begins with From outside:"
    listed = set(re.findall(r"`([\w.]+)`", line[1]))
    used = {
        target.removeprefix(f"{name}.")
        for user, targets in GRAPH.items()
        for target in targets
        if target.startswith(f"{name}.") and not f"{user}.".startswith(f"{name}.")
    }
    if not any("." in each for each in listed):
        used = {each for each in used if "." not in each}
    assert listed == used


def test_a_run_is_read_without_torch_and_fastai():
    heavy = {"torch", "fastai", "torchvision", "timm"}
    for file in (PACKAGE / "run").glob("*.py"):
        assert not {each.split(".")[0] for each in imports(file)} & heavy
    program = "import sys, octfast.run.folder, octfast.run.html; print(*{m.split('.')[0] for m in sys.modules})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(ended.stdout.split()) & heavy


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
