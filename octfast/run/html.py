"""A run as a notebook shows it: what was trained on what, how it went, and its history."""

from __future__ import annotations

import base64
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.data.scans import describe_scans
from octfast.errors import OctfastError
from octfast.notices import notice

_SHOWN = ("arch", "head", "size", "epochs", "lr", "unfreeze", "views", "precision", "seed")
# Bytes. A notebook keeps what it shows, so of a larger picture it shows the name alone.
_MOST = 400_000


def run_html(
    path: Path,
    read_config: Callable[[], dict[str, Any]],
    read_scans: Callable[[], pd.DataFrame],
    read_history: Callable[[], pd.DataFrame],
) -> str:
    """HTML of a run: its parameters, scans by split and class, last epoch, history, and the names of its figures.

    The model is not run and nothing is raised: what is missing or damaged is said in its place. All names are escaped.

    Parameters
    ----------
    path : the run folder.
    read_config, read_scans, read_history : read what is in it; each may raise an OctfastError.
    """
    parts = [f"<p><b>Run {escape(path.name)}</b> <small>{escape(_from_here(path))}</small></p>"]
    try:
        config = read_config()
    except OctfastError as e:
        return f"<div>{parts[0]}<p>{escape(e.message)}</p></div>"
    about = {k: config[k] for k in _SHOWN if config.get(k) is not None}
    parts.append(_table([list(about)], [list(about.values())], "parameters"))
    for what, table in (("scans", lambda: _scans(read_scans())), ("last epoch", lambda: _last_epoch(read_history()))):
        try:
            parts.append(table())
        except (OctfastError, KeyError, IndexError, ValueError) as e:
            parts.append(f"<p>{what}: {escape(e.message if isinstance(e, OctfastError) else str(e))}</p>")
    parts.append(_figures(path / "figures"))
    synthetic = isinstance(config.get("data"), dict) and config["data"].get("synthetic")
    parts.append(f"<p><small>{notice(bool(synthetic))}</small></p>")
    return f"<div>{''.join(parts)}</div>"


def _from_here(path: Path) -> str:
    """The path of a folder below the current one, else "": a notebook is passed on with what it shows."""
    here = Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else ""


def _scans(scans: pd.DataFrame) -> str:
    counts = describe_scans(scans)
    body = [[split, *map(int, row)] for split, row in zip(counts.index, counts.to_numpy(), strict=True)]
    return _table([["split", *map(str, counts.columns)]], body, "scans and patients")


def _last_epoch(history: pd.DataFrame) -> str:
    last = history.iloc[-1].dropna()
    return _table([list(last.index)], [list(last)], "last epoch")


def _figures(folder: Path) -> str:
    found = sorted(f for f in folder.glob("*") if f.suffix in (".png", ".svg", ".pdf")) if folder.is_dir() else []
    out = ""
    for name, kind in (("history.png", "png"), ("history.svg", "svg+xml")):
        history = folder / name
        if not out and history in found and history.stat().st_size <= _MOST:
            data = base64.b64encode(history.read_bytes()).decode("ascii")
            source = f"data:image/{kind};base64,{data}"
            out = f'<img alt="loss and accuracy by epoch" style="max-width:100%" src="{source}">'
    if found:
        out += f"<p>figures: {escape(', '.join(f.name for f in found))}</p>"
    return out


def _table(head: list[list[Any]], body: list[list[Any]], caption: str) -> str:
    lines = ["".join(f"<th>{_cell(v)}</th>" for v in row) for row in head]
    lines += ["".join(f"<td>{_cell(v)}</td>" for v in row) for row in body]
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption style='text-align:left'>{escape(caption)}</caption>{rows}</table>"


def _cell(value: Any) -> str:
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
