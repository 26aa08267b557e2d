from __future__ import annotations

import ast
import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.cli.test_help import read_line

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^ *```(\w+)[^\n]*\n(.*?)^ *```", re.M | re.S)


def label(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fences(page: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def settings() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def test_the_command_reference_is_what_the_commands_say():
    ended = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate_cli.py", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_octfast_line_can_be_parsed(page):
    lines = [line.strip() for body in fences(page, "bash", "sh", "console") for line in body.splitlines()]
    inline = re.findall(r"`(octfast [a-z]+ [^`]*)`", FENCE.sub("", page.read_text(encoding="utf-8")))
    for line in [*lines, *inline]:
        for part in line.removeprefix("$ ").split(" && "):
            if part.startswith("octfast ") and not re.search(r"\.\.\.|…|<", part):
                try:
                    read_line(part)
                except Exception as e:
                    # Where only part of a command is quoted, what is missing is no fault.
                    if part in inline and "Missing" in str(getattr(e, "format_message", e.__str__)()):
                        continue
                    raise AssertionError(f"{label(page)}: {part}: {e}") from e


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_python_example_names_what_there_is(page):
    import octfast

    for body in fences(page, "python", "py"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and node.module == "octfast":
                assert {alias.name for alias in node.names} <= set(octfast.__all__)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "octfast":
                assert node.attr in octfast.__all__


@pytest.mark.parametrize("notebook", sorted(ROOT.glob("nbs/*.ipynb")), ids=label)
def test_notebooks_need_only_what_is_public(notebook):
    import octfast

    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code and all("".join(cell["source"]).strip() for cell in cells)
    for node in ast.walk(ast.parse("\n".join(code))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "octfast":
            assert node.module == "octfast" and {alias.name for alias in node.names} <= set(octfast.__all__)
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("octfast.") for alias in node.names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "octfast":
            assert node.attr in octfast.__all__


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_link_within_the_repository_leads_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"\w+:|#", target):
            assert (page.parent / unquote(target.split("#")[0])).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_module_that_is_named_exists(page):
    """As `data/readers/read.py` or `octfast.data.readers.read`, after which a name in that module may follow."""
    rooms = "|".join(f.parent.name for f in (ROOT / "octfast").glob("*/__init__.py"))
    text = page.read_text(encoding="utf-8")
    # Elsewhere a path may be of another project or of a run folder.
    if page.name in ("architecture.md", "CONTRIBUTING.md"):
        for path in re.findall(rf"`((?:{rooms})/(?:[\w/]*|[\w/]+\.py))`", FENCE.sub("", text)):
            assert (ROOT / "octfast" / path).exists(), path
    for name in re.findall(rf"\boctfast\.(?:{rooms})\.[\w.]*\w", text):
        parts = name.split(".")
        files = [ROOT.joinpath(*parts[:n]) for n in (len(parts), len(parts) - 1)]
        assert any(f.is_dir() or f.with_name(f"{f.name}.py").exists() for f in files), name


def test_architecture_names_every_folder_and_what_a_change_touches():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for folder in (
        f.parent.relative_to(ROOT / "octfast").as_posix() for f in (ROOT / "octfast").glob("*/**/__init__.py")
    ):
        assert f"`{folder}/`" in text or folder == "cli/data", folder
    rows = re.findall(r"^\| (?:read another|another) .*$", text, re.M)
    assert len(rows) == 6 and all(len(re.findall(r"`[\w/.]+`", row)) <= 3 for row in rows)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The documentation as built, every warning an error."""
    for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(package)
    place = tmp_path_factory.mktemp("site")
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", place],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert ended.returncode == 0 and "WARNING" not in ended.stderr, ended.stderr[-3000:]
    return place


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source|video|audio)[^>]+src=[\"']?(?:https?:)?//[^\s>]+", text)
        loaded += re.findall(
            r"<link(?![^>]+rel=[\"']?(?:canonical|next|prev))[^>]+href=[\"']?(?:https?:)?//[^\s>]+", text
        )
        assert not loaded, (page.name, loaded)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8"))


def test_formulas_are_drawn_and_every_public_name_is_described(site):
    import octfast

    evaluation = (site / "evaluation.html").read_text(encoding="utf-8")
    formulas = re.findall(r"<math.*?</math>", evaluation, re.S)
    assert len(formulas) >= 12 and "```math" not in evaluation
    assert not [f for f in formulas if "\\" in f]
    api = (site / "api.html").read_text(encoding="utf-8")
    for name in octfast.__all__:
        assert name == "Learner" or f"octfast.{name}" in api, name
    assert "----" not in re.sub(r"<!--.*?-->", "", api, flags=re.S)


def test_the_projects_files_agree_with_each_other():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == settings()["version"] and citation["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert (
        min(ci["jobs"]["test"]["strategy"]["matrix"]["python"], key=lambda v: int(v.split(".")[1]))
        == (settings()["min_python"])
    )
    assert "secrets." not in (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    for file in (*ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"), ROOT / ".pre-commit-config.yaml"):
        assert yaml.safe_load(file.read_text(encoding="utf-8"))
    comments = re.compile(r"^\s*//.*$", re.M)
    assert json.loads(comments.sub("", (ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8")))["name"]


def test_the_metadata_is_read_and_the_package_data_exists():
    program = (ROOT / "setup.py").read_text(encoding="utf-8")
    for key in settings():
        name = key.removesuffix("_requirements")
        assert f'"{key}"' in program or f"'{key}'" in program or f'"{name}"' in program, key
    setup = ast.parse(program)
    (data,) = [
        k.value for n in ast.walk(setup) if isinstance(n, ast.Call) for k in n.keywords if k.arg == "package_data"
    ]
    for pattern in ast.literal_eval(data)["octfast"]:
        assert list((ROOT / "octfast").glob(pattern)), pattern


def test_ruff_is_the_same_everywhere():
    (pinned,) = re.findall(r"\bruff==([\d.]+)", settings()["dev_requirements"])
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"ruff-pre-commit\n +rev: v([\d.]+)", hooks) == [pinned]


def test_the_image_is_given_what_it_is_built_from():
    wanted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"octfast", "setup.py", "settings.ini", "README.md"} <= wanted
    assert all((ROOT / name).exists() for name in wanted)
