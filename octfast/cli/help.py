"""What `--help` prints: a command's text, arguments, options and examples, at most 100 columns wide.

Typer's own help, drawn by rich, wraps examples like prose, so that a long command line cannot be copied; is as wide as
the terminal; gives names and types half of a line of 80 columns; and takes 0.1 s longer to import. The reference of
commands (docs/generate_cli.py) is made from the same `describe` and `split_help`.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from octfast.console import has_colour, paint

_WIDEST = 100  # columns of all text
_LEFT = 28  # columns of names at most, else the text starts below
_KINDS = {int: "INT", float: "NUMBER", Path: "PATH", str: "TEXT"}


@dataclass(frozen=True)
class Parameter:
    """An argument or option as help and the reference of commands show it.

    Attributes
    ----------
    names : the option's, short ones first; the argument's.
    value : what it takes, such as INT; empty for a flag.
    default : empty where there is none to speak of.
    notes : further remarks: a range, that it is required or may be repeated.
    text : its help.
    """

    names: tuple[str, ...]
    value: str
    default: str
    notes: tuple[str, ...]
    text: str


class Command(TyperCommand):
    """A command with help of octfast's own."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _write_help(self, ctx, formatter)


class Group(TyperGroup):
    """A group of commands with help of octfast's own."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _write_help(self, ctx, formatter)


def set_help(app: typer.Typer) -> None:
    """Let every command of an app, and of the apps inside it, have octfast's help."""
    app.info.cls = Group
    for command in app.registered_commands:
        command.cls = Command
    for group in app.registered_groups:
        group.cls = Group
        if group.typer_instance is not None:
            set_help(group.typer_instance)


def split_help(command: Any) -> tuple[list[str], list[str]]:
    """The paragraphs of a command's help, and its examples, a command line each."""
    text = inspect.cleandoc(command.help or "")
    body, *examples = re.split(r"^Examples?:$", text, maxsplit=1, flags=re.M)
    lines = examples[0].splitlines() if examples else []
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", body) if part.strip()]
    return paragraphs, [line.strip() for line in lines if line.strip()]


def describe(command: Any, kind: str) -> list[Parameter]:
    """The visible arguments or options of a command, in order.

    Parameters
    ----------
    kind : "argument" or "option".
    """
    annotations = {}
    if command.callback is not None:
        signature = inspect.signature(command.callback, eval_str=True)
        annotations = {name: p.annotation for name, p in signature.parameters.items()}
    return [
        _described(p, annotations.get(p.name))
        for p in command.params
        if p.param_type_name == kind and not getattr(p, "hidden", False)
    ]


def usage(command: Any, words: str) -> str:
    """The line that shows how a command is called; words : its whole name."""
    arguments = [_argument_usage(p) for p in command.params if p.param_type_name == "argument"]
    rest = ["COMMAND ..."] if getattr(command, "commands", None) else arguments
    return " ".join([words, "[OPTIONS]", *rest])


def first_sentence(command: Any) -> str:
    """What a command does, in a sentence."""
    paragraphs, _ = split_help(command)
    return re.split(r"(?<=[.])\s", paragraphs[0], maxsplit=1)[0] if paragraphs else ""


def _write_help(command: Any, ctx: Any, formatter: Any) -> None:
    width = min(_WIDEST, max(40, shutil.get_terminal_size((_WIDEST, 24)).columns))
    # Else the colours would be stripped, or kept, by what the output is alone.
    ctx.color = has_colour(sys.stdout)
    paragraphs, examples = split_help(command)
    out = [f"{_heading('Usage')} {usage(command, ctx.command_path)}"]
    out += ["\n".join(textwrap.wrap(p, width)) for p in paragraphs]
    inner = [c for c in getattr(command, "commands", {}).values() if not c.hidden]
    options = describe(command, "option")
    parts: list[tuple[str, list[tuple[str, str]]]] = [
        ("Commands", [(c.name, first_sentence(c)) for c in inner]),
        ("Arguments", [(p.names[0], _text(p)) for p in describe(command, "argument")]),
        ("Options", [(_option(p), _text(p)) for p in options] + [("-h, --help", "Show this help.")]),
    ]
    out += [_heading(title) + "\n" + _columns(rows, width) for title, rows in parts if rows]
    if examples:
        out.append(_heading("Examples") + "\n" + "\n".join(_example(line, width) for line in examples))
    formatter.write("\n\n".join(out) + "\n")


def _heading(words: str) -> str:
    return paint(f"{words}:", "bold", sys.stdout)


def _columns(rows: Sequence[tuple[str, str]], width: int) -> str:
    """Names to the left and text to the right; below the name where it is long or the terminal narrow."""
    names = [name for name, _ in rows]
    left = min(_LEFT, max(map(len, names)), width // 3) + 4
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, width - left, break_on_hyphens=False) or [""]
        shown = "  " + paint(name, "name", sys.stdout)
        if len(name) + 4 > left:
            lines.append(shown)
        else:
            lines.append(shown + " " * (left - 2 - len(name)) + wrapped.pop(0))
        lines += [" " * left + line for line in wrapped]
    return "\n".join(line.rstrip() for line in lines)


def _example(line: str, width: int) -> str:
    """A command line, cut where a shell goes on reading."""
    parts = textwrap.wrap(line, width - 6, break_long_words=False, break_on_hyphens=False)
    return "  " + " \\\n      ".join(parts)


def _option(param: Parameter) -> str:
    return ", ".join(param.names) + (f" {param.value}" if param.value else "")


def _text(param: Parameter) -> str:
    notes = [*param.notes, *([f"default: {param.default}"] if param.default else [])]
    return f"{param.text} [{', '.join(notes)}]" if notes else param.text


def _described(param: Any, annotation: Any) -> Parameter:
    kind, info = _kind_of(annotation)
    # Not every pair of typer and click keeps the help of an argument.
    text = getattr(param, "help", None) or getattr(info, "help", None) or ""
    least, most = getattr(info, "min", None), getattr(info, "max", None)
    between = f"{least} to {most}" if least is not None and most is not None else None
    notes = [
        between or (f"{least} or more" if least is not None else f"{most} at most" if most is not None else ""),
        "required" if param.required else "",
        "may be repeated" if getattr(param, "multiple", False) and "repeat" not in text else "",
    ]
    if param.param_type_name == "argument":
        return Parameter((_argument_name(param),), "", "", tuple(filter(None, notes[:2])), text)
    flag = bool(getattr(param, "is_flag", False))
    names = sorted(param.opts, key=lambda name: name.startswith("--"))
    if param.secondary_opts:
        names = [" / ".join((param.opts[0], param.secondary_opts[0]))]
    value = "" if flag else param.metavar or _value(kind)
    return Parameter(tuple(names), value, _default(param, flag), tuple(filter(None, notes)), text)


def _argument_name(param: Any) -> str:
    return (param.metavar or param.name).strip("[]").upper().removesuffix("...") + ("..." if param.nargs == -1 else "")


def _argument_usage(param: Any) -> str:
    name = _argument_name(param)
    return name if param.required else f"[{name}]"


def _kind_of(annotation: Any) -> tuple[Any, Any]:
    """The type that a parameter holds one of, and what typer was told of it."""
    info = None
    while (origin := typing.get_origin(annotation)) is not None:
        if origin is typing.Annotated:
            info = next((m for m in annotation.__metadata__ if hasattr(m, "param_decls")), info)
        elif origin not in (typing.Union, types.UnionType, list, tuple):
            break
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    return annotation, info


def _value(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(member.value) for member in kind)
    return _KINDS.get(kind, "TEXT")


def _default(param: Any, flag: bool) -> str:
    value = param.default
    if param.required or value is None or value in ((), []) or callable(value) or (flag and not value):
        return ""
    if flag:
        return param.opts[0]
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value.value if isinstance(value, Enum) else value)
