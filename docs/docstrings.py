"""Lets mkdocstrings show octfast's docstrings: their sections, `name : what it is`, become Markdown lists."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^(Parameters|Returns|Yields|Raises|Attributes|Example|Examples)\n-{3,}\n", re.M)
_ENTRY = re.compile(r"^(?P<names>[*\w][\w*, ]*?) : (?P<text>.*)$")


class Sections(griffe.Extension):
    """Rewrites each docstring before it is shown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """A docstring of octfast's as Markdown."""
    before, *parts = _SECTION.split(text)
    out = [_escaped(before.strip())]
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        out.append(f"**{title}**")
        out.append(_section(body.strip("\n")))
    return "\n\n".join(part for part in out if part)


def _section(body: str) -> str:
    """Entries as a list, and text as it is."""
    lines: list[str] = []
    listed = False
    for line in body.splitlines():
        entry = _ENTRY.match(line)
        if entry:
            names = ", ".join(f"`{n.strip()}`" for n in entry["names"].split(","))
            lines.append(f"- {names}: {_escaped(entry['text'])}")
            listed = True
        elif line.strip() and listed and line[:1] == " ":
            lines.append(f"    {_escaped(line.strip())}")
        elif line.strip():
            if listed:
                lines.append("")
            lines.append(_escaped(line.strip()))
            listed = False
        else:
            lines.append("")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """What looks like HTML is none."""
    return re.sub(r"<(?=[a-z])", "&lt;", text) if "`" not in text else text
