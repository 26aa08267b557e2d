"""Write docs/cli.md, the reference of the command line, from the commands themselves.

python docs/generate_cli.py            write it
python docs/generate_cli.py --check    exit 1 where it is not what the commands say
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("cli.md")
sys.path.insert(0, str(PAGE.parents[1]))
HEAD = """\
# Commands

This page is made from the commands by `python docs/generate_cli.py`; what stands here is what `--help` says.

Every command takes `--help` (`-h`), `--quiet` (`-q`: results, warnings and errors alone) and `--verbose` (`-v`: every
detail, and where an error arose). Results go to standard output, everything else to standard error. Exit codes: 0 it
worked, 1 it did not (or a check found something), 2 the command line or a parameter cannot be, 130 stopped by Ctrl-C.
`NO_COLOR` and `FORCE_COLOR` are respected.

Shell completion: `octfast --install-completion` for bash, zsh, fish and PowerShell, then open a new shell;
`octfast --show-completion` prints the script instead. Environment variables that octfast reads are
[listed below](#environment).
"""
FOOT = """\
## Environment

| variable | what it does |
|---|---|
| `OCTFAST_KEY` | file with the key of the pseudonyms of volumes, else one in the user's folder of settings |
| `OCTFAST_CACHE` | folder of the stored activations, else the system's place for caches; `--cache` goes before it |
| `OCTFAST_OFFLINE` | `1` forbids every attempt to use the network |
| `TORCH_HOME` | where torchvision's pretrained weights are looked for and kept (`hub/checkpoints` in it) |
| `HF_HOME`, `HF_HUB_CACHE` | the same for timm's |
| `HF_HUB_OFFLINE` | `1` keeps timm's weights from being fetched |
| `MLFLOW_TRACKING_URI` | where `--tracker mlflow` keeps its runs, else in the run folder |
| `WANDB_MODE`, `WANDB_PROJECT` | `online` lets `--tracker wandb` send; the project of its runs, else octfast |
| `CUDA_VISIBLE_DEVICES` | which GPUs are used; empty for the CPU |
| `OMP_NUM_THREADS` | threads that torch computes with |
| `NO_COLOR`, `FORCE_COLOR` | no colours at all; colours though the output is no terminal |
| `COLUMNS` | width of help and tables |
"""
# Options that every command has are described once, at the head.
EVERYWHERE = {"--quiet", "--verbose", "--install-completion", "--show-completion"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is stale")
    check = parser.parse_args().check
    text = page()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
        print(PAGE)
        return
    there = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if there != text:
        sys.stdout.writelines(
            difflib.unified_diff(there.splitlines(True), text.splitlines(True), "docs/cli.md", "the commands")
        )
        sys.exit("docs/cli.md is stale: run python docs/generate_cli.py")


def page() -> str:
    """The whole reference, as Markdown."""
    from octfast.cli.help import first_sentence

    found = list(commands())
    lines = [HEAD, "| command | what it does |", "|---|---|"]
    for words, command in found:
        if words and not getattr(command, "commands", None):
            name = " ".join(words)
            lines.append(f"| [`{name}`](#{_anchor(words)}) | {_cell(first_sentence(command))} |")
    lines.append("")
    for words, command in found:
        lines += _section(words, command)
    return "\n".join([*lines, FOOT])


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it, the root first, groups before what is in them."""
    from typer.main import get_command

    from octfast.cli.root import app

    def walk(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            if not inner.hidden:
                yield from walk((*words, name), inner)

    yield from walk((), get_command(app))


def _section(words: tuple[str, ...], command: Any) -> list[str]:
    from octfast.cli.help import describe, split_help, usage

    paragraphs, examples = split_help(command)
    name = " ".join(("octfast", *words))
    lines = [f"{'##' if len(words) < 2 else '###'} {name}", "", *(f"{_text(p)}\n" for p in paragraphs)]
    if not getattr(command, "commands", None):
        lines += ["```text", usage(command, name), "```", ""]
    arguments = describe(command, "argument")
    if arguments:
        lines += ["| argument | |", "|---|---|"]
        lines += [f"| `{p.names[0]}` | {_about(p)} |" for p in arguments]
        lines.append("")
    options = [p for p in describe(command, "option") if not EVERYWHERE & set(p.names)]
    if options:
        lines += ["| option | default | |", "|---|---|---|"]
        for p in options:
            names = ", ".join(f"`{n} {p.value}`" if p.value and n == p.names[-1] else f"`{n}`" for n in p.names)
            lines.append(f"| {names} | {f'`{p.default}`' if p.default else ''} | {_about(p)} |")
        lines.append("")
    if examples:
        lines += ["```bash", *examples, "```", ""]
    return lines


def _about(param: Any) -> str:
    return _cell(f"{param.text} [{', '.join(param.notes)}]" if param.notes else param.text)


def _text(body: str) -> str:
    """Help as Markdown: what it says of <names> is no HTML."""
    return body.replace("<", "&lt;")


def _cell(text: str) -> str:
    return " ".join(_text(text).replace("|", "\\|").split())


def _anchor(words: tuple[str, ...]) -> str:
    return "-".join(("octfast", *words))


if __name__ == "__main__":
    main()
