"""Puts a report's content into its template, where whatever comes from the user is escaped."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from octfast.assess.report.page import SECTIONS, Page
from octfast.errors import OctfastError
from octfast.files import write_text
from octfast.notices import SYNTHETIC_NOTE

TEMPLATES = Path(str(files("octfast.assess.report") / "templates"))


def render_page(page: Page) -> str:
    """The page, with its style sheet in it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["num"] = lambda n: f"{n:,}"
    env.filters["short"] = _short
    # The style sheet is octfast's own and holds nothing of the user's.
    css = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return env.get_template("report.html.j2").render(
        **vars(page),
        section_names=SECTIONS,
        made=f"{datetime.now():%d %B %Y}",
        octfast_version=version("octfast"),
        synthetic_note=SYNTHETIC_NOTE,
        css=css,
    )


def write_whole(file: Path, text: str) -> Path:
    """Write a file under its name only when it is whole; letters that UTF-8 has not are escaped.

    Raises
    ------
    OctfastError : it cannot be written.
    """
    try:
        return write_text(file, text, errors="backslashreplace")
    except OSError as e:
        raise OctfastError(
            f"cannot write {file}: {e.strerror or e}", "is the run folder yours, and room left?"
        ) from None


def _short(text: object, most: int) -> str:
    """Text of at most so many letters."""
    shown = str(text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _printable(value: Any) -> Any:
    """Text of the user's with control characters as spaces, among them those that turn the direction of writing."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(c if c.isprintable() or c == "\n" else " " for c in value)
