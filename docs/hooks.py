"""What mkdocs does while it builds: formulas become MathML, and the API page gets every public name.

Both happen here so that the pages need nothing from elsewhere: browsers draw MathML by themselves.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

_FORMULA = re.compile(r"^```math\n(.*?)\n```$", re.M | re.S)
_NAMES = "<!-- every public name -->"
_ROOMS = {
    "data": "Data",
    "model": "Networks and bundles",
    "run": "Runs",
    "train": "Training",
    "assess": "Judging",
    "deploy": "Handing on",
    "errors": "Errors",
}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri == "api.md":
        markdown = markdown.replace(_NAMES, public_names())
    return _FORMULA.sub(lambda found: f'<div class="formula">{mathml(found.group(1))}</div>', markdown)


def mathml(tex: str) -> str:
    """A formula in TeX as MathML."""
    from latex2mathml.converter import convert

    return convert(" ".join(tex.split()), display="block")


def public_names() -> str:
    """The public names of octfast, room by room, each for mkdocstrings to describe."""
    import octfast

    found: dict[str, list[str]] = {room: [] for room in _ROOMS}
    for name, module in sorted(octfast._PUBLIC.items(), key=lambda item: item[0].lower()):
        if module.startswith("octfast."):
            found[module.split(".")[1]].append(
                f"::: {module}.{name}\n    options:\n      heading: octfast.{name}\n      toc_label: {name}\n"
            )
    parts = [f"## {_ROOMS[room]}\n\n" + "\n".join(blocks) for room, blocks in found.items() if blocks]
    return "\n".join(parts)
